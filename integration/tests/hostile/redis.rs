use std::{net::SocketAddr, time::Duration};

use leasehold_integration::server::RedisServer;

use crate::{
    server::{Conduct, Fault, endless},
    support::{Sweep, all_survived, noise, survives, survives_at_every_byte},
};

fn url(addr: SocketAddr) -> String {
    format!("redis://{addr}")
}

/// Returns hostile answers: a name, the start, and a block that repeats endlessly after it.
pub(crate) fn answers() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n".to_vec();
    vec![
        ("endless answers", vec![], b"+OK\r\n".to_vec()),
        ("endless errors", vec![], b"-ERR no\r\n".to_vec()),
        ("endless pushes", vec![], push),
        ("endless line", b"+".to_vec(), vec![b'x'; 4096]),
        ("huge text", b"$536870911\r\n".to_vec(), vec![b'x'; 4096]),
        (
            "largest text",
            b"$9223372036854775807\r\n".to_vec(),
            vec![b'x'; 4096],
        ),
        ("huge list", b"*2147483647\r\n".to_vec(), b":1\r\n".to_vec()),
        (
            "list of terabytes",
            b"*1000000000000\r\n".to_vec(),
            b"_\r\n".to_vec(),
        ),
        (
            "largest list",
            b"*9223372036854775807\r\n".to_vec(),
            b":1\r\n".to_vec(),
        ),
        (
            "largest map",
            b"%9223372036854775807\r\n".to_vec(),
            b":1\r\n".to_vec(),
        ),
        (
            "largest set",
            b"~9223372036854775807\r\n".to_vec(),
            b":1\r\n".to_vec(),
        ),
        (
            "largest push",
            b">9223372036854775807\r\n$1\r\na\r\n".to_vec(),
            b":1\r\n".to_vec(),
        ),
        (
            "largest attribute",
            b"|9223372036854775807\r\n".to_vec(),
            b":1\r\n".to_vec(),
        ),
        (
            "negative lengths",
            b"$-7\r\n=-7\r\n!-7\r\n%-7\r\n~-7\r\n>-7\r\n|-7\r\n".to_vec(),
            vec![],
        ),
        ("nested lists", vec![], b"*1\r\n".to_vec()),
        ("wide nested lists", vec![], b"*1000000\r\n".to_vec()),
        ("noise", noise(), vec![]),
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
fn redis_that_floods_at_once_costs_nothing() {
    for (name, first, again) in answers() {
        survives("redis", name, url, conduct(first, &again));
    }
    all_survived();
}

#[test]
fn redis_that_floods_later_costs_nothing() {
    let server = RedisServer::start().unwrap();
    for (name, first, again) in answers() {
        if again.is_empty() {
            continue;
        }
        for after in [2, 9] {
            let (first, again) = (first.clone(), endless(&again));
            let blocks = std::sync::Arc::new(move |n| {
                if n == 0 && !first.is_empty() {
                    first.clone()
                } else {
                    again(n)
                }
            });
            survives(
                "redis",
                name,
                url,
                Conduct::Relay(server.addr(), Fault::Flood(after, blocks)),
            );
        }
    }
    all_survived();
}

#[test]
fn redis_that_is_slow_hangs_no_call() {
    let server = RedisServer::start().unwrap();
    for pause in [1, 100] {
        let fault = Fault::Drip(Duration::from_millis(pause));
        survives(
            "redis",
            "a byte at a time",
            url,
            Conduct::Relay(server.addr(), fault),
        );
    }
    all_survived();
}

#[test]
fn redis_closed_at_every_byte_hangs_no_call() {
    let server = RedisServer::start().unwrap();
    for sweep in [Sweep::CutDown, Sweep::CutUp] {
        survives_at_every_byte("redis", server.addr(), url, sweep);
    }
}

#[test]
fn redis_changed_at_every_byte_hangs_no_call() {
    let server = RedisServer::start().unwrap();
    survives_at_every_byte("redis", server.addr(), url, Sweep::Flip);
}

#[test]
fn redis_without_resp3_hangs_no_call() {
    let server = RedisServer::start().unwrap();
    let url = |addr| format!("redis://{addr}?notifications=poll");
    survives_at_every_byte("redis", server.addr(), url, Sweep::CutDown);
    for (name, first, again) in answers() {
        survives("redis", name, url, conduct(first, &again));
    }
    all_survived();
}
