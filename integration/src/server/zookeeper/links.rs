use std::collections::BTreeMap;

use crate::{
    Result,
    proxy::{Direction, Proxy},
};

/// A proxy on every way from one member to another's quorum port.
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

    /// Where a member finds another's quorum port, if not there itself.
    pub(super) fn port(&self, from: usize, to: usize) -> Option<u16> {
        self.0.get(&(from, to)).map(|link| link.addr().port())
    }

    pub(super) fn swallow(&self, member: usize) {
        self.of(member)
            .for_each(|link| link.blackhole(Direction::Both));
    }

    /// Each follower opens the connection to its leader.
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
