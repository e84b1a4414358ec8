use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Fencing, LockClient, LockGuard, LockKey, Released, Ttl,
    backend::LockBackend,
    quorum::{QuorumBackend, QuorumConfig, QuorumMember},
};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::{EtcdCluster, PostgresServer, RedisServer};
use leasehold_postgres::PostgresBackend;
use leasehold_redis::RedisBackend;

use crate::support::{PATIENCE, millis, ttl};

/// A server of each kind.
struct Servers {
    redis: RedisServer,
    etcd: EtcdCluster,
    postgres: PostgresServer,
}

impl Servers {
    fn start() -> Self {
        Self {
            redis: RedisServer::start().unwrap(),
            etcd: EtcdCluster::start().unwrap(),
            postgres: PostgresServer::start().unwrap(),
        }
    }

    /// Opens new connections to all servers, as every process has them.
    async fn members(&self) -> Vec<QuorumMember> {
        // A busy machine is not mistaken for a failed server.
        let patient = |url, option| format!("{url}?timeout=10s{option}");
        let redis = patient(self.redis.url(), "&connect-timeout=10s");
        let etcd = patient(self.etcd.url(), "");
        let postgres = patient(self.postgres.url(), "&connect-timeout=10s");
        vec![
            QuorumMember::Voting(RedisBackend::connect(&redis).await.unwrap()),
            QuorumMember::Plain(EtcdBackend::connect(&etcd).await.unwrap()),
            QuorumMember::Plain(PostgresBackend::connect(&postgres).await.unwrap()),
        ]
    }

    /// Opens backends for the inspection of each server's locks.
    async fn backends(&self) -> Vec<Arc<dyn LockBackend>> {
        let members = self.members().await.into_iter();
        members
            .map(|member| match member {
                QuorumMember::Voting(node) => node,
                QuorumMember::Plain(backend) => backend,
            })
            .collect()
    }

    async fn quorum(&self) -> Arc<QuorumBackend> {
        // The Redis server is new, and has not lost a lock that anybody holds.
        let config = QuorumConfig::new()
            .with_largest_ttl(ttl(TTL))
            .with_node_timeout(PATIENCE);
        QuorumBackend::open(self.members().await, config)
            .await
            .unwrap()
    }
}

/// Longer than etcd's shortest TTL.
const TTL: Duration = Duration::from_secs(3);

/// Redis keeps 32 characters of it, PostgreSQL more but not all, and etcd all.
const LABEL: &str = "kassa-zürich-7/4711/a program with a long name, and then some more";

fn client(quorum: Arc<QuorumBackend>) -> LockClient {
    LockClient::builder(quorum)
        .with_ttl(ttl(TTL))
        .with_label(LABEL)
        .build()
}

/// One lock over three kinds of backends, one of which fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_quorum_locks_without_tokens_and_says_so() {
    let mut servers = Servers::start();
    let watching = servers.backends().await;
    let (one, other) = (servers.quorum().await, servers.quorum().await);
    let capabilities = one.capabilities();
    assert_eq!(capabilities.fencing, Fencing::None);
    assert!(!capabilities.permits);
    assert_eq!(capabilities.min_ttl, Ttl::from_secs(2).unwrap(), "of etcd");
    let (one, other) = (client(one), client(other));
    // The new Redis server waits for the largest TTL; the two other servers form a majority.
    let held = one.mutex("k").lock().await.unwrap();
    assert_eq!(held.fencing_token(), None);
    assert!(other.mutex("k").try_lock().await.unwrap().is_none());
    assert!(held.is_held());
    let waiting = tokio::spawn({
        let mutex = other.mutex("k");
        async move { mutex.lock().await }
    });
    tokio::time::sleep(millis(3_500)).await;
    assert!(
        held.is_held() && !waiting.is_finished(),
        "the lock was not renewed"
    );
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    let taken = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    held_everywhere(&taken, &watching).await;
    servers.redis.kill();
    taken.renew().await.unwrap();
    assert_eq!(taken.release().await.unwrap(), Released::Freed);
    let guard = one.mutex("k").lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

/// The lock is held on every kind of member, inspection shows one holder, and every member releases
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_quorum_shows_one_holder_and_frees_it_on_every_member() {
    let servers = Servers::start();
    let watching = servers.backends().await;
    let one = client(servers.quorum().await);
    let held = one.mutex("k").lock().await.unwrap();
    held_everywhere(&held, &watching).await;
    let seen = client(servers.quorum().await).inspect("k").await.unwrap();
    assert_eq!((seen.holders.len(), seen.nodes.len()), (1, 3), "{seen:?}");
    assert_eq!(seen.holders[0].label, "kassa-z?rich-7/4711/a program wi");
    for member in &watching {
        let there = member.inspect(&LockKey::new("k").unwrap()).await.unwrap();
        assert_eq!(there.holders[0].label, seen.holders[0].label, "{member}");
    }
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    // A majority has answered by now; the last member may answer a moment later.
    let free_everywhere = async {
        while holders(&watching).await > 0 {
            tokio::time::sleep(millis(5)).await;
        }
    };
    tokio::time::timeout(millis(2_000), free_everywhere)
        .await
        .expect("a member still holds the lock");
}

/// A server that loses its locks at a restart, as PostgreSQL does, is a minority. It holds the lock
/// again after the next renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_restarts_costs_a_mixed_quorum_nothing() {
    let mut servers = Servers::start();
    let watching = servers.backends().await;
    let (one, other) = (
        client(servers.quorum().await),
        client(servers.quorum().await),
    );
    let held = one.mutex("k").lock().await.unwrap();
    held_everywhere(&held, &watching).await;
    servers.postgres.kill();
    held.renew().await.unwrap();
    assert!(other.mutex("k").try_lock().await.unwrap().is_none());
    let seen = other.inspect("k").await.unwrap();
    assert_eq!(seen.holders.len(), 1, "{seen:?}");
    let problems: Vec<_> = seen
        .nodes
        .iter()
        .filter(|node| node.problem.is_some())
        .collect();
    assert!(
        matches!(problems[..], [node] if node.endpoint.starts_with("postgres://")),
        "{seen:?}"
    );
    servers.postgres.restart().unwrap();
    assert!(other.mutex("k").try_lock().await.unwrap().is_none());
    held_everywhere(&held, &servers.backends().await).await;
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    let guard = other.mutex("k").lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

/// Waits until every member holds the lock. A renewal acquires it on nodes that were not free or
/// not reachable at the grant.
async fn held_everywhere(guard: &LockGuard, members: &[Arc<dyn LockBackend>]) {
    let all = async {
        while holders(members).await < members.len() {
            guard.renew().await.unwrap();
            tokio::time::sleep(millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
}

/// Returns the number of members on which the lock is held.
async fn holders(members: &[Arc<dyn LockBackend>]) -> usize {
    let key = LockKey::new("k").unwrap();
    let mut holders = 0;
    for member in members {
        holders += usize::from(!member.inspect(&key).await.unwrap().holders.is_empty());
    }
    holders
}
