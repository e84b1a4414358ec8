//! Backends that are broken on purpose. Each has one classic bug and must fail exactly one case:
//! that tests the tests.
//!
//! All are one small store in memory (the *model*), which without a bug keeps the whole contract.
//! Run them in tokio's paused time: `start_paused`, on a current-thread runtime.

use leasehold_core::backend::LockBackend;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident => $case:ident,)*) => {
        /// A classic bug of lock implementations.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Bug {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("\n\nFails `", stringify!($case), "`.")]
                $bug,
            )*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$bug),*];

            /// The case that must fail, alone.
            #[must_use]
            pub fn case(self) -> &'static str {
                match self {
                    $(Self::$bug => stringify!($case),)*
                }
            }
        }
    };
}

bugs! {
    /// `SETNX`, then `EXPIRE` in a second step: a crash between them locks for ever.
    SetnxThenExpire => crash_at_any_point_frees_after_ttl,
    /// The expiry is a client's timestamp in the value, compared with the next client's clock: a
    /// skewed clock steals.
    ClientTimestamp => skewed_clock_steals_nothing,
    /// `SET NX PX` without an owner in the value, and a plain `DEL`: a late release frees the
    /// successor.
    NoOwnerValue => stale_release_does_not_free_successor,
    /// One owner per lock object instead of per acquisition: an old grant's release frees a newer
    /// one of the same object.
    OwnerPerObject => stale_release_does_not_free_successor,
    /// Whoever uses the same connection is taken for the same holder: two tasks of a process both
    /// hold.
    ReentrantByAccident => two_acquisitions_of_one_client_exclude_each_other,
    /// The deadline is counted from when the reply came: the holder believes longer than the server
    /// grants.
    DeadlineFromReply => deadline_is_counted_from_before_the_request,
    /// No wake-up: waiters learn of a release only when the holder's TTL would have ended.
    NoWakeUp => waiter_is_woken_without_polling,
    /// The token's counter lives with the lock and expires with it.
    TokenResets => tokens_grow_after_expiry,
    /// Each client counts its own tokens.
    TokenPerClient => tokens_grow_over_grants,
    /// Readers' tokens are counted by themselves, so a live reader is fenced off.
    SharedTokensApart => shared_tokens_lie_between_exclusive_ones,
    /// Permits have tokens, although several holders are right at a time.
    PermitsCarryTokens => permits_carry_no_token,
    /// A renewal task goes on after the release and sets the lock again.
    RenewalOutlivesGuard => nothing_renews_after_release,
    /// A renewal reads that it holds, then writes: a release in between is undone.
    RenewalUndoesRelease => renewal_racing_release_never_leaves_it_held,
    /// A renewal that comes after the deadline sets the lock again, over the gap in which another
    /// may have held it.
    LateRenewalRevives => late_renewal_does_not_revive,
    /// Every release says that it freed the lock.
    ReleaseNeverTells => release_is_idempotent_and_truthful,
    /// The gate never yields: a process with many waiters starves the others.
    GateNeverYields => gate_yields_to_other_clients,
    /// Readers are let in while a writer waits: writers starve.
    ReaderOvertakesWriter => no_reader_overtakes_a_waiting_writer,
    /// `<=` instead of `<`.
    OnePermitTooMany => permits_bound_holders,
    /// Each counts to its own number of permits.
    PermitCountsMayDiffer => permit_counts_must_match,
    /// A grant is traced before anybody owns it: a subscriber that panics leaves it behind.
    TracesBeforeAnOwner => panicking_subscriber_leaks_no_lock,
    /// A waiter that went away stays in the queue.
    CancelledWaiterStays => cancelled_waiter_leaves_nothing,
    /// Names are cleaned of awkward characters: different names are one lock.
    NamesCollide => awkward_names_are_distinct,
    /// The break of a lock frees whoever holds it by now.
    BreakHitsNewerHolder => break_never_hits_a_newer_holder,
    /// A graceful revocation frees the lock at once: two hold until the deadline of the first one.
    GracefulBreakFreesAtOnce => graceful_revocation_grants_nobody_early,
    /// The holder is not told that its lock was broken.
    LossUntold => loss_is_told,
}

/// The model as a subject, with a bug or healthy.
#[derive(Debug)]
pub struct ModelSubject {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    ttl: Ttl,
    paused: bool,
}

impl ModelSubject {
    /// The model without a bug.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn healthy() -> Self {
        Self::new(None)
    }

    /// The model with this bug.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn with(bug: Bug) -> Self {
        Self::new(Some(bug))
    }

    /// The model without a bug and without any latency: every answer comes in the first poll.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn instant() -> Self {
        Self::on(Arc::new(TestClock::new()), None, true, 10, true)
    }

    /// The model without a bug, in real time.
    #[must_use]
    pub fn in_real_time() -> Self {
        Self::on(Arc::new(SystemClock), None, false, 1, false)
    }

    /// The model with this bug, in real time.
    #[must_use]
    pub fn with_in_real_time(bug: Bug) -> Self {
        Self::on(Arc::new(SystemClock), Some(bug), false, 1, false)
    }

    fn new(bug: Option<Bug>) -> Self {
        Self::on(Arc::new(TestClock::new()), bug, false, 10, true)
    }

    fn on(clock: Arc<dyn Clock>, bug: Option<Bug>, instant: bool, ttl: u64, paused: bool) -> Self {
        Self {
            store: Store::new(Arc::clone(&clock), bug, instant),
            clock,
            ttl: Ttl::from_secs(ttl).unwrap_or_default(),
            paused,
        }
    }
}

#[async_trait]
impl Subject for ModelSubject {
    async fn open(&self) -> Arc<dyn LockBackend> {
        self.store.open()
    }

    fn ttl(&self) -> Ttl {
        self.ttl
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn is_time_paused(&self) -> bool {
        self.paused
    }
}
