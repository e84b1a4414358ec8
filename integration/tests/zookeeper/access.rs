//! Users, TLS, and what is refused.

use leasehold_core::{ErrorKind, Ttl};
use leasehold_integration::{certificates::Certificates, server::ZookeeperServer};
use leasehold_zookeeper::{
    ZookeeperBackend, ZookeeperConfig,
    zookeeper_client::{Acls, Client, CreateMode},
};
use tokio::time::Instant;

use crate::support::{SOON, client, free, members, millis, ttl};

#[tokio::test(flavor = "multi_thread")]
async fn what_one_user_made_another_cannot_touch() {
    let server = ZookeeperServer::start().unwrap();
    let url = |user: &str| format!("zookeeper://{user}{}/shop", server.addr());
    let owner = client(&(url("alice:s3cr%3At@") + "?acl=creator")).await;
    let guard = owner.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    free(guard).await;
    for stranger in ["", "alice:wrong@", "bob:s3cr%3At@"] {
        let denied = client(&url(stranger)).await.mutex("k").with_ttl(ttl(10)).lock().await.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied, "{stranger}: {denied}");
        assert!(!format!("{denied} {denied:?}").contains("s3cr"), "{denied:?}");
    }
    // The same user in another process is at home.
    let again = client(&(url("alice:s3cr%3At@") + "?acl=creator")).await;
    free(again.mutex("k").with_ttl(ttl(10)).lock().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_others_own_is_denied_and_says_so() {
    let server = ZookeeperServer::start().unwrap();
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    operator.create("/readonly", b"", &CreateMode::Persistent.with_acls(Acls::anyone_read())).await.unwrap();
    let client = client(&format!("{}/readonly", server.url())).await;
    let denied = client.mutex("k").with_ttl(ttl(10)).lock().await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied, "{denied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_who_trusts_the_authority_and_with_nobody_else() {
    let server = ZookeeperServer::builder().tls().start().unwrap();
    let secure = client(&server.secure_url(server.certificates().unwrap())).await;
    let plain = client(&server.url()).await;
    let guard = secure.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    assert_eq!(plain.mutex("k").with_ttl(ttl(10)).try_lock().await.unwrap_err().kind(), ErrorKind::Contended);
    free(guard).await;

    let elsewhere = tempfile::tempdir().unwrap();
    let others = Certificates::generate(elsewhere.path()).unwrap();
    let begun = Instant::now();
    let refused = ZookeeperBackend::connect(&server.secure_url(&others)).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Unavailable | ErrorKind::Denied), "{refused}");
    assert!(begun.elapsed() < SOON);
    // Not for this server.
    let wrong = format!("zookeepers://{}?ca={}", server.addr(), server.certificates().unwrap().ca().display());
    assert!(ZookeeperBackend::connect(&wrong).await.is_err(), "the port speaks no TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_users_own_will_do() {
    let server = ZookeeperServer::start().unwrap();
    let own =
        Client::connector().with_session_timeout(millis(6_000)).connect(&server.addr().to_string()).await.unwrap();
    let backend = ZookeeperBackend::from_client(own.clone(), ZookeeperConfig::default().with_root("/p")).await.unwrap();
    let locks = leasehold_core::LockClient::new(backend);
    let guard = locks.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
    assert!(members(&server).iter().any(|node| node.starts_with("/p/k/_c_")), "{:?}", members(&server));
    free(guard).await;
    locks.close().await.unwrap();
    // It is theirs, and lives on.
    own.create("/theirs", b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_zookeeper_cannot_do_is_a_typed_error() {
    let server = ZookeeperServer::start().unwrap();
    let one = client(&server.url()).await;
    for millis in [1, 999, 3_600_000] {
        let locked = one.mutex("k").with_ttl(Ttl::from_millis(millis).unwrap()).lock().await;
        assert_eq!(locked.unwrap_err().kind(), ErrorKind::InvalidInput, "{millis} ms");
    }
    let begun = Instant::now();
    let nobody = ZookeeperBackend::connect("zookeeper://127.0.0.1:1").await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::Unavailable);
    assert!(nobody.to_string().contains("127.0.0.1:1"), "{nobody}");
    // A port that answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("zookeeper://{}?connect-timeout=300ms", silent.local_addr().unwrap());
    assert_eq!(ZookeeperBackend::connect(&url).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(begun.elapsed() < SOON / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_names_are_locks_of_their_own() {
    let server = ZookeeperServer::start().unwrap();
    let (one, other) = (client(&server.url()).await, client(&server.url()).await);
    let names: [&[u8]; 13] = [
        b"a",
        b"a/b",
        b"a/",
        b"/",
        b".",
        b"..",
        b"%",
        b"a%2Fb",
        b"zookeeper",
        b"\0",
        b"a\nb\xff",
        "🔒".as_bytes(),
        b"%sessions",
    ];
    let mut guards = Vec::new();
    for name in names {
        guards.push(one.mutex(name).with_ttl(ttl(10)).try_lock().await.unwrap());
        guards.push(one.semaphore(name, 1).with_ttl(ttl(10)).try_acquire().await.unwrap());
    }
    for name in names {
        let refused = other.mutex(name).with_ttl(ttl(10)).try_lock().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Contended, "{name:?}");
    }
    for guard in guards {
        free(guard).await;
    }
}
