use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use leasehold_integration::server::PostgresServer;

use crate::{
    server::{Blocks, Conduct, Fault, endless},
    support::{Sweep, all_survive, all_survived, noise, survives, survives_at_every_byte},
};

fn url(addr: SocketAddr) -> String {
    format!("postgres://postgres:secret@{addr}/postgres?sslmode=disable")
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// Returns the header of a message with this length and no body.
fn announced(kind: u8, length: u32) -> Vec<u8> {
    [&[kind], &length.to_be_bytes()[..]].concat()
}

fn notice() -> Vec<u8> {
    message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mx\0\0")
}

/// Returns an endless stream of server settings, all different.
fn settings() -> Blocks {
    Arc::new(|n| {
        (0..1000)
            .flat_map(|m| message(b'S', format!("{n}.{m}\0{}\0", "v".repeat(100)).as_bytes()))
            .collect()
    })
}

/// Returns the messages after authentication.
fn welcome() -> Vec<u8> {
    [
        message(b'R', &[0; 4]),
        message(b'K', &[0; 8]),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn answers() -> Vec<(&'static str, Vec<u8>, Blocks)> {
    let row = message(b'D', &[0, 1, 0, 0, 0, 1, b'1']);
    let password = message(b'R', &[0, 0, 0, 3]);
    vec![
        ("endless notices", vec![], endless(&notice())),
        ("endless settings", vec![], settings()),
        ("endless rows", vec![], endless(&row)),
        ("endless welcomes", vec![], endless(&message(b'R', &[0; 4]))),
        (
            "endless questions for the password",
            vec![],
            endless(&password),
        ),
        ("notices once connected", welcome(), endless(&notice())),
        ("settings once connected", welcome(), settings()),
        ("rows once connected", welcome(), endless(&row)),
        (
            "huge notice",
            announced(b'N', 0x7fff_ffff),
            endless(&[b'x'; 4096]),
        ),
        (
            "huge row",
            [welcome(), announced(b'D', 0x7fff_ffff)].concat(),
            endless(&[b'x'; 4096]),
        ),
    ]
}

#[test]
fn postgres_that_floods_at_once_hangs_no_call() {
    for (name, first, blocks) in answers() {
        survives("postgres", name, url, Conduct::Flood(first, blocks));
    }
    all_survived();
}

#[test]
fn postgres_that_is_malformed_hangs_no_call() {
    let mut conducts = vec![Conduct::Say(noise())];
    for length in 0..4 {
        conducts.push(Conduct::Say(announced(b'N', length)));
        conducts.push(Conduct::Say([welcome(), announced(b'T', length)].concat()));
    }
    for kind in *b"RKZSNETDtACGHW" {
        for body in [&[][..], &[0xff; 2], &[0x7f; 4], &[0xff; 64]] {
            let body = message(kind, body);
            conducts.push(Conduct::Say([body.clone(), welcome(), body].concat()));
        }
    }
    all_survive("postgres", "malformed messages", url, &conducts);
}

/// Requests an extreme number of iterations of the password hash.
fn hashes_for_ever(client: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    let _startup = client.read(&mut buffer)?;
    client.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
    let read = client.read(&mut buffer)?;
    let said = String::from_utf8_lossy(&buffer[..read]).into_owned();
    let nonce = said.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
    let first = format!("r={nonce}x,s=c2FsdHNhbHRzYWx0c2FsdA==,i=4294967295");
    client.write_all(&message(b'R', &[b"\0\0\0\x0b", first.as_bytes()].concat()))
}

#[test]
fn postgres_that_asks_for_endless_hashing_hangs_no_call() {
    survives(
        "postgres",
        "endless hashing",
        url,
        Conduct::Play(Arc::new(hashes_for_ever)),
    );
    all_survived();
}

#[test]
fn postgres_that_floods_later_hangs_no_call() {
    let server = PostgresServer::start().unwrap();
    let row = message(b'D', &[0, 1, 0, 0, 0, 1, b'1']);
    for (name, blocks) in [
        ("endless notices", endless(&notice())),
        ("endless rows", endless(&row)),
        ("noise", endless(&noise())),
    ] {
        for after in [2, 8, 12] {
            survives(
                "postgres",
                name,
                url,
                Conduct::Relay(server.addr(), Fault::Flood(after, Arc::clone(&blocks))),
            );
        }
    }
    all_survived();
}

#[test]
fn postgres_that_floods_an_open_connection_panics_nobody() {
    let server = PostgresServer::start().unwrap();
    for after in [16, 20, 24, 28] {
        let fault = Fault::Flood(after, endless(&notice()));
        survives(
            "postgres",
            "notices on an open connection",
            url,
            Conduct::Relay(server.addr(), fault),
        );
    }
    all_survived();
}

#[test]
fn postgres_that_is_slow_hangs_no_call() {
    let server = PostgresServer::start().unwrap();
    for pause in [1, 100] {
        let fault = Fault::Drip(Duration::from_millis(pause));
        survives(
            "postgres",
            "a byte at a time",
            url,
            Conduct::Relay(server.addr(), fault),
        );
    }
    all_survived();
}

#[test]
fn postgres_closed_at_every_byte_hangs_no_call() {
    let server = PostgresServer::builder()
        .setting("max_connections", "300")
        .start()
        .unwrap();
    for sweep in [Sweep::CutDown, Sweep::CutUp] {
        survives_at_every_byte("postgres", server.addr(), url, sweep);
    }
}

#[test]
fn postgres_changed_at_every_byte_hangs_no_call() {
    let server = PostgresServer::builder()
        .setting("max_connections", "300")
        .start()
        .unwrap();
    survives_at_every_byte("postgres", server.addr(), url, Sweep::Flip);
}
