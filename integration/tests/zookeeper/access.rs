//! Users, TLS, and refused access.

use std::sync::Arc;

use futures_util::future::join_all;
use leasehold_core::{
    Credentials, CredentialsProvider, ErrorKind, LockClient, LockKey, LossReason, Result, Ttl,
    backend::async_trait,
};
use leasehold_integration::{
    certificates::Certificates,
    held::Held,
    peer::{Peer, listen, role, tell},
    server::ZookeeperServer,
    steps::millis,
};
use leasehold_zookeeper::{
    ZookeeperBackend, ZookeeperConfig,
    zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission},
};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

use crate::support::{SOON, client, free, members, ttl};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_user_are_denied_to_another() {
    let server = ZookeeperServer::start().unwrap();
    let url = |user: &str| format!("zookeeper://{user}{}/shop", server.addr());
    let owner = client(&(url("alice:s3cr%3At@") + "?acl=creator")).await;
    let guard = owner.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    free(guard).await;
    for stranger in ["", "alice:wrong@", "bob:s3cr%3At@"] {
        let denied = client(&url(stranger))
            .await
            .mutex("k")
            .with_ttl(ttl(10))
            .lock()
            .await
            .unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied, "{stranger}: {denied}");
        assert!(
            !format!("{denied} {denied:?}").contains("s3cr"),
            "{denied:?}"
        );
    }
    // The same user in another process has access.
    let again = client(&(url("alice:s3cr%3At@") + "?acl=creator")).await;
    free(again.mutex("k").with_ttl(ttl(10)).lock().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_others_own_is_denied_and_says_so() {
    let server = ZookeeperServer::start().unwrap();
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    operator
        .create(
            "/readonly",
            b"",
            &CreateMode::Persistent.with_acls(Acls::anyone_read()),
        )
        .await
        .unwrap();
    let client = client(&format!("{}/readonly", server.url())).await;
    let denied = client
        .mutex("k")
        .with_ttl(ttl(10))
        .lock()
        .await
        .unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied, "{denied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_a_client_that_trusts_the_ca() {
    let server = ZookeeperServer::builder().tls().start().unwrap();
    // The first TLS connection to a server takes long on a busy machine.
    let patient = "&connect-timeout=30s&timeout=30s";
    let secure = client(&(server.secure_url(server.certificates().unwrap()) + patient)).await;
    let plain = client(&server.url()).await;
    let guard = secure.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    assert!(
        plain
            .mutex("k")
            .with_ttl(ttl(10))
            .try_lock()
            .await
            .unwrap()
            .is_none()
    );
    free(guard).await;

    let elsewhere = tempfile::tempdir().unwrap();
    let others = Certificates::generate(elsewhere.path()).unwrap();
    let begun = Instant::now();
    let refused = ZookeeperBackend::connect(&server.secure_url(&others))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    assert!(
        refused.to_string().contains("invalid peer certificate"),
        "{refused}"
    );
    assert!(begun.elapsed() < SOON);
    // A certificate for another server.
    let wrong = format!(
        "zookeepers://{}?ca={}",
        server.addr(),
        server.certificates().unwrap().ca().display()
    );
    let refused = ZookeeperBackend::connect(&wrong)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("TLS:"),
        "the port speaks no TLS: {refused}"
    );
    let wrong = format!(
        "zookeeper://{}?connect-timeout=2s",
        server.secure_addr().unwrap()
    );
    let refused = ZookeeperBackend::connect(&wrong)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("zookeepers:"),
        "the port speaks TLS only: {refused}"
    );
}

/// The server reports it after the handshake.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_certificate_says_so() {
    let server = ZookeeperServer::builder()
        .tls()
        .setting("ssl.clientAuth", "need")
        .start()
        .unwrap();
    let url = server.secure_url(server.certificates().unwrap()) + "&connect-timeout=15s";
    let refused = ZookeeperBackend::connect(&url).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let text = refused.to_string().to_lowercase();
    assert!(
        text.contains("tls:") && text.contains("certificate"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_users_own_will_do() {
    let server = ZookeeperServer::start().unwrap();
    let own = Client::connector()
        .with_session_timeout(millis(6_000))
        .connect(&server.addr().to_string())
        .await
        .unwrap();
    let backend =
        ZookeeperBackend::from_client(own.clone(), ZookeeperConfig::default().with_root("/p"))
            .await
            .unwrap();
    let locks = leasehold_core::LockClient::new(backend);
    let guard = locks.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
    assert!(
        members(&server)
            .iter()
            .any(|node| node.starts_with("/p/k/_c_")),
        "{:?}",
        members(&server)
    );
    free(guard).await;
    locks.close().await.unwrap();
    // A node of another program, which must survive.
    own.create(
        "/theirs",
        b"",
        &CreateMode::Ephemeral.with_acls(Acls::anyone_all()),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_operations_of_zookeeper_are_typed_errors() {
    let server = ZookeeperServer::start().unwrap();
    let one = client(&server.url()).await;
    for millis in [1, 999, 3_600_000] {
        let locked = one
            .mutex("k")
            .with_ttl(Ttl::from_millis(millis).unwrap())
            .lock()
            .await;
        assert_eq!(
            locked.unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{millis} ms"
        );
    }
    let begun = Instant::now();
    let nobody = ZookeeperBackend::connect("zookeeper://127.0.0.1:1")
        .await
        .unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::Unavailable);
    assert!(
        nobody
            .to_string()
            .contains("127.0.0.1:1: Connection refused"),
        "{nobody}"
    );
    // A port that answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "zookeeper://{}?connect-timeout=300ms",
        silent.local_addr().unwrap()
    );
    assert_eq!(
        ZookeeperBackend::connect(&url).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
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
        guards.push(Held::from(
            one.mutex(name)
                .with_ttl(ttl(10))
                .try_lock()
                .await
                .unwrap()
                .unwrap(),
        ));
        guards.push(Held::from(
            one.semaphore(name, 1)
                .with_ttl(ttl(10))
                .try_acquire()
                .await
                .unwrap()
                .unwrap(),
        ));
    }
    for name in names {
        let refused = other
            .mutex(name)
            .with_ttl(ttl(10))
            .try_lock()
            .await
            .unwrap();
        assert!(refused.is_none(), "{name:?}");
    }
    for guard in guards {
        free(guard).await;
    }
}

/// A password that changes.
#[derive(Debug)]
struct Rotating(std::sync::Mutex<&'static str>);

impl Rotating {
    fn set(&self, password: &'static str) {
        *self.0.lock().unwrap() = password;
    }
}

#[async_trait]
impl CredentialsProvider for Rotating {
    async fn credentials(&self) -> Result<Credentials> {
        Ok(Credentials::new(*self.0.lock().unwrap()).with_username("alice"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_costs_no_lock() {
    let server = ZookeeperServer::start().unwrap();
    let addr = &server.addr().to_string();
    let operator = async |password: &str| {
        let identity = format!("alice:{password}");
        Client::connector()
            .with_auth("digest", identity.as_bytes())
            .connect(addr)
            .await
            .unwrap()
    };
    let acls = [
        Acl::new(Permission::ALL, AuthId::authed()),
        Acl::new(Permission::ADMIN | Permission::READ, AuthId::anyone()),
    ];
    operator("one")
        .await
        .create(
            "/shop",
            b"",
            &CreateMode::Persistent.with_acls(Acls::new(&acls)),
        )
        .await
        .unwrap();

    let passwords = Arc::new(Rotating(std::sync::Mutex::new("one")));
    let config = ZookeeperConfig::default()
        .with_root("/shop")
        .with_credentials(Arc::clone(&passwords) as _);
    let backend =
        ZookeeperBackend::from_connector(Client::connector(), &server.addr().to_string(), config)
            .await
            .unwrap();
    let locks = LockClient::new(backend);
    let held = locks.mutex("held").with_ttl(ttl(10)).lock().await.unwrap();
    assert_eq!(locks.inspect("held").await.unwrap().holders.len(), 1);

    operator("two")
        .await
        .set_acl("/shop", &acls, None)
        .await
        .unwrap();
    let denied = locks
        .mutex("early")
        .with_ttl(ttl(10))
        .lock()
        .await
        .unwrap_err();
    assert_eq!(
        denied.kind(),
        ErrorKind::Denied,
        "the provider still has the old password: {denied}"
    );
    passwords.set("two");
    // In the existing session, and in a new one.
    free(locks.mutex("new").with_ttl(ttl(10)).lock().await.unwrap()).await;
    free(locks.mutex("new").with_ttl(ttl(12)).lock().await.unwrap()).await;
    held.renew().await.unwrap();
    assert_eq!(locks.inspect("new").await.unwrap().holders.len(), 0);
    free(held).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn redis_behind_the_port_is_named() {
    let redis = leasehold_integration::server::RedisServer::start().unwrap();
    let refused =
        ZookeeperBackend::connect(&format!("zookeeper://{}?connect-timeout=1s", redis.addr()))
            .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    assert!(
        refused.to_string().contains("a Redis server answers there"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_behind_the_port_is_named() {
    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "zookeeper://{}?connect-timeout=1s",
        web.local_addr().unwrap()
    );
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = web.accept().await.unwrap();
            // The error shows escape sequences of the answer in escaped form.
            drop(
                stream
                    .write_all("HTTP/1.1 400 Bad\u{9b}31m\r\n\r\n".as_bytes())
                    .await,
            );
        }
    });
    let refused = ZookeeperBackend::connect(&url).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains("an HTTP server answers there") && !text.contains('\u{9b}'),
        "{text:?}"
    );
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_answer_names_its_limit_and_the_option() {
    let mut server = ZookeeperServer::start().unwrap();
    let one = client(&format!("{}?timeout=700ms", server.url())).await;
    free(one.mutex("k").with_ttl(ttl(10)).lock().await.unwrap()).await;
    one.inspect("k").await.unwrap();
    server.pause().unwrap();
    let late = one.inspect("k").await.unwrap_err().to_string();
    assert!(
        late.contains("within 700ms (the option `timeout`)"),
        "{late}"
    );
    server.resume().unwrap();
}

/// Holds as many locks as its role says, until it is killed.
async fn hold_with_the_longest_name(role: &str) {
    let (count, url) = role.split_once(' ').unwrap();
    let client = client(url).await;
    let lock = client.rwlock(longest_name()).with_ttl(ttl(10));
    let holding = join_all((0..count.parse().unwrap()).map(|_| lock.read())).await;
    let held: Vec<_> = holding.into_iter().map(Result::unwrap).collect();
    tell("held");
    let _killed_before = tokio::task::spawn_blocking(listen).await;
    drop(held);
}

/// Returns a name of which each byte is written as three.
fn longest_name() -> Vec<u8> {
    vec![1; LockKey::MAX_LEN]
}

/// When a session ends, the leader sends all of its nodes to the followers in one message.
#[tokio::test(flavor = "multi_thread")]
async fn ensemble_survives_holders_with_the_longest_names() {
    const NAME: &str = "access::ensemble_survives_holders_with_the_longest_names";
    const READERS: usize = 900;
    if let Some(role) = role() {
        return hold_with_the_longest_name(&role).await;
    }
    let mut ensemble = ZookeeperServer::builder().start_members(3).unwrap();
    let mut holder = Peer::this_test(NAME, &format!("{READERS} {}", ensemble.url())).unwrap();
    assert_eq!(holder.heard(SOON).await.unwrap(), "held");
    let one = client(&ensemble.url()).await;
    assert_eq!(
        one.inspect(longest_name()).await.unwrap().holders.len(),
        READERS
    );
    holder.process().kill();
    let lock = one.mutex(longest_name()).with_ttl(ttl(12));
    let freed = async {
        while !matches!(lock.try_lock().await, Ok(Some(_))) {
            tokio::time::sleep(millis(100)).await;
        }
    };
    timeout(SOON, freed)
        .await
        .expect("the ensemble no longer serves");
    // The members can read their own data again.
    for member in ensemble.members() {
        member.restart().unwrap();
    }
}

/// A server closes the connection on a request of more than 1 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_holders_with_the_longest_names_are_seen() {
    const HOLDERS: u32 = 600;
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server.url()).await;
    let name = longest_name();
    let permits = client
        .semaphore(name.clone(), HOLDERS)
        .with_ttl(ttl(20))
        .with_label("x".repeat(100_000));
    let mut held: Vec<_> = join_all((0..HOLDERS).map(|_| permits.acquire()))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        client.inspect(name).await.unwrap().holders.len(),
        HOLDERS as usize
    );
    // Most locks are not watched, because there is no room. The next renewal reports the loss.
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    for path in members(&server) {
        operator.delete(&path, None).await.unwrap();
    }
    let last = held.pop().unwrap();
    drop(last.renew().await);
    assert_eq!(
        timeout(SOON, last.lost()).await.unwrap(),
        LossReason::Replaced
    );
}
