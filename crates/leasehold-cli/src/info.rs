//! `leasehold caps`: what a backend promises.

use std::time::Duration;

use leasehold::Capabilities;
use serde::Serialize;

use crate::{args::Caps, backend, exit::Failure, show};

#[derive(Debug, Serialize)]
struct Promises {
    backend: &'static str,
    endpoint: String,
    exclusive: bool,
    shared: bool,
    permits: bool,
    min_ttl_ms: u64,
    max_ttl_ms: u64,
    expiry: String,
    drift_ppm: u64,
    fencing: String,
    fairness: String,
    waiter_notification: String,
    loss_detection: String,
    restart: String,
    pipelined_release: bool,
    inspect: bool,
    break_lock: bool,
}

pub(crate) async fn caps(args: &Caps) -> Result<u8, Failure> {
    let client = backend::client(&args.on.url).await?;
    let capabilities = client.capabilities().clone();
    backend::close(&client).await;
    if args.json {
        show::print_json(&promises(&capabilities))?;
    } else {
        show::print(&tabled(&capabilities))?;
    }
    Ok(0)
}

fn promises(capabilities: &Capabilities) -> Promises {
    Promises {
        backend: capabilities.backend,
        endpoint: capabilities.endpoint.clone(),
        exclusive: capabilities.exclusive,
        shared: capabilities.shared,
        permits: capabilities.permits,
        min_ttl_ms: capabilities.min_ttl.as_millis(),
        max_ttl_ms: capabilities.max_ttl.as_millis(),
        expiry: format!("{:?}", capabilities.expiry),
        drift_ppm: u64::from(capabilities.drift.rate_ppm),
        fencing: format!("{:?}", capabilities.fencing),
        fairness: format!("{:?}", capabilities.fairness),
        waiter_notification: capabilities.waiter_notification.to_string(),
        loss_detection: format!("{:?}", capabilities.loss_detection),
        restart: format!("{:?}", capabilities.restart),
        pipelined_release: capabilities.pipelined_release,
        inspect: capabilities.inspect,
        break_lock: capabilities.revoke,
    }
}

fn tabled(capabilities: &Capabilities) -> String {
    let yes = |yes: bool| String::from(if yes { "yes" } else { "no" });
    let mut table = show::table(&[]);
    for (what, promise) in [
        ("backend", String::from(capabilities.backend)),
        ("lives at", show::one_line(&capabilities.endpoint)),
        ("exclusive locks", yes(capabilities.exclusive)),
        ("shared locks", yes(capabilities.shared)),
        ("permits", yes(capabilities.permits)),
        (
            "TTL",
            format!(
                "{} to {}",
                time(capabilities.min_ttl.as_duration()),
                time(capabilities.max_ttl.as_duration())
            ),
        ),
        (
            "a dead holder's lock is freed",
            capabilities.expiry.to_string(),
        ),
        ("fencing tokens", capabilities.fencing.to_string()),
        (
            "order of waiting processes",
            capabilities.fairness.to_string(),
        ),
        (
            "waiters learn that it is free",
            capabilities.waiter_notification.to_string(),
        ),
        (
            "a holder learns of a loss",
            capabilities.loss_detection.to_string(),
        ),
        ("a restart of the backend", capabilities.restart.to_string()),
        ("who holds a lock can be shown", yes(capabilities.inspect)),
        ("a lock can be broken", yes(capabilities.revoke)),
    ] {
        table.add_row([String::from(what), promise]);
    }
    table.to_string()
}

/// Whole days as days: a year of `humantime` has 365.25 of them.
fn time(duration: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match (duration.as_secs() / DAY, duration.as_secs() % DAY) {
        (days, 0) if days > 1 && duration.subsec_nanos() == 0 => format!("{days} days"),
        _ => humantime::format_duration(duration).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_days() {
        for (secs, shown) in [
            (366 * 86_400, "366 days"),
            (86_400, "1day"),
            (90, "1m 30s"),
            (86_401, "1day 1s"),
        ] {
            assert_eq!(time(Duration::from_secs(secs)), shown);
        }
        assert_eq!(time(Duration::from_millis(10)), "10ms");
    }
}
