use super::direction::Way;

/// Statistics of a proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// The number of accepted connections.
    pub connections: u64,
    /// The number of open connections.
    pub open: u64,
    /// The number of trip-wires that have triggered.
    pub trips: u64,
    /// Traffic from the clients to the server.
    pub client_to_server: Traffic,
    /// Traffic from the server to the clients.
    pub server_to_client: Traffic,
}

/// Statistics of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The number of forwarded chunks, including truncated ones.
    pub chunks: u64,
    /// The number of forwarded bytes.
    pub bytes: u64,
    /// The number of bytes swallowed by a black hole.
    pub swallowed: u64,
}

impl Counters {
    pub(crate) fn traffic(&mut self, way: Way) -> &mut Traffic {
        match way {
            Way::Up => &mut self.client_to_server,
            Way::Down => &mut self.server_to_client,
        }
    }
}
