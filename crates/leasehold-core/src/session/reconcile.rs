//! Reconciliation: compares what the server lists for a session with what guards and pending
//! requests own.
//!
//! If a reply is lost, the server may have an entry that no part of this process knows of, and the
//! renewals of the session would keep it alive forever. Renewals therefore reconcile.

use std::collections::{HashMap, HashSet};

use crate::{
    error::Result,
    session::{
        session::{Session, SessionDriver},
        state::ClaimState,
    },
    signal::LossReason,
};

/// With at most this many claims, every renewal reconciles. With more, only every third does, and
/// every one for a while after an uncertain operation, because the server sends the whole list.
const ALWAYS_UP_TO: usize = 1_000;
const EVERY_NTH_RENEWAL: u32 = 3;

/// Removes entries that nobody owns, and notifies holders whose entries are gone.
///
/// # Errors
/// Returns the driver's error. Each failure after the first in a row is logged as a warning.
pub(super) async fn reconcile<D: SessionDriver>(session: &Session<D>) -> Result<()> {
    let begun = session.now();
    let reconciled = try_reconcile(session).await;
    let mut state = session.lock();
    let Err(error) = &reconciled else {
        state.unreconciled_since = None;
        if state
            .uncertain_since
            .is_some_and(|since| session.next_check(since, begun).is_none())
        {
            state.uncertain_since = None;
        }
        return reconciled;
    };
    state.touched = None;
    let again = state.unreconciled_since.is_some();
    let since = *state.unreconciled_since.get_or_insert(begun);
    let locks = state.claims.len();
    drop(state);
    session.end_if_lost(error);
    let (failing_for, ttl) = (session.now().since(since), session.ttl());
    if again {
        tracing::warn!(
            target: "leasehold", %error, locks, ?failing_for, %ttl,
            "cannot list or clean up the locks of a session; after a TTL its locks are no longer renewed"
        );
    } else {
        tracing::debug!(target: "leasehold", %error, "session not reconciled; retried at the next renewal");
    }
    reconciled
}

async fn try_reconcile<D: SessionDriver>(session: &Session<D>) -> Result<()> {
    // The claims that existed before the server is asked. A lock granted later may be missing from
    // the answer, and a lock released later may still be in it.
    let before: HashMap<D::Claim, Option<u64>> = {
        let mut state = session.lock();
        state.since_reconciled += 1;
        if state.uncertain_since.is_none()
            && state.unreconciled_since.is_none()
            && state.claims.len() > ALWAYS_UP_TO
            && state.since_reconciled < EVERY_NTH_RENEWAL
        {
            return Ok(());
        }
        state.since_reconciled = 0;
        state.touched = Some(HashSet::new());
        // Each claim that holds a lock comes with its number.
        let held =
            |claim_state: &ClaimState| claim_state.holder.is_some().then_some(claim_state.number);
        state
            .claims
            .iter()
            .map(|(name, claim_state)| (name.clone(), held(claim_state)))
            .collect()
    };
    let owned = session.driver().list_owned(session.handle()).await?;
    let deadline = session.valid_until();
    let on_server: HashSet<&D::Claim> = owned.claims.iter().collect();
    let (mut orphans, mut lost) = (Vec::new(), Vec::new());
    {
        // The answer has arrived: every entry in it was claimed before the server created it.
        let mut state = session.lock();
        let touched = state.touched.take().unwrap_or_default();
        let ours = |name: &&D::Claim| before.contains_key(*name) || touched.contains(*name);
        orphans.extend(owned.claims.iter().filter(|name| !ours(name)).cloned());
        // Names whose removal was pending and which are no longer listed have been removed.
        state.deleting = orphans.iter().cloned().collect();
        for name in &owned.revoked {
            if let Some(claim_state) = state.claims.get(name) {
                // A lock that was already revoked keeps its earlier deadline.
                let _: &_ = claim_state.frozen.get_or_init(|| deadline);
            }
        }
        for (name, number) in before.iter().filter(|(name, _)| !on_server.contains(name)) {
            if let Some(claim_state) = state
                .claims
                .get(name)
                .filter(|claim_state| Some(claim_state.number) == *number)
            {
                lost.extend(claim_state.holder.clone());
            }
        }
    }
    for notifier in lost {
        notifier.lost(LossReason::Replaced);
    }
    if !orphans.is_empty() {
        tracing::debug!(target: "leasehold", ?orphans, "removing entries that nobody owns");
        // If this fails, the names stay reserved until their removal is confirmed.
        session
            .driver()
            .delete_orphans(session.handle(), orphans)
            .await?;
        session.lock().deleting.clear();
    }
    Ok(())
}
