//! `run`: completed under the lease, or lost.

mod support;

use std::time::Duration;

use leasehold_core::{Error, ErrorKind, LeaseInfo, LockClient, Mode, Renewal};
use leasehold_local::MemoryBackend;
use support::{secs, simulated};

#[tokio::test(start_paused = true)]
async fn work_completes_under_the_lease() {
    let (client, _) = simulated();
    let token = client
        .mutex("a")
        .run(async |lease| lease.fencing_token())
        .await
        .unwrap();
    assert!(token.is_some());
    drop(client.mutex("a").try_lock().await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn work_is_cancelled_before_the_lease_could_be_anothers() {
    let (client, _) = simulated();
    let mutex = client
        .mutex("a")
        .with_ttl(secs(5))
        .with_renewal(Renewal::Manual);
    let (tell, cancelled) = tokio::sync::oneshot::channel::<LeaseInfo>();
    let outcome = mutex
        .run(async |lease| {
            let _tell = TellOnDrop(Some((tell, lease)));
            std::future::pending::<()>().await;
        })
        .await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    drop(cancelled.await.unwrap());
    drop(
        client
            .mutex("a")
            .lock_timeout(Duration::from_secs(1))
            .await
            .unwrap()
            .unwrap(),
    );
}

struct TellOnDrop(Option<(tokio::sync::oneshot::Sender<LeaseInfo>, LeaseInfo)>);

impl Drop for TellOnDrop {
    fn drop(&mut self) {
        let (tell, lease) = self.0.take().unwrap();
        assert!(lease.is_held(), "cancelled too late: the lease was over");
        tell.send(lease).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_outlives_the_lease_did_not_complete_under_it() {
    let (client, clock) = simulated();
    let outcome = client
        .mutex("a")
        .with_ttl(secs(5))
        .run(async |_| clock.suspend(Duration::from_secs(6)))
        .await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn it_can_be_spawned() {
    async fn generic<F, Fut>(client: LockClient, work: F) -> u32
    where
        F: FnOnce(LeaseInfo) -> Fut + Send + 'static,
        Fut: Future<Output = u32> + Send,
    {
        tokio::spawn(async move { client.mutex("a").run_with(work).await.unwrap() })
            .await
            .unwrap()
    }
    let client = LockClient::new(MemoryBackend::new());
    let spawned = tokio::spawn({
        let client = client.clone();
        async move {
            let borrowed = String::from("text");
            client
                .mutex("a")
                .run(async |lease| {
                    tokio::task::yield_now().await;
                    assert!(lease.is_held());
                    borrowed.len()
                })
                .await
                .unwrap()
        }
    });
    assert_eq!(spawned.await.unwrap(), 4);
    assert_eq!(generic(client, async |_| 7).await, 7);
}

#[tokio::test(start_paused = true)]
async fn a_permit_runs_work_too() {
    let (client, _) = simulated();
    assert_eq!(
        client.semaphore("gpu", 2).run(async |_| 1).await.unwrap(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_within_a_run_does_not_grow() {
    async fn work() -> u8 {
        let room = std::hint::black_box([7_u8; 1024]);
        tokio::task::yield_now().await;
        room[1023]
    }
    let (client, _) = simulated();
    let [a, b, c] = ["a", "b", "c"].map(|name| client.mutex(name));
    let one = a.run(async |_| work().await);
    let three = a.run(async |_| b.run(async |_| c.run(async |_| work().await).await).await);
    let (one_takes, three_take) = (size_of_val(&one), size_of_val(&three));
    assert!(
        three_take <= one_takes + 256,
        "{three_take} bytes, where one run takes {one_takes}"
    );
    assert_eq!(one.await.unwrap(), 7);
    assert_eq!(three.await.unwrap().unwrap().unwrap(), 7);
    let with = a.run_with(|_| b.run_with(|_| c.run_with(|_| work())));
    assert!(size_of_val(&with) <= one_takes + 256);
    assert_eq!(with.await.unwrap().unwrap().unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn readers_run_work_together_and_a_writer_alone() {
    let (client, _) = simulated();
    let lock = client.rwlock("a");
    let readers = lock.run_read(async |_| {
        let beside = lock.run_read(async |lease| lease.mode()).await.unwrap();
        (beside, lock.try_write().await.unwrap().is_none())
    });
    assert_eq!(readers.await.unwrap(), (Mode::Shared, true));
    let alone = lock.run_write(async |_| lock.try_read().await.unwrap().is_none());
    assert!(alone.await.unwrap());
    assert!(lock.try_write().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn owner_runs_work_within_work() {
    let (client, _) = simulated();
    let owner = client.reentrant_owner();
    let inner = owner.run("a", async |_| {
        owner.run("a", async |lease| lease.is_held()).await
    });
    assert!(inner.await.unwrap().unwrap());
    assert!(client.mutex("a").try_lock().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn guard_that_was_tried_for_runs_work() {
    let (client, _) = simulated();
    let mutex = client.mutex("a");
    let guard = mutex.try_lock().await.unwrap().unwrap();
    assert_eq!(guard.run(async |_| 7).await.unwrap(), 7);
    assert!(mutex.try_lock().await.unwrap().is_some());
}

#[derive(Debug)]
enum Failure {
    Work,
    Lock(ErrorKind),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Lock(error.kind())
    }
}

#[tokio::test(start_paused = true)]
async fn try_run_returns_the_error_of_work_or_of_the_lock() {
    let (client, _) = simulated();
    let mutex = client.mutex("a").with_ttl(secs(3));
    assert_eq!(
        mutex.try_run(async |_| Ok::<_, Failure>(7)).await.unwrap(),
        7
    );
    let failed = mutex.try_run(async |_| Err::<(), _>(Failure::Work)).await;
    assert!(matches!(failed, Err(Failure::Work)), "{failed:?}");
    assert!(mutex.try_lock().await.unwrap().is_some(), "it is released");
    let manual = mutex.clone().with_renewal(Renewal::Manual);
    let lost = manual.try_run(async |_| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(())
    });
    let lost = lost.await;
    assert!(
        matches!(lost, Err(Failure::Lock(ErrorKind::Lost))),
        "{lost:?}"
    );
}
