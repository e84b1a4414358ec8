//! The end of a client.

use leasehold_core::{ErrorKind, LossReason};

use crate::{
    stage::{SOON, client, granted, key, must, release, request},
    subject::Subject,
};

/// `close` releases what is held, sends waiters away and then says *closed*.
pub async fn close_releases_all_and_then_says_closed(subject: &dyn Subject) {
    let (closing, other) = (client(subject).await, subject.open().await);
    let keys = [key(subject, "close"), key(subject, "close"), key(subject, "close")];
    let mut guards = Vec::new();
    for key in &keys {
        guards.push(must(closing.mutex(key).lock().await, "a free lock is granted"));
    }
    let foreign_key = key(subject, "close_foreign");
    let foreign = granted(&other, request(subject, &other, &foreign_key), "a free lock is granted").await;
    let waiters: Vec<_> = [&keys[0], &foreign_key]
        .into_iter()
        .map(|key| {
            let mutex = closing.mutex(key);
            tokio::spawn(async move { mutex.lock().await.map(drop).map_err(|error| error.kind()) })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    must(closing.close().await, "a close is answered");
    for waiter in waiters {
        let Ok(sent_away) = tokio::time::timeout(SOON * 20, waiter).await else {
            panic!("a waiter is not sent away by the close")
        };
        let Ok(sent_away) = sent_away else { panic!("a waiter panicked") };
        assert_eq!(sent_away, Err(ErrorKind::Closed), "a waiter is sent away");
    }
    for (guard, key) in guards.iter().zip(&keys) {
        assert!(!guard.is_held(), "a guard of a closed client holds nothing");
        assert_eq!(guard.loss(), Some(LossReason::ClientClosed), "and says why");
        let lease = granted(&other, request(subject, &other, key), "close has released it").await;
        release(&lease).await;
    }
    release(&foreign).await;
    let late = closing.mutex(&foreign_key).lock().await.map(drop).map_err(|error| error.kind());
    assert_eq!(late, Err(ErrorKind::Closed), "a closed client says so");
    let late = closing.mutex(&foreign_key).try_lock().await.map(drop).map_err(|error| error.kind());
    assert_eq!(late, Err(ErrorKind::Closed), "a closed client says so to who tries");
    must(closing.close().await, "a second close is answered");
}
