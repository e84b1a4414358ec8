//! What many tasks ask for, in one statement.

use std::{
    fmt,
    sync::{
        Arc, Mutex as SyncMutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{ErrorKind, Result, backend::BoxFuture, session};
use tokio::sync::Mutex;

use crate::{
    connection::Link,
    keys::{AdvisoryKey, Family},
    session::SessionRef,
    session_conn::SessionConn,
};

/// Attempts at permits that travel together.
const PERMITS: u64 = 16;

/// One acquisition in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    /// The lock, or the semaphore.
    pub(crate) key: AdvisoryKey,
    pub(crate) number: u64,
}

impl Name {
    /// Of the mark that this key is broken gently.
    pub(crate) fn of_mark(key: AdvisoryKey) -> Self {
        Self {
            key,
            number: u64::MAX,
        }
    }
}

/// The markers of one waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaiterMarkers {
    /// The lock, or the semaphore.
    pub(crate) key: AdvisoryKey,
    pub(crate) waits: i64,
    /// Of a writer, the second one that readers heed.
    pub(crate) writer: Option<i64>,
}

impl WaiterMarkers {
    pub(crate) fn each(&self) -> impl Iterator<Item = i64> + use<> {
        std::iter::once(self.waits).chain(self.writer)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Want {
    Exclusive(AdvisoryKey),
    Shared(AdvisoryKey),
    Permit(Family),
}

/// An attempt.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) name: Name,
    pub(crate) want: Want,
    /// Of a waiter.
    pub(crate) markers: Option<WaiterMarkers>,
    /// To be refused if somebody else waits.
    pub(crate) yielding: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Job {
    Take(Take),
    /// `semaphore` is what waiters for a permit wait for.
    GiveBack {
        name: Name,
        key: AdvisoryKey,
        semaphore: Option<AdvisoryKey>,
    },
    /// Only takes markers down that have been left.
    Tidy,
}

#[derive(Debug)]
pub(crate) enum Done {
    Granted {
        key: AdvisoryKey,
        token: Option<i64>,
    },
    /// `signed`: its markers are up.
    Refused {
        signed: bool,
    },
    /// Whether it was held.
    GivenBack(bool),
    Tidied,
}

pub(crate) type Answer = Result<Done>;

/// Carries the jobs of one session.
pub(crate) struct BatchExecutor {
    pub(crate) link: Arc<Link>,
    pub(crate) conn: Arc<Mutex<SessionConn>>,
    /// How long those who ask are kept waiting.
    pub(crate) patience: Duration,
    /// Longer than that no answer is waited for: the session is over by then.
    pub(crate) limit: Duration,
    pub(crate) owner: SessionRef,
    /// WaiterMarkers that nobody needs any more, to be taken down with whatever goes out next.
    leaving: SyncMutex<Vec<(Name, WaiterMarkers)>>,
}

impl BatchExecutor {
    pub(crate) fn new(
        link: &Arc<Link>,
        conn: SessionConn,
        patience: Duration,
        limit: Duration,
    ) -> Arc<Self> {
        let (owner, conn) = (conn.owner(), Arc::new(Mutex::new(conn)));
        Arc::new(Self {
            link: Arc::clone(link),
            conn,
            patience,
            limit,
            owner,
            leaving: SyncMutex::default(),
        })
    }

    /// These markers are needed no longer by this waiter.
    pub(crate) fn leave(&self, name: Name, markers: WaiterMarkers) {
        self.leaving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name, markers));
    }

    fn left(&self) -> Vec<(Name, WaiterMarkers)> {
        std::mem::take(&mut *self.leaving.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All may travel together: rows are done in their order. Only attempts at permits have lanes: each
/// is a statement more, and all that travel together share one time-out.
fn lane(job: &Job) -> Option<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let permit = matches!(
        job,
        Job::Take(Take {
            want: Want::Permit(_),
            ..
        })
    );
    permit.then(|| NEXT.fetch_add(1, Ordering::Relaxed) % PERMITS)
}

impl session::BatchExecutor for BatchExecutor {
    type Job = Job;
    type Answer = Answer;

    fn lane(&self, job: &Job) -> Option<u64> {
        lane(job)
    }

    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Answer>> {
        Box::pin(async move {
            let (jobs, sent) = (Arc::new(jobs), Arc::new(AtomicBool::new(false)));
            let mut carrying =
                Box::pin(Arc::clone(&self).send(Arc::clone(&jobs), Arc::clone(&sent)));
            if let Ok(answers) = tokio::time::timeout(self.patience, &mut carrying).await {
                return answers;
            }
            let (link, patience) = (Arc::clone(&self.link), self.patience);
            let kind = if sent.load(Ordering::Acquire) {
                // Nothing can be asked on this connection before the answer has come. So it is
                // waited for, and what it grants is given back; those who ask are told now.
                drop(tokio::spawn(undo(self, carrying, Arc::clone(&jobs))));
                ErrorKind::Indeterminate
            } else {
                ErrorKind::Unavailable
            };
            jobs.iter()
                .map(|job| Err(link.timed_out(kind, job.operation(), patience)))
                .collect()
        })
    }
}

impl BatchExecutor {
    async fn send(self: Arc<Self>, jobs: Arc<Vec<Job>>, sent: Arc<AtomicBool>) -> Vec<Answer> {
        let mut conn = self.conn.lock().await;
        sent.store(true, Ordering::Release);
        let left = self.left();
        conn.execute(&self.link, left, &jobs).await
    }
}

/// Gives back what was granted when nobody waited for it any more.
async fn undo(
    carrier: Arc<BatchExecutor>,
    carrying: impl Future<Output = Vec<Answer>>,
    jobs: Arc<Vec<Job>>,
) {
    let answers = match tokio::time::timeout(carrier.limit, carrying).await {
        Ok(answers) => answers,
        Err(_elapsed) => {
            carrier
                .conn
                .lock()
                .await
                .give_up(&carrier.link, "acquire", carrier.limit);
            return;
        }
    };
    let mut undone = Vec::new();
    for (job, answer) in jobs.iter().zip(answers) {
        let Job::Take(take) = job else { continue };
        match answer {
            Ok(Done::Granted { key, .. }) => {
                let semaphore = take.want.semaphore();
                undone.push(Job::GiveBack {
                    name: take.name,
                    key,
                    semaphore,
                });
            }
            _ => take
                .markers
                .into_iter()
                .for_each(|markers| carrier.leave(take.name, markers)),
        }
    }
    undone.push(Job::Tidy);
    drop(carrier.send(Arc::new(undone), Arc::default()).await);
}

impl Want {
    /// What is waited for, and of permits the semaphore.
    pub(crate) fn key(&self) -> AdvisoryKey {
        match self {
            Self::Exclusive(key) | Self::Shared(key) => *key,
            Self::Permit(family) => family.key(),
        }
    }

    pub(crate) fn semaphore(&self) -> Option<AdvisoryKey> {
        matches!(self, Self::Permit(_)).then(|| self.key())
    }

    /// The markers of who waits for it.
    pub(crate) fn markers(&self) -> WaiterMarkers {
        let key = self.key();
        WaiterMarkers {
            key,
            waits: key.waits(),
            writer: matches!(self, Self::Exclusive(_)).then(|| key.writer_waits()),
        }
    }
}

impl Job {
    fn operation(&self) -> &'static str {
        match self {
            Self::Take(_) => "acquire",
            Self::GiveBack { .. } => "release",
            Self::Tidy => "tidy",
        }
    }
}

impl fmt::Debug for BatchExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchExecutor")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::keys::{KeyScheme, Names};

    #[test]
    fn locks_all_travel_together_and_of_permits_only_some() {
        let take = |want: Want| {
            let name = Name {
                key: want.key(),
                number: 0,
            };
            Job::Take(Take {
                name,
                want,
                markers: None,
                yielding: false,
            })
        };
        let lanes = |want: &Want| {
            (0..100)
                .filter_map(|_| lane(&take(want.clone())))
                .collect::<HashSet<_>>()
                .len()
        };
        assert_eq!(lanes(&Want::Exclusive(AdvisoryKey::Int64(1))), 0);
        let names = Names {
            scheme: KeyScheme::default(),
            prefix: Arc::default(),
        };
        let family = names.semaphore(&"gpu".try_into().unwrap(), 4).unwrap();
        assert_eq!(lanes(&Want::Permit(family)), PERMITS as usize);
    }
}
