//! Proxies that keep a client's connection while the server behind them restarts.

use std::{
    io::{ErrorKind::Interrupted, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use leasehold_core::ErrorKind;
use leasehold_integration::{
    proxy::Proxy,
    server::{Persistence, RedisServer},
};
use tokio::task::block_in_place;

use crate::support::{
    client, client_at, eventually, five, not_granted, nothing_left, token, until, value, ways,
};

/// Stands before a server, and keeps each client's connection for as long as the client does. What
/// the client sends goes to whatever server listens by then.
struct Keeping(SocketAddr);

impl Keeping {
    /// Its threads end with the connections, and with the process.
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || keep(client, server));
            }
        });
        Self(addr)
    }
}

fn keep(mut client: TcpStream, server: SocketAddr) {
    let upstream = Arc::new(Mutex::new(None::<TcpStream>));
    let mut buffer = [0; 1 << 16];
    loop {
        let read = match client.read(&mut buffer) {
            Err(error) if error.kind() == Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let mut sent = false;
        while !sent {
            let connected = upstream
                .lock()
                .unwrap()
                .as_ref()
                .and_then(|stream| stream.try_clone().ok());
            let Some(mut connected) = connected.or_else(|| connect(server, &client, &upstream))
            else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            sent = connected.write_all(&buffer[..read]).is_ok();
        }
    }
    if let Some(stream) = upstream.lock().unwrap().take() {
        drop(stream.shutdown(Shutdown::Both));
    }
}

/// Connects to the server that is there now. A thread carries its answers back, until it ends.
fn connect(
    server: SocketAddr,
    client: &TcpStream,
    upstream: &Arc<Mutex<Option<TcpStream>>>,
) -> Option<TcpStream> {
    let stream = TcpStream::connect(server).ok()?;
    let (mut from, mut to) = (stream.try_clone().unwrap(), client.try_clone().unwrap());
    *upstream.lock().unwrap() = Some(stream.try_clone().unwrap());
    let upstream = Arc::clone(upstream);
    thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        *upstream.lock().unwrap() = None;
    });
    Some(stream)
}

/// For a server to close its connections: the proxy sees them end before a server listens again.
const SETTLED: Duration = Duration::from_millis(200);

/// Without pushes (RESP2) nothing tells the client, and the mark that it compares is what the
/// server has.
const OPTIONS: &str = "?notifications=poll&node-timeout=10s&timeout=10s&connect-timeout=10s";

/// A holds at 1, 2 and 3. B, connected through proxies, would have 3, 4 and 5 if 3 voted.
async fn restart_is_noticed(persistence: Persistence, restart: impl FnOnce(&mut RedisServer)) {
    let mut servers = five(persistence).await;
    if persistence == Persistence::Snapshot {
        // The mark comes back with it, as it was.
        let () = redis::cmd("SAVE")
            .query(&mut servers.servers[2].connection().unwrap())
            .unwrap();
    }
    let proxies: Vec<_> = servers
        .servers
        .iter()
        .map(|server| Keeping::start(server.addr()))
        .collect();
    let hosts: Vec<_> = proxies.iter().map(|proxy| proxy.0.to_string()).collect();
    let other = client_at(&format!("redlock://{}/{OPTIONS}", hosts.join(","))).await;
    // On each connection a vote was given.
    let guard = other.mutex("other").lock().await.unwrap();
    block_in_place(|| {
        until("all hold", || {
            servers
                .servers
                .iter()
                .all(|server| value(server, "other").is_some())
        });
    });
    guard.release().await.unwrap();
    let ways = ways(&servers);
    ways[3..].iter().for_each(Proxy::cut);
    let one = client_at(&crate::support::url_through(&ways, crate::support::PATIENT)).await;
    let held = one.mutex("k").lock().await.unwrap();
    block_in_place(|| {
        restart(&mut servers.servers[2]);
        thread::sleep(SETTLED);
    });
    for _ in 0..5 {
        not_granted(&other, "k").await;
        assert!(held.is_held());
    }
    let before = token(&held);
    drop(held);
    let next = eventually(&other, "k").await;
    assert!(token(&next) > before);
    next.release().await.unwrap();
    block_in_place(|| nothing_left(&servers.servers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_behind_a_kept_connection_costs_the_vote() {
    restart_is_noticed(Persistence::Snapshot, |server| {
        server.kill();
        thread::sleep(SETTLED);
        server.restart().unwrap();
    })
    .await;
}

/// Before any `provision` there is no mark to compare, only the run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_behind_a_proxy_costs_an_unmarked_vote() {
    let mut servers =
        leasehold_integration::server::RedlockServers::start(1, Persistence::None).unwrap();
    let proxy = Keeping::start(servers.servers[0].addr());
    let url = format!("redlock://{}/{OPTIONS}&largest-ttl=2s", proxy.0);
    let client =
        leasehold_core::LockClient::builder(leasehold::backend::connect(&url).await.unwrap())
            .with_ttl(crate::support::ttl(crate::support::millis(2_000)))
            .build();
    eventually(&client, "k").await.release().await.unwrap();
    block_in_place(|| {
        servers.servers[0].kill();
        thread::sleep(SETTLED);
        servers.servers[0].restart().unwrap();
        thread::sleep(SETTLED);
    });
    let refused = client.mutex("k").try_lock().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    eventually(&client, "k").await.release().await.unwrap();
}

/// The proxy is no fault by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_connections_alone_cost_nothing() {
    let servers = five(Persistence::None).await;
    let proxies: Vec<_> = servers
        .servers
        .iter()
        .map(|server| Keeping::start(server.addr()))
        .collect();
    let hosts: Vec<_> = proxies.iter().map(|proxy| proxy.0.to_string()).collect();
    let (one, other) = (
        client_at(&format!("redlock://{}/{OPTIONS}", hosts.join(","))).await,
        client(&servers, OPTIONS).await,
    );
    let held = one.mutex("k").lock().await.unwrap();
    assert!(other.mutex("k").try_lock().await.unwrap().is_none());
    held.release().await.unwrap();
}
