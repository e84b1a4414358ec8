//! The cases of the suite, grouped by concept. Each checks one named property and panics if the
//! property does not hold.
//!
//! Run them through [`conformance!`](crate::conformance) or [`run_all`](crate::run_all), which skip
//! the cases that the backend's capabilities do not promise. A case that is called directly checks
//! no capabilities.

mod all;
pub mod cancellation;
pub mod close;
pub mod election;
pub mod exclusion;
pub mod expiry;
pub mod fencing;
pub mod input;
pub mod inspection;
pub mod liveness;
pub mod local_queue;
pub mod modes;
pub mod once;
pub mod panics;
pub mod records;
pub mod reentrancy;
pub mod release;
pub mod renewal;
pub mod together;
pub mod waiting;

pub use self::all::all;
