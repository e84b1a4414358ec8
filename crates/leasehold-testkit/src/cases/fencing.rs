//! Fencing tokens.

use std::sync::Arc;

use leasehold_core::{
    FencingToken, LockKey, Mode,
    backend::{Lease, Request},
};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{Backend, granted, key, let_expire, release, request},
};

/// Checks that each exclusive grant has a larger token than every earlier one, of any client.
pub async fn tokens_grow_over_grants(fixture: &dyn BackendFixture) {
    let handles = [fixture.open().await, fixture.open().await];
    let key = key(fixture, "tokens");
    let mut last = None;
    for turn in 0..6 {
        let backend = &handles[turn / 2 % 2];
        let lease = granted(
            backend,
            request(fixture, backend, &key),
            "a free lock is granted",
        )
        .await;
        let token = token(&lease);
        assert!(Some(token) > last, "token {token} follows {last:?}");
        last = Some(token);
        release(&lease).await;
    }
}

/// Checks that the tokens of a lock continue to increase after it has expired.
pub async fn tokens_grow_after_expiry(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "tokens_after_expiry");
    let first = granted(
        &backend,
        request(fixture, &backend, &key),
        "a free lock is granted",
    )
    .await;
    let_expire(fixture).await;
    let second = granted(
        &backend,
        request(fixture, &backend, &key),
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

/// Checks that a reader's token is larger than those of earlier writers and smaller than those of
/// later writers. A resource then never rejects a reader that holds the lock.
pub async fn shared_tokens_lie_between_exclusive_ones(fixture: &dyn BackendFixture) {
    async fn held(
        fixture: &dyn BackendFixture,
        backend: &Backend,
        key: &LockKey,
        mode: Mode,
    ) -> Arc<dyn Lease> {
        let request: Request = request(fixture, backend, key).with_mode(mode);
        granted(backend, request, "a free lock is granted").await
    }
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "shared_tokens");
    let mut before = None;
    for _ in 0..3 {
        let writer = held(fixture, &one, &key, Mode::Exclusive).await;
        release(&writer).await;
        let readers = [
            held(fixture, &one, &key, Mode::Shared).await,
            held(fixture, &other, &key, Mode::Shared).await,
        ];
        for reader in &readers {
            assert!(
                token(reader) > token(&writer),
                "a reader's token is above the earlier writer's"
            );
            release(reader).await;
        }
        let next = held(fixture, &one, &key, Mode::Exclusive).await;
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

/// Checks that permits have no token. Several holders may use the resource at the same time, so
/// none of them may be fenced off.
pub async fn permits_carry_no_token(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "permits_carry_no_token");
    let of = crate::cases::modes::number(2);
    let lease = granted(
        &backend,
        request(fixture, &backend, &key).with_permit_of(of),
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
