//! Users, and the tokens that the server issues to them.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    Credentials, CredentialsProvider, ErrorKind, LockClient, Released, Result, backend::async_trait,
};
use leasehold_etcd::{
    EtcdBackend, EtcdConfig,
    etcd_client::{Client, ConnectOptions},
};
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{free, ttl};

const SHOP: &str = "shop:s3cr%3At@";
const ROOT: [&str; 2] = ["--user", "root:root secret"];

/// The kind of token that the server issues.
#[derive(Clone, Copy, Debug)]
enum Tokens {
    /// Stored by each member, and dropped after one second without use.
    Simple,
    /// Signed, with the auth revision at which it was issued.
    Signed,
    /// Signed, and valid for two seconds.
    SignedBriefly,
}

/// Starts a cluster of one member with users.
fn cluster_with(tokens: Tokens) -> (EtcdCluster, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::write(&key, "a key that signs tokens in tests alone").unwrap();
    let valid = if matches!(tokens, Tokens::SignedBriefly) {
        "2s"
    } else {
        "10m"
    };
    let signed = format!(
        "jwt,sign-method=HS256,priv-key={},ttl={valid}",
        key.display()
    );
    let builder = match tokens {
        Tokens::Simple => EtcdCluster::builder().option("--auth-token-ttl", "1"),
        Tokens::Signed | Tokens::SignedBriefly => {
            EtcdCluster::builder().option("--auth-token", &signed)
        }
    };
    let cluster = builder.option("--bcrypt-cost", "4").start().unwrap();
    with_users(&cluster);
    (cluster, folder)
}

/// Runs a command as an administrator.
fn administer(cluster: &EtcdCluster, arguments: &[&str]) {
    cluster.at(0).ctl(&[&ROOT, arguments].concat()).unwrap();
}

/// Returns the number of watches on the server.
fn watches(cluster: &EtcdCluster) -> f64 {
    let metrics = cluster.at(0).metrics().unwrap();
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    value.unwrap().trim().parse().unwrap()
}

async fn until_watches(cluster: &EtcdCluster, count: f64) {
    let begun = Instant::now();
    while watches(cluster) < count {
        assert!(begun.elapsed() < SOON, "{} watches", watches(cluster));
        sleep(Duration::from_millis(20)).await;
    }
}

/// Supplies the password that was set last.
#[derive(Debug)]
struct Rotating {
    password: Mutex<String>,
    asked: AtomicU64,
}

impl Rotating {
    fn new(password: &str) -> Arc<Self> {
        Arc::new(Self {
            password: Mutex::new(password.to_owned()),
            asked: AtomicU64::new(0),
        })
    }

    fn rotate(&self, password: &str) {
        password.clone_into(&mut self.password.lock().unwrap());
    }
}

#[async_trait]
impl CredentialsProvider for Rotating {
    async fn credentials(&self) -> Result<Credentials> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Credentials::new(self.password.lock().unwrap().clone()).with_username("shop"))
    }
}

/// Creates the user `shop` with the password `s3cr:t` and access to the prefix `shop/`.
fn with_users(cluster: &EtcdCluster) {
    let member = cluster.at(0);
    member.ctl(&["user", "add", "root:root secret"]).unwrap();
    member.ctl(&["user", "grant-role", "root", "root"]).unwrap();
    member.ctl(&["user", "add", "shop:s3cr:t"]).unwrap();
    member.ctl(&["role", "add", "locks"]).unwrap();
    member
        .ctl(&[
            "role",
            "grant-permission",
            "locks",
            "--prefix=true",
            "readwrite",
            "shop/",
        ])
        .unwrap();
    member
        .ctl(&["user", "grant-role", "shop", "locks"])
        .unwrap();
    member.ctl(&["auth", "enable"]).unwrap();
}

async fn connect(
    cluster: &EtcdCluster,
    user: &str,
    prefix: &str,
) -> leasehold_core::Result<LockClient> {
    let backend = EtcdBackend::connect(&format!(
        "etcd://{user}{}/?prefix={prefix}",
        cluster.at(0).addr()
    ))
    .await;
    backend.map(LockClient::new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_needs_the_right_password_and_the_access() {
    let cluster = EtcdCluster::start().unwrap();
    with_users(&cluster);
    for user in ["", "shop:wrong@", "nobody:x@"] {
        let error = connect(&cluster, user, "shop/").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{user}: {error}");
        assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
    }
    let elsewhere = connect(&cluster, SHOP, "other/").await.unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::Denied, "{elsewhere}");
    let client = connect(&cluster, SHOP, "shop/").await.unwrap();
    let guard = client.mutex("k").with_ttl(ttl(2)).lock().await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(guard.is_held());
    free(guard).await;
}

/// The server drops tokens that were not used for a while, and all of them when it restarts.
/// Requests, renewals and waiters continue.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_requested_again() {
    let mut cluster = EtcdCluster::builder()
        .option("--auth-token-ttl", "1")
        .start()
        .unwrap();
    with_users(&cluster);
    let (one, other) = (
        connect(&cluster, SHOP, "shop/").await.unwrap(),
        connect(&cluster, SHOP, "shop/").await.unwrap(),
    );
    // Renewed every 5 s, each time with an expired token.
    let guard = one.mutex("k").with_ttl(ttl(15)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(15)).lock().await.unwrap() }
    });
    sleep(Duration::from_secs(6)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    assert!(
        guard.remaining() > Duration::from_secs(10),
        "{:?}: it was not renewed",
        guard.remaining()
    );
    // The token has expired again.
    sleep(Duration::from_secs(3)).await;
    let beside = one.mutex("beside").with_ttl(ttl(15)).lock().await.unwrap();

    cluster.member(0).restart().unwrap();
    free(beside).await;
    assert!(guard.is_held());
    free(guard).await;
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    free(next).await;
}

/// The token of the watch stream has expired, and a later watch needs a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_watched_after_the_token_has_expired() {
    for tokens in [Tokens::Simple, Tokens::SignedBriefly] {
        let (cluster, _folder) = cluster_with(tokens);
        let (one, other) = (
            connect(&cluster, SHOP, "shop/").await.unwrap(),
            connect(&cluster, SHOP, "shop/").await.unwrap(),
        );
        let mut waiters = Vec::new();
        for n in 0..2 {
            let held = one
                .mutex(format!("k{n}"))
                .with_ttl(ttl(15))
                .lock()
                .await
                .unwrap();
            let waiting = other.mutex(format!("k{n}")).with_ttl(ttl(15));
            waiters.push((
                held,
                tokio::spawn(async move { waiting.lock().await.unwrap() }),
            ));
            until_watches(&cluster, f64::from(n + 1)).await;
            sleep(Duration::from_millis(2_500)).await;
        }
        for (held, waiter) in waiters {
            free(held).await;
            free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
        }
    }
}

/// A change of users invalidates all signed tokens. Held locks stay held, waiters keep waiting, and
/// new watches are opened on the existing stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_users_interrupts_no_lock() {
    for tokens in [Tokens::Signed, Tokens::Simple] {
        let (cluster, _folder) = cluster_with(tokens);
        let (one, other) = (
            connect(&cluster, SHOP, "shop/").await.unwrap(),
            connect(&cluster, SHOP, "shop/").await.unwrap(),
        );
        let wait = |key: &'static str| {
            let other = other.clone();
            tokio::spawn(async move { other.mutex(key).with_ttl(ttl(4)).lock().await.unwrap() })
        };
        let held = one.mutex("k").with_ttl(ttl(4)).lock().await.unwrap();
        let waiter = wait("k");
        until_watches(&cluster, 1.0).await;
        for user in ["a", "b"] {
            administer(&cluster, &["user", "add", &format!("{user}:x")]);
            // Past the deadline at the time of the change.
            sleep(Duration::from_millis(4_500)).await;
            assert!(held.is_held() && !waiter.is_finished(), "{tokens:?}");
        }
        let beside = one.mutex("beside").with_ttl(ttl(4)).lock().await.unwrap();
        administer(&cluster, &["user", "delete", "a"]);
        let second = wait("beside");
        until_watches(&cluster, 2.0).await;
        for (guard, waiter) in [(held, waiter), (beside, second)] {
            free(guard).await;
            free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
        }
    }
}

/// The password changes on the server first, and a little later at the provider.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_rotates_costs_no_lock() {
    for tokens in [Tokens::Signed, Tokens::Simple] {
        let (cluster, _folder) = cluster_with(tokens);
        let provider = Rotating::new("s3cr:t");
        let url = format!("etcd://{}/?prefix=shop/", cluster.at(0).addr());
        let config = || EtcdConfig::default().with_credentials(provider.clone());
        let client =
            async || LockClient::new(EtcdBackend::connect_with(&url, config()).await.unwrap());
        let (one, other) = (client().await, client().await);
        let as_root = ConnectOptions::new()
            .with_user("root", "root secret")
            .with_auto_token_refresh(true);
        let mut root = Client::connect([cluster.at(0).addr().to_string()], Some(as_root))
            .await
            .unwrap();
        let held = one.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
        let waiter = tokio::spawn({
            let other = other.clone();
            async move { other.mutex("k").with_ttl(ttl(6)).lock().await.unwrap() }
        });
        until_watches(&cluster, 1.0).await;
        for password in ["second", "third"] {
            root.refresh_token().await.unwrap();
            root.user_change_password("shop", password).await.unwrap();
            let refused = one.mutex("new").try_lock().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
            provider.rotate(password);
            let asked = provider.asked.load(Ordering::Relaxed);
            free(one.mutex("new").try_lock().await.unwrap().unwrap()).await;
            assert!(provider.asked.load(Ordering::Relaxed) > asked);
            // Past the deadline at the time of the change.
            sleep(Duration::from_millis(6_500)).await;
            assert!(held.is_held() && !waiter.is_finished(), "{tokens:?}");
        }
        free(held).await;
        free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
    }
}

/// An administrator changes users, roles and passwords at random, and the server restarts. No
/// client with access loses a lock or is refused one, and no two hold the same lock.
#[tokio::test(flavor = "multi_thread")]
async fn locks_survive_any_administration_of_users() {
    for (tokens, seed) in [(Tokens::Signed, 1_u64), (Tokens::Simple, 2)] {
        let mut state = seed;
        let mut below = |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let (mut cluster, _folder) = cluster_with(tokens);
        let provider = Rotating::new("s3cr:t");
        let url = format!("etcd://{}/?prefix=shop/", cluster.at(0).addr());
        let config = || EtcdConfig::default().with_credentials(provider.clone());
        let client =
            async || LockClient::new(EtcdBackend::connect_with(&url, config()).await.unwrap());
        let held = client()
            .await
            .mutex("held")
            .with_ttl(ttl(10))
            .lock()
            .await
            .unwrap();
        let (inside, rounds, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let mut workers = Vec::new();
        for _ in 0..3 {
            let client = client().await;
            let (inside, rounds, over) =
                (Arc::clone(&inside), Arc::clone(&rounds), Arc::clone(&over));
            workers.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    // The server may be restarting, or the provider may have an old password.
                    let guard = match client.mutex("shared").with_ttl(ttl(10)).lock().await {
                        Err(error) if error.is_retryable() => continue,
                        granted => granted.unwrap(),
                    };
                    assert_eq!(
                        inside.fetch_add(1, Ordering::SeqCst),
                        0,
                        "two clients hold the lock"
                    );
                    sleep(Duration::from_millis(5)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    match guard.release().await {
                        Err(error) if error.is_retryable() => {}
                        released => assert_eq!(released.unwrap(), Released::Freed),
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        for step in 0..25 {
            match below(8) {
                0 | 1 => administer(&cluster, &["user", "add", &format!("u{step}:x")]),
                2 => administer(&cluster, &["role", "add", &format!("r{step}")]),
                3 => administer(
                    &cluster,
                    &[
                        "role",
                        "grant-permission",
                        "locks",
                        "read",
                        &format!("k{step}"),
                    ],
                ),
                4 | 5 => {
                    let as_root = ConnectOptions::new().with_user("root", "root secret");
                    let mut root =
                        Client::connect([cluster.at(0).addr().to_string()], Some(as_root))
                            .await
                            .unwrap();
                    let password = format!("p{step}");
                    root.user_change_password("shop", password.as_str())
                        .await
                        .unwrap();
                    sleep(Duration::from_millis(below(300))).await;
                    provider.rotate(&password);
                }
                6 => cluster.member(0).restart().unwrap(),
                _ => {}
            }
            let (before, begun) = (rounds.load(Ordering::Relaxed), Instant::now());
            while rounds.load(Ordering::Relaxed) < before + 5 {
                assert!(
                    begun.elapsed() < SOON && workers.iter().all(|worker| !worker.is_finished()),
                    "{tokens:?} {step}"
                );
                sleep(Duration::from_millis(5)).await;
            }
            assert!(held.is_held(), "{tokens:?} {step}");
        }
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            timeout(SOON, worker).await.unwrap().unwrap();
        }
        free(held).await;
    }
}

/// The holder can no longer prove its lock, and must not keep it from other clients.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_loses_its_access_blocks_nobody() {
    let (cluster, _folder) = cluster_with(Tokens::Simple);
    let one = connect(&cluster, SHOP, "shop/").await.unwrap();
    let held = one.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    let rival = connect(&cluster, "root:root%20secret@", "shop/")
        .await
        .unwrap();
    administer(&cluster, &["user", "revoke-role", "shop", "locks"]);
    let next = timeout(SOON, rival.mutex("k").with_ttl(ttl(3)).lock())
        .await
        .unwrap()
        .unwrap();
    assert!(!held.is_held(), "two clients hold the lock");
    // The holder keeps retrying.
    sleep(Duration::from_secs(4)).await;
    assert!(next.is_held());
    free(next).await;
}
