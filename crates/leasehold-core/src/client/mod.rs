//! The client: acquisition, drain and close.

pub(crate) mod acquire;
pub(crate) mod acquire_all;
pub(crate) mod builder;
pub(crate) mod engine;
pub(crate) mod handle;
pub(crate) mod lock_order;
pub(crate) mod record;
