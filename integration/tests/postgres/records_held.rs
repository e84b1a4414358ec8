//! Records that are wanted only while their writers hold the lock.
//!
//! The server compares sessions, and a session may acquire the same lock many times.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use futures_util::future::try_join_all;
use leasehold_core::backend::{LockBackend, RecordRead};
use leasehold_integration::server::PostgresServer;
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::{
    records::{backend, held, is, key, long, psql, stored, watched, write},
    support::{MINUTE, holder, nothing_left},
};

/// Returns the value of the record, if its writer holds the lock.
async fn shown(backend: &Arc<PostgresBackend>) -> Option<String> {
    let mut wanted = RecordRead::new(key("k"));
    wanted.while_held = true;
    let reading = Arc::clone(backend).read_record(wanted).await.unwrap();
    reading
        .record
        .map(|record| String::from_utf8(record.value).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_holder_of_one_session_shows_none_until_it_writes() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let mut session = None;
    for round in 0..4 {
        let lease = held(&one).await;
        let pid = block_in_place(|| holder(&server, "k"));
        assert_eq!(*session.get_or_insert(pid), pid, "it is the same session");
        assert_eq!(shown(&other).await, None, "before the write of {round}");
        let value = format!("{round}");
        write(&lease, 1, &value).await.unwrap();
        assert_eq!(shown(&other).await, Some(value.clone()));
        lease.release().await.unwrap();
        assert_eq!(shown(&other).await, None, "after the release of {round}");
        assert_eq!(stored(&other).await, is(&value, round + 1));
    }
    block_in_place(|| nothing_left(&server, MINUTE));
}

/// Waiters of one session and of two pass the lock on, while others read all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handover_never_shows_the_record_of_a_former_holder() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let ended = Arc::new(Mutex::new(HashSet::new()));
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (ended, over) = (Arc::clone(&ended), Arc::clone(&over));
            let url = server.url();
            tokio::spawn(async move {
                let backend = backend(&url).await;
                let mut seen = 0;
                while !over.load(SeqCst) {
                    let before = ended.lock().unwrap().clone();
                    if let Some(value) = shown(&backend).await {
                        assert!(!before.contains(&value), "{value} had ended its hold");
                        seen += 1;
                    }
                }
                seen
            })
        })
        .collect();
    let holders: Vec<_> = (0..6)
        .map(|holder| {
            let backend = Arc::clone(if holder < 4 { &one } else { &other });
            let ended = Arc::clone(&ended);
            tokio::spawn(async move {
                for round in 0..15 {
                    let value = format!("{holder}-{round}");
                    let lease = Arc::clone(&backend).acquire(long("k")).await.unwrap();
                    assert_eq!(shown(&backend).await, None, "{value} has not written");
                    write(&lease, 1, &value).await.unwrap();
                    assert_eq!(shown(&backend).await.as_ref(), Some(&value));
                    lease.release().await.unwrap();
                    ended.lock().unwrap().insert(value);
                }
            })
        })
        .collect();
    let all = tokio::time::timeout(MINUTE, try_join_all(holders)).await;
    all.expect("a holder waits in vain").unwrap();
    over.store(true, SeqCst);
    let mut seen = 0;
    for reader in readers {
        seen += reader.await.unwrap();
    }
    assert!(seen > 0, "the readers have seen no record");
    block_in_place(|| nothing_left(&server, MINUTE));
}

/// A program that locks by SQL writes no record, so it shows none, also not that of a session that
/// was ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_of_another_program_shows_no_former_record() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let lease = held(&one).await;
    write(&lease, 1, "former").await.unwrap();
    assert_eq!(shown(&other).await.as_deref(), Some("former"));
    let session = block_in_place(|| holder(&server, "k"));
    let mut program = block_in_place(|| server.psql_session()).unwrap();
    psql(&server, &format!("SELECT pg_terminate_backend({session})"));
    let take = "SELECT pg_advisory_lock(hashtextextended('k', 0))";
    block_in_place(|| program.ask(take, MINUTE)).unwrap();
    assert_eq!(shown(&other).await, None);
    assert_eq!(stored(&other).await, is("former", 1));
}

/// A write sets the marker of its record before the server commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_that_fails_leaves_no_marker_of_its_record() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let lease = held(&one).await;
    write(&lease, 1, "former").await.unwrap();
    lease.release().await.unwrap();
    let lease = held(&one).await;
    // It is checked at the commit.
    psql(
        &server,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'refused'; END $$; \
         CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON leasehold_records \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    write(&lease, 1, "refused").await.unwrap_err();
    assert_eq!(shown(&other).await, None);
    assert_eq!(stored(&other).await, is("former", 1));
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    assert_eq!(psql(&server, locks), "1", "only the lock is left");
    psql(&server, "DROP TRIGGER refuse ON leasehold_records");
    assert_eq!(write(&lease, 2, "next").await.unwrap(), 2);
    assert_eq!(shown(&other).await.as_deref(), Some("next"));
    lease.release().await.unwrap();
    block_in_place(|| nothing_left(&server, MINUTE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_server_shows_no_record_of_a_former_holder() {
    let mut server = PostgresServer::builder().durable().start().unwrap();
    let one = backend(&server.url()).await;
    let lease = held(&one).await;
    write(&lease, 1, "former").await.unwrap();
    block_in_place(|| {
        server.kill();
        server.restart().unwrap();
    });
    let other = backend(&server.url()).await;
    assert_eq!(watched(&other, true).await.record, None);
    let next = held(&other).await;
    assert_eq!(shown(&other).await, None);
    write(&next, 1, "next").await.unwrap();
    assert_eq!(shown(&other).await.as_deref(), Some("next"));
}
