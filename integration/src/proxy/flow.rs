use std::ops::{Index, IndexMut};
use std::time::Duration;

use super::direction::Way;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Flow {
    #[default]
    Pass,
    Hold,
    Swallow,
}

/// A line in one direction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    pub(crate) flow: Flow,
    pub(crate) delay: Duration,
}

/// Both directions.
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
