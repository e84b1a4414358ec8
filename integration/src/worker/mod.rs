//! Worker processes, which act as other programs that use the same locks.
//!
//! A test starts `worker` processes and sends them commands as lines on their standard streams:
//! [`Worker`] is the test's end, [`serve`] the process's. Each process writes every event into an
//! [`EventLog`] *before* it acts on it, so that the log is complete even if the process is killed.
//! The [checker](leasehold_testkit::history) verifies the merged logs.

mod connect;
mod driver;
mod event;
mod protocol;
mod register;
mod replica;
mod serve;
mod storm;

pub use connect::client;
pub use driver::{Ticket, Worker};
pub use event::{EventLog, now_ns};
pub use leasehold_testkit::history::{Event, Op, Phase, RegisterLine, Write};
pub use protocol::{Answer, Command, Patience, Setup, Storm};
pub use register::Register;
pub use replica::{Replica, unix_ms};
pub use serve::serve;
pub use storm::storm;
