//! Tokens grow.

use std::sync::Arc;

use leasehold_core::{FencingToken, Lease, LockKey, Mode, Request};

use crate::{
    fixtures::{Backend, granted, key, let_expire, release, request},
    subject::Subject,
};

/// Every exclusive grant has a larger token than every earlier one, whoever gets it.
pub async fn tokens_grow_over_grants(subject: &dyn Subject) {
    let handles = [subject.open().await, subject.open().await];
    let key = key(subject, "tokens");
    let mut last = None;
    for turn in 0..6 {
        let backend = &handles[turn / 2 % 2];
        let lease = granted(
            backend,
            request(subject, backend, &key),
            "a free lock is granted",
        )
        .await;
        let token = token(&lease);
        assert!(Some(token) > last, "token {token} follows {last:?}");
        last = Some(token);
        release(&lease).await;
    }
}

/// A lock that expired goes on counting where it was.
pub async fn tokens_grow_after_expiry(subject: &dyn Subject) {
    let backend = subject.open().await;
    let key = key(subject, "tokens_after_expiry");
    let first = granted(
        &backend,
        request(subject, &backend, &key),
        "a free lock is granted",
    )
    .await;
    let_expire(subject).await;
    let second = granted(
        &backend,
        request(subject, &backend, &key),
        "an expired lock is granted",
    )
    .await;
    assert!(
        token(&second) > token(&first),
        "token {} follows {}",
        token(&second),
        token(&first)
    );
    release(&second).await;
}

/// A reader's token is above every earlier writer's and below every later one's, so that no live
/// reader is fenced off.
pub async fn shared_tokens_lie_between_exclusive_ones(subject: &dyn Subject) {
    async fn held(
        subject: &dyn Subject,
        backend: &Backend,
        key: &LockKey,
        mode: Mode,
    ) -> Arc<dyn Lease> {
        let request: Request = request(subject, backend, key).with_mode(mode);
        granted(backend, request, "a free lock is granted").await
    }
    let (one, other) = (subject.open().await, subject.open().await);
    let key = key(subject, "shared_tokens");
    let mut before = None;
    for _ in 0..3 {
        let writer = held(subject, &one, &key, Mode::Exclusive).await;
        release(&writer).await;
        let readers = [
            held(subject, &one, &key, Mode::Shared).await,
            held(subject, &other, &key, Mode::Shared).await,
        ];
        for reader in &readers {
            assert!(
                token(reader) > token(&writer),
                "a reader's token is above the earlier writer's"
            );
            release(reader).await;
        }
        let next = held(subject, &one, &key, Mode::Exclusive).await;
        for reader in &readers {
            assert!(
                token(reader) < token(&next),
                "a reader's token is below the later writer's"
            );
        }
        assert!(Some(token(&writer)) > before, "writers' tokens grow");
        before = Some(token(&next));
        release(&next).await;
    }
}

/// Several permit holders are right at a time, so permits have no token.
pub async fn permits_carry_no_token(subject: &dyn Subject) {
    let backend = subject.open().await;
    let key = key(subject, "permits_carry_no_token");
    let of = crate::cases::modes::number(2);
    let lease = granted(
        &backend,
        request(subject, &backend, &key).with_permit_of(of),
        "a permit is granted",
    )
    .await;
    assert_eq!(lease.fencing_token(), None, "a permit has no token");
    release(&lease).await;
}

fn token(lease: &Arc<dyn Lease>) -> FencingToken {
    let Some(token) = lease.fencing_token() else {
        panic!("a grant has no token, but the capabilities promise one")
    };
    token
}
