//! [`RecordHistory`]: what the holders and readers of one record have seen, and its checks.
//! [`storm`]: holders and readers during faults.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use leasehold_core::{LockClient, Record, Ttl};
use tokio::{task::JoinSet, time::sleep};

use crate::steps::{is_a_fault, millis, token};

/// A version of the record that was read, or whose write was confirmed.
#[derive(Clone, Debug)]
struct Seen {
    begun: Instant,
    ended: Instant,
    version: u64,
    /// The token of the writer.
    token: u64,
    value: Vec<u8>,
    /// The token of the holder that read it after its grant.
    holder: Option<u64>,
}

/// The versions of one record that were seen, in any order.
///
/// The values of all writes must be different. The record must not be cleared.
#[derive(Debug, Default)]
pub struct RecordHistory(Mutex<Vec<Seen>>);

impl RecordHistory {
    /// Adds a version that was read. `begun` is the time before the read, and `holder` the token of
    /// the reader if it holds the lock.
    ///
    /// # Panics
    /// The record has no token.
    pub fn read(&self, begun: Instant, record: Record, holder: Option<u64>) {
        let token = record.token.expect("the record has no token").get();
        self.add(Seen {
            begun,
            ended: Instant::now(),
            version: record.version,
            token,
            value: record.value,
            holder,
        });
    }

    /// Adds a write that was confirmed with this version.
    pub fn written(&self, begun: Instant, version: u64, token: u64, value: &[u8]) {
        self.add(Seen {
            begun,
            ended: Instant::now(),
            version,
            token,
            value: value.to_vec(),
            holder: None,
        });
    }

    /// Checks what was seen. Returns the number of different versions, and of different writers.
    ///
    /// - One version has one writer and one value, so no confirmed write was lost or counted twice.
    /// - Tokens do not fall while versions grow, so no write of a former holder took effect after
    ///   one of a later holder.
    /// - A version that a holder read after its grant is followed by no write of an earlier holder.
    /// - What began after something else had ended saw the same version or a later one.
    ///
    /// # Errors
    /// Describes the first contradiction.
    pub fn check(&self) -> Result<(usize, usize), String> {
        let mut seen = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        seen.sort_by_key(|it| (it.version, it.ended));
        let contradiction = |rule: &str, one: &Seen, other: &Seen| {
            let mut text = format!("{rule}:");
            for it in [one, other] {
                let value = String::from_utf8_lossy(&it.value);
                let (version, token, holder) = (it.version, it.token, it.holder);
                text += &format!(" version {version} of {token} ({value}) read by {holder:?};");
            }
            Err(text)
        };
        for pair in seen.windows(2) {
            let (one, other) = (&pair[0], &pair[1]);
            if one.version == other.version
                && (one.token, &one.value) != (other.token, &other.value)
            {
                return contradiction("one version has two writers", one, other);
            }
            if one.token > other.token {
                return contradiction("a former holder wrote after a later one", one, other);
            }
        }
        // The largest token of a holder that had read this or an earlier version.
        let mut granted: Option<&Seen> = None;
        for it in &seen {
            if let Some(before) = granted.filter(|before| before.version < it.version)
                && Some(it.token) < before.holder
            {
                return contradiction("a former holder wrote after the next grant", before, it);
            }
            if it.holder > granted.and_then(|before| before.holder) {
                granted = Some(it);
            }
        }
        seen.sort_by_key(|it| it.begun);
        let mut ended = seen.iter().collect::<Vec<_>>();
        ended.sort_by_key(|it| it.ended);
        let (mut latest, mut at) = (None::<&Seen>, 0);
        for it in &seen {
            while at < ended.len() && ended[at].ended < it.begun {
                if latest.is_none_or(|latest| latest.version < ended[at].version) {
                    latest = Some(ended[at]);
                }
                at += 1;
            }
            if let Some(before) = latest.filter(|before| before.version > it.version) {
                return contradiction("an earlier version was seen later", before, it);
            }
        }
        let mut versions: Vec<_> = seen.iter().map(|it| it.version).collect();
        let mut writers: Vec<_> = seen.iter().map(|it| it.token).collect();
        for list in [&mut versions, &mut writers] {
            list.sort_unstable();
            list.dedup();
        }
        Ok((versions.len(), writers.len()))
    }

    fn add(&self, seen: Seen) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(seen);
    }
}

/// Lets `clients` hold the lock `key` in turn and write its record, and `readers` read it, until
/// `stop`. Returns what they have seen. Faults may happen meanwhile.
///
/// # Panics
/// A call fails in another way than by a fault.
pub async fn storm(
    key: &'static str,
    ttl: Ttl,
    clients: Vec<LockClient>,
    readers: Vec<LockClient>,
    stop: Arc<AtomicBool>,
) -> Arc<RecordHistory> {
    let history = Arc::new(RecordHistory::default());
    let mut tasks = JoinSet::new();
    for client in clients {
        let (history, stop) = (Arc::clone(&history), Arc::clone(&stop));
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                hold_once(key, ttl, &client, &history).await;
                sleep(millis(rand::random_range(0..20))).await;
            }
        });
    }
    for client in readers {
        let (history, stop) = (Arc::clone(&history), Arc::clone(&stop));
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                read_once(key, &client, &history, None).await;
                sleep(millis(rand::random_range(0..30))).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a task of the storm has panicked");
    }
    history
}

async fn read_once(
    key: &'static str,
    client: &LockClient,
    history: &RecordHistory,
    holder: Option<u64>,
) {
    let begun = Instant::now();
    match client.record(key).await {
        Ok(Some(record)) => history.read(begun, record, holder),
        Ok(None) => {}
        Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
    }
}

/// Acquires the lock, reads the record, and writes it a few times.
async fn hold_once(key: &'static str, ttl: Ttl, client: &LockClient, history: &RecordHistory) {
    const PATIENCE: Duration = Duration::from_secs(3);
    let mutex = client.mutex(key).with_ttl(ttl);
    let guard = match mutex.lock_timeout(PATIENCE).await {
        Ok(Some(guard)) => guard,
        Ok(None) => return,
        Err(error) => return assert!(is_a_fault(error.kind()), "{error:?}"),
    };
    let holder = token(&guard);
    read_once(key, client, history, Some(holder)).await;
    for n in 0..rand::random_range(1..5) {
        let (begun, value) = (Instant::now(), format!("{holder}:{n}"));
        match guard.write_record(&value).await {
            Ok(version) => history.written(begun, version, holder, value.as_bytes()),
            Err(error) => {
                assert!(is_a_fault(error.kind()), "{error:?}");
                break;
            }
        }
        sleep(millis(rand::random_range(0..40))).await;
    }
    if let Err(error) = guard.release().await {
        assert!(is_a_fault(error.kind()), "{error:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times, versions, tokens, values and holders. The time of an event is a moment.
    fn check(events: &[(u64, u64, u64, &str, Option<u64>)]) -> Result<(usize, usize), String> {
        let (history, start) = (RecordHistory::default(), Instant::now());
        for (at, version, token, value, holder) in events {
            let moment = start + Duration::from_secs(*at);
            history.add(Seen {
                begun: moment,
                ended: moment,
                version: *version,
                token: *token,
                value: value.as_bytes().to_vec(),
                holder: *holder,
            });
        }
        history.check()
    }

    #[test]
    fn a_good_history_is_counted() {
        let good = [
            (1, 1, 5, "a", None),
            (2, 1, 5, "a", Some(7)),
            (3, 2, 7, "b", None),
            (4, 3, 7, "c", None),
        ];
        assert_eq!(check(&good), Ok((3, 2)));
    }

    #[test]
    fn every_contradiction_is_found() {
        for (events, rule) in [
            (
                vec![(1, 1, 5, "a", None), (2, 1, 5, "b", None)],
                "two writers",
            ),
            (
                vec![(1, 1, 5, "a", None), (2, 1, 6, "a", None)],
                "two writers",
            ),
            (
                vec![(1, 1, 7, "a", None), (2, 2, 5, "b", None)],
                "after a later one",
            ),
            (
                vec![(1, 1, 5, "a", Some(7)), (2, 2, 6, "b", None)],
                "after the next grant",
            ),
            (
                vec![(1, 2, 5, "b", None), (2, 1, 5, "a", None)],
                "seen later",
            ),
        ] {
            let found = check(&events).unwrap_err();
            assert!(found.contains(rule), "{found}");
        }
    }
}
