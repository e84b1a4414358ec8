//! What the sessions that hold locks are set to.

use std::time::Duration;

use leasehold_core::Ttl;

use crate::server::IDLE_SESSION_TIMEOUT;

/// The server ends transactions that last from this version on, single statements too.
const TRANSACTION_TIMEOUT: u32 = 170_000;

/// What a session that holds locks must be set to: what the role has set must not end our statements, nor leave our
/// commits to chance.
pub(crate) fn needed(version: u32, ttl: Ttl, patience: Duration) -> Vec<(&'static str, String)> {
    let mut needed = vec![
        ("statement_timeout", ttl.as_millis().to_string()),
        ("lock_timeout", patience.as_millis().max(1).to_string()),
        ("synchronous_commit", "on".into()),
        ("default_transaction_read_only", "off".into()),
        ("search_path", "pg_catalog".into()),
        // The statements are the same for ever: planned once.
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

/// What makes either side notice sooner that the other is gone.
pub(crate) fn wanted(version: u32, ttl: Ttl) -> Vec<(&'static str, String)> {
    let millis = ttl.as_millis();
    let keepalive = (millis / 3_000).clamp(1, 60).to_string();
    let mut wanted = vec![
        ("tcp_keepalives_idle", keepalive.clone()),
        ("tcp_keepalives_interval", keepalive),
        ("tcp_keepalives_count", "3".into()),
        ("tcp_user_timeout", millis.to_string()),
    ];
    if version >= IDLE_SESSION_TIMEOUT {
        wanted.push(("client_connection_check_interval", (millis / 3).clamp(1, 10_000).to_string()));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::OLDEST;

    #[test]
    fn sessions_are_set_to_what_their_version_knows() {
        let ttl = Ttl::from_secs(30).unwrap();
        let of = |version, name: &str| {
            let settings = [needed(version, ttl, Duration::from_secs(2)), wanted(version, ttl)].concat();
            settings.into_iter().find(|(set, _)| *set == name).map(|(_, value)| value)
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
                assert_eq!(of(version, name).as_deref(), (version >= since).then_some(value), "{name} of {version}");
            }
        }
    }
}
