//! Validation of lock names and TTLs.

use std::sync::Arc;

use leasehold_core::{Error, ErrorKind, LockKey, Ttl};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{attempt, client, key, must, must_grant, release, request},
};

/// Checks that different names are different locks, whatever bytes they consist of. A name that a
/// backend cannot represent is refused as invalid input.
pub async fn awkward_names_are_distinct(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let stem = fixture.name("awkward");
    let names = awkward_names(&stem);
    let mut held = Vec::new();
    for name in names {
        let shown = String::from_utf8_lossy(&name).into_owned();
        let key = must(LockKey::new(&name), "a lock name may have any bytes");
        match Arc::clone(&backend)
            .try_acquire(request(fixture, &backend, &key))
            .await
        {
            Ok(leasehold_core::backend::Attempt::Granted(lease)) => held.push((key, lease)),
            Ok(leasehold_core::backend::Attempt::Contended(_)) => {
                panic!("{shown:?} is the same lock as another name")
            }
            Err(error) => assert_eq!(
                error.kind(),
                ErrorKind::InvalidInput,
                "{shown:?} is refused: {error:?}"
            ),
        }
    }
    let other = fixture.open().await;
    for (key, _) in &held {
        let again = attempt(&other, request(fixture, &other, key)).await;
        assert!(
            again.is_none(),
            "`{key}` was granted and can be locked again"
        );
    }
    for (_, lease) in &held {
        release(lease).await;
    }
    let client = client(fixture).await;
    for refused in [String::new(), "x".repeat(LockKey::MAX_LEN + 1)] {
        let locked = client
            .mutex(refused)
            .lock()
            .await
            .map(drop)
            .map_err(|error: Error| error.kind());
        assert_eq!(
            locked,
            Err(ErrorKind::InvalidInput),
            "an impossible name is invalid input"
        );
    }
}

/// Checks that a TTL outside of the backend's range is refused as invalid input, not rounded.
pub async fn ttl_outside_capabilities_is_refused_typed(fixture: &dyn BackendFixture) {
    let (client, backend) = (client(fixture).await, fixture.open().await);
    let able = backend.capabilities();
    let key = key(fixture, "ttl");
    let below = able
        .min_ttl
        .as_millis()
        .checked_sub(1)
        .and_then(|ttl| Ttl::from_millis(ttl).ok());
    let above = Ttl::from_millis(able.max_ttl.as_millis().saturating_add(1)).ok();
    for ttl in below.into_iter().chain(above) {
        let locked = client
            .mutex(&key)
            .with_ttl(ttl)
            .try_lock()
            .await
            .map(drop)
            .map_err(|error| error.kind());
        assert_eq!(locked, Err(ErrorKind::InvalidInput), "a TTL of {ttl}");
    }
    let locked = client.mutex(&key).with_ttl(able.max_ttl).try_lock().await;
    must(
        must_grant(locked, "the longest TTL is accepted")
            .release()
            .await,
        "a release is answered",
    );
}

/// Returns names that begin with `stem` and are easily confused.
pub(super) fn awkward_names(stem: &str) -> Vec<Vec<u8>> {
    let long = |last: char| {
        let mut name = stem.to_owned();
        name.extend(std::iter::repeat_n(
            'x',
            LockKey::MAX_LEN.saturating_sub(stem.len() + 1),
        ));
        name.push(last);
        name
    };
    let ends = [
        "", "a", "A", "a/b", "a/", "/a", "a//b", "a:b", "a_b", "a b", ".", "..", "a/../b", "{}",
        "{a}", "a}b", "a{b", "\0", "a\0b", "\n", "a\nb", "%00", "%2F", "*", "?", "\\", "'", "\"",
        "ä", "a\u{308}", "🔒",
    ];
    let mut names: Vec<Vec<u8>> = ends
        .iter()
        .map(|end| format!("{stem}{end}").into_bytes())
        .collect();
    names.extend([long('y').into_bytes(), long('z').into_bytes()]);
    names.push([stem.as_bytes(), b"\xff\xfe"].concat());
    names
}
