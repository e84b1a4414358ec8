use super::direction::Way;

/// What a proxy has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that it has taken.
    pub connections: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Trip-wires that have gone off.
    pub trips: u64,
    /// From the clients to the server.
    pub client_to_server: Traffic,
    /// From the server to the clients.
    pub server_to_client: Traffic,
}

/// What has gone one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Chunks that were passed on, a shortened one included.
    pub chunks: u64,
    /// Bytes that were passed on.
    pub bytes: u64,
    /// Bytes that a black hole has swallowed.
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
