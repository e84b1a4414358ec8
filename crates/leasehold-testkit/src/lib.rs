#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod cases;
pub mod history;
pub mod mutants;
pub mod sim;

mod backend_fixture;
mod case;
mod conformance;
mod fixtures;
mod panicking;
mod panicking_subscriber;
#[cfg(target_os = "linux")]
mod port;
mod process;
mod report;
mod skewed_clock;
mod subscribe;
mod wrapping;

#[doc(hidden)]
pub mod harness;

#[cfg(target_os = "linux")]
pub use crate::port::free_port;
pub use crate::{
    backend_fixture::{BackendFixture, FixtureFn},
    case::{Case, Needs},
    panicking_subscriber::PanickingSubscriber,
    report::{CaseReport, Outcome, Report, run_all, run_case},
    skewed_clock::SkewedClock,
    subscribe::subscribe,
    wrapping::{Forwarding, Wrapped, Wrapping},
};

/// Compiles the examples of `docs/adding-a-backend.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-backend.md")]
pub struct AddingABackend;
