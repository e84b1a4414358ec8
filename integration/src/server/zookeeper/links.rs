use std::collections::BTreeMap;

use crate::{
    Result,
    proxy::{Direction, Proxy},
};

/// A proxy between each member and every other member's quorum port.
#[derive(Debug, Default)]
pub(super) struct Links(BTreeMap<(usize, usize), Proxy>);

impl Links {
    pub(super) fn between(quorum_ports: &[u16]) -> Result<Self> {
        let members = 0..quorum_ports.len();
        let pairs = members
            .clone()
            .flat_map(|from| members.clone().map(move |to| (from, to)));
        let mut links = BTreeMap::new();
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            let target = (std::net::Ipv4Addr::LOCALHOST, quorum_ports[to]).into();
            links.insert((from, to), Proxy::start(target)?);
        }
        Ok(Self(links))
    }

    /// Returns the port at which `from` finds the quorum port of `to`, if it is a proxy's.
    pub(super) fn port(&self, from: usize, to: usize) -> Option<u16> {
        self.0.get(&(from, to)).map(|link| link.addr().port())
    }

    pub(super) fn swallow(&self, member: usize) {
        self.of(member)
            .for_each(|link| link.blackhole(Direction::Both));
    }

    /// Swallows the traffic in one direction. Each follower opens the connection to its leader.
    pub(super) fn mute(&self, from: usize, to: usize) {
        if let Some(link) = self.0.get(&(from, to)) {
            link.blackhole(Direction::ClientToServer);
        }
    }

    pub(super) fn heal(&self, member: usize) {
        self.of(member).for_each(Proxy::heal);
    }

    fn of(&self, member: usize) -> impl Iterator<Item = &Proxy> {
        self.0
            .iter()
            .filter(move |((from, to), _)| *from == member || *to == member)
            .map(|(_, link)| link)
    }
}
