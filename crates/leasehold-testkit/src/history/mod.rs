//! Judges what several processes believed, said and did: C1 to C3. (C4, what is left over, only the
//! system itself can tell: a leftovers of the servers, or
//! [`SimNode::holds`](crate::sim::SimNode::holds).)
//!
//! All processes share a clock (on one host `CLOCK_BOOTTIME`, in a simulation the simulated time),
//! so intervals of belief are exact. A process *believes* in an exclusive lock from the grant it
//! was told of until it begins to release, sees the loss, is killed, or the last deadline that it
//! wrote down has come: what it may have believed for longer, unwritten, is not counted, so nothing
//! is reported that was not so.

mod checker;
mod event;
mod violation;

pub use self::{
    checker::{Order, grants_between, overlaps, register, tokens},
    event::{Event, Op, Phase, RegisterLine, Write},
    violation::Violation,
};
