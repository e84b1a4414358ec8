//! The cases: one named property each, grouped by concept. A case panics if its claim does not
//! hold.
//!
//! Run them through [`conformance!`](crate::conformance) or [`run_all`](crate::run_all), which ask
//! the capabilities first; called directly, a case does not ask.

mod all;
pub mod cancellation;
pub mod close;
pub mod exclusion;
pub mod expiry;
pub mod fencing;
pub mod input;
pub mod inspection;
pub mod liveness;
pub mod local_queue;
pub mod modes;
pub mod panics;
pub mod reentrancy;
pub mod release;
pub mod renewal;
pub mod waiting;

pub use self::all::all;
