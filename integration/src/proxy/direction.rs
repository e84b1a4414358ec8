/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client sends.
    ClientToServer,
    /// What the server sends.
    ServerToClient,
    /// Either way.
    Both,
}

impl Direction {
    /// Whether it covers what goes `way`.
    pub(crate) fn covers(self, way: Way) -> bool {
        match self {
            Self::ClientToServer => way == Way::Up,
            Self::ServerToClient => way == Way::Down,
            Self::Both => true,
        }
    }
}

/// The way of one pump: never both.
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
