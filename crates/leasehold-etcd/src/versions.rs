//! [`Versions`]: the versions of the members, and their known bug.
//!
//! Before 3.5.13, and before 3.4.31, a leader that was paused and deposed revokes live leases when
//! it resumes, because it does not check whether it still leads (etcd issue 15247). A client cannot
//! prevent that, and can only report it. Later versions check first, but only if the member has
//! missed its ticks. A leader whose ticker runs first after the pause still revokes them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etcd_client::Member as Listed;
use futures_util::future::join_all;
use leasehold_core::{ErrorKind, Result};

use crate::{
    connection::Cluster,
    error::{ERRORS, SideEffect},
    member::Member,
};

/// How often the versions are checked, to notice members that join or are upgraded. A check is one
/// small request to each member.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// The known versions of the members of one cluster.
#[derive(Default)]
pub(crate) struct Versions {
    /// Members at addresses that are not in the URL.
    others: Mutex<HashMap<String, Arc<Member>>>,
    /// The members and versions for which a warning was logged.
    warned: Mutex<HashSet<(u64, Option<String>)>>,
    /// Whether a member has the bug, or may have it because its version is unknown.
    faulty: AtomicBool,
    stopped: AtomicBool,
}

impl Versions {
    /// Returns whether a deposed leader may revoke live leases.
    pub(crate) fn leader_may_revoke_leases(&self) -> bool {
        self.faulty.load(Ordering::Relaxed)
    }

    /// Ends [`watch`].
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Records the versions of the members, and logs one warning for each that has the bug or may
    /// have it.
    fn note(&self, members: &[Listed], versions: &HashMap<u64, String>) {
        let mut faulty = false;
        // A single member is never deposed.
        for member in members.iter().filter(|_| members.len() > 1) {
            let version = versions.get(&member.id());
            if version.is_some_and(|version| !has_lease_revocation_bug(version)) {
                continue;
            }
            faulty = true;
            if !lock(&self.warned).insert((member.id(), version.cloned())) {
                continue;
            }
            match version {
                Some(version) => tracing::warn!(
                    target: "leasehold", backend = ERRORS.backend(), member = member.name(),
                    version = version.as_str(),
                    "this member revokes live leases when it resumes after a pause as the leader (etcd issue 15247): \
                     two may then hold one lock until the old holder renews; upgrade to etcd 3.5.13, 3.4.31 or later"
                ),
                None => tracing::warn!(
                    target: "leasehold", backend = ERRORS.backend(), member = member.name(),
                    urls = ?member.client_urls(),
                    "the version of this member is unknown: before etcd 3.5.13 and 3.4.31, it revokes live leases \
                     when it resumes after a pause as the leader (etcd issue 15247)"
                ),
            }
        }
        self.faulty.store(faulty, Ordering::Relaxed);
    }

    /// Asks all members for their versions.
    ///
    /// # Errors
    /// Returns an error if no member lists the members, or if the URL names members of several
    /// clusters.
    pub(crate) async fn check(&self, cluster: &Cluster) -> Result<()> {
        let listed = cluster.call(
            "connect",
            SideEffect::None,
            cluster.config.timeout,
            |channel| {
                let mut members = channel.client.cluster_client();
                async move { members.member_list().await }
            },
        );
        let listed = listed.await?;
        let members = listed.members();
        let mut versions: HashMap<u64, String> = HashMap::new();
        for status in join_all(
            cluster
                .members()
                .iter()
                .map(|member| status(cluster, member)),
        )
        .await
        {
            match status {
                Ok(status) => versions.extend(status),
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
                Err(_unreachable) => {}
            }
        }
        if cluster.uses_given_client() {
            // The client selects a member at random for each request.
            let all = async {
                for _ in 0..4 * members.len() {
                    versions.extend(status(cluster, &cluster.members()[0]).await.ok().flatten());
                }
            };
            drop(tokio::time::timeout(cluster.config.connect_timeout, all).await);
        }
        let missing = |member: &&Listed| !versions.contains_key(&member.id());
        let others = members.iter().filter(missing).flat_map(Listed::client_urls);
        let others: Vec<_> = others.filter_map(|url| self.other(cluster, url)).collect();
        // An address that the cluster advertises may be another machine in this network. Only the
        // addresses of the URL must belong to the cluster.
        let others = join_all(others.iter().map(|member| status(cluster, member))).await;
        versions.extend(
            others
                .into_iter()
                .filter_map(|status| status.ok().flatten()),
        );
        self.note(members, &versions);
        Ok(())
    }

    /// Returns the member that advertises this address.
    fn other(&self, cluster: &Cluster, url: &str) -> Option<Arc<Member>> {
        let mut others = lock(&self.others);
        if let Some(member) = others.get(url) {
            return Some(Arc::clone(member));
        }
        let member = Arc::new(cluster.member_at(url)?);
        others.insert(url.to_owned(), Arc::clone(&member));
        Some(member)
    }
}

/// Checks the versions repeatedly, as long as the cluster is in use.
pub(crate) async fn watch(cluster: Weak<Cluster>, versions: Arc<Versions>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let Some(cluster) = cluster.upgrade() else {
            return;
        };
        if versions.stopped.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = versions.check(&cluster).await {
            // The last result still counts. Renewals and waiters report an unreachable cluster more
            // prominently.
            tracing::debug!(target: "leasehold", %error, "the versions of the members were not checked");
        }
    }
}

/// Returns the id and the version of a member.
async fn status(cluster: &Cluster, member: &Member) -> Result<Option<(u64, String)>> {
    let timeout = cluster.config.connect_timeout.min(cluster.config.timeout);
    let called = cluster.call_member(member, "connect", SideEffect::None, timeout, |channel| {
        let mut maintenance = channel.client.maintenance_client();
        async move { maintenance.status().await }
    });
    let answer = called.await.map_err(|failed| failed.error)?;
    Ok(answer
        .header()
        .map(|header| (header.member_id(), answer.version().to_owned())))
}

/// Returns whether a leader of this version that was deposed while it was paused revokes channel
/// leases.
pub(crate) fn has_lease_revocation_bug(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-', '+'])
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(3), Some(4), Some(patch)) => patch < 31,
        (Some(3), Some(5), Some(patch)) => patch < 13,
        (Some(major), Some(minor), _) => (major, minor) < (3, 6),
        // An unknown format.
        _ => true,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_the_bug_are_detected() {
        for version in [
            "3.3.27",
            "3.4.0",
            "3.4.23",
            "3.4.30",
            "3.5.0-rc.1",
            "3.5.12",
            "2.3.8",
            "",
            "unknown",
        ] {
            assert!(has_lease_revocation_bug(version), "{version}");
        }
        for version in [
            "3.4.31",
            "3.4.42",
            "3.5.13",
            "3.5.16+dfsg",
            "3.6.0",
            "3.7.2",
            "4.0.0",
        ] {
            assert!(!has_lease_revocation_bug(version), "{version}");
        }
    }
}
