use std::net::SocketAddr;

use leasehold::Ttl;
use leasehold_integration::server::{Persistence, RedlockServers};

use crate::{
    redis::answers,
    server::{Conduct, Fault, Hostile, endless},
    support::{Sweep, all_survived, survives, survives_at_every_byte},
};

/// Starts three servers that vote.
fn servers() -> RedlockServers {
    let servers = RedlockServers::start(3, Persistence::None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(servers.provision(Ttl::from_secs(60).unwrap()))
        .unwrap();
    servers
}

#[test]
fn redlock_over_servers_that_all_flood_hangs_no_call() {
    for (name, first, again) in answers() {
        if again.is_empty() {
            continue;
        }
        let conduct = Conduct::Flood(first, endless(&again));
        let others = [
            Hostile::start(conduct.clone()),
            Hostile::start(conduct.clone()),
        ];
        let url = |addr: SocketAddr| {
            format!("redlock://{addr},{},{}", others[0].addr(), others[1].addr())
        };
        survives("redlock", name, url, conduct);
    }
    all_survived();
}

#[test]
fn redlock_with_one_hostile_server_locks() {
    let servers = servers();
    let [one, other] = [0, 1].map(|n: usize| servers.servers[n].addr());
    let url = |addr: SocketAddr| format!("redlock://{addr},{one},{other}?node-timeout=1s");
    for (name, first, again) in answers() {
        // A server that does not speak the protocol is refused immediately as an error in the URL.
        if !["endless answers", "endless pushes", "huge text"].contains(&name) {
            continue;
        }
        let conduct = Conduct::Flood(first, endless(&again));
        // On a busy machine another server may answer too late.
        let mut tries = std::iter::repeat_with(|| survives("redlock", name, url, conduct.clone()));
        assert!(
            tries
                .by_ref()
                .take(10)
                .any(|said| said.contains("0 try_lock: ok")),
            "{name}: no lock is granted"
        );
    }
    all_survived();
}

#[test]
fn redlock_closed_at_every_byte_hangs_no_call() {
    let servers = servers();
    let others = [1, 2]
        .map(|n: usize| Hostile::start(Conduct::Relay(servers.servers[n].addr(), Fault::None)));
    let url =
        |addr: SocketAddr| format!("redlock://{addr},{},{}", others[0].addr(), others[1].addr());
    for sweep in [Sweep::CutDown, Sweep::CutUp, Sweep::Flip] {
        survives_at_every_byte("redlock", servers.servers[0].addr(), url, sweep);
    }
}
