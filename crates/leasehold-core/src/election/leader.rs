//! [`Leader`]: who leads; [`Leaders`]: who leads, one after the other.

use std::{fmt, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::{
    backend::record::{Record, RecordRead},
    client::{handle::LockClient, record::RecordWatch},
    error::Result,
    fencing::FencingToken,
    key::LockKey,
};

/// The time for which a backend must show an older leader, until an observer takes it for the
/// present one: the backend has then lost its data, and counts again. A late answer is replaced
/// within the next second.
const DATA_IS_LOST: Duration = Duration::from_secs(10);

/// The leader of an election, and the value that it has proclaimed.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let election = client.election("scheduler").with_label("host 7");
/// let term = election.campaign("10.0.0.7").await?;
/// let leader = election.leader().await?.expect("one was elected");
/// assert_eq!(leader.value, b"10.0.0.7");
/// assert_eq!(leader.label, "host 7");
/// assert_eq!(leader.token, term.fencing_token());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The value that the leader has proclaimed last.
    pub value: Vec<u8>,
    /// The fencing token of the leader's term. Later terms have larger tokens. `None` if the
    /// backend has no tokens.
    pub token: Option<FencingToken>,
    /// A number that grows with each value that this leader proclaims.
    pub version: u64,
    /// The label of the leader, for people. Empty if the backend stores none with the value, or if
    /// another program leads.
    pub label: String,
}

impl Leader {
    /// Returns whether the backend showed this leader, or this value, before `other`.
    fn is_before(&self, other: &Self) -> bool {
        (self.token, self.version) < (other.token, other.version)
    }
}

impl From<Record> for Leader {
    fn from(record: Record) -> Self {
        Self {
            value: record.value,
            token: record.token,
            version: record.version,
            label: record.label,
        }
    }
}

/// Returns the read of the leader of `key`.
pub(super) fn read(key: LockKey) -> RecordRead {
    let mut read = RecordRead::new(key);
    read.while_held = true;
    read
}

/// An observer of an election. [`Election::observe`](crate::Election::observe) creates it.
///
/// The backend notifies it of new values, new leaders, and of the end of a term. If a backend
/// cannot, the observer reads once a second.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let election = client.election("scheduler");
/// let mut leaders = election.observe();
/// assert_eq!(leaders.next().await?, None);
///
/// let term = election.campaign("10.0.0.7").await?;
/// let leader = leaders.next().await?.expect("one was elected");
/// assert_eq!(leader.value, b"10.0.0.7");
///
/// term.resign().await?;
/// assert_eq!(leaders.next().await?, None);
/// # Ok(()) }
/// ```
pub struct Leaders {
    watch: RecordWatch,
    /// The answer that was returned last. `None` before the first.
    pub(super) reported: Option<Option<Leader>>,
    /// The newest leader so far.
    newest: Option<Leader>,
    /// Since when the backend has shown an older leader.
    older_since: Option<Instant>,
}

impl Leaders {
    pub(super) fn new(client: LockClient, key: Result<LockKey>) -> Self {
        Self {
            watch: RecordWatch::new(client, key.map(read)),
            reported: None,
            newest: None,
            older_since: None,
        }
    }

    /// Waits until the leader or its value differs from what was returned last, and returns it. The
    /// first call returns the present leader at once. `None` means that there is no leader.
    ///
    /// # Guaranteed
    /// - The last state is never missed: if nothing changes any more, a call returns it. Earlier
    ///   states may be skipped, and so may the time between two leaders.
    /// - No older leader is returned after a newer one, and no older value after a newer one of the
    ///   same leader, unless the backend lost its data. No two calls in a row return the same.
    ///
    /// # Not guaranteed
    /// The answer may be out of date when the caller sees it. Only fencing tokens keep a former
    /// leader from a resource.
    ///
    /// # Faults
    /// While the backend cannot be reached, the call waits, and reads again once a second.
    ///
    /// # Errors
    /// As [`RecordWatch::next`](crate::RecordWatch::next).
    ///
    /// # Cancel safety
    /// Safe: a dropped call loses no state. The next call returns it.
    pub async fn next(&mut self) -> Result<Option<Leader>> {
        loop {
            let next = match self.older_since {
                None => self.watch.next().await,
                Some(since) => match timeout_at(since + DATA_IS_LOST, self.watch.next()).await {
                    Ok(next) => next,
                    Err(_elapsed) => {
                        // If nobody has polled since, the last read may be long ago.
                        self.watch.start_again();
                        (self.older_since, self.newest) = (None, None);
                        continue;
                    }
                },
            };
            let leader = next?.map(Leader::from);
            if let (Some(leader), Some(newest)) = (&leader, &self.newest)
                && leader.is_before(newest)
            {
                self.older_since.get_or_insert_with(Instant::now);
                continue;
            }
            self.older_since = None;
            if leader.is_some() {
                self.newest.clone_from(&leader);
            }
            if self.reported.as_ref() != Some(&leader) {
                self.reported = Some(leader.clone());
                return Ok(leader);
            }
        }
    }

    /// Returns the same answers as a stream. It ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Option<Leader>>> + Send + Unpin {
        stream::unfold(Some(self), |leaders| async {
            let mut leaders = leaders?;
            let next = leaders.next().await;
            let rest = next.is_ok().then_some(leaders);
            Some((next, rest))
        })
        .boxed()
    }
}

impl fmt::Debug for Leaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaders")
            .field("reported", &self.reported)
            .finish_non_exhaustive()
    }
}
