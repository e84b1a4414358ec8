//! The claims of a session and their state.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
};

use crate::{
    backend::request::LossNotifier,
    clock::{Deadline, Timestamp},
    signal::LossReason,
};

/// The mutable part of a session.
pub(super) struct State<C> {
    pub(super) claims: HashMap<C, ClaimState>,
    /// The sum of the claims' weights.
    pub(super) weight: usize,
    /// The number of claims that are not granted yet. The session is renewed while there are any.
    pub(super) pending: usize,
    pub(super) idle_since: Timestamp,
    pub(super) end: Option<LossReason>,
    pub(super) closing: bool,
    /// The time of an operation that ended without an answer. Its request may still arrive, so that
    /// the server's entries are uncertain. A later operation replaces it only once a reconciliation
    /// was tried.
    pub(super) uncertain_since: Option<Timestamp>,
    pub(super) since_reconciled: u32,
    /// The start of the first failed reconciliation since the last successful one.
    pub(super) unreconciled_since: Option<Timestamp>,
    /// Names claimed since a reconciliation began. The server's list may be older than they are.
    pub(super) touched: Option<HashSet<C>>,
    /// Names being removed from the server. If they were claimed now, the removal would delete a
    /// new entry.
    pub(super) deleting: HashSet<C>,
    /// Names that must never be claimed again.
    pub(super) tombstones: HashSet<C>,
    pub(super) next: u64,
}

impl<C> State<C> {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            claims: HashMap::new(),
            weight: 0,
            pending: 0,
            idle_since: now,
            end: None,
            closing: false,
            uncertain_since: None,
            since_reconciled: 0,
            unreconciled_since: None,
            touched: None,
            deleting: HashSet::new(),
            tombstones: HashSet::new(),
            next: 0,
        }
    }
}

/// The state of a claim.
pub(super) struct ClaimState {
    /// A unique number, which distinguishes claims of the same name.
    pub(super) number: u64,
    pub(super) holder: Option<LossNotifier>,
    pub(super) frozen: Arc<OnceLock<Deadline>>,
}
