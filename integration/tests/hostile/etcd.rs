use std::{net::SocketAddr, sync::Arc, time::Duration};

use leasehold_integration::server::EtcdCluster;

use crate::{
    server::{Conduct, Fault, endless},
    support::{Sweep, all_survived, noise, survives, survives_at_every_byte},
};

fn url(addr: SocketAddr) -> String {
    format!("etcd://{addr}")
}

/// Returns an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Returns the server's half of the handshake.
fn greeting() -> Vec<u8> {
    [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat()
}

/// Returns the head of an answer to the first request.
fn head() -> Vec<u8> {
    // `:status: 200` and `content-type: application/grpc`.
    let fields = [&[0x88, 0x5f, 16][..], b"application/grpc"].concat();
    [greeting(), frame(HEADERS, END_HEADERS, 1, &fields)].concat()
}

fn answers() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let data = |payload: &[u8]| frame(DATA, 0, 1, payload);
    let field = [
        &[0x00, 7][..],
        b"x-large",
        &[0x7f, 0x81, 0x1e],
        &[b'v'; 4000],
    ]
    .concat();
    let many_parts: Vec<u8> = [0x12, 0].repeat(8000);
    // A million bytes.
    let frames = data(&many_parts[..10_000]).repeat(100);
    vec![
        ("endless pings", greeting(), frame(PING, 0, 0, &[0; 8])),
        ("endless settings", greeting(), frame(SETTINGS, 0, 0, &[])),
        (
            "endless windows",
            greeting(),
            frame(WINDOW, 0, 0, &[0, 0, 0, 1]),
        ),
        (
            "endless resets",
            greeting(),
            frame(RESET, 0, 1, &[0, 0, 0, 8]),
        ),
        (
            "endless goodbyes",
            greeting(),
            frame(GO_AWAY, 0, 0, &[0; 8]),
        ),
        ("endless empty data", head(), data(&[])),
        ("endless small messages", head(), data(&[0; 500])),
        (
            "endless message",
            [head(), data(&[0, 0xff, 0xff, 0xff, 0xff])].concat(),
            data(&[b'x'; 8000]),
        ),
        (
            "large message",
            [head(), data(&[0, 0, 0xff, 0xff, 0xff])].concat(),
            data(&[b'x'; 8000]),
        ),
        (
            "message of many parts",
            [head(), data(&[0, 0, 0xff, 0xff, 0xfe])].concat(),
            data(&many_parts),
        ),
        (
            "message of many parts at once",
            [head(), data(&[0, 0, 0x0f, 0x42, 0x40]), frames].concat(),
            vec![],
        ),
        (
            "compressed message",
            [head(), data(&[1, 0, 0, 0, 9])].concat(),
            data(&[b'x'; 500]),
        ),
        (
            "endless head",
            [greeting(), frame(HEADERS, 0, 1, &[0x88])].concat(),
            frame(CONTINUATION, 0, 1, &field),
        ),
        (
            "endless heads",
            head(),
            frame(HEADERS, END_HEADERS, 1, &field),
        ),
        (
            "frame of 16 MiB",
            [greeting(), vec![0xff; 9]].concat(),
            vec![b'x'; 4096],
        ),
        ("noise", noise(), vec![]),
        (
            "another protocol",
            b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            b"<p>".to_vec(),
        ),
    ]
}

fn conduct(first: Vec<u8>, again: &[u8]) -> Conduct {
    if again.is_empty() {
        Conduct::Say(first)
    } else {
        Conduct::Flood(first, endless(again))
    }
}

#[test]
fn etcd_that_floods_at_once_costs_nothing() {
    for (name, first, again) in answers() {
        survives("etcd", name, url, conduct(first, &again));
    }
    all_survived();
}

#[test]
fn etcd_that_floods_later_costs_nothing() {
    let cluster = EtcdCluster::builder().in_memory().start().unwrap();
    let addr = cluster.at(0).addr();
    for (name, again) in [
        ("endless pings", frame(PING, 0, 0, &[0; 8])),
        ("endless settings", frame(SETTINGS, 0, 0, &[])),
        ("noise", noise()),
    ] {
        for after in [2, 9] {
            survives(
                "etcd",
                name,
                url,
                Conduct::Relay(addr, Fault::Flood(after, Arc::clone(&endless(&again)))),
            );
        }
    }
    all_survived();
}

#[test]
fn etcd_that_is_slow_hangs_no_call() {
    let cluster = EtcdCluster::builder().in_memory().start().unwrap();
    for pause in [1, 100] {
        let fault = Fault::Drip(Duration::from_millis(pause));
        survives(
            "etcd",
            "a byte at a time",
            url,
            Conduct::Relay(cluster.at(0).addr(), fault),
        );
    }
    all_survived();
}

#[test]
fn etcd_closed_at_every_byte_hangs_no_call() {
    let cluster = EtcdCluster::builder().in_memory().start().unwrap();
    for sweep in [Sweep::CutDown, Sweep::CutUp] {
        survives_at_every_byte("etcd", cluster.at(0).addr(), url, sweep);
    }
}

#[test]
fn etcd_changed_at_every_byte_hangs_no_call() {
    let cluster = EtcdCluster::builder().in_memory().start().unwrap();
    survives_at_every_byte("etcd", cluster.at(0).addr(), url, Sweep::Flip);
}
