//! The settings of sessions that hold locks.

use std::time::Duration;

use leasehold_core::Ttl;

use crate::server::IDLE_SESSION_TIMEOUT;

/// The first version with `transaction_timeout`, which also ends single statements.
const TRANSACTION_TIMEOUT: u32 = 170_000;

/// Names and values. They are words and numbers, so they need no quoting in SQL.
pub(crate) type Settings = Vec<(&'static str, String)>;

/// The number of unanswered probes after which a silent connection ends.
const PROBES: u64 = 3;

/// Returns the settings that a session with locks must have. The settings of the role must neither
/// end its statements nor make its commits asynchronous.
pub(crate) fn needed(version: u32, ttl: Ttl, response_timeout: Duration) -> Settings {
    let mut needed = vec![
        ("statement_timeout", ttl.as_millis().to_string()),
        (
            "lock_timeout",
            response_timeout.as_millis().max(1).to_string(),
        ),
        ("synchronous_commit", "on".into()),
        ("default_transaction_read_only", "off".into()),
        ("search_path", "pg_catalog".into()),
        // The statements never change, so they are planned once.
        ("plan_cache_mode", "force_generic_plan".into()),
        ("jit", "off".into()),
    ];
    if version >= IDLE_SESSION_TIMEOUT {
        needed.push(("idle_session_timeout", ttl.as_millis().to_string()));
    }
    if version >= TRANSACTION_TIMEOUT {
        needed.push(("transaction_timeout", "0".into()));
    }
    needed
}

/// Returns the settings with which each side detects sooner that the other is gone.
///
/// The server must not end a silent connection before the TTL. On a system without
/// `tcp_user_timeout`, the number and the interval of the probes decide when it does.
pub(crate) fn wanted(version: u32, ttl: Ttl) -> Settings {
    let millis = ttl.as_millis();
    let keepalive = millis.div_ceil(1_000 * (1 + PROBES)).to_string();
    let mut wanted = vec![
        ("tcp_keepalives_idle", keepalive.clone()),
        ("tcp_keepalives_interval", keepalive),
        ("tcp_keepalives_count", PROBES.to_string()),
        ("tcp_user_timeout", millis.to_string()),
    ];
    if version >= IDLE_SESSION_TIMEOUT {
        wanted.push((
            "client_connection_check_interval",
            (millis / 3).clamp(1, 10_000).to_string(),
        ));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::OLDEST;

    /// A holder that is cut off stays valid for up to a TTL.
    #[test]
    fn unanswered_probes_end_no_connection_before_the_ttl() {
        for millis in [
            100,
            999,
            1_000,
            3_999,
            4_000,
            5_900,
            30_000,
            179_999,
            3_600_000,
            i32::MAX as u64,
        ] {
            let settings = wanted(150_000, Ttl::from_millis(millis).unwrap());
            let of = |name: &str| {
                settings
                    .iter()
                    .find(|(set, _)| *set == name)
                    .unwrap()
                    .1
                    .parse::<u64>()
                    .unwrap()
            };
            let longest = of("tcp_keepalives_idle")
                + of("tcp_keepalives_interval") * of("tcp_keepalives_count");
            assert!(
                longest * 1_000 >= millis,
                "{millis} ms: given up after {longest} s"
            );
            assert!(of("tcp_user_timeout") >= millis);
        }
    }

    #[test]
    fn sessions_are_set_to_what_their_version_knows() {
        let ttl = Ttl::from_secs(30).unwrap();
        let of = |version, name: &str| {
            let settings = [
                needed(version, ttl, Duration::from_secs(2)),
                wanted(version, ttl),
            ]
            .concat();
            settings
                .into_iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| value)
        };
        for (name, since, value) in [
            ("plan_cache_mode", OLDEST, "force_generic_plan"),
            ("default_transaction_read_only", OLDEST, "off"),
            ("tcp_user_timeout", OLDEST, "30000"),
            ("idle_session_timeout", 140_000, "30000"),
            ("client_connection_check_interval", 140_000, "10000"),
            ("transaction_timeout", 170_000, "0"),
        ] {
            for version in [OLDEST, 139_999, 140_000, 169_999, 170_000] {
                assert_eq!(
                    of(version, name).as_deref(),
                    (version >= since).then_some(value),
                    "{name} of {version}"
                );
            }
        }
    }
}
