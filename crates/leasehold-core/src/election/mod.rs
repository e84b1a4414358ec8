//! Elections: the exclusive lock of a name together with a value that shows who leads.

pub(crate) mod handle;
pub(crate) mod leader;
mod standby;
pub(crate) mod term;
