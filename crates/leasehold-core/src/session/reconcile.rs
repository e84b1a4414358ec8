//! Reconciliation: what the server says we own against what live guards and pending requests own.
//!
//! A lost reply may leave on the server what nobody here knows of, and our own renewals would keep
//! it alive for ever. So renewals compare.

use std::collections::{HashMap, HashSet};

use crate::{
    error::Result,
    session::{Session, SessionDriver, state::Standing},
    signal::LossReason,
};

/// Up to this many claims, every renewal compares; above, only every third and those after a doubt,
/// because the server sends the whole list.
const FEW: usize = 1_000;
const SELDOM: u32 = 3;

/// Removes what nobody owns, and tells those of their loss who have nothing any more.
///
/// # Errors
/// As the driver fails. From the second failure in a row on, each is a warning.
pub(super) async fn reconcile<D: SessionDriver>(session: &Session<D>) -> Result<()> {
    let begun = session.now();
    let reconciled = try_reconcile(session).await;
    let mut state = session.lock();
    let Err(error) = &reconciled else {
        state.unreconciled_since = None;
        return reconciled;
    };
    // The next renewal does it, however many claims there are.
    (state.doubt, state.touched) = (true, None);
    let again = state.unreconciled_since.is_some();
    let since = *state.unreconciled_since.get_or_insert(begun);
    let locks = state.claims.len();
    drop(state);
    session.end_if_lost(error);
    let (failing_for, ttl) = (session.now().since(since), session.ttl());
    if again {
        tracing::warn!(
            target: "leasehold", %error, locks, ?failing_for, %ttl,
            "cannot read or tidy what a session owns: after a TTL its locks are no longer renewed"
        );
    } else {
        tracing::debug!(target: "leasehold", %error, "not reconciled; tried again at the next renewal");
    }
    reconciled
}

async fn try_reconcile<D: SessionDriver>(session: &Session<D>) -> Result<()> {
    // Those that are there before the server is asked: what is granted later may be missing from
    // its answer, and what is released later may still be in it.
    let before: HashMap<D::Claim, Option<u64>> = {
        let mut state = session.lock();
        state.since_reconciled += 1;
        if !state.doubt && state.claims.len() > FEW && state.since_reconciled < SELDOM {
            return Ok(());
        }
        state.doubt = false;
        state.since_reconciled = 0;
        state.touched = Some(HashSet::new());
        // With the number of those that hold.
        let held = |standing: &Standing| standing.holder.is_some().then_some(standing.number);
        state
            .claims
            .iter()
            .map(|(name, standing)| (name.clone(), held(standing)))
            .collect()
    };
    let owned = session.driver().owned(session.handle()).await?;
    let deadline = session.valid_until();
    let on_server: HashSet<&D::Claim> = owned.claims.iter().collect();
    let (mut orphans, mut lost) = (Vec::new(), Vec::new());
    {
        // After the answer: whoever has sent something by now has claimed it before.
        let mut state = session.lock();
        let touched = state.touched.take().unwrap_or_default();
        let ours = |name: &&D::Claim| before.contains_key(*name) || touched.contains(*name);
        orphans.extend(owned.claims.iter().filter(|name| !ours(name)).cloned());
        // Those that were being removed and are no longer there were removed.
        state.disowning = orphans.iter().cloned().collect();
        for name in &owned.broken {
            if let Some(standing) = state.claims.get(name) {
                // RevokeOutcome already is as good.
                let _: &_ = standing.frozen.get_or_init(|| deadline);
            }
        }
        for (name, number) in before.iter().filter(|(name, _)| !on_server.contains(name)) {
            if let Some(standing) = state
                .claims
                .get(name)
                .filter(|standing| Some(standing.number) == *number)
            {
                lost.extend(standing.holder.clone());
            }
        }
    }
    for sink in lost {
        sink.lost(LossReason::Replaced);
    }
    if !orphans.is_empty() {
        tracing::debug!(target: "leasehold", ?orphans, "removing what nobody here owns");
        // If it fails, what may still be removed stays unclaimed until it certainly was.
        session.driver().disown(session.handle(), orphans).await?;
        session.lock().disowning.clear();
    }
    Ok(())
}
