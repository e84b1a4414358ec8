use std::process::Command;
use std::time::Duration;

use leasehold_integration::certificates::Certificates;
use leasehold_integration::child::find_program;
use leasehold_integration::server::{Persistence, RedisServer, shared_redis};
use redis::{Client, Commands, Connection, RedisResult};

const PATIENCE: Duration = Duration::from_secs(60);

fn connect(url: &str) -> RedisResult<Connection> {
    Client::open(url)?.get_connection_with_timeout(PATIENCE)
}

/// Sends a PING over TLS with redis-cli. Rustls would require a crypto provider for the whole
/// process, which other tests cover.
fn ping_tls(server: &RedisServer, trusted: &Certificates) -> bool {
    let port = server.port().to_string();
    let output = Command::new(find_program("redis-cli").unwrap())
        .args(["-h", "127.0.0.1", "-p", &port, "--tls", "--cacert"])
        .arg(trusted.ca())
        .arg("PING")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim() == "PONG"
}

#[test]
fn server_answers_on_url_and_socket_until_dropped() {
    let server = RedisServer::start().unwrap();
    let (url, folder) = (server.url(), server.folder().to_owned());
    let _: () = connect(&url).unwrap().set("k", "v").unwrap();
    let value: String = connect(&server.unix_url()).unwrap().get("k").unwrap();
    assert_eq!(value, "v");
    drop(server);
    assert!(
        connect(&url)
            .err()
            .expect("connected without a server")
            .is_connection_refusal()
    );
    assert!(!folder.exists());
}

#[test]
fn two_servers_share_nothing() {
    let (first, second) = (RedisServer::start().unwrap(), RedisServer::start().unwrap());
    let _: () = first.connection().unwrap().set("k", "v").unwrap();
    let there: bool = second.connection().unwrap().exists("k").unwrap();
    assert!(!there);
}

#[test]
fn a_paused_server_says_nothing_until_it_is_resumed() {
    let mut server = RedisServer::start().unwrap();
    let mut connection = server.connection().unwrap();
    server.pause().unwrap();
    connection
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(
        connection
            .incr::<_, _, i64>("n", 1)
            .unwrap_err()
            .is_timeout()
    );
    server.resume().unwrap();
    // A request sent during the pause has not been lost.
    let n: i64 = server.connection().unwrap().get("n").unwrap();
    assert_eq!(n, 1);
}

#[test]
fn a_paused_server_can_be_killed_and_stopped() {
    let mut server = RedisServer::start().unwrap();
    server.pause().unwrap();
    server.kill();
    assert_eq!(server.pid(), None);
    assert!(server.pause().is_err());
    server.restart().unwrap();
    server.pause().unwrap();
    server.stop().unwrap();
    assert_eq!(server.pid(), None);
}

/// Sets a key, ends the server by `end` and starts it again. Returns whether the key exists.
fn survives(persistence: Persistence, end: fn(&mut RedisServer)) -> bool {
    let mut server = RedisServer::builder()
        .persistence(persistence)
        .start()
        .unwrap();
    let (addr, pid) = (server.addr(), server.pid());
    let _: () = server.connection().unwrap().set("k", "v").unwrap();
    end(&mut server);
    server.restart().unwrap();
    assert_eq!(server.addr(), addr);
    assert_ne!(server.pid(), pid);
    connect(&server.url()).unwrap().exists("k").unwrap()
}

#[test]
fn without_persistence_a_restart_loses_data() {
    assert!(!survives(Persistence::None, RedisServer::kill));
    assert!(!survives(Persistence::None, |server| server
        .stop()
        .unwrap()));
}

#[test]
fn with_snapshots_a_stop_saves_and_a_kill_loses_data() {
    assert!(survives(Persistence::Snapshot, |server| server
        .stop()
        .unwrap()));
    assert!(!survives(Persistence::Snapshot, RedisServer::kill));
}

#[test]
fn a_kill_loses_nothing_when_every_write_is_saved() {
    assert!(survives(Persistence::EveryWrite, RedisServer::kill));
}

#[test]
fn a_wiped_server_comes_back_empty() {
    assert!(!survives(Persistence::EveryWrite, |server| server
        .wipe()
        .unwrap()));
    assert!(!survives(Persistence::Snapshot, |server| {
        server.stop().unwrap();
        server.wipe().unwrap();
    }));
}

#[test]
fn a_cut_log_loses_the_last_write_and_keeps_the_one_before() {
    let mut server = RedisServer::builder()
        .persistence(Persistence::EveryWrite)
        .start()
        .unwrap();
    let mut connection = server.connection().unwrap();
    let _: () = connection.set("first", "v").unwrap();
    let _: () = connection.set("last", "v").unwrap();
    server.cut_log_tail(1).unwrap();
    server.restart().unwrap();
    let mut connection = server.connection().unwrap();
    let (first, last): (bool, bool) = (
        connection.exists("first").unwrap(),
        connection.exists("last").unwrap(),
    );
    assert_eq!((first, last), (true, false));
}

#[test]
fn a_password_is_asked_for() {
    let server = RedisServer::builder()
        .password("p@ss \"w\\:/?#%")
        .start()
        .unwrap();
    let _: () = connect(&server.url()).unwrap().set("k", "v").unwrap();
    let _: () = connect(&server.unix_url()).unwrap().set("k", "v").unwrap();
    let anonymous = format!("redis://{}/", server.addr());
    let refused = connect(&anonymous)
        .and_then(|mut connection| connection.set::<_, _, ()>("k", "v"))
        .unwrap_err();
    assert_eq!(refused.code(), Some("NOAUTH"));
}

#[test]
fn a_user_may_do_what_the_rules_say_and_no_more() {
    let server = RedisServer::builder()
        .user("alice", "s3cret/", "~shop:* +get +set")
        .start()
        .unwrap();
    let mut alice = connect(&server.url_as("alice", "s3cret/")).unwrap();
    let _: () = alice.set("shop:k", "v").unwrap();
    assert_eq!(
        alice.set::<_, _, ()>("other:k", "v").unwrap_err().code(),
        Some("NOPERM")
    );
    assert!(connect(&server.url_as("alice", "wrong")).is_err());
}

#[test]
fn tls_needs_a_client_that_trusts_the_ca() {
    let server = RedisServer::builder().tls().start().unwrap();
    let url = server.url();
    assert!(url.starts_with("rediss://"));
    assert!(ping_tls(&server, server.certificates().unwrap()));

    let elsewhere = tempfile::tempdir().unwrap();
    assert!(!ping_tls(
        &server,
        &Certificates::generate(elsewhere.path()).unwrap()
    ));
    let plain = url.replace("rediss://", "redis://");
    assert!(
        connect(&plain)
            .and_then(|mut connection| connection.set::<_, _, ()>("k", "v"))
            .is_err()
    );
}

#[test]
fn a_program_that_is_missing_is_an_error_that_names_the_remedy() {
    let error = RedisServer::builder()
        .program("redis-server-of-nowhere")
        .start()
        .unwrap_err();
    assert!(
        error.to_string().contains("integration/setup.sh"),
        "{error}"
    );
}

#[test]
fn a_start_that_fails_shows_the_log() {
    let error = RedisServer::builder()
        .arg("--no-such-option")
        .arg("1")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[test]
fn the_shared_server_is_one_while_anybody_has_it() {
    let (first, second) = (shared_redis().unwrap(), shared_redis().unwrap());
    assert_eq!(first.url(), second.url());
    drop(first);
    let _: () = connect(second.url())
        .unwrap()
        .set("leasehold-harness", "v")
        .unwrap();
}
