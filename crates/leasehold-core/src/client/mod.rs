//! The client: acquisition, drain and close.

pub(crate) mod acquire;
pub(crate) mod builder;
pub(crate) mod engine;
pub(crate) mod handle;
pub(crate) mod record;
