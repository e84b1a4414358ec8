/// A direction of traffic, as seen by a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Bytes sent by the client.
    ClientToServer,
    /// Bytes sent by the server.
    ServerToClient,
    /// Both directions.
    Both,
}

impl Direction {
    /// All directions.
    pub const ALL: [Self; 3] = [Self::ClientToServer, Self::ServerToClient, Self::Both];

    /// Returns whether `way` is part of this direction.
    pub(crate) fn covers(self, way: Way) -> bool {
        match self {
            Self::ClientToServer => way == Way::Up,
            Self::ServerToClient => way == Way::Down,
            Self::Both => true,
        }
    }
}

/// The direction of one pump, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the server.
    Up,
    /// To the client.
    Down,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::Up, Self::Down];

    pub(crate) fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}
