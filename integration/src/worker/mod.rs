//! Worker processes: what other programs on the same lock do, one command at a time.
//!
//! A test starts `worker` processes and drives them by lines on their standard streams: [`Worker`] is the test's end,
//! [`serve`] the process's. Each process writes every step into an [`EventLog`] *before* it acts on it, so that what it
//! believed is known however it ends; the [checker](crate::checker) judges the merged logs.

mod connect;
mod driver;
mod event;
mod protocol;
mod register;
mod serve;
mod storm;

pub use connect::client;
pub use driver::{Ticket, Worker};
pub use event::{Event, EventLog, Op, Phase, now_ns};
pub use protocol::{Answer, Command, Patience, Setup, Storm};
pub use register::{Register, RegisterLine, Write};
pub use serve::serve;
