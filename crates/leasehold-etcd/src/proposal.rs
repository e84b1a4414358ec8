//! Writes of the proposal of a candidate of an election: the value of its key in the queue.
//!
//! A write compares the create revision and the modification revision of the key in the transaction
//! that puts the proposal. A copy that is late or was sent twice therefore changes nothing: the key
//! is gone, or a later write has modified it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use leasehold_core::{
    ErrorKind, Mode, Record, Result,
    backend::{RecordWrite, Request},
};

use crate::{
    connection::Cluster,
    error::{ERRORS, SideEffect},
    record::{Grant, MAX_ATTEMPTS, WRITE, not_held},
};

/// Checks the proposal of a request, if it is the request of a candidate.
pub(crate) fn check(request: &Request) -> Result<()> {
    let Some(proposal) = request.proposal() else {
        return Ok(());
    };
    let invalid = |message| Err(ERRORS.error(ErrorKind::InvalidInput, "acquire", message));
    if request.mode() != Mode::Exclusive {
        return invalid(format!(
            "a candidate of the election `{}` requests a {} lock; request an exclusive one",
            request.key(),
            request.mode()
        ));
    }
    if proposal.len() > Record::MAX_LEN {
        return invalid(format!(
            "the proposal of a candidate of the election `{}` has {} bytes and the limit is {}; store it elsewhere, and propose a \
             reference to it",
            request.key(),
            proposal.len(),
            Record::MAX_LEN
        ));
    }
    Ok(())
}

/// The writes of the proposal of one lease, which are made one at a time.
#[derive(Debug, Default)]
pub(crate) struct ProposalWrites(Mutex<Writes>);

#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    /// The largest sequence that was sent.
    sent: u64,
    /// The sequence and the revision of the last write that was acknowledged.
    done: Option<(u64, i64)>,
}

impl ProposalWrites {
    fn lock(&self) -> MutexGuard<'_, Writes> {
        // No code panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grant<'_> {
    /// Replaces the proposal of a candidate. Each request to a member may take `timeout`.
    pub(crate) async fn write_proposal(
        &self,
        cluster: &Cluster,
        timeout: Duration,
        writes: &ProposalWrites,
        write: &RecordWrite,
    ) -> Result<u64> {
        let Some(proposal) = write.value() else {
            return Err(ERRORS.error(
                ErrorKind::Unsupported,
                WRITE,
                "a candidate always has a proposal; write an empty one, or release the lock",
            ));
        };
        let before = *writes.lock();
        if let Some((sequence, revision)) = before.done
            && sequence >= write.sequence()
        {
            return Ok(revision.unsigned_abs());
        }
        writes.lock().sent = write.sequence().max(before.sent);
        let mut modified = before.done.map_or(self.revision, |(_, revision)| revision);
        for _ in 0..MAX_ATTEMPTS {
            let txn = self.replace_proposal(modified, proposal);
            let (answer, resent) = cluster
                .txn_tracking_resends(WRITE, SideEffect::Writes, timeout, || txn.clone())
                .await?;
            let written = if answer.succeeded() {
                let header = answer.header().ok_or_else(|| ERRORS.unexpected(WRITE))?;
                Some(header.revision())
            } else {
                let Some(TxnOpResponse::Get(mut own_key)) =
                    answer.op_responses().into_iter().next()
                else {
                    return Err(ERRORS.unexpected(WRITE));
                };
                let own_key = own_key.take_kvs().into_iter().next();
                let Some(own_key) = own_key.filter(|kv| kv.create_revision() == self.revision)
                else {
                    return Err(not_held(resent));
                };
                modified = own_key.mod_revision();
                // An earlier copy may have taken effect.
                let may_be_written = resent || before.sent >= write.sequence();
                (may_be_written && own_key.value() == proposal).then_some(modified)
            };
            if let Some(revision) = written {
                writes.lock().done = Some((write.sequence(), revision));
                return Ok(revision.unsigned_abs());
            }
        }
        Err(ERRORS.error(
            ErrorKind::Unavailable,
            WRITE,
            "other programs change the key of the candidate at each attempt of the write; stop them, or choose another name",
        ))
    }

    /// Puts the proposal if this grant holds the lock and its key was last modified at this
    /// revision. Otherwise reads the key.
    fn replace_proposal(&self, modified: i64, proposal: &[u8]) -> Txn {
        let own_key = || self.queue_key.key.to_vec();
        let holds = Compare::create_revision(own_key(), CompareOp::Equal, self.revision);
        let unchanged = Compare::mod_revision(own_key(), CompareOp::Equal, modified);
        let options = PutOptions::new().with_lease(self.lease);
        Txn::new()
            .when([holds, unchanged])
            .and_then([TxnOp::put(own_key(), proposal, Some(options))])
            .or_else([TxnOp::get(own_key(), None)])
    }
}
