use std::{path::Path, sync::Arc};

use leasehold_core::{
    ErrorKind, Fencing, LockBackend, LockClient, LockKey, Released, Ttl,
    quorum::{QuorumBackend, QuorumConfig},
};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::{EtcdCluster, RedisServer};
use leasehold_local::FileBackend;
use leasehold_redis::RedisBackend;

use crate::support::{PATIENCE, millis};

/// One lock over three kinds of backends, one of which dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_quorum_locks_without_tokens_and_says_so() {
    let mut redis = RedisServer::start().unwrap();
    let etcd = EtcdCluster::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (redis_url, etcd_url) = (redis.url(), etcd.url());
    let members = || members(&redis_url, &etcd_url, folder.path());
    let watching = members().await;
    let open = async || {
        // The Redis was just started, and has forgotten nothing that anybody holds.
        let config = QuorumConfig::new().with_largest_ttl(Ttl::from_secs(3).unwrap());
        let config = config.with_node_timeout(PATIENCE);
        QuorumBackend::open(members().await, config).await.unwrap()
    };
    let (one, other) = (open().await, open().await);
    let capabilities = one.capabilities();
    assert_eq!(capabilities.fencing, Fencing::None);
    assert!(!capabilities.permits);
    assert_eq!(capabilities.min_ttl, Ttl::from_secs(2).unwrap(), "of etcd");
    let client = |quorum| LockClient::builder(quorum).with_ttl(Ttl::from_secs(3).unwrap()).build();
    let (one, other) = (client(one), client(other));
    // A Redis that was just started waits for the largest TTL; the two others make a majority.
    let held = one.mutex("k").lock().await.unwrap();
    assert_eq!(held.fencing_token(), None);
    assert_eq!(other.mutex("k").try_lock().await.unwrap_err().kind(), ErrorKind::Contended);
    assert!(held.is_held());
    let waiting = tokio::spawn({
        let mutex = other.mutex("k");
        async move { mutex.lock().await }
    });
    tokio::time::sleep(millis(3_500)).await;
    assert!(held.is_held() && !waiting.is_finished(), "it is renewed");
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    let taken = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    // A renewal takes back the nodes that were not yet free when it was granted.
    let held_everywhere = async {
        while holders(&watching).await < 3 {
            taken.renew().await.unwrap();
            tokio::time::sleep(millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held_everywhere).await.unwrap();
    redis.kill();
    taken.renew().await.unwrap();
    assert_eq!(taken.release().await.unwrap(), Released::Freed);
    let guard = one.mutex("k").lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

async fn members(redis: &str, etcd: &str, folder: &Path) -> Vec<Arc<dyn LockBackend>> {
    vec![
        RedisBackend::connect(redis).await.unwrap(),
        EtcdBackend::connect(etcd).await.unwrap(),
        Arc::new(FileBackend::open(folder).unwrap()),
    ]
}

/// How many of the members hold the lock for somebody.
async fn holders(members: &[Arc<dyn LockBackend>]) -> usize {
    let key = LockKey::new("k").unwrap();
    let mut holders = 0;
    for member in members {
        holders += usize::from(!member.inspect(&key).await.unwrap().holders.is_empty());
    }
    holders
}
