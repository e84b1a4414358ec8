use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use leasehold_integration::certificates::Certificates;
use leasehold_integration::server::{PgBouncer, PoolMode, PostgresServer, Psql, shared_postgres};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a client with this URL, as a user would.
fn psql(url: &str, sql: &str) -> Result<String, String> {
    let output = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", url, "-c", sql])
        .output()
        .unwrap();
    let (said, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if output.status.success() {
        Ok(said.trim_end().to_owned())
    } else {
        Err(complaint.into_owned())
    }
}

fn backend_of(session: &mut Psql) -> u32 {
    session
        .ask("SELECT pg_backend_pid()", PATIENCE)
        .unwrap()
        .parse()
        .unwrap()
}

/// Returns whether the process is running or paused. A dead process may still wait to be reaped by
/// the machine's first process.
fn exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn table(server: &PostgresServer) {
    server
        .psql("CREATE TABLE t (n int); INSERT INTO t VALUES (7)")
        .unwrap();
}

#[test]
fn dropped_server_ends_with_all_its_processes() {
    let server = PostgresServer::start().unwrap();
    let (url, folder) = (server.url(), server.folder().to_owned());
    let mut session = server.psql_session().unwrap();
    let backend = backend_of(&mut session);
    assert_eq!(psql(&url, "SELECT 6 * 7").unwrap(), "42");
    drop(server);
    assert!(psql(&url, "SELECT 1").unwrap_err().contains("refused"));
    assert!(!folder.exists());
    assert!(!exists(backend));
}

/// The system has few segments, and leaked ones would use them up.
#[test]
fn a_dropped_server_gives_its_shared_memory_back() {
    let mut server = PostgresServer::start().unwrap();
    let pid = server.pid().unwrap().to_string();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let files: BTreeSet<String> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|file| file.contains("/PostgreSQL."))
        .map(str::to_owned)
        .collect();
    // The fifth column is the process that created the segment, see proc(5).
    let segments = || {
        let all = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
        all.lines()
            .filter(|line| line.split_whitespace().nth(4) == Some(&*pid))
            .count()
    };
    assert!(
        segments() == 1 && !files.is_empty(),
        "{} segments and {files:?}",
        segments()
    );
    drop(server);
    assert_eq!(segments(), 0);
    for file in files {
        assert!(!Path::new(&file).exists(), "{file}");
    }
}

#[test]
fn two_servers_share_nothing() {
    let (first, second) = (
        PostgresServer::start().unwrap(),
        PostgresServer::start().unwrap(),
    );
    table(&first);
    assert_eq!(first.psql("SELECT n FROM t").unwrap(), "7");
    assert!(second.psql("SELECT n FROM t").is_err());
}

#[test]
fn settings_are_taken_and_a_wrong_one_shows_the_log() {
    let server = PostgresServer::builder()
        .setting("max_connections", "17")
        .start()
        .unwrap();
    assert_eq!(server.psql("SHOW max_connections").unwrap(), "17");
    assert_eq!(server.psql("SHOW fsync").unwrap(), "off");
    let durable = PostgresServer::builder().durable().start().unwrap();
    assert_eq!(durable.psql("SHOW fsync").unwrap(), "on");
    let error = PostgresServer::builder()
        .setting("no_such_setting", "1")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

/// Commits a row, ends the server by `end` and starts it again. Asserts that the row exists, at the
/// same address.
fn survives(end: fn(&mut PostgresServer)) {
    let mut server = PostgresServer::start().unwrap();
    let mut session = server.psql_session().unwrap();
    let backend = backend_of(&mut session);
    table(&server);
    let (addr, pid) = (server.addr(), server.pid());
    end(&mut server);
    assert!(!exists(backend), "a backend outlived its server");
    server.restart().unwrap();
    assert_eq!(server.addr(), addr);
    assert_ne!(server.pid(), pid);
    assert_eq!(psql(&server.url(), "SELECT n FROM t").unwrap(), "7");
}

#[test]
fn what_it_has_committed_survives_a_stop_and_a_kill() {
    survives(|server| server.stop().unwrap());
    survives(|server| server.stop_at_once().unwrap());
    survives(PostgresServer::kill);
}

#[test]
fn a_kill_also_ends_a_backend_that_is_stopped() {
    let mut server = PostgresServer::start().unwrap();
    let mut session = server.psql_session().unwrap();
    let backend = backend_of(&mut session);
    server.pause_backend(backend).unwrap();
    server.kill();
    assert!(!exists(backend));
    server.restart().unwrap();
}

#[test]
fn stopped_server_process_is_silent_and_others_continue() {
    let mut server = PostgresServer::start().unwrap();
    let mut session = server.psql_session().unwrap();
    let backend = backend_of(&mut session);
    server.pause_backend(backend).unwrap();
    session.send("SELECT 'late'").unwrap();
    assert!(session.answer(Duration::from_millis(300)).is_err());
    assert_eq!(server.psql("SELECT 1").unwrap(), "1");
    server.resume_backend(backend).unwrap();
    assert_eq!(session.answer(PATIENCE).unwrap(), "late");
}

#[test]
fn killed_server_process_restarts_the_whole_server() {
    let mut server = PostgresServer::start().unwrap();
    let (mut first, mut second) = (
        server.psql_session().unwrap(),
        server.psql_session().unwrap(),
    );
    let (backend, other) = (backend_of(&mut first), backend_of(&mut second));
    let (pid, started) = (
        server.pid(),
        server.psql("SELECT pg_postmaster_start_time()").unwrap(),
    );
    server.kill_backend(backend).unwrap();
    // The server accepts connections until it notices the end of the process.
    let limit = Instant::now() + PATIENCE;
    while exists(other) {
        assert!(Instant::now() < limit, "the other session was not ended");
        thread::sleep(Duration::from_millis(5));
    }
    server.wait_until_it_answers().unwrap();
    assert_eq!(server.pid(), pid);
    assert_eq!(
        server.psql("SELECT pg_postmaster_start_time()").unwrap(),
        started
    );
}

#[test]
fn only_its_own_processes_are_signalled() {
    let mut server = PostgresServer::start().unwrap();
    assert!(server.kill_backend(std::process::id()).is_err());
    assert!(server.kill_backend(u32::MAX).is_err());
}

#[test]
fn a_standby_follows_and_takes_over_when_it_is_promoted() {
    let primary = PostgresServer::start().unwrap();
    table(&primary);
    let standby = primary.start_standby().unwrap();
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()").unwrap(), "t");
    assert_eq!(standby.psql("SELECT n FROM t").unwrap(), "7");
    standby.psql("SELECT pg_promote()").unwrap();
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()").unwrap(), "f");
}

#[test]
fn access_is_as_the_lines_say() {
    let server = PostgresServer::builder()
        .access("host all shop 127.0.0.1/32 scram-sha-256")
        .start()
        .unwrap();
    server
        .psql("CREATE ROLE shop LOGIN PASSWORD 's3cret'")
        .unwrap();
    assert_eq!(
        psql(&server.url_as("shop:s3cret"), "SELECT current_user").unwrap(),
        "shop"
    );
    assert!(psql(&server.url_as("shop:wrong"), "SELECT 1").is_err());
}

#[test]
fn tls_needs_a_client_that_trusts_the_ca() {
    let server = PostgresServer::builder().tls().start().unwrap();
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(psql(&server.url(), sql).unwrap(), "t");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Certificates::generate(elsewhere.path()).unwrap();
    let plain = format!("postgres://postgres@{}/postgres", server.addr());
    assert!(
        psql(
            &format!(
                "{plain}?sslmode=verify-full&sslrootcert={}",
                other.ca().display()
            ),
            sql
        )
        .is_err()
    );
    assert!(psql(&format!("{plain}?sslmode=disable"), sql).is_err());
}

#[test]
fn pooler_lends_a_connection_as_its_mode_says() {
    let server = PostgresServer::start().unwrap();
    let one = [("default_pool_size", "1")];
    for mode in [PoolMode::Transaction, PoolMode::Statement] {
        let pooler = PgBouncer::start_with(&server, mode, &one).unwrap();
        let (mut first, mut second) = (
            Psql::connect(&pooler.url()).unwrap(),
            Psql::connect(&pooler.url()).unwrap(),
        );
        assert_eq!(backend_of(&mut first), backend_of(&mut second), "{mode:?}");
        let begun = first.ask("BEGIN; SELECT 'begun'", PATIENCE);
        assert_eq!(
            begun.is_ok_and(|rows| rows == "begun"),
            mode == PoolMode::Transaction,
            "{mode:?}"
        );
    }
    let pooler = PgBouncer::start_with(&server, PoolMode::Session, &one).unwrap();
    let (mut first, mut second) = (
        Psql::connect(&pooler.url()).unwrap(),
        Psql::connect(&pooler.url()).unwrap(),
    );
    backend_of(&mut first);
    second.send("SELECT 'mine now'").unwrap();
    assert!(second.answer(Duration::from_millis(300)).is_err());
    drop(first);
    assert_eq!(second.answer(PATIENCE).unwrap(), "mine now");
}

#[test]
fn the_shared_server_is_one_while_anybody_has_it() {
    let (first, second) = (shared_postgres().unwrap(), shared_postgres().unwrap());
    assert_eq!(first.url(), second.url());
    drop(first);
    assert_eq!(psql(second.url(), "SELECT 1").unwrap(), "1");
}
