//! [`Server`]: the version and the settings of a server, and the servers that are not supported.

/// The first version with `idle_session_timeout` and `client_connection_check_interval`.
pub(crate) const IDLE_SESSION_TIMEOUT: u32 = 140_000;
/// The oldest supported version: the first with `plan_cache_mode`, which sessions with locks need.
pub(crate) const OLDEST: u32 = 120_000;

/// The results of the first checks of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pub(crate) version: u32,
    /// Whether a standby exists for which commits do not wait, or whose state the role may not see.
    pub(crate) asynchronous_standbys: bool,
    /// Whether commits wait for the disk (`fsync`).
    pub(crate) syncs: bool,
    /// Whether the role may read how far the WAL is flushed, and may write to it.
    pub(crate) flushes: bool,
}

impl Server {
    /// The weakest server that is supported.
    pub(crate) const WEAKEST: Self = Self {
        version: OLDEST,
        asynchronous_standbys: true,
        syncs: false,
        flushes: false,
    };

    /// Returns whether no token is ever repeated, even after a crash or a fail-over.
    pub(crate) fn makes_tokens_durable(self) -> bool {
        // A standby that lacks the last tokens may be promoted.
        self.flushes && self.keeps_commits()
    }

    /// Returns whether no confirmed commit is ever lost, even after a crash or a fail-over.
    pub(crate) fn keeps_commits(self) -> bool {
        self.syncs && !self.asynchronous_standbys
    }

    /// Returns whether the server ends the session of a holder that is silent.
    pub(crate) fn cuts_off_silent_sessions(self) -> bool {
        self.version >= IDLE_SESSION_TIMEOUT
    }
}

/// Returns why a server of this version or a database in this encoding is not supported.
pub(crate) fn unsupported_reason(version: u32, encoding: &str) -> Option<String> {
    if version < OLDEST {
        return Some(format!(
            "it is version {version}; PostgreSQL 14 and later are supported, 12 and 13 without an expiry"
        ));
    }
    (encoding != "UTF8").then(|| {
        format!(
            "the encoding of the database is {encoding}, in which names have other hashes or none; connect to a database \
             created with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
    })
}

/// Returns whether commits do not wait for one of the standbys, given the `sync_state` of each. The
/// state is NULL if the role may not see it.
pub(crate) fn any_asynchronous(standbys: &[Option<String>]) -> bool {
    !standbys
        .iter()
        .all(|state| matches!(state.as_deref(), Some("sync" | "quorum")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_versions_and_encodings_are_refused() {
        assert!(
            unsupported_reason(110_022, "UTF8")
                .is_some_and(|why| why.contains("110022") && why.contains("12 and 13"))
        );
        for version in [120_000, 130_014, 140_000, 170_002] {
            assert_eq!(unsupported_reason(version, "UTF8"), None);
        }
        for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
            assert!(
                unsupported_reason(150_000, encoding)
                    .is_some_and(|why| why.contains(encoding) && why.contains("'UTF8'"))
            );
        }
    }

    #[test]
    fn standby_without_commit_wait_or_hidden_is_asynchronous() {
        let any = |states: &[Option<&str>]| {
            any_asynchronous(
                &states
                    .iter()
                    .map(|state| state.map(str::to_owned))
                    .collect::<Vec<_>>(),
            )
        };
        assert!(!any(&[]));
        assert!(!any(&[Some("sync"), Some("sync")]) && !any(&[Some("quorum")]));
        assert!(any(&[Some("sync"), Some("async")]) && any(&[Some("potential"), Some("sync")]));
        assert!(any(&[None]) && any(&[Some("sync"), None]));
    }
}
