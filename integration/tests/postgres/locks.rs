use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use leasehold_core::{
    ErrorKind, LockClient, LockGuard, Mode, Released, Revocation, RevokeOutcome, Ttl,
    backend::LockBackend,
};
use leasehold_integration::{
    held::Held,
    server::{PostgresServer, SharedPostgres, shared_postgres},
    steps::SOON,
};
use leasehold_postgres::{
    AdvisoryKey, KeyScheme, PostgresBackend, PostgresConfig,
    sqlx::{self, PgPool, postgres::PgAdvisoryLock},
    transaction,
};
use tokio::{task::block_in_place, time::timeout};

fn server() -> SharedPostgres {
    shared_postgres().unwrap()
}

async fn backend(url: &str, options: &str) -> Arc<PostgresBackend> {
    let joint = if url.contains('?') { '&' } else { '?' };
    PostgresBackend::connect(&format!(
        "{url}{joint}connect-timeout=30s&timeout=10s{options}"
    ))
    .await
    .unwrap()
}

async fn client(url: &str, options: &str) -> LockClient {
    LockClient::new(backend(url, options).await)
}

async fn free(guard: impl Into<Held>) {
    assert_eq!(guard.into().release().await.unwrap(), Released::Freed);
}

fn hash(name: &str) -> AdvisoryKey {
    KeyScheme::Hash.key_of(name.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_hashed_as_the_server_hashes_them() {
    let server = server();
    let pool = PgPool::connect(server.url()).await.unwrap();
    let letters = "aß🔒/{}'\"\\ \u{1}";
    let mut names: Vec<String> = (0..64)
        .map(|len| letters.chars().cycle().skip(len % 7).take(len).collect())
        .collect();
    names.push("x".repeat(1024));
    for name in names {
        let theirs: i64 = sqlx::query_scalar("SELECT hashtextextended($1, 0)")
            .bind(&name)
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(hash(&name), AdvisoryKey::Int64(theirs), "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_are_the_keys_that_the_documentation_says() {
    let server = server();
    let one = client(server.url(), "").await;
    let pool = PgPool::connect(server.url()).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let mut psql = async |sql: &'static str| -> bool {
        sqlx::query_scalar(sql)
            .fetch_one(&mut *connection)
            .await
            .unwrap()
    };
    // Another program holds one of the two keys.
    assert!(psql("SELECT pg_try_advisory_lock(hashtextextended('documented', 2))").await);
    let permit = one
        .semaphore("documented", 2)
        .try_acquire()
        .await
        .unwrap()
        .unwrap();
    assert!(
        one.semaphore("documented", 2)
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    assert!(!psql("SELECT pg_try_advisory_lock(hashtextextended('documented', 1))").await);
    assert!(psql("SELECT pg_advisory_unlock(hashtextextended('documented', 2))").await);
    let other = one
        .semaphore("documented", 2)
        .try_acquire()
        .await
        .unwrap()
        .unwrap();
    free(permit).await;
    assert!(psql("SELECT pg_try_advisory_lock(hashtextextended('documented', 1))").await);
    free(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_scheme_takes_the_locks_of_the_others() {
    let server = server();
    let pool = PgPool::connect(server.url()).await.unwrap();
    for (keys, name, taken) in [
        ("int64", "770001", "SELECT pg_try_advisory_lock(770001)"),
        ("int32-pair", "77,-2", "SELECT pg_try_advisory_lock(77, -2)"),
        // 0xcbf43926 without its top bit.
        (
            "rails",
            "123456789",
            "SELECT pg_try_advisory_lock(1274296614, 0)",
        ),
        (
            "dotnet",
            "00000077,000000ff",
            "SELECT pg_try_advisory_lock(119, 255)",
        ),
        (
            "dotnet",
            "00000077000000ff",
            "SELECT pg_try_advisory_lock(511101108479)",
        ),
    ] {
        let (one, other) = (
            client(server.url(), &format!("&keys={keys}")).await,
            client(server.url(), &format!("&keys={keys}")).await,
        );
        let guard = one.mutex(name).try_lock().await.unwrap().unwrap();
        let mut connection = pool.acquire().await.unwrap();
        let taken: bool = sqlx::query_scalar(taken)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert!(!taken, "{keys}: another program was granted a held key");
        // A waiter in another session is notified, also for a pair of keys.
        let mutex = other.mutex(name);
        let waiting = tokio::spawn(async move { mutex.lock().await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        free(guard).await;
        free(
            timeout(SOON, waiting)
                .await
                .expect("the waiter hangs")
                .unwrap()
                .unwrap(),
        )
        .await;
        let guard = one.rwlock(name).try_read().await.unwrap().unwrap();
        assert!(other.mutex(name).try_lock().await.unwrap().is_none());
        free(guard).await;
    }
    let ours = client(server.url(), "&keys=sqlx").await;
    let guard = ours.mutex("both").try_lock().await.unwrap().unwrap();
    let lock = PgAdvisoryLock::new("both");
    let connection = pool.acquire().await.unwrap();
    let connection = lock
        .try_acquire(connection)
        .await
        .unwrap()
        .right()
        .expect("sqlx was granted a held key");
    free(guard).await;
    let theirs = lock
        .try_acquire(connection)
        .await
        .unwrap()
        .left()
        .expect("a released key is not free");
    assert!(ours.mutex("both").try_lock().await.unwrap().is_none());
    drop(theirs.release_now().await.unwrap());
    free(ours.mutex("both").try_lock().await.unwrap().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_transactions_exclude_each_other() {
    let server = server();
    let client = client(server.url(), "").await;
    let pool = PgPool::connect(server.url()).await.unwrap();
    let key = hash("sale");
    let guard = client.mutex("sale").lock().await.unwrap();
    let mut sale = pool.begin().await.unwrap();
    assert!(!transaction::try_lock(&mut sale, key).await.unwrap());
    assert!(!transaction::try_lock_shared(&mut sale, key).await.unwrap());
    assert!(
        !transaction::lock_timeout(&mut sale, key, Duration::from_millis(50))
            .await
            .unwrap()
    );
    // The transaction continues.
    assert_eq!(
        sqlx::query_scalar::<_, i32>("SELECT 1")
            .fetch_one(&mut *sale)
            .await
            .unwrap(),
        1
    );
    let unlimited: String = sqlx::query_scalar("SHOW lock_timeout")
        .fetch_one(&mut *sale)
        .await
        .unwrap();
    assert_eq!(unlimited, "0");
    // A waiting transaction is granted the lock when the lease is released.
    let waiting =
        tokio::spawn(async move { transaction::lock(&mut sale, key).await.map(|()| sale) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    free(guard).await;
    let sale = timeout(SOON, waiting)
        .await
        .expect("the transaction hangs")
        .unwrap()
        .unwrap();
    assert!(client.mutex("sale").try_lock().await.unwrap().is_none());
    // A waiting lease notices the end of the transaction.
    let mutex = client.mutex("sale");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    sale.commit().await.unwrap();
    free(
        timeout(SOON, waiting)
            .await
            .expect("the lease hangs")
            .unwrap()
            .unwrap(),
    )
    .await;

    let mut reading = pool.begin().await.unwrap();
    transaction::lock_shared(&mut reading, key).await.unwrap();
    free(client.rwlock("sale").try_read().await.unwrap().unwrap()).await;
    assert!(client.mutex("sale").try_lock().await.unwrap().is_none());
    assert!(
        transaction::lock_timeout(&mut reading, AdvisoryKey::Int32Pair(7, 7), SOON)
            .await
            .unwrap()
    );
    assert!(
        transaction::try_lock(&mut reading, AdvisoryKey::Int32Pair(7, 8))
            .await
            .unwrap()
    );
    reading.rollback().await.unwrap();
    free(client.mutex("sale").try_lock().await.unwrap().unwrap()).await;
}

/// With a fallback poll interval of an hour, only notifications can wake waiters in time.
#[tokio::test(flavor = "multi_thread")]
async fn waiters_are_notified_with_a_fallback_interval_of_an_hour() {
    let server = server();
    let ttl = Ttl::from_secs(3600).unwrap();
    let (one, other) = (
        client(server.url(), "&fallback-poll-interval=3600s").await,
        client(server.url(), "&fallback-poll-interval=3600s").await,
    );
    for round in 0..10 {
        let guard = one.mutex("net").with_ttl(ttl).lock().await.unwrap();
        let mutex = other.mutex("net").with_ttl(ttl);
        let waiting = tokio::spawn(async move { mutex.lock().await });
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        free(guard).await;
        free(
            timeout(SOON, waiting)
                .await
                .expect("not notified")
                .unwrap()
                .unwrap(),
        )
        .await;
    }
    let permit = one
        .semaphore("net", 1)
        .with_ttl(ttl)
        .acquire()
        .await
        .unwrap();
    let semaphore = other.semaphore("net", 1).with_ttl(ttl);
    let waiting = tokio::spawn(async move { semaphore.acquire().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    free(permit).await;
    free(
        timeout(SOON, waiting)
            .await
            .expect("not notified")
            .unwrap()
            .unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_behind_a_writer_that_gives_up_are_notified() {
    let server = server();
    let ttl = Ttl::from_secs(3600).unwrap();
    let clients =
        join_all((0..3).map(|_| client(server.url(), "&fallback-poll-interval=3600s"))).await;
    let [reading, writing, late] = &clients[..] else {
        unreachable!()
    };
    let guard = reading
        .rwlock("gives up")
        .with_ttl(ttl)
        .read()
        .await
        .unwrap();
    let writer = writing.rwlock("gives up").with_ttl(ttl);
    let writer = tokio::spawn(async move { writer.write().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let reader = late.rwlock("gives up").with_ttl(ttl);
    let reader = tokio::spawn(async move { reader.read().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!reader.is_finished(), "a reader overtook a writer");
    writer.abort();
    free(
        timeout(SOON, reader)
            .await
            .expect("not notified")
            .unwrap()
            .unwrap(),
    )
    .await;
    free(guard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspection_shows_foreign_holders_and_revoke_hits_one() {
    let server = PostgresServer::start().unwrap();
    let client = client(&server.url(), "").await;
    let mut psql = block_in_place(|| server.psql_session().unwrap());
    block_in_place(|| {
        psql.ask("SET application_name = 'by hand'", SOON).unwrap();
        psql.ask("SELECT pg_advisory_lock(hashtextextended('k', 0))", SOON)
            .unwrap();
    });
    let seen = client.inspect("k").await.unwrap();
    let [holder] = &seen.holders[..] else {
        panic!("{seen:?}")
    };
    assert!(
        holder.label.starts_with("by hand") && holder.label.contains("connected for"),
        "{holder:?}"
    );
    assert_eq!(
        (holder.mode, holder.expires_in),
        (Some(Mode::Exclusive), None)
    );
    let error = client
        .revoke(holder, Revocation::Graceful)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    // The user's session holds another lock.
    block_in_place(|| psql.ask("SELECT pg_advisory_lock(42)", SOON).unwrap());
    let error = client
        .revoke(holder, Revocation::Immediate)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(
        error.to_string().contains("1 other") && error.to_string().contains("pg_terminate_backend"),
        "{error}"
    );
    block_in_place(|| psql.ask("SELECT pg_advisory_unlock(42)", SOON).unwrap());
    assert_eq!(
        client.revoke(holder, Revocation::Immediate).await.unwrap(),
        RevokeOutcome::Freed
    );
    free(client.mutex("k").lock_timeout(SOON).await.unwrap().unwrap()).await;
    assert_eq!(
        client.revoke(holder, Revocation::Immediate).await.unwrap(),
        RevokeOutcome::AlreadyGone
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn holder_is_shown_with_application_name_address_and_start() {
    let server = PostgresServer::start().unwrap();
    let (ours, others) = (
        backend(&server.url(), "").await,
        backend(&server.url(), "").await,
    );
    let client = LockClient::new(Arc::clone(&ours) as Arc<dyn LockBackend>);
    let ttl = Ttl::from_secs(60).unwrap();
    let reading = client
        .rwlock("k")
        .with_ttl(ttl)
        .with_label("till 3")
        .read()
        .await
        .unwrap();
    let permit = client
        .semaphore("s", 2)
        .with_ttl(ttl)
        .acquire()
        .await
        .unwrap();
    // The server's own view of the one session that holds both locks.
    let account = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::int8 FROM pg_stat_activity \
                   WHERE application_name = 'leasehold 60000ms till 3'";
    let account = block_in_place(|| server.psql(account).unwrap());
    let of = 2.try_into().unwrap();
    for backend in [&ours, &others] {
        for (name, mode) in [("k", Mode::Shared), ("s", Mode::Permit { of })] {
            let seen = backend
                .inspect(&name.try_into().unwrap())
                .await
                .unwrap()
                .holders;
            let [holder] = &seen[..] else {
                panic!("{name}: {seen:?}")
            };
            let connection = holder.connection.as_ref().unwrap();
            assert_eq!(
                (holder.mode, &*connection.name),
                (Some(mode), "leasehold 60000ms till 3")
            );
            assert_eq!(
                (&*holder.label, connection.address),
                ("till 3", Some(Ipv4Addr::LOCALHOST.into()))
            );
            let since = connection
                .since
                .unwrap()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap();
            assert_eq!(format!("{}|{}", connection.id, since.as_micros()), account);
        }
    }
    // Another program, connected over the socket.
    let mut psql = block_in_place(|| server.psql_session().unwrap());
    block_in_place(|| {
        psql.ask("SET application_name = 'by hand'", SOON).unwrap();
        psql.ask(
            "SELECT pg_advisory_lock_shared(hashtextextended('k', 0))",
            SOON,
        )
        .unwrap();
    });
    let seen = ours
        .inspect(&"k".try_into().unwrap())
        .await
        .unwrap()
        .holders;
    let [reader, stranger] = &seen[..] else {
        panic!("{seen:?}")
    };
    let [reader, stranger] = [reader, stranger].map(|holder| holder.connection.as_ref().unwrap());
    assert_eq!((&*stranger.name, stranger.address), ("by hand", None));
    assert!(stranger.since > reader.since);
    free(reading).await;
    free(permit).await;
    assert_eq!(
        ours.inspect(&"s".try_into().unwrap())
            .await
            .unwrap()
            .holders,
        []
    );
}

/// The content of a label is displayed and has no other effect.
#[tokio::test(flavor = "multi_thread")]
async fn no_label_changes_the_database_or_the_role_of_a_session() {
    let server = PostgresServer::start().unwrap();
    block_in_place(|| server.psql("CREATE ROLE other SUPERUSER LOGIN").unwrap());
    // The other database has no sequence.
    let client = client(&server.url(), "&fencing=off").await;
    let held = client.mutex("k").lock().await.unwrap();
    let long = "x".repeat(20_000);
    for (n, label) in [
        "a\0database\0template1",
        "a\0user\0other",
        "a\0options\0-cstatement_timeout=1",
        &long,
    ]
    .iter()
    .enumerate()
    {
        // Each TTL has its own session, with this label.
        let ttl = Ttl::from_secs(40 + n as u64).unwrap();
        let contended = client
            .mutex("k")
            .with_ttl(ttl)
            .with_label(*label)
            .try_lock()
            .await;
        assert!(contended.unwrap().is_none(), "{label:?}: granted twice");
        let seen = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'template1' OR usename = 'other'";
        assert_eq!(
            block_in_place(|| server.psql(seen).unwrap()),
            "0",
            "{label:?}"
        );
    }
    free(held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn graceful_revocation_ends_one_lock_at_its_deadline() {
    let server = server();
    let ttl = Ttl::from_secs(3).unwrap();
    let (holder, operator) = (
        client(server.url(), "").await,
        client(server.url(), "").await,
    );
    let broken = holder
        .mutex("revoked gracefully")
        .with_ttl(ttl)
        .with_label("the holder")
        .lock()
        .await
        .unwrap();
    let neighbour = holder
        .mutex("neighbour")
        .with_ttl(ttl)
        .lock()
        .await
        .unwrap();
    let seen = operator.inspect("revoked gracefully").await.unwrap();
    assert_eq!(seen.holders[0].label, "the holder");
    assert!(
        seen.holders[0]
            .expires_in
            .is_some_and(|left| left <= ttl.as_duration()),
        "{seen:?}"
    );
    let told = timeout(
        SOON,
        operator.revoke(&seen.holders[0], Revocation::Graceful),
    )
    .await
    .expect("the revocation hangs")
    .unwrap();
    assert_eq!(told, RevokeOutcome::FreeWithin(Some(ttl.as_duration())));
    timeout(SOON, broken.lost())
        .await
        .expect("the lock is still renewed");
    free(
        operator
            .mutex("revoked gracefully")
            .lock_timeout(SOON)
            .await
            .unwrap()
            .unwrap(),
    )
    .await;
    assert!(neighbour.is_held());
    free(neighbour).await;
    // The revocation does not affect the next holder.
    let again = holder
        .mutex("revoked gracefully")
        .with_ttl(ttl)
        .lock()
        .await
        .unwrap();
    again.renew().await.unwrap();
    free(again).await;
}

/// Returns the number of advisory locks on the server.
fn advisory_locks(server: &PostgresServer) -> String {
    block_in_place(|| {
        server
            .psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            .unwrap()
    })
}

async fn until_left(server: &PostgresServer, locks: &str) {
    let until = std::time::Instant::now() + SOON;
    while advisory_locks(server) != locks {
        assert!(
            std::time::Instant::now() < until,
            "{} left, not {locks}",
            advisory_locks(server)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_of_any_mode_takes_its_signs_down_when_it_is_granted() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (
        client(&server.url(), "").await,
        client(&server.url(), "").await,
    );
    // Keeps the session alive, because its end would release leftovers.
    let kept = one.mutex("kept").lock().await.unwrap();
    until_left(&server, "1").await;
    for mode in ["permit", "write", "read"] {
        let acquire = async |client: &LockClient, mode: &str| match mode {
            "permit" => Held::from(client.semaphore("signs", 1).acquire().await.unwrap()),
            "read" => Held::from(client.rwlock("signs").read().await.unwrap()),
            _ => Held::from(client.rwlock("signs").write().await.unwrap()),
        };
        let blocking = if mode == "permit" { "permit" } else { "write" };
        let held = acquire(&other, blocking).await;
        let waits = acquire(&one, mode);
        let frees = async {
            // The lock, or the permit and its count, and the waiter's markers.
            let waiting = if mode == "read" { "3" } else { "4" };
            until_left(&server, waiting).await;
            free(held).await;
        };
        let (granted, ()) = tokio::join!(waits, frees);
        free(granted).await;
        until_left(&server, "1").await;
    }
    free(kept).await;
}

/// Two schemes, semaphores and locks at the same time: no waiter marker is another lock's key, and
/// nothing is left over.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_a_crowd_of_all_modes() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (
        client(&server.url(), "").await,
        client(&server.url(), "").await,
    );
    let work = (0..64).map(|n| {
        let client = if n % 2 == 0 {
            one.clone()
        } else {
            other.clone()
        };
        tokio::spawn(async move {
            for round in 0..10 {
                let name = format!("crowd/{}", (n + round) % 3);
                let guard = match (n + round) % 4 {
                    0 => client.rwlock(name).write().await.map(Held::from),
                    1 => client.semaphore(name, 3).acquire().await.map(Held::from),
                    2 if n % 3 == 0 => {
                        let rwlock = client.rwlock(name);
                        match timeout(Duration::from_millis(5), rwlock.write()).await {
                            Ok(guard) => guard.map(Held::from),
                            Err(_) => continue,
                        }
                    }
                    _ => client.rwlock(name).read().await.map(Held::from),
                };
                let guard = guard.unwrap();
                tokio::task::yield_now().await;
                free(guard).await;
            }
        })
    });
    for task in join_all(work).await {
        task.unwrap();
    }
    until_left(&server, "0").await;
    one.close().await.unwrap();
    other.close().await.unwrap();
}

/// Returns the next transaction id of a server on which nobody else writes.
fn next_transaction_id(server: &PostgresServer) -> u64 {
    block_in_place(|| {
        server
            .psql("SELECT pg_snapshot_xmax(pg_current_snapshot())")
            .unwrap()
            .parse()
            .unwrap()
    })
}

/// The sequence is flushed once in 32 values.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_seldom_costs_a_transaction_id() {
    let server = PostgresServer::start().unwrap();
    let client = client(&server.url(), "").await;
    free(client.mutex("k").lock().await.unwrap()).await;
    let before = next_transaction_id(&server);
    for _ in 0..320 {
        free(client.mutex("k").lock().await.unwrap()).await;
    }
    let used = next_transaction_id(&server) - before;
    // The server itself writes to the log occasionally.
    assert!(
        (5..160).contains(&used),
        "320 grants used {used} transaction ids"
    );
}

/// A notification uses a transaction id, and its log is often not flushed before the next grant.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_costs_one_or_two_transaction_ids() {
    const HAND_OFFS: u64 = 200;
    let server = PostgresServer::start().unwrap();
    let clients = [
        client(&server.url(), "").await,
        client(&server.url(), "").await,
    ];
    let mut guard = clients[0].mutex("k").lock().await.unwrap();
    let before = next_transaction_id(&server);
    for round in 0..HAND_OFFS {
        let mutex = clients[(round as usize + 1) % 2].mutex("k");
        let waiting = tokio::spawn(async move { mutex.lock().await });
        // The lock, and the two markers of the waiting writer.
        until_left(&server, "3").await;
        free(guard).await;
        guard = timeout(SOON, waiting)
            .await
            .expect("not notified")
            .unwrap()
            .unwrap();
    }
    let used = next_transaction_id(&server) - before;
    free(guard).await;
    // The server itself writes to the log occasionally.
    assert!(
        (HAND_OFFS..2 * HAND_OFFS + 50).contains(&used),
        "{HAND_OFFS} hand-offs used {used} transaction ids"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_use_no_pool_connection_and_sessions_are_bounded() {
    let server = PostgresServer::start().unwrap();
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let config = PostgresConfig::default()
        .with_max_sessions(1)
        .with_timeout(SOON)
        .with_connect_timeout(SOON);
    let backend = PostgresBackend::from_pool(&pool, config).await.unwrap();
    let borrowed = pool.size();
    assert!(!format!("{backend:?}").contains("password"), "{backend:?}");
    let client = LockClient::new(backend as Arc<dyn LockBackend>);
    let mutexes: Vec<_> = (0..1_000).map(|n| client.mutex(format!("k{n}"))).collect();
    let guards = join_all(
        mutexes
            .iter()
            .map(|mutex| async { mutex.lock().await.unwrap() }),
    )
    .await;
    assert_eq!(pool.size(), borrowed);
    let error = client.mutex("one more").try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("max-sessions"), "{error}");
    assert!(guards.iter().all(LockGuard::is_held));
    client.close().await.unwrap();
    assert_eq!(pool.size(), borrowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_sequence_is_reported_with_the_remedy() {
    let server = PostgresServer::start().unwrap();
    let client = client(&server.url(), "").await;
    let held = client.mutex("held").lock().await.unwrap();
    let last = held.fencing_token().unwrap();
    block_in_place(|| server.psql("DROP SEQUENCE leasehold_tokens").unwrap());
    for _ in 0..2 {
        let error = client.mutex("k").lock().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains("START"), "{error}");
    }
    until_left(&server, "1").await;
    assert!(held.is_held());
    let sql = format!("CREATE SEQUENCE leasehold_tokens START {}", last.get() + 1);
    block_in_place(|| server.psql(&sql).unwrap());
    let next = client.mutex("k").lock().await.unwrap();
    assert!(next.fencing_token() > Some(last));
    free(next).await;
    free(held).await;
}
