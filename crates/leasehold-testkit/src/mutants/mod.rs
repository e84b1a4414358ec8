//! Backends that are broken on purpose, which test the conformance suite itself.
//!
//! Each [`Bug`] is one classic mistake and must fail exactly one case. All of them are variants of
//! one small store in memory, the *model*. Without a bug, the model keeps the whole contract. Run
//! the models of a test clock in tokio's paused time, with `start_paused` on a current-thread
//! runtime.

mod bug;
mod model;
mod model_fixture;
mod model_proposals;
mod model_records;

pub use self::{bug::Bug, model_fixture::ModelFixture};
