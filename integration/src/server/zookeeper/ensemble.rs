use std::{collections::BTreeSet, fs, thread, time::Duration};

use super::{ZookeeperBuilder, ZookeeperServer, java, links::Links, server::with_free_ports};
use crate::{HarnessError, Result, server::free_port};

/// The longest time for which a member that serves may lag behind the leader.
const LAG: Duration = Duration::from_secs(5);

/// Members that serve while they have a majority. Dropping it kills them.
#[derive(Debug)]
#[must_use = "dropping it kills the servers"]
pub struct ZookeeperEnsemble {
    members: Vec<ZookeeperServer>,
    links: Option<Links>,
}

impl ZookeeperEnsemble {
    /// Starts three members.
    ///
    /// # Errors
    /// See [`ZookeeperBuilder::start`].
    pub fn start() -> Result<Self> {
        ZookeeperServer::builder().start_members(3)
    }

    /// Returns the `zookeeper://` URL of all members.
    #[must_use]
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self
            .members
            .iter()
            .map(|member| member.addr().to_string())
            .collect();
        format!("zookeeper://{}", addresses.join(","))
    }

    /// Returns all members.
    pub fn members(&mut self) -> &mut [ZookeeperServer] {
        &mut self.members
    }

    /// Returns one member.
    pub fn member(&mut self, at: usize) -> &mut ZookeeperServer {
        &mut self.members[at]
    }

    /// Returns the index of the leader.
    ///
    /// # Errors
    /// No member that answers leads.
    pub fn leader(&mut self) -> Result<usize> {
        self.with_mode("leader")
            .first()
            .copied()
            .ok_or_else(|| HarnessError::new("no member is the leader"))
    }

    /// Returns the indices of the followers.
    pub fn followers(&mut self) -> Vec<usize> {
        self.with_mode("follower")
    }

    /// Cuts a member off from all other members, silently and in both directions, while clients
    /// still reach it. In effect when this returns. Until the member notices (see
    /// [`ZookeeperBuilder::sync_limit`]), it keeps serving.
    ///
    /// # Errors
    /// The ensemble has no [links](ZookeeperBuilder::links).
    pub fn isolate(&self, at: usize) -> Result<()> {
        self.links()?.swallow(at);
        Ok(())
    }

    /// Swallows everything `follower` sends to `leader`, in this direction only. In effect when
    /// this returns.
    ///
    /// # Errors
    /// The ensemble has no [links](ZookeeperBuilder::links).
    pub fn mute(&self, follower: usize, leader: usize) -> Result<()> {
        self.links()?.mute(follower, leader);
        Ok(())
    }

    /// Undoes [`isolate`](Self::isolate) and [`mute`](Self::mute).
    ///
    /// # Errors
    /// The ensemble has no [links](ZookeeperBuilder::links).
    pub fn rejoin(&self, at: usize) -> Result<()> {
        self.links()?.heal(at);
        Ok(())
    }

    /// Waits until all members serve.
    ///
    /// # Errors
    /// A member does not serve in time.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        self.members
            .iter_mut()
            .try_for_each(ZookeeperServer::wait_until_serving)
    }

    /// Waits until all members serve after faults, and replaces the data of those that keep
    /// ephemeral nodes of ended sessions. Prints their numbers.
    ///
    /// A member that was cut off and has joined again may show nodes for good that the leader has
    /// deleted (ZOOKEEPER-4837). A waiter that is connected to this member waits for them. An
    /// operator deletes the member's data, which it then gets from the leader.
    ///
    /// # Errors
    /// A member does not serve in time.
    pub fn recover(&mut self) -> Result<()> {
        self.wait_until_serving()?;
        let first = self.shown_by_one_member()?;
        if first.iter().all(BTreeSet::is_empty) {
            return Ok(());
        }
        // All members show a node of a live session by then, or none does.
        thread::sleep(LAG);
        let second = self.shown_by_one_member()?;
        for (at, (first, second)) in first.iter().zip(&second).enumerate() {
            if first.is_disjoint(second) {
                continue;
            }
            let member = self.member(at);
            member.kill();
            let data = member.folder().join("data/version-2");
            fs::remove_dir_all(&data)
                .map_err(|error| HarnessError::new(format!("{}: {error}", data.display())))?;
            member.restart()?;
            println!("member {at} kept nodes of ended sessions");
        }
        Ok(())
    }

    /// Returns for each member the ephemeral nodes that no other member shows.
    fn shown_by_one_member(&self) -> Result<Vec<BTreeSet<String>>> {
        let shown = self.members.iter().map(ZookeeperServer::ephemerals);
        let shown = shown.collect::<Result<Vec<_>>>()?;
        let alone = |at: usize, path: &String| {
            let mut others = shown.iter().enumerate().filter(|(other, _)| *other != at);
            !others.any(|(_, other)| other.contains(path))
        };
        let alone = |(at, one): (usize, &BTreeSet<String>)| {
            one.iter().filter(|path| alone(at, path)).cloned().collect()
        };
        Ok(shown.iter().enumerate().map(alone).collect())
    }

    fn links(&self) -> Result<&Links> {
        self.links
            .as_ref()
            .ok_or_else(|| HarnessError::new("this ensemble was started without links"))
    }

    fn with_mode(&mut self, mode: &str) -> Vec<usize> {
        let members = self.members.iter_mut().enumerate();
        let mut found: Vec<_> = members
            .filter_map(|(at, member)| member.pid().map(|_| (at, &*member)))
            .collect();
        found.retain(|(_, member)| member.mode().is_ok_and(|its| its == mode));
        found.into_iter().map(|(at, _)| at).collect()
    }
}

pub(super) fn start_members(builder: &ZookeeperBuilder, count: usize) -> Result<ZookeeperEnsemble> {
    with_free_ports(|| {
        let ports = (0..count)
            .map(|_| Ok((free_port()?, free_port()?)))
            .collect::<Result<Vec<_>>>()?;
        let quorum_ports: Vec<_> = ports.iter().map(|(quorum, _)| *quorum).collect();
        let links = if builder.links {
            Some(Links::between(&quorum_ports)?)
        } else {
            None
        };
        let mut members = Vec::with_capacity(count);
        for at in 0..count {
            // Each member has its own configuration, in which the other members are behind the
            // proxies.
            let peers = ports.iter().enumerate().map(|(to, (quorum, election))| {
                let quorum = links
                    .as_ref()
                    .and_then(|links| links.port(at, to))
                    .unwrap_or(*quorum);
                (
                    format!("server.{}", to + 1),
                    format!("127.0.0.1:{quorum}:{election}"),
                )
            });
            members.push(ZookeeperServer::prepare(
                builder,
                java::MEMBER,
                at + 1,
                peers.collect(),
            )?);
        }
        members.iter_mut().try_for_each(ZookeeperServer::launch)?;
        let mut ensemble = ZookeeperEnsemble { members, links };
        ensemble.wait_until_serving()?;
        Ok(ensemble)
    })
}
