use super::direction::{Direction, Way};

/// The unit that a trip-wire counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Chunks,
}

/// Cuts all connections after an exact amount of traffic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tripwire {
    direction: Direction,
    unit: Unit,
    left: u64,
}

/// The decision of a trip-wire on a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// The given number of bytes is forwarded, then all connections are closed.
    CutAfter(usize),
}

impl Tripwire {
    pub(crate) fn new(direction: Direction, unit: Unit, left: u64) -> Self {
        Self {
            direction,
            unit,
            left,
        }
    }

    pub(crate) fn judge(&mut self, way: Way, chunk: usize) -> Verdict {
        if !self.direction.covers(way) {
            return Verdict::Pass;
        }
        let weight = match self.unit {
            Unit::Bytes => chunk as u64,
            Unit::Chunks => 1,
        };
        if self.left > weight {
            self.left -= weight;
            return Verdict::Pass;
        }
        Verdict::CutAfter(match self.unit {
            // Not more than the length of the chunk, which fits.
            Unit::Bytes => self.left as usize,
            Unit::Chunks if self.left == 0 => 0,
            Unit::Chunks => chunk,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction, Tripwire, Unit, Verdict, Way};

    #[test]
    fn bytes_pass_up_to_the_limit_and_are_cut_there() {
        let mut wire = Tripwire::new(Direction::ClientToServer, Unit::Bytes, 10);
        assert_eq!(wire.judge(Way::Down, 100), Verdict::Pass);
        assert_eq!(wire.judge(Way::Up, 6), Verdict::Pass);
        assert_eq!(wire.judge(Way::Up, 6), Verdict::CutAfter(4));
    }

    #[test]
    fn last_chunk_passes_whole_and_the_next_does_not() {
        let mut wire = Tripwire::new(Direction::Both, Unit::Chunks, 2);
        assert_eq!(wire.judge(Way::Up, 6), Verdict::Pass);
        assert_eq!(wire.judge(Way::Down, 7), Verdict::CutAfter(7));
        let mut wire = Tripwire::new(Direction::Both, Unit::Chunks, 0);
        assert_eq!(wire.judge(Way::Up, 6), Verdict::CutAfter(0));
    }
}
