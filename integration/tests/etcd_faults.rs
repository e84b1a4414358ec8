//! The etcd backend when its server fails.

use std::{sync::Arc, time::Duration};

use leasehold_core::{ErrorKind, LockBackend, LockClient, LossReason, Released, Request, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{proxy::Proxy, server::EtcdCluster};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

async fn client(url: &str) -> LockClient {
    LockClient::new(EtcdBackend::connect(url).await.unwrap())
}

fn ttl(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

fn locks(cluster: &mut EtcdCluster) -> Vec<String> {
    let mut keys = cluster.member(0).keys("").unwrap();
    keys.retain(|key| !key.starts_with("%session/"));
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_an_error_in_time_and_the_holder_loses_by_its_deadline() {
    let mut cluster = EtcdCluster::start().unwrap();
    let client = client(&cluster.url()).await;
    let guard = client.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    cluster.member(0).pause().unwrap();
    let begun = Instant::now();
    let error = client.mutex("other").with_ttl(ttl(3)).lock().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LossReason::Expired);
    assert!(begun.elapsed() < Duration::from_millis(3_100), "{:?}", begun.elapsed());
    cluster.member(0).resume().unwrap();
    let next = timeout(SOON, client.mutex("k").with_ttl(ttl(3)).lock()).await.unwrap().unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_restarted_server_keeps_the_lock_and_its_waiter() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(6)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(300)).await;
    cluster.member(0).kill();
    sleep(Duration::from_millis(500)).await;
    cluster.member(0).restart().unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    let token = guard.fencing_token();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(next.fencing_token() > token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_is_told_to_its_holder_and_never_grants_its_waiter() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(3)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(300)).await;
    let revoke = |cluster: &mut EtcdCluster, which: &str| {
        let lease = which.split('-').next().unwrap().trim_start_matches("k/").to_owned();
        cluster.member(0).ctl(&["lease", "revoke", &lease]).unwrap();
    };
    // The waiter's session first: it queues again in a new one.
    let keys = locks(&mut cluster);
    let token = guard.fencing_token().unwrap().get();
    let holder = holder_key(&mut cluster, token);
    let waiting = keys.iter().find(|key| **key != holder).unwrap().clone();
    revoke(&mut cluster, &waiting);
    sleep(Duration::from_millis(1_500)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    let again = locks(&mut cluster);
    assert!(again.len() == 2 && !again.contains(&waiting), "{again:?}");
    // Then the holder's.
    revoke(&mut cluster, &holder);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
    assert_eq!(timeout(Duration::from_secs(2), guard.lost()).await.unwrap(), LossReason::SessionEnded);
    assert!(next.is_held());
}

fn holder_key(cluster: &mut EtcdCluster, token: u64) -> String {
    locks(cluster)
        .into_iter()
        .find(|key| {
            let output = cluster.member(0).ctl(&["get", key, "--write-out=json"]).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            json["kvs"][0]["create_revision"].as_u64() == Some(token)
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_during_a_wait_does_not_hang_it() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
    sleep(Duration::from_millis(200)).await;
    for n in 0..20 {
        cluster.member(0).ctl(&["put", "unrelated", &n.to_string()]).unwrap();
    }
    let output = cluster.member(0).ctl(&["get", "unrelated", "--write-out=json"]).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let revision = json["header"]["revision"].to_string();
    cluster.member(0).ctl(&["compact", "--physical", &revision]).unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    drop(timeout(SOON, waiter).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_waiters_on_a_hundred_keys_are_all_served() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let mut holders = Vec::new();
    for key in 0..100 {
        holders.push(other.mutex(format!("k{key}")).lock().await.unwrap());
    }
    let waiters: Vec<_> = (0..10_000)
        .map(|n| {
            let one = one.clone();
            tokio::spawn(async move { drop(one.mutex(format!("k{}", n % 100)).lock().await.unwrap()) })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    let output = cluster.member(0).metrics().unwrap();
    let value = |name: &str| {
        output.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    assert!(
        value("etcd_debugging_mvcc_watch_stream_total ") <= 3.0,
        "{}",
        value("etcd_debugging_mvcc_watch_stream_total ")
    );
    assert!(value("etcd_debugging_mvcc_watcher_total ") <= 110.0);
    let begun = Instant::now();
    drop(holders);
    for waiter in waiters {
        timeout(Duration::from_secs(120), waiter).await.unwrap().unwrap();
    }
    eprintln!("10 000 waiters served in {:?}", begun.elapsed());
    sleep(Duration::from_millis(500)).await;
    assert_eq!(locks(&mut cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_anywhere_leaves_nothing_although_the_session_is_renewed() {
    let mut cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.member(0).addr()).unwrap();
    let through = client(&format!("etcd://{}/?timeout=300ms&connect-timeout=300ms", proxy.addr())).await;
    // Keeps the session alive all the time.
    let kept = through.mutex("kept").with_ttl(ttl(2)).lock().await.unwrap();
    for cut_after in 0..12 {
        let attempt = tokio::spawn({
            let through = through.clone();
            async move { through.mutex("cut").with_ttl(ttl(2)).lock().await }
        });
        // From nothing sent to all answered.
        sleep(Duration::from_micros(200 * cut_after)).await;
        proxy.disconnect();
        // Whatever came of it, the guard is dropped.
        drop(timeout(SOON, attempt).await.unwrap().unwrap());
    }
    sleep(Duration::from_secs(4)).await;
    assert!(kept.is_held());
    let left = locks(&mut cluster);
    assert!(left.len() == 1 && left[0].starts_with("kept/"), "{left:?}");
    assert_eq!(kept.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acquire_that_is_dropped_at_any_point_leaves_nothing() {
    let mut cluster = EtcdCluster::start().unwrap();
    let client = client(&cluster.url()).await;
    let holder = client.mutex("held").lock().await.unwrap();
    for micros in (0..3_000).step_by(150) {
        for key in ["free", "held"] {
            let wait = Duration::from_micros(micros);
            drop(timeout(wait, client.mutex(key).lock()).await);
        }
    }
    sleep(Duration::from_millis(500)).await;
    let left = locks(&mut cluster);
    assert!(left.len() == 1 && left[0].starts_with("held/"), "{left:?}");
    assert_eq!(holder.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_of_our_session_is_removed_by_a_renewal() {
    let mut cluster = EtcdCluster::start().unwrap();
    let backend = EtcdBackend::connect(&cluster.url()).await.unwrap();
    let request = Request::new("k".try_into().unwrap()).with_ttl(ttl(2));
    let lease = Arc::clone(&backend).acquire(request).await.unwrap();
    let key = locks(&mut cluster).remove(0);
    let id = key.split('-').next().unwrap().trim_start_matches("k/").to_owned();
    // What a lost reply leaves behind.
    let orphan = format!("orphan/{id}-7");
    cluster.member(0).ctl(&["put", &format!("--lease={id}"), &orphan, "x"]).unwrap();
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(locks(&mut cluster), [key]);
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_needs_the_right_password_and_the_access() {
    let mut cluster = EtcdCluster::start().unwrap();
    let member = cluster.member(0);
    member.ctl(&["user", "add", "root:root secret"]).unwrap();
    member.ctl(&["user", "grant-role", "root", "root"]).unwrap();
    member.ctl(&["user", "add", "shop:s3cr:t"]).unwrap();
    member.ctl(&["role", "add", "locks"]).unwrap();
    member.ctl(&["role", "grant-permission", "locks", "--prefix=true", "readwrite", "shop/"]).unwrap();
    member.ctl(&["user", "grant-role", "shop", "locks"]).unwrap();
    member.ctl(&["auth", "enable"]).unwrap();
    let addr = member.addr();
    let connect = |user: &'static str, prefix: &'static str| async move {
        EtcdBackend::connect(&format!("etcd://{user}{addr}/?prefix={prefix}")).await
    };
    for user in ["", "shop:wrong@", "nobody:x@"] {
        let error = connect(user, "shop/").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{user}: {error}");
    }
    let elsewhere = connect("shop:s3cr%3At@", "other/").await.unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::Denied, "{elsewhere}");
    let client = LockClient::new(connect("shop:s3cr%3At@", "shop/").await.unwrap());
    let guard = client.mutex("k").with_ttl(ttl(2)).lock().await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(guard.is_held());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_users_own_will_do() {
    use leasehold_etcd::{EtcdConfig, etcd_client::Client};
    let mut cluster = EtcdCluster::start().unwrap();
    let own = Client::connect([cluster.member(0).addr().to_string()], None).await.unwrap();
    let backend = EtcdBackend::from_client(own, EtcdConfig::default().with_prefix("p/")).await.unwrap();
    let client = LockClient::new(backend);
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(cluster.member(0).keys("p/k/").unwrap().len() == 1);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do() {
    let error = EtcdBackend::connect("etcd://127.0.0.1:1/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    let begun = Instant::now();
    // A port that answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("etcd://{}/?timeout=200ms", silent.local_addr().unwrap());
    assert_eq!(EtcdBackend::connect(&url).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(3));
}
