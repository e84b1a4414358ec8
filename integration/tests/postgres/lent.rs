//! A pooler that may lend any backend to any client.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use leasehold_core::{ErrorKind, LockClient, LockGuard};
use leasehold_integration::{
    panics::nothing_panicked,
    server::{LendingPooler, PgBouncer, PoolMode, PostgresServer, Psql},
    steps::SOON,
};
use leasehold_postgres::{
    PostgresBackend,
    sqlx::{self, Connection, PgConnection},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::task::block_in_place;

use crate::support::client_of;

/// Long enough that nothing is renewed automatically.
const TTL: u64 = 600_000;

async fn refused(url: &str) {
    match PostgresBackend::connect(&format!("{url}?timeout=20s&connect-timeout=20s")).await {
        Ok(_) => panic!("a pooler that lends backends was accepted"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            assert!(error.to_string().contains("session mode"), "{error}");
        }
    }
}

/// Two clients of the pooler are always busy, so each statement waits for the first free backend of
/// two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_pooler_with_two_backends_is_never_accepted() {
    let server = PostgresServer::start().unwrap();
    let pooler = PgBouncer::start_with(
        &server,
        PoolMode::Transaction,
        &[("default_pool_size", "2")],
    )
    .unwrap();
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let url = pooler.url();
            tokio::spawn(async move {
                // The driver's defaults are refused by a pooler, so these options are the
                // library's.
                let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
                let mut client = PgConnection::connect_with(&options.extra_float_digits(None))
                    .await
                    .unwrap();
                loop {
                    sqlx::raw_sql("SELECT pg_sleep(0.02)")
                        .execute(&mut client)
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for _ in 0..40 {
        refused(&pooler.url()).await;
    }
    assert!(busy.iter().all(|client| !client.is_finished()));
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rotation_of_backends_passes_the_check_at_connect() {
    let server = PostgresServer::start().unwrap();
    let rotations: [&[usize]; 8] = [
        &[0],
        &[0, 1],
        &[0, 1, 1, 0],
        &[0, 0, 1, 1],
        &[0, 1, 2],
        &[0, 1, 0, 2],
        &[0, 1, 2, 3],
        &[0, 1, 0, 1, 1, 0, 1, 0],
    ];
    for rotation in rotations {
        for start in 0..rotation.len() {
            let pooler = LendingPooler::start(&server).unwrap();
            let mut loans = rotation.iter().cycle().skip(start);
            pooler.lend(move |_| *loans.next().unwrap());
            refused(&pooler.url()).await;
        }
    }
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_that_are_lent_one_backend_never_both_hold() {
    let server = PostgresServer::start().unwrap();
    let pooler = LendingPooler::start(&server).unwrap();
    let clients = [
        client_of(&pooler.url(), TTL).await,
        client_of(&pooler.url(), TTL).await,
    ];
    let only = pooler.clients();
    pooler.lend(move |_| only);
    let [one, other] = &clients;
    let guard = one.mutex("k").try_lock().await.unwrap().unwrap();
    let error = other
        .mutex("k")
        .try_lock()
        .await
        .expect_err("both clients hold the lock on one backend");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    guard.renew().await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    nothing_panicked();
}

/// Returns the settings and locks on a backend, as seen by its next client.
fn left_on(pooler: &LendingPooler, backend: usize) -> String {
    pooler.lend(move |_| backend);
    let mut borrower = Psql::connect(&pooler.url()).unwrap();
    let sql = "SELECT concat_ws(' ', current_setting('search_path'), current_setting('statement_timeout'), \
               current_setting('lock_timeout'), current_setting('idle_session_timeout'), current_setting('jit'), \
               current_setting('plan_cache_mode'), current_setting('tcp_user_timeout'), \
               coalesce(current_setting('leasehold.session', true), ''), \
               (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))";
    borrower.ask(sql, SOON).unwrap()
}

/// The pooler lends a second backend after each number of statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backend_that_is_lent_later_is_left_untouched() {
    let server = PostgresServer::start().unwrap();
    let pooler = LendingPooler::start(&server).unwrap();
    let untouched = block_in_place(|| left_on(&pooler, 1_000));
    // The sequence of the tokens exists before statements are counted.
    client_of(&server.url(), TTL)
        .await
        .mutex("first")
        .try_lock()
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    for cut in 1.. {
        pooler.lend(|loan| loan.client);
        let client = client_of(&pooler.url(), TTL).await;
        let (home, away) = (1_000 + 2 * cut, 1_001 + 2 * cut);
        pooler.lend(move |loan| if loan.earlier < cut { home } else { away });
        let outcome = client.mutex(format!("k{cut}")).try_lock().await;
        // Before two statements have identified the backend, nothing is set on the first one
        // either.
        let clean: &[usize] = if cut == 1 { &[home, away] } else { &[away] };
        for backend in clean {
            let left = block_in_place(|| left_on(&pooler, *backend));
            let left = if *backend == home {
                without_number(&left)
            } else {
                left
            };
            assert_eq!(left, untouched, "after {cut} statements");
        }
        match outcome {
            Ok(None) => panic!("another client holds the lock"),
            Ok(Some(guard)) => {
                assert!(cut > 3, "granted before any check");
                // All later statements run on the other backend.
                pooler.lend(move |_| away);
                assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
                assert!(!guard.is_held());
                assert_eq!(block_in_place(|| left_on(&pooler, away)), untouched);
                break;
            }
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    ErrorKind::Unsupported,
                    "after {cut} statements: {error:?}"
                );
                assert!(cut < 50, "never granted: {error}");
            }
        }
    }
    nothing_panicked();
}

/// Removes the number that claims a backend and has no effect on other clients.
fn without_number(left: &str) -> String {
    left.split(' ')
        .map(|word| if word.len() == 32 { "" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Moves clients between a few backends at random between statements, and occasionally resets a
/// backend, which frees its locks. A lease that is renewed afterwards must be held.
async fn storm(seed: u64) -> usize {
    const CLIENTS: usize = 3;
    const ROUNDS: usize = 30;
    let server = PostgresServer::start().unwrap();
    let pooler = LendingPooler::start(&server).unwrap();
    let url = pooler.url();
    let clients: Vec<LockClient> = join_all((0..CLIENTS).map(|_| client_of(&url, TTL))).await;
    let mut chance = SmallRng::seed_from_u64(seed);
    let first = pooler.clients();
    let (round, calm) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (now, no_moves, mut homes) = (
        Arc::clone(&round),
        Arc::clone(&calm),
        HashMap::<usize, usize>::new(),
    );
    let mut moves = SmallRng::seed_from_u64(chance.random());
    pooler.lend(move |loan| {
        // New backends are added, because no other client can use the claimed ones.
        let backends = first + now.load(Ordering::Acquire);
        let home = homes
            .entry(loan.client)
            .or_insert_with(|| backends + moves.random_range(0..2));
        if !no_moves.load(Ordering::Acquire) && moves.random_range(0..24) == 0 {
            *home = backends + moves.random_range(0..2);
        }
        *home
    });
    let mut grants = 0;
    for number in 0..ROUNDS {
        round.store(number, Ordering::Release);
        let key = format!("k{number}");
        let mut granted: Vec<LockGuard> = Vec::new();
        let resets = chance.random_range(0..3);
        for reset in 0..=resets {
            let tries = clients.iter().map(|client| {
                let mutex = client.mutex(&*key);
                async move { mutex.try_lock().await.ok().flatten() }
            });
            granted.extend(join_all(tries).await.into_iter().flatten());
            if resets == 0 {
                let held = granted.iter().filter(|guard| guard.is_held()).count();
                assert!(held <= 1, "{held} hold {key}; seed {seed}");
            } else if reset < resets {
                let backend = first + number + chance.random_range(0..2);
                block_in_place(|| pooler.reset(backend).unwrap());
            }
        }
        calm.store(true, Ordering::Release);
        let mut held = 0;
        for guard in &granted {
            held += usize::from(guard.renew().await.is_ok() && guard.is_held());
        }
        assert!(held <= 1, "{held} hold {key}; seed {seed}");
        calm.store(false, Ordering::Release);
        grants += granted.len();
        for guard in granted {
            drop(guard.release().await);
        }
    }
    grants
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lending_of_backends_lets_two_hold() {
    let given = std::env::var("LEASEHOLD_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = given.map_or_else(
        || (0..4).map(|_| rand::random()).collect(),
        |seed| vec![seed],
    );
    let mut grants = 0;
    for seed in seeds {
        println!("LEASEHOLD_SEED={seed}");
        grants += storm(seed).await;
    }
    println!("{grants} grants");
    assert!(grants > 10, "hardly anything was granted: {grants}");
    nothing_panicked();
}
