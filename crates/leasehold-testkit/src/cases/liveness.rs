//! Pings.

use leasehold_core::ErrorKind;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{client, key, must},
};

/// Checks that a ping is answered while a lock is held and does not affect it, and that it fails on
/// a closed client. A backend without pings reports [`ErrorKind::Unsupported`].
pub async fn ping_is_answered_beside_a_held_lock(fixture: &dyn BackendFixture) {
    let client = client(fixture).await;
    let key = key(fixture, "ping");
    let guard = must(client.mutex(&key).lock().await, "a free lock is granted");
    match client.ping().await {
        Ok(pong) => assert!(
            pong.nodes.iter().all(|node| node.problem.is_none()),
            "all nodes answer: {pong:?}"
        ),
        Err(error) => assert_eq!(
            error.kind(),
            ErrorKind::Unsupported,
            "a ping is answered: {error:?}"
        ),
    }
    assert!(guard.is_held(), "a ping takes no lock away");
    must(guard.release().await, "a release is answered");
    must(client.close().await, "a close is answered");
    let late = client.ping().await.map(drop).map_err(|error| error.kind());
    assert_eq!(
        late,
        Err(ErrorKind::Closed),
        "a ping fails on a closed client"
    );
}
