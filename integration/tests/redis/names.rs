//! Every name works or is refused, and other programs see the same key.

use std::{collections::HashSet, sync::Arc};

use crate::support::{Server, granted, refused, request};
use leasehold_core::{
    ErrorKind, LockKey, Mode, Revocation,
    backend::{LockBackend, RecordRead, RecordWrite, Request},
};
use leasehold_redis::{RedisBackend, redis};

#[tokio::test]
async fn odd_names_work_in_every_mode() {
    let server = Server::start();
    let backend = server.backend().await;
    let long = "x".repeat(1024);
    let names: [&[u8]; 15] = [
        b"a",
        b"/",
        b"..",
        b"\0",
        b"a\nb",
        b"{}",
        b"a}b",
        b"{}{x}",
        b"{x}y",
        b"a{b",
        b"}{",
        b"\xff\xfe",
        "🔒".as_bytes(),
        b" ",
        long.as_bytes(),
    ];
    for name in names {
        let key = LockKey::new(name).unwrap();
        let lease = granted(&backend, Request::new(key.clone()).with_label("me")).await;
        refused(
            &backend,
            Request::new(key.clone()).with_waiting(|waiting| waiting.keeps_waiting = true),
        )
        .await;
        let exists: bool = redis::cmd("EXISTS")
            .arg(name)
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        assert!(exists, "{key}: other programs must find it by its raw name");
        let seen = backend.inspect(&key).await.unwrap();
        assert_eq!(
            (seen.holders[0].label.as_str(), seen.waiters.len()),
            ("me", 1)
        );
        lease.release().await.unwrap();
        granted(
            &backend,
            Request::new(key.clone()).with_permit_of(1.try_into().unwrap()),
        )
        .await;
        // The waiter from above is still registered, so the readers use another name.
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        granted(&backend, Request::new(key.clone()).with_mode(Mode::Shared)).await;
    }
}

#[tokio::test]
async fn names_of_the_bookkeeping_are_refused() {
    let server = Server::start();
    let backend = server.backend().await;
    for name in [
        "{42}:lh4:token",
        "{x}:lh1:readers",
        "{1}{}:lh3:queue",
        "{x}:lh2:record",
    ] {
        let error = Arc::clone(&backend)
            .try_acquire(request(name))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(
            backend
                .inspect(&crate::support::key(name))
                .await
                .unwrap_err()
                .kind(),
            ErrorKind::InvalidInput
        );
        let read = RecordRead::new(crate::support::key(name));
        let read = Arc::clone(&backend).read_record(read).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

/// The server computes the slots itself.
#[tokio::test]
async fn all_keys_of_a_lock_are_in_one_slot_of_a_real_server() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    let mut raw = server.raw().await;
    let mut add = redis::cmd("CLUSTER");
    add.arg("ADDSLOTSRANGE").arg(0).arg(16_383);
    let () = add.query_async(&mut raw).await.unwrap();
    crate::support::until("the cluster is up", || async {
        server.info("cluster").await.contains("cluster_enabled:1")
    })
    .await;
    let backend = server.backend().await;
    for name in ["item/42", "{user}:a", "{}", "a}b", "a{b", "{}{x}"] {
        let wanted = || Request::new(LockKey::new(name).unwrap());
        crate::support::until("granted", || async {
            Arc::clone(&backend).try_acquire(wanted()).await.is_ok()
        })
        .await;
        let holder = backend.inspect(wanted().key()).await.unwrap().holders;
        backend
            .revoke(&holder[0], Revocation::Immediate)
            .await
            .unwrap();
        let lease = granted(&backend, wanted()).await;
        let write = RecordWrite::new(1, "value").unwrap();
        lease.write_record(write).await.unwrap();
        let mut read = RecordRead::new(wanted().key().clone());
        read.while_held = true;
        let reading = Arc::clone(&backend).read_record(read).await.unwrap();
        assert!(reading.record.is_some());
        refused(
            &backend,
            wanted().with_waiting(|waiting| waiting.keeps_waiting = true),
        )
        .await;
        refused(
            &backend,
            wanted()
                .with_mode(Mode::Shared)
                .with_waiting(|waiting| waiting.keeps_waiting = true),
        )
        .await;
        granted(&backend, wanted().with_permit_of(2.try_into().unwrap())).await;
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut raw)
            .await
            .unwrap();
        let mut slots = HashSet::new();
        for key in &keys {
            let slot: u16 = redis::cmd("CLUSTER")
                .arg("KEYSLOT")
                .arg(key)
                .query_async(&mut raw)
                .await
                .unwrap();
            slots.insert(slot);
        }
        assert!(keys.len() >= 4, "{keys:?}");
        assert_eq!(slots.len(), 1, "{name}");
        let () = redis::cmd("FLUSHALL").query_async(&mut raw).await.unwrap();
    }
}

#[tokio::test]
async fn a_prefix_keeps_programs_apart() {
    let server = Server::start();
    let plain = server.backend().await;
    let shop = RedisBackend::connect(&format!("{}?prefix=shop%3A", server.url()))
        .await
        .unwrap();
    granted(&plain, request("k")).await;
    granted(&shop, request("k")).await;
    refused(&plain, request("shop:k")).await;
    let mut leftovers = server.leftovers().await;
    leftovers.sort();
    assert_eq!(leftovers, ["k", "shop:k"]);
}

#[tokio::test]
async fn a_plain_client_and_we_exclude_each_other() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    let set = || {
        let mut cmd = redis::cmd("SET");
        cmd.arg("k")
            .arg("c3f5e2b0a1d94c6f8e7b0a1d94c6f8e7")
            .arg("NX")
            .arg("PX")
            .arg(30_000);
        cmd
    };
    for mode in [Mode::Exclusive, Mode::Shared] {
        let lease = granted(&backend, request("k").with_mode(mode)).await;
        let taken: Option<String> = set().query_async(&mut raw).await.unwrap();
        assert_eq!(taken, None, "{mode}");
        lease.release().await.unwrap();
        let taken: Option<String> = set().query_async(&mut raw).await.unwrap();
        assert_eq!(taken.as_deref(), Some("OK"));
        refused(&backend, request("k").with_mode(mode)).await;
        let () = redis::cmd("DEL")
            .arg("k")
            .query_async(&mut raw)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_value_is_the_owner_and_a_printable_label() {
    let server = Server::start();
    let backend = server.backend().await;
    let wanted = request("k").with_label("host/7\u{1f512}\n");
    granted(&backend, wanted.clone()).await;
    let value: String = redis::cmd("GET")
        .arg("k")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(value, format!("{}:host/7??", wanted.owner()));
}

/// Redisson's locks are hashes.
#[tokio::test]
async fn a_key_of_another_type_is_held_by_somebody_else() {
    let server = Server::start();
    let backend = server.backend().await;
    let () = redis::cmd("HSET")
        .arg("k")
        .arg("f")
        .arg(1)
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    refused(&backend, request("k")).await;
    refused(&backend, request("k").with_mode(Mode::Shared)).await;
    let seen = backend.inspect(&crate::support::key("k")).await.unwrap();
    assert_eq!(seen.holders[0].mode, None);
}
