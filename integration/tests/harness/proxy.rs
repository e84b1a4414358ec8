use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use leasehold_integration::proxy::{Direction, Proxy};

/// The timeout of events that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The wait for events that must not happen, and would happen within a millisecond.
const QUIET: Duration = Duration::from_millis(150);

/// An event that the server behind the proxy observes.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Bytes(Vec<u8>),
    End,
}

/// Starts a server that echoes and reports what it receives.
fn echo_server() -> (SocketAddr, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (report, seen) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, report) = (stream.unwrap(), report.clone());
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    report.send(Seen::Bytes(buffer[..read].to_vec())).ok();
                    stream.write_all(&buffer[..read]).ok();
                }
                report.send(Seen::End).ok();
            });
        }
    });
    (addr, seen)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    expect(stream, bytes);
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes);
}

#[track_caller]
fn is_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let error = stream
        .read(&mut [0])
        .expect_err("data or an end of the stream arrived");
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Returns whether the stream has ended or was reset.
#[track_caller]
fn is_closed(stream: &mut TcpStream) {
    match stream.read(&mut [0]) {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[track_caller]
fn sees_nothing(seen: &Receiver<Seen>) {
    assert_eq!(seen.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
}

#[track_caller]
fn sees(seen: &Receiver<Seen>, bytes: &[u8]) {
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(Seen::Bytes(bytes.to_vec())));
}

#[track_caller]
fn sees_end(seen: &Receiver<Seen>) {
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(Seen::End));
}

#[test]
fn without_a_fault_everything_passes_and_is_counted() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    ask(&mut client, b"hello");
    ask(&mut client, b"again");
    let counters = proxy.counters();
    assert_eq!(
        (counters.connections, counters.open, counters.trips),
        (1, 1, 0)
    );
    assert_eq!(
        (
            counters.client_to_server.bytes,
            counters.client_to_server.chunks
        ),
        (10, 2)
    );
    assert_eq!(
        (
            counters.server_to_client.bytes,
            counters.server_to_client.chunks
        ),
        (10, 2)
    );
    sees(&seen, b"hello");
    sees(&seen, b"again");
    client.shutdown(Shutdown::Write).unwrap();
    sees_end(&seen);
    is_closed(&mut client);
}

#[test]
fn a_megabyte_passes_unharmed() {
    let (server, _seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&copy).unwrap());
    expect(&mut client, &sent);
    writing.join().unwrap();
}

#[test]
fn cut_closes_and_refuses_until_healed_at_the_same_address() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    ask(&mut client, b"x");
    sees(&seen, b"x");
    proxy.cut();
    is_closed(&mut client);
    sees_end(&seen);
    assert_eq!(
        TcpStream::connect(proxy.addr()).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(proxy.counters().open, 0);
    proxy.heal();
    ask(&mut connect(&proxy), b"y");
}

#[test]
fn a_disconnect_closes_and_takes_new_connections() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    ask(&mut client, b"x");
    sees(&seen, b"x");
    proxy.disconnect();
    is_closed(&mut client);
    sees_end(&seen);
    ask(&mut connect(&proxy), b"y");
}

#[test]
fn black_hole_to_server_drops_request_and_disconnect() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    ask(&mut client, b"before");
    sees(&seen, b"before");
    proxy.blackhole(Direction::ClientToServer);
    client.write_all(b"lost").unwrap();
    is_silent(&mut client);
    drop(client);
    sees_nothing(&seen);
    assert_eq!(proxy.counters().client_to_server.swallowed, 4);
}

#[test]
fn black_hole_to_client_passes_request_and_drops_reply() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    proxy.blackhole(Direction::ServerToClient);
    client.write_all(b"done").unwrap();
    sees(&seen, b"done");
    is_silent(&mut client);
}

#[test]
fn a_black_hole_swallows_new_connections_too() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    proxy.blackhole(Direction::Both);
    let mut client = connect(&proxy);
    client.write_all(b"lost").unwrap();
    is_silent(&mut client);
    sees_nothing(&seen);
}

#[test]
fn healing_closes_connections_that_lost_bytes_only() {
    let (server, _seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let (mut lossy, mut idle) = (connect(&proxy), connect(&proxy));
    ask(&mut lossy, b"x");
    ask(&mut idle, b"x");
    proxy.blackhole(Direction::Both);
    lossy.write_all(b"lost").unwrap();
    is_silent(&mut lossy);
    proxy.heal();
    is_closed(&mut lossy);
    ask(&mut idle, b"y");
}

#[test]
fn what_is_held_arrives_whole_when_healed() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    proxy.hold(Direction::ClientToServer);
    client.write_all(b"late").unwrap();
    sees_nothing(&seen);
    // The request is sent, and its sender disconnects before it arrives.
    drop(client);
    sees_nothing(&seen);
    proxy.heal();
    sees(&seen, b"late");
    sees_end(&seen);
}

#[test]
fn a_delay_is_the_line_s_length_and_not_its_width() {
    let (server, _seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    ask(&mut client, b"x");
    let delay = Duration::from_millis(500);
    proxy.delay(Direction::Both, delay);
    let begun = Instant::now();
    // Delayed one after the other, these would take a hundred times as long.
    for _ in 0..100 {
        client.write_all(b"ping").unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    expect(&mut client, &b"ping".repeat(100));
    let took = begun.elapsed();
    assert!(took >= delay * 2, "{took:?}");
    assert!(took < delay * 100, "{took:?}");
    proxy.delay(Direction::Both, Duration::from_secs(3_600));
    proxy.heal();
    ask(&mut client, b"x");
}

#[test]
fn cut_after_zero_chunks_loses_request_and_after_one_the_reply() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let mut client = connect(&proxy);
    ask(&mut client, b"before");
    sees(&seen, b"before");
    proxy.cut_after_chunks(Direction::ClientToServer, 0);
    client.write_all(b"request").unwrap();
    is_closed(&mut client);
    sees_end(&seen);

    proxy.cut_after_chunks(Direction::ClientToServer, 1);
    let mut client = connect(&proxy);
    client.write_all(b"request").unwrap();
    is_closed(&mut client);
    sees(&seen, b"request");
    sees_end(&seen);
    assert_eq!(proxy.counters().trips, 2);

    ask(&mut connect(&proxy), b"a trip-wire goes off once");
}

#[test]
fn cut_after_bytes_splits_a_reply_and_cuts_other_connections() {
    let (server, _seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let (mut client, mut other) = (connect(&proxy), connect(&proxy));
    ask(&mut other, b"x");
    ask(&mut client, b"x");
    proxy.cut_after_bytes(Direction::ServerToClient, 3);
    client.write_all(b"reply").unwrap();
    expect(&mut client, b"rep");
    is_closed(&mut client);
    is_closed(&mut other);
}

#[test]
fn a_server_that_is_not_there_closes_the_client() {
    let (server, _seen) = echo_server();
    let nobody = SocketAddr::new(server.ip(), leasehold_testkit::free_port().unwrap());
    let proxy = Proxy::start(nobody).unwrap();
    is_closed(&mut connect(&proxy));
}

#[test]
fn a_dropped_proxy_closes_everything() {
    let (server, seen) = echo_server();
    let proxy = Proxy::start(server).unwrap();
    let addr = proxy.addr();
    let mut client = connect(&proxy);
    ask(&mut client, b"x");
    sees(&seen, b"x");
    drop(proxy);
    is_closed(&mut client);
    sees_end(&seen);
    assert!(TcpStream::connect(addr).is_err());
}
