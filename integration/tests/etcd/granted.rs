//! A lease with a known id is used only by the client that granted it.

use std::time::Duration;

use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{sleep, timeout};

use crate::{
    relay::{Fate, Relay, STRANGERS_TTL_S},
    support::{client, free, ttl},
};

/// The lease would end with the other client's TTL, or whenever that client revokes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_granted_by_another_client_is_not_used() {
    for fate in [Fate::Taken, Fate::AnswerLost] {
        let cluster = EtcdCluster::start().unwrap();
        let (relay, addr) = Relay::start(cluster.at(0).addr(), fate).await;
        let victim = client(&format!("etcd://{addr}/")).await;
        let rival = client(&cluster.url()).await;
        // Not renewed before the other client's lease expires.
        let held = victim.mutex("k").with_ttl(ttl(30)).lock().await.unwrap();
        assert!(
            relay.is_done(),
            "{fate:?}: the expected request was not sent"
        );
        sleep(Duration::from_secs(STRANGERS_TTL_S as u64 + 2)).await;
        assert!(held.is_held(), "{fate:?}");
        let refused = rival.mutex("k").try_lock().await;
        assert!(refused.unwrap().is_none(), "{fate:?}: two hold");
        free(held).await;
    }
}

/// Only the lease limits the life of a session's key.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_key_has_no_lease_is_lost() {
    let cluster = EtcdCluster::start().unwrap();
    let one = client(&cluster.url()).await;
    let held = one.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    let session = cluster.at(0).keys("%session/").unwrap().remove(0);
    // A tool that copies keys between clusters does this.
    cluster.at(0).ctl(&["put", &session, "copied"]).unwrap();
    let lost = timeout(SOON, held.lost()).await;
    assert!(lost.is_ok(), "the renewals continue");
}
