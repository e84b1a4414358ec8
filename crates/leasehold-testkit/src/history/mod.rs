//! Checks the recorded history of several processes against three guarantees.
//!
//! | function | guarantee |
//! |---|---|
//! | [`overlaps`] | mutual exclusion: no two processes hold an exclusive lock at the same time |
//! | [`tokens`] | token order: fencing tokens are unique and increase from grant to grant |
//! | [`register`] | fenced writes: a register that rejects old tokens loses no update |
//!
//! A fourth guarantee, that no lock is left over, is checked on the servers themselves, for example
//! with [`SimNode::holds`](crate::sim::SimNode::holds).
//!
//! All processes record times of one clock: `CLOCK_BOOTTIME` on a host, or the simulated time of a
//! simulation. A process *holds* a lock from the moment when its grant is reported to it. It stops
//! to hold the lock when it begins the release, observes the loss, is killed, or its last recorded
//! deadline has passed. Time after the last recorded deadline is not counted, so every reported
//! violation is a real one.
//!
//! ```
//! use leasehold_testkit::history::{Event, Op, Phase, overlaps};
//!
//! let grant = |proc: &str, t_ns, deadline| Event {
//!     t_ns,
//!     proc: proc.to_owned(),
//!     attempt: 1,
//!     key: "item/42".to_owned(),
//!     op: Op::Acquire,
//!     phase: Phase::Ok,
//!     shared: false,
//!     token: None,
//!     deadline: Some(deadline),
//! };
//! assert!(overlaps(&[grant("a", 10, 100), grant("b", 100, 200)]).is_empty());
//! assert_eq!(overlaps(&[grant("a", 10, 100), grant("b", 90, 200)]).len(), 1);
//! ```

mod checker;
mod event;
mod violation;

pub use self::{
    checker::{Order, grants_between, overlaps, register, tokens},
    event::{Event, Op, Phase, RegisterLine, Write},
    violation::Violation,
};
