//! Worker processes: what other programs on the same lock do, one command at a time.
//!
//! A test starts `worker` processes and drives them by lines on their standard streams: [`Worker`]
//! is the test's end, [`serve`] the process's. Each process writes every step into an [`EventLog`]
//! *before* it acts on it, so that what it believed is known however it ends; the
//! [checker](leasehold_testkit::history) judges the merged logs.

mod connect;
mod driver;
mod event;
mod protocol;
mod register;
mod serve;
mod storm;

pub use connect::client;
pub use driver::{Ticket, Worker};
pub use event::{EventLog, now_ns};
pub use leasehold_testkit::history::{Event, Op, Phase, RegisterLine, Write};
pub use protocol::{Answer, Command, Patience, Setup, Storm};
pub use register::Register;
pub use serve::serve;
