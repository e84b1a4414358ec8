//! The background tasks of a session: one follows its connection, one sends heartbeats to the
//! leader, and one watches the nodes of its leases.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use leasehold_core::{LossReason, backend::support::supervised};
use tokio::time::timeout;
use zookeeper_client::{SessionState, StateWatcher};

use crate::{liveness::HEARTBEAT_PART, loss_watch, session::ZookeeperSession};

/// The number of renewals after a reconnection. The silence before it makes the deadlines of the
/// first ones short.
const RECOVERY: u32 = 6;
/// The pause between these renewals, as a part of the TTL.
const RECOVERY_PART: u32 = 12;

/// Starts the tasks of a session, unless they were started before. They end with the session, or
/// when nothing refers to it any more.
pub(crate) fn start(session: &Arc<ZookeeperSession>) {
    let handle = session.handle();
    let Some(state) = handle.take_state_watcher() else {
        return;
    };
    let (losses, session) = (Arc::clone(&handle.losses), Arc::downgrade(session));
    let (followed, beaten) = (Weak::clone(&session), Weak::clone(&session));
    drop(tokio::spawn(supervised(move || {
        follow(Weak::clone(&followed), state.clone())
    })));
    if handle.is_for_waiters() {
        return;
    }
    drop(tokio::spawn(supervised(move || beat(Weak::clone(&beaten)))));
    drop(tokio::spawn(loss_watch::watch(session, losses)));
}

/// Follows the connection of a session. Renews the session at once after a reconnection, and ends
/// it when the server has ended it.
async fn follow(session: Weak<ZookeeperSession>, mut state: StateWatcher) {
    loop {
        let changed = timeout(Duration::from_secs(1), state.changed()).await;
        let live = session.upgrade().filter(|session| session.is_live());
        let Some(session) = live else { return };
        match changed {
            Err(_elapsed) => {}
            Ok(SessionState::Expired | SessionState::Closed | SessionState::AuthFailed) => {
                session.end(LossReason::SessionEnded);
                return;
            }
            Ok(SessionState::Disconnected) => {
                tracing::debug!(target: "leasehold", "disconnected: locks stay valid until their deadline");
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

/// Sends heartbeats to the leader; see [`liveness`](crate::liveness).
async fn beat(session: Weak<ZookeeperSession>) {
    loop {
        let pause = session
            .upgrade()
            .map(|session| session.ttl().as_duration() / HEARTBEAT_PART);
        let Some(pause) = pause else { return };
        tokio::time::sleep(pause).await;
        let live = session.upgrade().filter(|session| session.is_live());
        let Some(session) = live else { return };
        session.handle().beat(&session).await;
    }
}
