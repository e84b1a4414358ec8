//! Inspection and revocation of the locks in memory.

use std::{num::NonZeroU32, sync::Arc};

use leasehold_core::{
    AcquisitionId, HolderRef, Inspection, LockKey, LossReason, Mode, Revocation, RevokeOutcome,
    WaiterRef,
};

use super::{lock_entry::LockEntry, state::State};

/// One mode of each name space.
const NAME_SPACES: [Mode; 2] = [
    Mode::Exclusive,
    Mode::Permit {
        of: NonZeroU32::MIN,
    },
];

/// Returns the holders of `key` and its waiters.
pub(super) fn inspect(state: &State, key: &LockKey) -> Inspection {
    let mut inspection = Inspection::default();
    for mode in NAME_SPACES {
        state.table.with_entry(key, mode, |entry| {
            list(state, key, entry, &mut inspection);
        });
    }
    inspection
}

fn list(state: &State, key: &LockKey, entry: &mut LockEntry, into: &mut Inspection) {
    entry.update(&state.issuer);
    let now = state.issuer.now();
    into.holders
        .extend(entry.holders.list().into_iter().map(|holder| {
            let request = &holder.grant.request;
            let id = request.owner().as_u128().to_be_bytes();
            let mut listed = HolderRef::new(key.clone(), id);
            listed.mode = Some(request.mode());
            listed.owner = Some(request.owner());
            listed.label = String::from(request.label());
            listed.token = holder.stored_token;
            listed.expires_in = Some(holder.expires.since(now));
            listed
        }));
    let waiters = entry.queue.values().chain(entry.watchers.values());
    into.waiters.extend(
        waiters.map(|waiter| WaiterRef::new(Some(waiter.request.mode()), waiter.request.label())),
    );
}

/// Revokes the lock of `holder`.
pub(super) fn revoke(state: &State, holder: &HolderRef, revocation: Revocation) -> RevokeOutcome {
    for mode in NAME_SPACES {
        let outcome = state.table.with_entry(&holder.key, mode, |entry| {
            revoke_in(state, entry, holder, revocation)
        });
        if outcome != RevokeOutcome::AlreadyGone {
            return outcome;
        }
    }
    RevokeOutcome::AlreadyGone
}

fn revoke_in(
    state: &State,
    entry: &mut LockEntry,
    holder: &HolderRef,
    revocation: Revocation,
) -> RevokeOutcome {
    entry.update(&state.issuer);
    let owner =
        <[u8; 16]>::try_from(&*holder.id).map(|id| AcquisitionId::from(u128::from_be_bytes(id)));
    let Some(held) = owner
        .ok()
        .and_then(|owner| entry.holders.by_owner_mut(owner))
    else {
        return RevokeOutcome::AlreadyGone;
    };
    if revocation == Revocation::Immediate {
        let grant = Arc::clone(&held.grant);
        entry.holders.remove(&grant);
        grant.request.loss_notifier().lost(LossReason::Replaced);
        entry.update(&state.issuer);
        RevokeOutcome::Freed
    } else {
        held.renewable = false;
        RevokeOutcome::FreeWithin(Some(held.expires.since(state.issuer.now())))
    }
}
