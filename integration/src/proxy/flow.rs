use std::ops::{Index, IndexMut};
use std::time::Duration;

use super::direction::Way;

/// The treatment of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Flow {
    #[default]
    Pass,
    Hold,
    Swallow,
}

/// The state of one direction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    pub(crate) flow: Flow,
    pub(crate) delay: Duration,
}

/// The state of both directions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lines {
    up: Line,
    down: Line,
}

impl Index<Way> for Lines {
    type Output = Line;

    fn index(&self, way: Way) -> &Line {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }
}

impl IndexMut<Way> for Lines {
    fn index_mut(&mut self, way: Way) -> &mut Line {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}
