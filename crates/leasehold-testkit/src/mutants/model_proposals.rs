//! The values of candidates, which the model stores with their acquisitions.

use std::time::SystemTime;

use leasehold_core::{
    AcquisitionId, FencingToken, Record,
    backend::{RecordWrite, Request},
};

use super::bug::Bug;

/// The number of bytes that [`Bug::LeaderValueTruncated`] stores.
const TRUNCATED: usize = 4 * 1024;

/// The values of the candidates for one key.
#[derive(Debug, Default)]
pub(super) struct ModelProposals {
    /// The value of the last candidate that was granted the lock. It is shown while its owner holds
    /// the lock.
    last: Option<Record>,
    /// The number of values so far.
    versions: u64,
}

impl ModelProposals {
    /// Stores the value of a candidate that was granted the lock.
    pub(super) fn granted(
        &mut self,
        request: &Request,
        token: Option<FencingToken>,
        bug: Option<Bug>,
    ) {
        let proposal = request.proposal().map(|proposal| proposal.to_vec());
        let mut record = Record::new(request.owner(), stored(proposal.unwrap_or_default(), bug));
        self.versions += 1;
        record.version = self.versions;
        record.sequence = 0;
        record.token = token;
        record.label = request.label().to_owned();
        record.written = SystemTime::now();
        self.last = Some(record);
    }

    /// Registers a candidate that waits.
    pub(super) fn waits(&mut self, request: &Request, bug: Option<Bug>) {
        if let (Some(Bug::LeaderIsLastCandidate), Some(last), Some(proposal)) =
            (bug, &mut self.last, request.proposal())
        {
            last.value = proposal.to_vec();
        }
    }

    /// Replaces the value of the candidate `owner`. Returns the version.
    pub(super) fn proclaimed(
        &mut self,
        owner: AcquisitionId,
        write: &RecordWrite,
        bug: Option<Bug>,
    ) -> u64 {
        if let Some(last) = &mut self.last
            && (last.owner != owner || last.sequence < write.sequence())
        {
            self.versions += 1;
            last.value = stored(write.value().unwrap_or_default().to_vec(), bug);
            (last.version, last.sequence) = (self.versions, write.sequence());
        }
        self.versions
    }

    /// Returns the value of the candidate that holds the lock.
    pub(super) fn leader(
        &self,
        holds: impl Fn(AcquisitionId) -> bool,
        bug: Option<Bug>,
    ) -> Option<Record> {
        let outlives = bug == Some(Bug::LeaderOutlivesTerm);
        self.last
            .clone()
            .filter(|last| outlives || holds(last.owner))
    }
}

fn stored(mut value: Vec<u8>, bug: Option<Bug>) -> Vec<u8> {
    if bug == Some(Bug::LeaderValueTruncated) {
        value.truncate(TRUNCATED);
    }
    value
}
