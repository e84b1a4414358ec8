//! What goes on beside a session as long as it lives: its connection is followed, and the leader is
//! asked often.

use std::{sync::Weak, time::Duration};

use leasehold_core::LossReason;
use tokio::time::timeout;
use zookeeper_client::{SessionState, StateWatcher};

use crate::{liveness::HEARTBEAT_PART, session::ZookeeperSession};

/// Renewals after a reconnection, and their distance as a part of the TTL: the silence before it
/// counts against the first ones.
const RECOVERY: u32 = 6;
const RECOVERY_PART: u32 = 12;

/// Follows the connection: after a reconnection the session is renewed at once, and when it is over
/// everybody is told.
pub(crate) async fn follow(session: Weak<ZookeeperSession>, mut state: StateWatcher) {
    loop {
        let changed = timeout(Duration::from_secs(1), state.changed()).await;
        let Some(session) = session.upgrade().filter(|session| session.is_live()) else {
            return;
        };
        match changed {
            Err(_elapsed) => {}
            Ok(SessionState::Expired | SessionState::Closed | SessionState::AuthFailed) => {
                session.end(LossReason::SessionEnded);
                return;
            }
            Ok(SessionState::Disconnected) => {
                tracing::debug!(target: "leasehold", "disconnected: locks are believed in until their deadline");
            }
            Ok(_) => {
                for _ in 0..RECOVERY {
                    if let Err(error) = session.renew().await {
                        tracing::debug!(target: "leasehold", %error, "not renewed after a reconnection");
                        break;
                    }
                    tokio::time::sleep(session.ttl().as_duration() / RECOVERY_PART).await;
                }
            }
        }
    }
}

/// Asks the leader often: see [`liveness`](crate::liveness).
pub(crate) async fn beat(session: Weak<ZookeeperSession>) {
    loop {
        let Some(pause) = session
            .upgrade()
            .map(|session| session.ttl().as_duration() / HEARTBEAT_PART)
        else {
            return;
        };
        tokio::time::sleep(pause).await;
        let Some(session) = session.upgrade().filter(|session| session.is_live()) else {
            return;
        };
        session.handle().beat(&session).await;
    }
}
