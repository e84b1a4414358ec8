//! [`Server`]: what servers can do, and which will not do.

/// The server cuts off silent sessions, and looks whether a client is still there, from this
/// version on.
pub(crate) const IDLE_SESSION_TIMEOUT: u32 = 140_000;
/// `plan_cache_mode`, which the holding sessions need, is there from this version on.
pub(crate) const OLDEST: u32 = 120_000;

/// What the first look at the server tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pub(crate) version: u32,
    /// Somebody copies the log whom no commit waits for, or of whom the server does not tell us.
    pub(crate) asynchronous_standbys: bool,
    /// It waits for its disk (`fsync`).
    pub(crate) syncs: bool,
    /// It lets us see how far its log is flushed, and write to it.
    pub(crate) flushes: bool,
}

impl Server {
    /// The least of what is supported.
    pub(crate) const WEAKEST: Self = Self {
        version: OLDEST,
        asynchronous_standbys: true,
        syncs: false,
        flushes: false,
    };

    /// Whether a token that it has told is never told again, whatever it suffers.
    pub(crate) fn makes_tokens_durable(self) -> bool {
        // One of the standbys may be promoted without the last tokens.
        self.flushes && self.syncs && !self.asynchronous_standbys
    }

    /// Whether it cuts off a holder that has fallen silent.
    pub(crate) fn cuts_off_silent_sessions(self) -> bool {
        self.version >= IDLE_SESSION_TIMEOUT
    }
}

/// Why no server of this version, or database in this encoding, will do.
pub(crate) fn why_unfit(version: u32, encoding: &str) -> Option<String> {
    if version < OLDEST {
        return Some(format!(
            "it is version {version}; PostgreSQL 14 and later are supported, 12 and 13 without an expiry"
        ));
    }
    (encoding != "UTF8").then(|| {
        format!(
            "the database's encoding is {encoding}, in which names have other hashes or none; connect to one that was \
             made with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
    })
}

/// Whether a commit may miss one of those who copy the log, given each one's `sync_state`. A role
/// that may not see it is shown NULL.
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
            why_unfit(110_022, "UTF8")
                .is_some_and(|why| why.contains("110022") && why.contains("12 and 13"))
        );
        for version in [120_000, 130_014, 140_000, 170_002] {
            assert_eq!(why_unfit(version, "UTF8"), None);
        }
        for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
            assert!(
                why_unfit(150_000, encoding)
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
