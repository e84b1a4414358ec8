//! `leasehold info`: the guarantees of a backend.

use std::time::Duration;

use leasehold::Capabilities;

use crate::{
    args::Info,
    backend,
    exit::{self, Failure},
    output,
};

pub(crate) async fn info(args: &Info) -> Result<u8, Failure> {
    let Some(client) = backend::client(&args.backend.url).await? else {
        return Ok(exit::UNAVAILABLE);
    };
    let capabilities = client.capabilities().clone();
    backend::close(&client).await;
    if args.json {
        output::print_json(&capabilities)?;
    } else {
        output::print(&table(&capabilities))?;
    }
    Ok(0)
}

fn table(capabilities: &Capabilities) -> String {
    let yes = |yes: bool| String::from(if yes { "yes" } else { "no" });
    let ttl = [capabilities.min_ttl, capabilities.max_ttl]
        .map(|ttl| time(ttl.as_duration()))
        .join(" to ");
    let mut table = output::table(&[]);
    for (name, value) in [
        ("backend", String::from(capabilities.backend)),
        ("endpoint", output::one_line(&capabilities.endpoint)),
        ("exclusive locks", yes(capabilities.exclusive)),
        ("shared locks", yes(capabilities.shared)),
        ("permits", yes(capabilities.permits)),
        ("TTL", ttl),
        (
            "expiry after the death of a holder",
            capabilities.expiry.to_string(),
        ),
        ("fencing tokens", capabilities.fencing.to_string()),
        (
            "order of waiting processes",
            capabilities.fairness.to_string(),
        ),
        (
            "notification of waiters",
            capabilities.waiter_notification.to_string(),
        ),
        (
            "detection of a loss",
            capabilities.loss_detection.to_string(),
        ),
        ("restart of the backend", capabilities.restart.to_string()),
        ("records beside locks", capabilities.records.to_string()),
        ("status", yes(capabilities.inspect)),
        ("revoke", yes(capabilities.revoke)),
    ] {
        table.add_row([String::from(name), value]);
    }
    table.to_string()
}

/// Returns a duration for people. Whole days stay days: a year of `humantime` has 365.25 of them.
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
    fn whole_days_are_shown_as_days() {
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
