//! Locks that are requested together share one call of the script at each server.

use futures_util::{FutureExt, future::join_all};
use leasehold_core::{LockClient, LockGuard, Released, Result};
use leasehold_integration::{
    leftovers,
    proxy::{Direction, Proxy},
    server::{Persistence, RedisServer, RedlockServers},
};

use crate::support::{
    PATIENCE, PATIENT, TTL, client, client_at, eventually, millis, ttl, url_through, value,
};

const MARK: &str = ":lh4:mark";
const TOP: &str = ":lh4:top";
const KEYS: [&str; 3] = ["a", "b", "c"];

/// Starts one server, whose calls are counted, and returns a client that has used it.
///
/// The tests run on a single thread, so that no vote is sent before all are requested.
async fn one() -> (RedlockServers, LockClient) {
    let servers = RedlockServers::start(1, Persistence::None).unwrap();
    servers.provision(ttl(TTL)).await.unwrap();
    let client = client(&servers, PATIENT).await;
    eventually(&client, "used").await.release().await.unwrap();
    let server = &servers.servers[0];
    command(server, &["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    command(server, &["CONFIG", "SET", "slowlog-max-len", "1000"]);
    (servers, client)
}

fn command(server: &RedisServer, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    let connection = &mut server.connection().unwrap();
    let _: redis::Value = command.arg(&words[1..]).query(connection).unwrap();
}

/// Returns the number of calls of a command that name one of the locks.
fn calls(server: &RedisServer, command: &str) -> usize {
    type Entry = (u64, u64, u64, Vec<String>, String, String);
    let log: Vec<Entry> = redis::cmd("SLOWLOG")
        .arg("GET")
        .arg(1000)
        .query(&mut server.connection().unwrap())
        .unwrap();
    let is_of_lock = |word: &String| KEYS.contains(&&**word) || word.starts_with("key/");
    let calls = log
        .iter()
        .filter(|(_, _, _, words, _, _)| words[0] == command && words.iter().any(is_of_lock));
    calls.count()
}

/// Waits until no lock and no waiter is left on the server, and lets other tasks run meanwhile.
async fn nothing_left(server: &RedisServer) {
    let waits = async {
        while !leftovers::redis(server).unwrap().is_empty() {
            tokio::time::sleep(millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
}

/// Tries to lock the keys at the same time.
async fn try_each(client: &LockClient) -> Vec<Result<Option<LockGuard>>> {
    let mutexes = KEYS.map(|key| client.mutex(key));
    join_all(mutexes.iter().map(leasehold_core::Mutex::try_lock)).await
}

/// Releases the locks, and asserts which keys they are of.
async fn granted(answers: Vec<Result<Option<LockGuard>>>, expected: &[&str]) {
    let guards: Vec<_> = answers
        .into_iter()
        .filter_map(|it| it.ok().flatten())
        .collect();
    let keys: Vec<_> = guards.iter().map(|guard| guard.key().to_string()).collect();
    assert_eq!(keys, expected);
    for guard in guards {
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn keys_locked_together_share_one_call_at_each_server() {
    let (servers, client) = one().await;
    let keys: Vec<_> = (0..8).map(|key| format!("key/{key}")).collect();
    let guard = client.all(&keys).lock().await.unwrap();
    assert_eq!(calls(&servers.servers[0], "EVALSHA"), 1);
    guard.release().await.unwrap();
    assert_eq!(calls(&servers.servers[0], "EVALSHA"), 2);
    nothing_left(&servers.servers[0]).await;
}

#[tokio::test]
async fn refused_key_does_not_refuse_the_others_of_its_call() {
    let (servers, one) = one().await;
    let other = client(&servers, PATIENT).await;
    let held = other.mutex("b").lock().await.unwrap();
    command(&servers.servers[0], &["SLOWLOG", "RESET"]);
    let answers = try_each(&one).await;
    assert_eq!(calls(&servers.servers[0], "EVALSHA"), 1);
    assert!(answers[1].as_ref().is_ok_and(Option::is_none));
    granted(answers, &["a", "c"]).await;
    held.release().await.unwrap();
    nothing_left(&servers.servers[0]).await;
}

#[tokio::test]
async fn damaged_key_fails_alone_in_its_call() {
    let (servers, client) = one().await;
    let server = &servers.servers[0];
    command(server, &["RPUSH", "{b}:lh2:fence", "no token"]);
    let answers = try_each(&client).await;
    assert_eq!(calls(server, "EVALSHA"), 1);
    let error = answers[1].as_ref().unwrap_err();
    assert!(error.to_string().contains("token counter"), "{error}");
    granted(answers, &["a", "c"]).await;
    command(server, &["DEL", "{b}:lh2:fence"]);
    nothing_left(&servers.servers[0]).await;
    granted(try_each(&client).await, &KEYS).await;
}

#[tokio::test]
async fn node_remembers_the_highest_token_of_a_call() {
    let (servers, client) = one().await;
    let server = &servers.servers[0];
    let last = 2_000_000_000_000_000;
    let fence = format!("{last}:{}", "0".repeat(32));
    command(server, &["SET", "{b}:lh2:fence", &fence]);
    let answers = try_each(&client).await;
    assert_eq!(calls(server, "EVALSHA"), 1);
    let top: u64 = value(server, TOP).unwrap().parse().unwrap();
    assert!(top > last, "{top}");
    granted(answers, &KEYS).await;
}

#[tokio::test]
async fn votes_with_an_outdated_marker_are_repeated_once() {
    let (servers, client) = one().await;
    let server = &servers.servers[0];
    let mark = value(server, MARK).unwrap();
    let other = mark.replace(":60000:", ":59000:");
    assert_ne!(mark, other);
    command(server, &["SET", MARK, &other]);
    granted(try_each(&client).await, &KEYS).await;
    // A marker of another run is no vote.
    command(server, &["SET", MARK, "R:5f:60000:0"]);
    for answer in try_each(&client).await {
        assert!(answer.unwrap_err().is_retryable());
    }
    nothing_left(&servers.servers[0]).await;
}

#[tokio::test]
async fn call_of_a_forgotten_script_is_sent_again_once() {
    let (servers, client) = one().await;
    let server = &servers.servers[0];
    command(server, &["SCRIPT", "FLUSH"]);
    let answers = try_each(&client).await;
    assert_eq!((calls(server, "EVALSHA"), calls(server, "EVAL")), (1, 1));
    command(server, &["SCRIPT", "FLUSH"]);
    granted(answers, &KEYS).await;
    nothing_left(&servers.servers[0]).await;
}

#[tokio::test]
async fn missing_right_to_a_key_fails_no_other_vote_of_its_call() {
    let (servers, _) = one().await;
    let server = &servers.servers[0];
    let rights = ["~:lh4:*", "~a", "~{a}:*", "~c", "~{c}:*", "+@all"];
    command(
        server,
        &[&["ACL", "SETUSER", "shop", "on", ">pw"], &rights[..]].concat(),
    );
    let client = client_at(&format!("redlock://shop:pw@{}/{PATIENT}", server.addr())).await;
    let answers = try_each(&client).await;
    let denied = answers[1].as_ref().unwrap_err();
    assert!(denied.to_string().contains("permission"), "{denied}");
    // Those that the user may use are sent again alone.
    assert_eq!(calls(server, "EVAL"), 2);
    granted(answers, &["a", "c"]).await;
    nothing_left(&servers.servers[0]).await;
}

#[tokio::test]
async fn votes_that_are_cancelled_before_they_are_sent_are_undone() {
    let (servers, client) = one().await;
    let server = &servers.servers[0];
    assert!(client.all(KEYS).lock().now_or_never().is_none());
    assert_eq!(calls(server, "EVALSHA"), 0);
    let guard = client.all(KEYS).lock().await.unwrap();
    guard.release().await.unwrap();
    assert!(client.mutex("a").try_lock().now_or_never().is_none());
    eventually(&client, "a").await.release().await.unwrap();
    nothing_left(&servers.servers[0]).await;
}

/// The server does not know the script by its hash. The release is sent in full and takes effect,
/// and its answer is lost.
#[tokio::test]
async fn release_sent_again_whose_answer_is_lost_is_one_release() {
    let (servers, _) = one().await;
    let server = &servers.servers[0];
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_at(&url_through(std::slice::from_ref(&proxy), PATIENT)).await;
    for _ in 0..5 {
        let guard = eventually(&client, "a").await;
        command(server, &["SCRIPT", "FLUSH"]);
        proxy.cut_after_chunks(Direction::ClientToServer, 2);
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    assert!(proxy.counters().trips > 0, "no answer was lost");
    nothing_left(server).await;
}
