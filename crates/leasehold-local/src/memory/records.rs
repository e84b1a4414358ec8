//! Writing, reading and watching the records in memory.

use std::sync::Arc;

use leasehold_core::{
    LockKey, Mode, Timestamp,
    backend::{BoxFuture, RecordRead, RecordReading, RecordWrite, support::StoredRecord},
};
use tokio::sync::futures::OwnedNotified;

use super::{grant::Grant, record_entry::Records, state::State};

/// Writes the record of the key of `grant`. Returns `None` if the grant no longer holds the lock.
pub(super) fn write(state: &State, grant: &Grant, write: &RecordWrite) -> Option<u64> {
    let request = &grant.request;
    state
        .table
        .with_record(request.key(), request.mode(), |entry, records| {
            entry.update(&state.issuer);
            entry.holders.get_mut(grant)?;
            Some(records.write(grant, write, state.wall_clock()))
        })
}

/// Reads the record of a key.
pub(super) fn read(state: &Arc<State>, read: &RecordRead) -> RecordReading {
    state
        .table
        .with_record(&read.key, Mode::Exclusive, |entry, records| {
            entry.update(&state.issuer);
            let (stored, held_until) = records.read(&read.key, entry);
            let stored = stored.filter(|_| !read.while_held || held_until.is_some());
            let mut reading = RecordReading::new(stored.and_then(StoredRecord::into_record));
            reading.now = read.clock.then(|| state.wall_clock());
            if read.watch {
                let watch = RecordWatch::begin(state, &read.key, records);
                let until = held_until.filter(|_| read.while_held);
                reading.changed = Some(watch.changed(until));
            }
            reading
        })
}

/// A watch of one record. Dropping it ends the watch.
struct RecordWatch {
    state: Arc<State>,
    key: LockKey,
    notified: Option<OwnedNotified>,
}

impl RecordWatch {
    fn begin(state: &Arc<State>, key: &LockKey, records: &mut Records) -> Self {
        Self {
            state: Arc::clone(state),
            key: key.clone(),
            notified: Some(records.begin_watch(key)),
        }
    }

    /// Returns a future that completes after the next write, after the end of the writer's hold,
    /// or at `until`, when this hold ends unless it is renewed.
    fn changed(mut self, until: Option<Timestamp>) -> BoxFuture<'static, ()> {
        let notified = self.notified.take();
        Box::pin(async move {
            let expiry = async {
                match until {
                    Some(until) => {
                        tokio::time::sleep(until.since(self.state.issuer.now())).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let notified = async {
                if let Some(notified) = notified {
                    notified.await;
                }
            };
            tokio::select! {
                () = notified => {}
                () = expiry => {}
            }
        })
    }
}

impl Drop for RecordWatch {
    fn drop(&mut self) {
        self.state
            .table
            .with_record(&self.key, Mode::Exclusive, |_, records| {
                records.end_watch(&self.key);
            });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        task::{Context, Waker},
        time::Duration,
    };

    use leasehold_core::{
        Clock, ErrorKind, Revocation, TestClock,
        backend::{Lease, LockBackend, Request},
    };

    use super::super::MemoryBackend;
    use super::*;

    fn key() -> LockKey {
        LockKey::new("key").unwrap()
    }

    fn is_ready(changed: &mut BoxFuture<'static, ()>) -> bool {
        let polled = changed
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        polled.is_ready()
    }

    async fn acquired(backend: &Arc<MemoryBackend>) -> Arc<dyn Lease> {
        let acquiring = Arc::clone(backend).acquire(Request::new(key()));
        acquiring.await.unwrap()
    }

    async fn watched(backend: &Arc<MemoryBackend>, while_held: bool) -> RecordReading {
        let mut read = RecordRead::new(key());
        (read.watch, read.while_held) = (true, while_held);
        Arc::clone(backend).read_record(read).await.unwrap()
    }

    #[tokio::test]
    async fn watches_of_a_key_without_a_record_leave_nothing() {
        let backend = Arc::new(MemoryBackend::new());
        let first = watched(&backend, false).await;
        let second = watched(&backend, true).await;
        assert_eq!(backend.state.table.len(), 1);
        drop(first);
        assert_eq!(backend.state.table.len(), 1);
        drop(second);
        assert_eq!(backend.state.table.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_the_hold_notifies_those_who_want_it_held() {
        for end in [
            "release",
            "revocation",
            "expiry",
            "expiry that another finds",
        ] {
            let clock = Arc::new(TestClock::new());
            let backend = Arc::new(MemoryBackend::with_clock(clock.clone()));
            let lease = acquired(&backend).await;
            let write = RecordWrite::new(1, "leader").unwrap();
            Arc::clone(&lease).write_record(write).await.unwrap();
            let mut reading = watched(&backend, true).await;
            assert_eq!(reading.record.unwrap().value, b"leader");
            let mut changed = reading.changed.take().unwrap();
            assert!(!is_ready(&mut changed), "{end}");
            match end {
                "release" => drop(lease.release().await.unwrap()),
                "revocation" => {
                    let seen = backend.inspect(&key()).await.unwrap();
                    let revoking = backend.revoke(&seen.holders[0], Revocation::Immediate);
                    revoking.await.unwrap();
                }
                "expiry" => {}
                _ => {
                    clock.suspend(Duration::from_secs(3600));
                    drop(acquired(&backend).await);
                    assert!(is_ready(&mut changed));
                    continue;
                }
            }
            let since = clock.now();
            changed.await;
            let waited = clock.now().since(since).as_secs();
            assert_eq!(waited, if end == "expiry" { 30 } else { 0 }, "{end}");
            assert_eq!(watched(&backend, true).await.record, None, "{end}");
            assert!(watched(&backend, false).await.record.is_some(), "{end}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wall_clock_advances_with_the_clock_of_the_backend() {
        let backend = Arc::new(MemoryBackend::with_clock(Arc::new(TestClock::new())));
        let mut read = RecordRead::new(key());
        read.clock = true;
        let now = async || {
            let reading = Arc::clone(&backend).read_record(read.clone()).await;
            reading.unwrap().now.unwrap()
        };
        let before = now().await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(now().await.duration_since(before).unwrap().as_secs(), 3600);
    }

    /// Holders read a counter and write it back, while their locks are revoked between the two.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn counter_in_a_record_loses_no_write_to_revocations() {
        const WRITES: u64 = 400;
        let backend = Arc::new(MemoryBackend::new());
        let (refused, ended) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let revoking = {
            let (backend, ended) = (Arc::clone(&backend), Arc::clone(&ended));
            tokio::spawn(async move {
                while !ended.load(SeqCst) {
                    for holder in backend.inspect(&key()).await.unwrap().holders {
                        let revoking = backend.revoke(&holder, Revocation::Immediate);
                        revoking.await.unwrap();
                    }
                    tokio::task::yield_now().await;
                }
            })
        };
        let counting: Vec<_> = (0..4)
            .map(|_| {
                let (backend, refused) = (Arc::clone(&backend), Arc::clone(&refused));
                tokio::spawn(async move {
                    let mut written = Vec::new();
                    loop {
                        let lease = acquired(&backend).await;
                        let reading = Arc::clone(&backend).read_record(RecordRead::new(key()));
                        let next = match reading.await.unwrap().record {
                            Some(record) => {
                                u64::from_le_bytes(record.value.try_into().unwrap()) + 1
                            }
                            None => 1,
                        };
                        let some_refused = refused.load(SeqCst) > 0;
                        if next > WRITES && (some_refused || next > 10 * WRITES) {
                            lease.release().await.unwrap();
                            return written;
                        }
                        tokio::task::yield_now().await;
                        let write = RecordWrite::new(1, next.to_le_bytes()).unwrap();
                        match Arc::clone(&lease).write_record(write).await {
                            Ok(version) => written.push((version, next)),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Lost);
                                refused.fetch_add(1, SeqCst);
                            }
                        }
                        lease.release().await.unwrap();
                    }
                })
            })
            .collect();
        let mut written = Vec::new();
        for counted in counting {
            written.extend(counted.await.unwrap());
        }
        ended.store(true, SeqCst);
        revoking.await.unwrap();
        written.sort_unstable();
        // Each write that took effect counted one further, so none was lost or undone.
        let expected: Vec<_> = (1..=written.len() as u64).map(|n| (n, n)).collect();
        assert_eq!(written, expected);
        assert!(refused.load(SeqCst) > 0, "no write met a revocation");
    }
}
