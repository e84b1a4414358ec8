//! What a session knows of its claims.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
};

use crate::{
    clock::{Deadline, Timestamp},
    request::LossNotifier,
    signal::LossReason,
};

/// What changes of a session.
pub(super) struct State<C> {
    pub(super) claims: HashMap<C, Standing>,
    /// The sum of their weights.
    pub(super) weight: usize,
    /// How many of them are not granted yet: the session is renewed for those.
    pub(super) pending: usize,
    pub(super) idle_since: Timestamp,
    pub(super) end: Option<LossReason>,
    pub(super) closing: bool,
    /// What has happened leaves open what the server has.
    pub(super) doubt: bool,
    pub(super) since_reconciled: u32,
    /// When the first of the reconciliations was begun that have failed since the last one that
    /// succeeded.
    pub(super) unreconciled_since: Option<Timestamp>,
    /// Claimed since a reconciliation began: what the server says of them may be old.
    pub(super) touched: Option<HashSet<C>>,
    /// Being removed from the server: claimed now, they would be removed under somebody's feet.
    pub(super) disowning: HashSet<C>,
    /// Never to be claimed again.
    pub(super) retired: HashSet<C>,
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
            doubt: false,
            since_reconciled: 0,
            unreconciled_since: None,
            touched: None,
            disowning: HashSet::new(),
            retired: HashSet::new(),
            next: 0,
        }
    }
}

/// How a claim stands.
pub(super) struct Standing {
    /// Another number for each claim, also of one name.
    pub(super) number: u64,
    pub(super) holder: Option<LossNotifier>,
    pub(super) frozen: Arc<OnceLock<Deadline>>,
}
