//! URLs, users, passwords and sockets. Errors name the problem and show no secrets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{Server, granted, request, ttl};
use leasehold_core::{
    Capabilities, ErrorKind, Fencing, LockClient, Mode, Restart, Revocation, Ttl,
    backend::{LockBackend, RecordRead, RecordWrite},
};
use leasehold_redis::{RedisBackend, RedisConfig, redis};

async fn fails(url: &str) -> leasehold_core::Error {
    RedisBackend::connect(url).await.expect_err(url)
}

#[tokio::test]
async fn a_password_is_asked_for_used_and_never_shown() {
    let server = Server::with(&["--requirepass", "s3cret#/"]);
    let at = server.address();
    let backend = RedisBackend::connect(&format!("redis://:s3cret%23%2F@{at}/"))
        .await
        .unwrap();
    granted(&backend, request("k"))
        .await
        .release()
        .await
        .unwrap();
    assert_eq!(backend.to_string(), format!("redis://{at}/0"));
    assert!(!format!("{backend:?} {backend} {:?}", backend.capabilities()).contains("s3cret"));
    for url in [
        format!("redis://{at}/"),
        format!("redis://:wr0ng@{at}/"),
        format!("redis://eve:wr0ng@{at}/"),
    ] {
        let error = fails(&url).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{url}: {error}");
        assert!(
            error.to_string().contains("password") && error.to_string().contains(&at.to_string()),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
    }
}

/// Creates the README's user, with these changes.
fn acl(changes: &[&str]) -> redis::Cmd {
    let rules = include_str!("../../../crates/leasehold-redis/README.md")
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER shop "))
        .unwrap();
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER")
        .arg("shop")
        .arg(rules.split(' ').collect::<Vec<_>>())
        .arg(changes);
    acl
}

#[tokio::test]
async fn what_a_user_took_whom_a_right_is_missing_is_given_back() {
    let server = Server::start();
    let mut raw = server.raw().await;
    let () = acl(&["-time"]).query_async(&mut raw).await.unwrap();
    let backend = RedisBackend::connect(&format!(
        "redis://shop:pass@{}/?prefix=shop:",
        server.address()
    ))
    .await
    .unwrap();
    let error = Arc::clone(&backend)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    crate::support::until("given back", || async {
        server.leftovers().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_user_with_the_rights_of_the_readme_can_do_everything() {
    let server = Server::start();
    let mut raw = server.raw().await;
    let () = acl(&[]).query_async(&mut raw).await.unwrap();
    let backend = RedisBackend::connect(&format!(
        "redis://shop:pass@{}/?prefix=shop:",
        server.address()
    ))
    .await
    .unwrap();
    assert_eq!(
        backend.capabilities().waiter_notification,
        leasehold_core::WaiterNotification::Pushed
    );
    for mode in [
        Mode::Exclusive,
        Mode::Shared,
        Mode::Permit {
            of: 2.try_into().unwrap(),
        },
    ] {
        let lease = granted(&backend, request("k").with_mode(mode)).await;
        Arc::clone(&lease).renew().await.unwrap();
        let holder = backend
            .inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .holders
            .remove(0);
        backend.revoke(&holder, Revocation::Graceful).await.unwrap();
        let () = redis::cmd("FLUSHALL").query_async(&mut raw).await.unwrap();
    }
    for name in ["k", "{k}", "}k"] {
        let lease = granted(&backend, request(name)).await;
        let write = RecordWrite::new(1, "value").unwrap();
        lease.write_record(write).await.unwrap();
        let mut read = RecordRead::new(crate::support::key(name));
        (read.while_held, read.watch) = (true, true);
        let reading = Arc::clone(&backend).read_record(read).await.unwrap();
        assert!(reading.record.is_some() && reading.changed.is_some());
    }
    let () = redis::cmd("FLUSHALL").query_async(&mut raw).await.unwrap();
    // The user has no right to keys with another prefix, and the error says so.
    let stranger = RedisBackend::connect(&format!(
        "redis://shop:pass@{}/?prefix=bank:",
        server.address()
    ))
    .await
    .unwrap();
    let error = Arc::clone(&stranger)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

/// Harmful commands that the README's user has no right to.
const FORBIDDEN: &[&str] = &[
    "GET bank:k",
    "SET bank:k v",
    "ZADD bank:k 1 m",
    "DEL bank:k",
    "EVAL return(redis.call('GET',KEYS[1])) 1 bank:k",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "DBSIZE",
    "FLUSHALL",
    "FLUSHDB",
    "SELECT 1",
    "SWAPDB 0 1",
    "CLIENT KILL ID 1",
    "CLIENT KILL TYPE normal",
    "CLIENT LIST",
    "CLIENT PAUSE 1000",
    "CLIENT UNBLOCK 1",
    "CLIENT NO-EVICT ON",
    "CLIENT REPLY OFF",
    "SCRIPT KILL",
    "SCRIPT FLUSH",
    "CONFIG GET maxmemory",
    "CONFIG SET maxmemory 1",
    "CONFIG REWRITE",
    "ACL LIST",
    "ACL WHOAMI",
    "MONITOR",
    "SAVE",
    "BGSAVE",
    "REPLICAOF localhost 1",
    "SHUTDOWN NOSAVE",
    "PUBLISH c m",
    "SUBSCRIBE c",
    "LPUSH shop:list v",
    "RENAME shop:a shop:b",
    "DUMP shop:a",
    "SORT shop:a",
    "MODULE LIST",
    "SLOWLOG GET",
    "LATENCY RESET",
    "MEMORY PURGE",
    "COMMAND",
    "WAIT 1 1000",
];

#[tokio::test]
async fn a_user_with_the_rights_of_the_readme_can_do_nothing_else() {
    let server = Server::start();
    let mut raw = server.raw().await;
    let () = acl(&[]).query_async(&mut raw).await.unwrap();
    let client = redis::Client::open(format!("redis://shop:pass@{}/", server.address())).unwrap();
    let mut shop = client.get_multiplexed_async_connection().await.unwrap();
    for line in FORBIDDEN {
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        let error = command
            .query_async::<redis::Value>(&mut shop)
            .await
            .expect_err(line);
        assert!(
            error.to_string().to_lowercase().contains("permission"),
            "{line}: {error}"
        );
    }
    // The same within a script. Redis 7.0 reports it as a failing script.
    for call in [
        "'FLUSHALL'",
        "'CONFIG','GET','*'",
        "'CLIENT','KILL','ID','1'",
        "'GET','bank:k'",
        "'KEYS','*'",
    ] {
        let mut script = redis::cmd("EVAL");
        script.arg(format!("return redis.call({call})")).arg(0);
        script
            .query_async::<redis::Value>(&mut shop)
            .await
            .expect_err(call);
    }
    assert_eq!(server.leftovers().await, Vec::<String>::new());
    let () = redis::cmd("PING").query_async(&mut raw).await.unwrap();
}

#[tokio::test]
async fn a_server_that_keeps_nothing_or_evicts_promises_less() {
    for (settings, restart) in [
        (&[][..], Restart::FreesAtOnce),
        (&["--appendonly", "yes"], Restart::AsPersisted),
        (
            &[
                "--appendonly",
                "yes",
                "--maxmemory",
                "100mb",
                "--maxmemory-policy",
                "allkeys-lru",
            ],
            Restart::FreesAtOnce,
        ),
    ] {
        let server = Server::with(settings);
        assert_eq!(
            server.backend().await.capabilities().restart,
            restart,
            "{settings:?}"
        );
    }
}

#[tokio::test]
async fn databases_are_apart() {
    let server = Server::start();
    let zero = server.backend().await;
    let three = RedisBackend::connect(&format!("{}3", server.url()))
        .await
        .unwrap();
    granted(&zero, request("k")).await;
    granted(&three, request("k")).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_works() {
    let server = Server::start();
    let socket = server.socket();
    let backend =
        RedisBackend::connect(&format!("redis+unix://{}?db=1&prefix=x:", socket.display()))
            .await
            .unwrap();
    granted(&backend, request("k")).await;
    assert_eq!(
        backend.to_string(),
        format!("redis+unix://{}?db=1", socket.display())
    );
    let error = fails("redis+unix:///nowhere/redis.sock").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_client_of_one_s_own_works() {
    let server = Server::start();
    let client = redis::Client::open(server.url()).unwrap();
    let backend = RedisBackend::from_client(&client, RedisConfig::new().with_prefix("x:"))
        .await
        .unwrap();
    granted(&backend, request("k")).await;
    assert_eq!(server.leftovers().await, ["x:k"]);
}

#[tokio::test]
async fn nobody_there_names_the_address_and_the_remedy() {
    let port = leasehold_testkit::free_port().unwrap();
    let error = fails(&format!("redis://:hush@127.0.0.1:{port}/")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains(&format!("127.0.0.1:{port}")),
        "{error}"
    );
    assert!(error.to_string().contains("check"), "{error}");
    assert!(!format!("{error:?}").contains("hush"));
    let error = fails("redis://no-such-host.invalid/").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_server_that_is_silent_or_speaks_otherwise_is_told() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let started = Instant::now();
    let error = fails(&format!(
        "redis://{}/?connect-timeout=200ms",
        silent.local_addr().unwrap()
    ))
    .await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));

    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = web.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut client, _)) = web.accept().await {
            drop(client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    let error = fails(&format!("redis://{address}/")).await;
    assert_eq!(error.kind(), ErrorKind::UnexpectedResponse, "{error}");
}

#[tokio::test]
async fn a_server_that_refuses_connections_tells_why() {
    let server = Server::start();
    let mut raw = server.raw().await;
    let () = redis::cmd("CONFIG")
        .arg("SET")
        .arg("maxclients")
        .arg(1)
        .query_async(&mut raw)
        .await
        .unwrap();
    for _ in 0..5 {
        let error = fails(&server.url()).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(
            error.to_string().contains("max number of clients")
                && error.to_string().contains("maxclients"),
            "{error}"
        );
    }
    // Answers of a server in protected mode and of a proxy.
    for (said, kind, told) in [
        (
            &b"-DENIED Redis is running in protected mode because so it is. Advice.\r\n"[..],
            ErrorKind::Denied,
            "protected mode",
        ),
        (
            b"",
            ErrorKind::Unavailable,
            "closed the connection without a reason",
        ),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            while let Ok((mut client, _)) = listener.accept().await {
                drop(client.write_all(said).await);
            }
        });
        let error = fails(&format!("redis://{address}/")).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.to_string().contains(told) && !error.to_string().contains("Advice"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_sentinel_is_told_from_a_server() {
    // The sentinel writes its configuration to this file.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sentinel.conf");
    std::fs::write(&file, "").unwrap();
    let port = leasehold_testkit::free_port().unwrap();
    let _sentinel = tokio::process::Command::new("redis-server")
        .arg(&file)
        .args([
            "--sentinel",
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--dir",
        ])
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    crate::support::until("it listens", || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
    })
    .await;
    let error = fails(&format!("redis://127.0.0.1:{port}/")).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(
        error.to_string().contains("Sentinel") && error.to_string().contains("primary"),
        "{error}"
    );
}

#[tokio::test]
async fn missing_reply_error_names_the_timeout_and_its_option() {
    let server = Server::start();
    let backend = RedisBackend::connect(&format!("{}?timeout=150ms", server.url()))
        .await
        .unwrap();
    server.signal("STOP");
    let error = Arc::clone(&backend)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("150ms") && error.to_string().contains("`timeout`"),
        "{error}"
    );
    let error = fails(&format!("{}?connect-timeout=150ms", server.url())).await;
    assert!(
        error.to_string().contains("150ms") && error.to_string().contains("`connect-timeout`"),
        "{error}"
    );
    server.signal("CONT");
}

#[tokio::test]
async fn an_outage_of_a_quorum_names_each_server_once() {
    let mut servers = [Server::start(), Server::start(), Server::start()];
    let hosts = servers
        .each_ref()
        .map(|server| server.address().to_string());
    let url = format!("redlock://{}/", hosts.join(","));
    let client = LockClient::new(leasehold_redis::redlock(&url).await.unwrap());
    for server in &mut servers {
        server.kill();
    }
    for error in [
        client.mutex("k").try_lock().await.unwrap_err(),
        leasehold_redis::redlock(&url).await.unwrap_err(),
    ] {
        let (mut told, mut cause) = (String::new(), Some(&error as &dyn std::error::Error));
        while let Some(error) = cause {
            told = format!("{told}: {error}");
            cause = error.source();
        }
        for host in &hosts {
            assert_eq!(told.matches(host).count(), 1, "{told}");
        }
    }
}

#[test]
fn a_client_that_was_connected_on_another_runtime_says_so() {
    let server = Server::start();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let client = first.block_on(async { LockClient::new(server.backend().await) });
    let elsewhere = async {
        // No task drives this connection.
        let error = client.mutex("k").lock().await.unwrap_err();
        (
            error.kind(),
            client.inspect("k").await.unwrap_err().kind(),
            client.close().await.unwrap_err().kind(),
        )
    };
    assert_eq!(
        runtime().block_on(elsewhere),
        (
            ErrorKind::WrongRuntime,
            ErrorKind::WrongRuntime,
            ErrorKind::WrongRuntime
        )
    );
    first.block_on(async {
        client
            .mutex("k")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap()
    });
    drop(first);
    let error = runtime().block_on(async { client.mutex("k").lock().await.unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::WrongRuntime);
}

#[tokio::test]
async fn capabilities_tell_the_truth() {
    let server = Server::start();
    let backend = server.backend().await;
    let capabilities: Capabilities = backend.capabilities();
    assert_eq!(capabilities.fencing, Fencing::Clocked);
    assert!(capabilities.shared && capabilities.permits && capabilities.pipelined_release);
    let client = LockClient::new(Arc::clone(&backend));
    let mutex = client.mutex("k").with_ttl(Duration::from_millis(9));
    let error = mutex.try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    granted(&backend, request("short").with_ttl(ttl(10))).await;
    granted(&backend, request("long").with_ttl(Ttl::MAX))
        .await
        .renew()
        .await
        .unwrap();
}

async fn names(server: &Server) -> Vec<String> {
    let mut raw = server.raw().await;
    let list: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query_async(&mut raw)
        .await
        .unwrap();
    let names = list
        .split_whitespace()
        .filter_map(|field| field.strip_prefix("name="));
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn connections_have_a_name_also_after_they_are_replaced() {
    let server = Server::start();
    let backend = server.backend().await;
    let pid = std::process::id().to_string();
    let is_ours = |names: &[String]| matches!(names, [one] if one.starts_with("leasehold:") && one.contains(&pid));
    let found = names(&server).await;
    assert!(is_ours(&found), "{found:?}");
    let mut raw = server.raw().await;
    let () = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query_async(&mut raw)
        .await
        .unwrap();
    crate::support::until("connected again", || async { backend.ping().await.is_ok() }).await;
    let found = names(&server).await;
    assert!(is_ours(&found), "{found:?}");

    let server = Server::start();
    let chosen = RedisBackend::connect(&format!("redis://{}/?name=shop-3", server.address()))
        .await
        .unwrap();
    assert_eq!(names(&server).await, ["shop-3"]);
    chosen.close().await.unwrap();
    let _nameless = RedisBackend::connect(&format!("redis://{}/?name=", server.address()))
        .await
        .unwrap();
    crate::support::until("closed", || async { names(&server).await.is_empty() }).await;
    let error = fails(&format!("redis://{}/?name=two%20words", server.address())).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("without spaces"), "{error}");
}

#[tokio::test]
async fn a_user_who_may_neither_name_nor_ping_locks_all_the_same() {
    let server = Server::start();
    let mut raw = server.raw().await;
    let () = acl(&["-client|setname", "-ping"])
        .query_async(&mut raw)
        .await
        .unwrap();
    let backend = RedisBackend::connect(&format!(
        "redis://shop:pass@{}/?prefix=shop:",
        server.address()
    ))
    .await
    .unwrap();
    backend.ping().await.unwrap();
    granted(&backend, request("k"))
        .await
        .release()
        .await
        .unwrap();
    assert!(names(&server).await.is_empty());
}

#[tokio::test]
async fn a_database_that_the_server_does_not_have_is_bad_input() {
    let server = Server::start();
    let mut raw = server.raw().await;
    let () = acl(&["-select"]).query_async(&mut raw).await.unwrap();
    let error = fails(&format!("redis://shop:pass@{}/3", server.address())).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let error = fails(&format!("redis://{}/99", server.address())).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(
        error.to_string().contains("99") && error.to_string().contains("databases"),
        "{error}"
    );
}
