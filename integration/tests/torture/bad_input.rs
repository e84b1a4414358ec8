use std::{
    collections::BTreeSet,
    error::Error as _,
    fs,
    time::{Duration, Instant},
};

use leasehold::{ErrorKind, LockClient, LockGuard, Ttl};
use leasehold_integration::{
    panics::nothing_panicked,
    server::RedisServer,
    stage::Stage,
    steps::{client_of, millis},
};
use leasehold_testkit::free_port;

use crate::support::nothing_left;

/// Returns names that have broken the keys, paths, patterns or scripts of some lock library.
fn odd_names() -> Vec<Vec<u8>> {
    let text = [
        "/",
        "//",
        "a/b",
        "..",
        "../escape",
        "/etc/passwd",
        ".",
        "-",
        "~",
        "*",
        "?",
        "[a]",
        "{}",
        "{",
        "}",
        "a}b",
        "{a}b",
        "{a",
        "}{",
        "{}a",
        " ",
        "a b",
        "\n",
        "a\nb",
        "\r\n",
        "\0",
        "a\0b",
        "🔒",
        "é",
        "e\u{301}",
        "A",
        "a",
        "%",
        "%2F",
        "%00",
        "\\",
        "\"",
        "'",
        "$0",
        "`",
        ":",
        "a:b",
        "token",
        "CON",
        "nul.lock",
        ".lock",
        "a.lock",
    ];
    let mut names: Vec<Vec<u8>> = text.iter().map(|name| name.as_bytes().to_vec()).collect();
    names.extend([
        vec![0xff],
        vec![0xff, 0xfe],
        vec![b'x'; 1024],
        vec![b'/'; 1024],
        vec![0; 1024],
        vec![0xff; 1024],
    ]);
    names
}

/// Asserts that every odd name is a separate lock: all are held at once, and each only once.
async fn each_is_a_lock_of_its_own(client: &LockClient) {
    let mut guards: Vec<LockGuard> = Vec::new();
    for name in odd_names() {
        let guard = client.mutex(name.as_slice()).try_lock().await;
        let shown = name.escape_ascii();
        let guard = guard.unwrap_or_else(|error| panic!("`{shown}` on {client}: {error:?}"));
        guards.push(guard.unwrap_or_else(|| panic!("`{shown}` on {client} is refused")));
        let again = client.mutex(name.as_slice()).try_lock().await;
        assert!(
            again.unwrap().is_none(),
            "`{shown}` on {client}: held twice"
        );
    }
    assert!(guards.iter().all(LockGuard::is_held));
    for guard in guards {
        guard.release().await.unwrap();
    }
}

async fn refuses_invalid_names(client: &LockClient) {
    for name in [Vec::new(), vec![b'x'; 1025], vec![b'x'; 64 * 1024]] {
        let error = client
            .mutex(name.as_slice())
            .lock()
            .await
            .expect_err("accepted an invalid name");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        let error = client
            .rwlock(name.as_slice())
            .try_read()
            .await
            .expect_err("accepted an invalid name");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        let error = client
            .inspect(name.as_slice())
            .await
            .expect_err("accepted an invalid name");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert!(
            error.to_string().len() < 500,
            "the error repeats a name of {} bytes",
            name.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_are_distinct_and_invalid_names_refused() {
    let server = RedisServer::start().unwrap();
    let stage = Stage::on_files(30_000);
    let prefixed = format!("{}?prefix=%7Bshop%7D:", server.url());
    for url in ["memory:", stage.url(), &server.url(), &prefixed] {
        let client = client_of(url, 30_000).await;
        each_is_a_lock_of_its_own(&client).await;
        refuses_invalid_names(&client).await;
    }
    nothing_left(&server, millis(15_000));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_name_leads_out_of_the_directory_of_the_lock_files() {
    let stage = Stage::on_files(30_000);
    let inner = stage.locks().join("a").join("b");
    fs::create_dir_all(&inner).unwrap();
    let client = client_of(&format!("file:{}", inner.display()), 30_000).await;
    each_is_a_lock_of_its_own(&client).await;
    let entries = |folder: &std::path::Path| -> BTreeSet<_> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(entries(&stage.locks()), ["a".to_owned()].into());
    assert_eq!(entries(&stage.locks().join("a")), ["b".to_owned()].into());
    assert!(entries(&inner).len() >= odd_names().len());
}

#[test]
fn ttls_that_cannot_be_are_refused_and_nothing_is_rounded() {
    let bad = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_micros(999),
        Duration::from_micros(1500),
        Duration::from_secs(367 * 24 * 3600),
        Duration::from_secs(u64::MAX),
        Duration::MAX,
    ];
    for ttl in bad {
        assert_eq!(
            Ttl::new(ttl).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{ttl:?}"
        );
    }
    assert!(Ttl::from_secs(u64::MAX).is_err() && Ttl::from_millis(u64::MAX).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extreme_ttls_are_granted_or_refused_and_never_rounded() {
    let server = RedisServer::start().unwrap();
    let stage = Stage::on_files(30_000);
    for url in ["memory:", stage.url(), &server.url()] {
        let client = client_of(url, 30_000).await;
        for ttl in [
            Ttl::MIN,
            Ttl::from_millis(2).unwrap(),
            Ttl::from_millis(999).unwrap(),
            Ttl::MAX,
        ] {
            match client.mutex("k").with_ttl(ttl).lock().await {
                Ok(guard) => {
                    assert_eq!(guard.ttl(), ttl);
                    guard.release().await.unwrap();
                }
                // A lease with such a short TTL may expire before the grant arrives.
                Err(error) if ttl <= Ttl::from_millis(2).unwrap() => {
                    assert!(
                        matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Lost),
                        "{url} {ttl}: {error:?}"
                    );
                }
                Err(error) => assert_eq!(
                    error.kind(),
                    ErrorKind::InvalidInput,
                    "{url} {ttl}: {error:?}"
                ),
            }
        }
    }
    nothing_panicked();
}

/// Asserts that the error does not show the secret, in any format and in any source.
#[track_caller]
fn keeps(secret: &str, error: &leasehold::Error) {
    let mut shown = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(inner) = source {
        shown += &format!(" {inner} {inner:?}");
        source = inner.source();
    }
    assert!(!shown.contains(secret), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_urls_are_refused_without_their_passwords() {
    const SECRET: &str = "hunter2";
    let urls = [
        "",
        " ",
        ":",
        "://",
        "/",
        "redis",
        "redis:",
        "redis://",
        "redis:///0",
        "redis://:hunter2@",
        "redis://h:port/",
        "redis://:hunter2@h:99999/",
        "redis://:hunter2@h/notadb",
        "redis://:hunter2@h/0?nosuch=1",
        "redis://:hunter2@h/-1",
        "redis://:hunter2@[::1/",
        "redis://:hunter2@h/0#fragment",
        "redis://u:hunter2%@h:x/",
        "redis://:hunter2@h/?timeout=0s",
        "redis://:hunter2@h/?timeout=fast",
        "http://:hunter2@h/",
        "postgres://u:hunter2@h:port/db",
        "postgres://u:hunter2@h/db?nosuch=1",
        "redlock://:hunter2@a,b/",
        "etcd://u:hunter2@h/path",
        "zookeeper://u:hunter2@h/?nosuch=1",
        "redis-sentinel://u:hunter2@h",
        "nosuch://u:hunter2@h",
        "localhost:6379",
        "redis+unix://h/x",
        "redis+unix:///",
        "\0",
        "🔒:",
        "redis://\0/",
    ];
    for url in urls {
        let error = match tokio::time::timeout(millis(5000), leasehold::connect(url)).await {
            Err(_) => panic!("`{}` hangs", url.escape_debug()),
            Ok(Ok(client)) => panic!("`{}` is taken as {client}", url.escape_debug()),
            Ok(Err(error)) => error,
        };
        let kinds = [ErrorKind::InvalidInput, ErrorKind::Unsupported];
        assert!(
            kinds.contains(&error.kind()),
            "`{}`: {error:?}",
            url.escape_debug()
        );
        keeps(SECRET, &error);
    }
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_password_is_denied_and_server_down_is_unavailable() {
    let server = RedisServer::builder()
        .password("s3cret-of-the-server")
        .start()
        .unwrap();
    for url in [
        format!("redis://{}/", server.addr()),
        format!("redis://:hunter2@{}/", server.addr()),
    ] {
        let error = leasehold::connect(&url)
            .await
            .expect_err("connected without the password");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(!error.is_retryable());
        keeps("hunter2", &error);
    }
    let nobody = format!("redis://:hunter2@127.0.0.1:{}/", free_port().unwrap());
    let begun = Instant::now();
    let error = leasehold::connect(&nobody)
        .await
        .expect_err("connected without a server");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(
        error.is_retryable() && begun.elapsed() < millis(20_000),
        "{:?}",
        begun.elapsed()
    );
    keeps("hunter2", &error);
    let error = leasehold::connect("redis+unix:///nonexistent/redis.sock")
        .await
        .expect_err("connected without a server");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_redis_is_reported_in_time() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming().map_while(Result::ok) {
            drop(std::io::Write::write_all(
                &mut &stream,
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
            ));
        }
    });
    let begun = Instant::now();
    let error = leasehold::connect(&format!("redis://{addr}/"))
        .await
        .expect_err("connected to a server that is not Redis");
    let kinds = [ErrorKind::UnexpectedResponse, ErrorKind::Unavailable];
    assert!(
        kinds.contains(&error.kind()) && begun.elapsed() < millis(20_000),
        "{error:?}"
    );
    nothing_panicked();
}
