//! Passwords that change while locks are held and while waiters wait.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::support::{Server, granted, key, request, until};
use leasehold_core::{
    Credentials, CredentialsProvider, ErrorKind, Released, Result,
    backend::{Lease, LockBackend, async_trait},
};
use leasehold_redis::{RedisBackend, RedisConfig, redis};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A provider of the password that was set last.
#[derive(Debug, Default)]
struct Secrets {
    password: Mutex<String>,
    asked: AtomicUsize,
    panics: AtomicBool,
}

impl Secrets {
    fn tell(&self, password: &str) {
        *self.password.lock().unwrap() = password.to_owned();
    }
}

#[async_trait]
impl CredentialsProvider for Secrets {
    async fn credentials(&self) -> Result<Credentials> {
        self.asked.fetch_add(1, Relaxed);
        assert!(
            !self.panics.load(Relaxed),
            "the provider panics, as this test wants"
        );
        Ok(Credentials::new(self.password.lock().unwrap().clone()).with_username("shop"))
    }
}

async fn connect(at: SocketAddr, secrets: &Arc<Secrets>) -> Result<Arc<RedisBackend>> {
    let client = redis::Client::open(format!("redis://nobody:wrong@{at}/")).unwrap();
    let config =
        RedisConfig::new().with_credentials(Arc::clone(secrets) as Arc<dyn CredentialsProvider>);
    RedisBackend::from_client(&client, config).await
}

/// Replaces the user's password and ends its connections.
async fn rotate(server: &Server, password: &str) {
    let mut raw = server.raw().await;
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("shop").arg(&[
        "on",
        "resetpass",
        &format!(">{password}"),
        "~*",
        "+@all",
    ]);
    () = user.query_async(&mut raw).await.unwrap();
    let _: i64 = redis::cmd("CLIENT")
        .arg(&["KILL", "USER", "shop"])
        .query_async(&mut raw)
        .await
        .unwrap();
}

/// Renews the lease, and repeats this while the error is retryable.
async fn renewed(lease: &Arc<dyn Lease>) {
    until("renewed", || async {
        match Arc::clone(lease).renew().await {
            Ok(()) => true,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_changed_password_costs_neither_holder_nor_waiter_anything() {
    let server = Server::start();
    let secrets = Arc::new(Secrets::default());
    rotate(&server, "one").await;
    secrets.tell("one");
    let (a, b) = (
        connect(server.address(), &secrets).await.unwrap(),
        connect(server.address(), &secrets).await.unwrap(),
    );
    let held = granted(&a, request("k")).await;
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    for password in ["two", "three"] {
        secrets.tell(password);
        rotate(&server, password).await;
        renewed(&held).await;
    }
    // The provider is slower than the server.
    let before = secrets.asked.load(Relaxed);
    rotate(&server, "four").await;
    until("asked again and again", || async {
        if let Err(error) = Arc::clone(&held).renew().await {
            assert!(error.is_retryable(), "{error}");
        }
        secrets.asked.load(Relaxed) > before + 4
    })
    .await;
    secrets.tell("four");
    renewed(&held).await;
    // A provider that panics counts as one that does not answer.
    secrets.panics.store(true, Relaxed);
    rotate(&server, "five").await;
    secrets.tell("five");
    let asked = secrets.asked.load(Relaxed);
    until("the provider has panicked", || async {
        drop(Arc::clone(&held).renew().await);
        secrets.asked.load(Relaxed) > asked
    })
    .await;
    secrets.panics.store(false, Relaxed);
    renewed(&held).await;
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("never woken");
    waited.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn credentials_that_were_never_right_are_denied() {
    let server = Server::start();
    let secrets = Arc::new(Secrets::default());
    rotate(&server, "one").await;
    secrets.tell("wr0ng");
    let error = connect(server.address(), &secrets).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(
        secrets.asked.load(Relaxed),
        2,
        "they may have changed between the question and their use"
    );
    assert!(!format!("{error} {error:?}").contains("wr0ng"));
    secrets.panics.store(true, Relaxed);
    assert_eq!(
        connect(server.address(), &secrets)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unavailable
    );
}

/// Proxies the server, and answers the next command as a service with an expired token does.
async fn expiring(server: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let (listener, expired) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        Arc::new(AtomicBool::new(false)),
    );
    let (at, expire) = (listener.local_addr().unwrap(), Arc::clone(&expired));
    drop(tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (mut server, expire) = (
                TcpStream::connect(server).await.unwrap(),
                Arc::clone(&expire),
            );
            drop(tokio::spawn(async move {
                let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                loop {
                    tokio::select! {
                        read = client.read(&mut asked) => match read {
                            Ok(0) | Err(_) => return,
                            Ok(_) if expire.swap(false, Relaxed) => {
                                client.write_all(b"-NOAUTH Authentication required.\r\n").await.unwrap();
                            }
                            Ok(length) => server.write_all(&asked[..length]).await.unwrap(),
                        },
                        read = server.read(&mut answered) => match read {
                            Ok(0) | Err(_) => return,
                            Ok(length) => client.write_all(&answered[..length]).await.unwrap(),
                        },
                    }
                }
            }));
        }
    }));
    (at, expired)
}

#[tokio::test]
async fn a_connection_whose_credentials_expired_is_replaced() {
    let server = Server::start();
    let (at, expired) = expiring(server.address()).await;
    let secrets = Arc::new(Secrets::default());
    rotate(&server, "one").await;
    secrets.tell("one");
    let backend = connect(at, &secrets).await.unwrap();
    let held = granted(&backend, request("k")).await;
    let asked = secrets.asked.load(Relaxed);
    expired.store(true, Relaxed);
    let error = Arc::clone(&held).renew().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    Arc::clone(&held).renew().await.unwrap();
    assert_eq!(secrets.asked.load(Relaxed), asked + 1);
    assert_eq!(held.release().await.unwrap(), Released::Freed);
}
