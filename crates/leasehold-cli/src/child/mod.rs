//! [`Child`]: the program that runs under the lock, and the processes that it started.

mod command;
#[cfg(target_os = "linux")]
mod descendants;
#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

pub(crate) use self::command::Environment;
#[cfg(not(unix))]
pub(crate) use self::other::Child;
#[cfg(unix)]
pub(crate) use self::unix::Child;
