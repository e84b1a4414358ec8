use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use leasehold_integration::server::ZookeeperServer;

use crate::{
    server::{Conduct, Fault, endless},
    support::{Sweep, all_survived, noise, survives, survives_at_every_byte},
};

fn url(addr: SocketAddr) -> String {
    format!("zookeeper://{addr}")
}

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [
        &u32::try_from(body.len()).unwrap().to_be_bytes(),
        body.as_slice(),
    ]
    .concat()
}

/// Returns the answer to a session request.
fn welcome(timeout_ms: i32) -> Vec<u8> {
    frame(&[
        &[0; 4],
        &timeout_ms.to_be_bytes(),
        &7_i64.to_be_bytes(),
        &16_i32.to_be_bytes(),
        &[1; 16],
        &[0],
    ])
}

/// Returns the event of a created node that nobody watches.
fn event() -> Vec<u8> {
    let path = b"/nobody/watches/this";
    let length = i32::try_from(path.len()).unwrap().to_be_bytes();
    frame(&[
        &(-1_i32).to_be_bytes(),
        &[0; 8],
        &[0; 4],
        &1_i32.to_be_bytes(),
        &3_i32.to_be_bytes(),
        &length,
        path,
    ])
}

/// Returns an answer to a ping that nobody sent.
fn pong() -> Vec<u8> {
    frame(&[&(-2_i32).to_be_bytes(), &[0; 12]])
}

fn answers() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let huge = 0x7fff_ffff_u32.to_be_bytes().to_vec();
    vec![
        ("endless welcomes", vec![], welcome(4000)),
        ("endless events", welcome(4000), event()),
        ("endless events before the session", vec![], event()),
        ("endless pongs", welcome(4000), pong()),
        ("endless empty frames", welcome(4000), vec![0; 4]),
        ("huge frame", huge.clone(), vec![b'x'; 4096]),
        (
            "huge frame in the session",
            [welcome(4000), huge].concat(),
            vec![b'x'; 4096],
        ),
        (
            "negative frame",
            [welcome(4000), vec![0xff; 4]].concat(),
            vec![],
        ),
        ("session without a time-out", welcome(0), pong()),
        ("session for ever", welcome(i32::MAX), pong()),
        ("negative session", welcome(-1), vec![]),
        ("noise", noise(), vec![]),
        (
            "noise in the session",
            [welcome(4000), noise()].concat(),
            vec![],
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
fn zookeeper_that_floods_at_once_hangs_no_call() {
    for (name, first, again) in answers() {
        survives("zookeeper", name, url, conduct(first, &again));
    }
    all_survived();
}

/// Answers each request of a session with this body.
fn answering(body: &[u8]) -> Conduct {
    let body = body.to_vec();
    Conduct::Play(Arc::new(move |client: &mut TcpStream| {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        client.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize])?;
        client.write_all(&welcome(4000))?;
        loop {
            client.read_exact(&mut length)?;
            let mut request = vec![0; u32::from_be_bytes(length) as usize];
            client.read_exact(&mut request)?;
            client.write_all(&frame(&[
                &request[..4],
                &[0, 0, 0, 0, 0, 0, 0, 1],
                &[0; 4],
                &body,
            ]))?;
        }
    }))
}

#[test]
fn zookeeper_that_announces_long_lists_hangs_no_call() {
    for (name, length) in [
        ("list of 2147483647", 0x7fff_ffff_u32),
        ("list of 1000000", 1_000_000),
        ("list of -1", u32::MAX),
    ] {
        survives("zookeeper", name, url, answering(&length.to_be_bytes()));
        let strings = [&length.to_be_bytes()[..], &[0; 400_000]].concat();
        survives("zookeeper", name, url, answering(&strings));
    }
    survives("zookeeper", "noise in answers", url, answering(&noise()));
    all_survived();
}

#[test]
fn zookeeper_that_floods_later_hangs_no_call() {
    let server = ZookeeperServer::start().unwrap();
    for (name, again) in [
        ("endless events", event()),
        ("endless pongs", pong()),
        ("noise", noise()),
    ] {
        for after in [1, 2, 5] {
            let fault = Fault::Flood(after, endless(&again));
            survives("zookeeper", name, url, Conduct::Relay(server.addr(), fault));
        }
    }
    all_survived();
}

#[test]
fn zookeeper_that_is_slow_hangs_no_call() {
    let server = ZookeeperServer::start().unwrap();
    for pause in [1, 100] {
        let fault = Fault::Drip(Duration::from_millis(pause));
        survives(
            "zookeeper",
            "a byte at a time",
            url,
            Conduct::Relay(server.addr(), fault),
        );
    }
    all_survived();
}

#[test]
fn zookeeper_closed_at_every_byte_hangs_no_call() {
    let server = ZookeeperServer::start().unwrap();
    for sweep in [Sweep::CutDown, Sweep::CutUp] {
        survives_at_every_byte("zookeeper", server.addr(), url, sweep);
    }
}

#[test]
fn zookeeper_changed_at_every_byte_hangs_no_call() {
    let server = ZookeeperServer::start().unwrap();
    survives_at_every_byte("zookeeper", server.addr(), url, Sweep::Flip);
}
