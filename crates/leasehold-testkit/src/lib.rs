#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod cases;
pub mod history;
pub mod mutants;
pub mod sim;

mod case;
mod fixtures;
mod model;
mod panicking;
#[cfg(target_os = "linux")]
mod port;
mod process;
mod registry;
mod report;
mod skewed_clock;
mod subject;
mod wrapping;

#[doc(hidden)]
pub mod harness;

#[cfg(target_os = "linux")]
pub use crate::port::free_port;
pub use crate::{
    case::{Case, Needs},
    panicking::PanickingSubscriber,
    registry::cases,
    report::{CaseReport, Outcome, Report, run_all, run_case},
    skewed_clock::SkewedClock,
    subject::{Subject, SubjectOf},
    wrapping::{Form, Forwarding, InForm},
};

/// The program on the page about adding a backend compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-backend.md")]
pub struct AddingABackend;
