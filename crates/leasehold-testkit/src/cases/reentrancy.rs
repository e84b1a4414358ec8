//! Re-entrant locks.

use leasehold_core::Released;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{client, key, must, must_grant, refused, request},
};

/// Checks that an owner is granted its own lock again at once, and that only the last release frees
/// it.
pub async fn owner_reenters_and_last_release_frees(fixture: &dyn BackendFixture) {
    let (client, other) = (client(fixture).await, fixture.open().await);
    let key = key(fixture, "reenters");
    let owner = client.reentrant_owner();
    let outer = must(owner.lock(&key).await, "a free lock is granted");
    let inner = must_grant(owner.try_lock(&key).await, "the owner locks again");
    let innermost = must(
        owner.clone().lock(&key).await,
        "a clone of the owner is the same owner",
    );
    assert_eq!(
        inner.fencing_token(),
        outer.fencing_token(),
        "both guards have the token of one grant"
    );
    for guard in [innermost, outer] {
        let released = must(guard.release().await, "a release is answered");
        assert_eq!(
            released,
            Released::StillHeld,
            "an earlier release reports that the lock is still held"
        );
        refused(
            &other,
            request(fixture, &other, &key),
            "it is held until the last release",
        )
        .await;
    }
    assert!(inner.is_held(), "the last guard holds");
    assert_eq!(
        must(inner.release().await, "a release is answered"),
        Released::Freed,
        "the last release frees"
    );
    let again = must(owner.lock(&key).await, "the owner may lock it again");
    must(again.release().await, "a release is answered");
}

/// Checks that another owner in the same process waits, as one in another process does.
pub async fn other_owner_waits(fixture: &dyn BackendFixture) {
    let client = client(fixture).await;
    let key = key(fixture, "other_owner");
    let (one, other) = (client.reentrant_owner(), client.reentrant_owner());
    let guard = must(one.lock(&key).await, "a free lock is granted");
    let within = fixture.ttl().as_duration() / 4;
    let waited = must(other.lock_timeout(&key, within).await, "a wait is answered");
    assert!(waited.is_none(), "another owner waits");
    must(guard.release().await, "a release is answered");
    let guard = must(
        other.lock(&key).await,
        "another owner is granted after the release",
    );
    must(guard.release().await, "a release is answered");
}
