//! [`Bug`]: a classic bug of lock implementations.

use crate::cases;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident => $case:ident,)*) => {
        /// A classic bug of lock implementations.
        ///
        /// ```
        /// use leasehold_testkit::{mutants::{Bug, ModelFixture}, run_all};
        ///
        /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
        /// let bug = Bug::TokenPerClient;
        /// let report = run_all(&ModelFixture::with(bug), |case| case.concept == "fencing").await;
        /// assert_eq!(report.failed(), [bug.case()]);
        /// # }
        /// ```
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
            /// All bugs.
            pub const ALL: &'static [Self] = &[$(Self::$bug),*];

            /// Returns the name of the only case that this bug must fail.
            #[must_use]
            pub fn case(self) -> &'static str {
                match self {
                    $(Self::$bug => stringify!($case),)*
                }
            }
        }
    };
}

impl Bug {
    /// Returns whether the bug is in how proposals are stored with acquisitions, which is what the
    /// cases of elections find. A model with it stores them, and other models show a leader by its
    /// record.
    #[must_use]
    pub fn is_of_proposals(self) -> bool {
        cases::all()
            .iter()
            .any(|case| case.concept == "election" && case.name == self.case())
    }
}

bugs! {
    /// The lock is set with `SETNX` and its TTL with `EXPIRE` in a second step. After a crash
    /// between the steps it is held for ever.
    SetnxThenExpire => crash_at_any_point_frees_after_ttl,
    /// The value contains the expiry by one client's clock, and the next client compares it with
    /// its own clock. A skewed clock steals the lock.
    ClientTimestamp => skewed_clock_steals_nothing,
    /// The lock is set with `SET NX PX` without an owner in the value and released with a plain
    /// `DEL`. A late release frees the next holder's lock.
    NoOwnerValue => stale_release_does_not_free_successor,
    /// The owner is an id of the lock object instead of the acquisition. The release of an expired
    /// lock frees a newer lock of the same object.
    OwnerPerObject => stale_release_does_not_free_successor,
    /// Requests on the same connection count as the same holder. Two tasks of a process hold the
    /// lock at the same time.
    ReentrantByAccident => two_acquisitions_of_one_client_exclude_each_other,
    /// The deadline is counted from the arrival of the reply. The holder considers the lock valid
    /// for longer than the server grants it.
    DeadlineFromReply => deadline_is_counted_from_before_the_request,
    /// Waiters are not notified of a release. They retry only when the holder's TTL would have
    /// passed.
    NoNotification => waiter_is_notified_without_polling,
    /// The counter of tokens is part of the lock and expires with it.
    TokenResets => tokens_grow_after_expiry,
    /// Each client counts its own tokens.
    TokenPerClient => tokens_grow_over_grants,
    /// Readers' tokens have a counter of their own, so a resource rejects a reader that holds the
    /// lock.
    SharedTokensApart => shared_tokens_lie_between_exclusive_ones,
    /// Permits have tokens, although several holders may use the resource at the same time.
    PermitsCarryTokens => permits_carry_no_token,
    /// The renewal task continues after the release and sets the lock again.
    RenewalOutlivesGuard => nothing_renews_after_release,
    /// A renewal reads that the lock is held and writes it in a second step. A release between the
    /// steps is undone.
    RenewalUndoesRelease => renewal_racing_release_never_leaves_it_held,
    /// A renewal after the deadline sets the lock again, although another client may have held it
    /// meanwhile.
    LateRenewalRevives => late_renewal_does_not_revive,
    /// Every release reports that it freed the lock.
    ReleaseAlwaysReportsFreed => release_is_idempotent_and_reports_outcome,
    /// The local queue never yields. A process with many waiters starves all other processes.
    LocalQueueNeverYields => local_queue_yields_to_other_clients,
    /// Readers are granted while a writer waits, so writers starve.
    ReaderOvertakesWriter => no_reader_overtakes_a_waiting_writer,
    /// The number of holders is compared with `<=` instead of `<`.
    OnePermitTooMany => permits_bound_holders,
    /// Each request is checked against its own number of permits.
    PermitCountsMayDiffer => permit_counts_must_match,
    /// Requests of one connection that are sent together get the answer of the first one. A lock
    /// that another client holds is granted with one that is free.
    BatchSharesOneAnswer => all_takes_all_or_nothing_and_never_deadlocks,
    /// A grant is traced before a lease owns it. A subscriber that panics leaks the lock.
    TracesBeforeOwnership => panicking_subscriber_leaks_no_lock,
    /// A cancelled waiter stays in the queue.
    CancelledWaiterStays => cancelled_waiter_leaves_nothing,
    /// Special characters in names are replaced, so different names become one lock.
    NamesCollide => awkward_names_are_distinct,
    /// A revocation frees the lock of any current holder, not only of the given one.
    RevocationHitsNewerHolder => revocation_never_hits_a_newer_holder,
    /// A graceful revocation frees the lock at once. Two holders have it until the deadline of the
    /// first one.
    GracefulRevocationFreesAtOnce => graceful_revocation_grants_nobody_early,
    /// After a graceful revocation, the next renewal reports a loss, although the lock is still
    /// held.
    GracefulRevocationEndsTheHold => graceful_revocation_leaves_the_holder_its_time,
    /// The holder is not notified that its lock was revoked.
    LossUnreported => loss_is_reported,
    /// The record is part of the lock, and the release deletes it.
    RecordDiesWithLock => record_is_read_by_anyone_and_outlives_the_release,
    /// The record has the TTL of the lock.
    RecordExpires => record_outlives_the_expiry_of_its_writer,
    /// A write is refused only if another client holds the lock, and not if nobody holds it.
    RecordUnchecked => only_the_holder_writes_the_record,
    /// A write checks that the lock is held, and is made in a second step.
    RecordCheckThenWrite => delayed_write_is_refused_once_another_holds,
    /// A write that arrives late replaces a later write of the same lease.
    RecordOrderIgnored => late_write_of_the_same_grant_changes_nothing,
    /// A write that is repeated after a lost answer is a second write.
    RecordRetryCounts => repeated_write_counts_once,
    /// A client answers reads from what it has read before.
    RecordReadIsCached => later_read_sees_the_later_write,
    /// A record that is cleared is deleted together with its version, which starts again.
    RecordVersionRestarts => versions_grow_over_holders_and_clearing,
    /// Special characters in the names of records are replaced, so several names share a record.
    RecordNamesCollide => records_of_awkward_names_are_distinct,
    /// A long value is truncated.
    RecordTruncated => largest_record_is_kept_whole,
    /// A shared lease writes the record, although others hold the lock at the same time.
    RecordByReader => readers_and_permits_write_no_record,
    /// A gracefully revoked holder may not write its record, although it still holds the lock.
    RecordRefusedAfterRevocation => revoked_holder_writes_until_its_lock_ends,
    /// A watch is armed after the read was answered. A write in between is missed.
    RecordWatchArmedLate => watcher_is_notified_of_each_write,
    /// A record that is wanted only while its writer holds the lock is shown for ever.
    RecordOutlivesHold => record_wanted_while_held_ends_with_the_hold,
    /// A watch is notified of writes, but not of the end of the writer's hold.
    RecordHoldEndUnreported => watcher_is_notified_of_the_end_of_the_hold,
    /// The value of a leader is shown until another candidate is elected.
    LeaderOutlivesTerm => leader_shows_the_value_of_who_leads,
    /// The value of the last candidate is shown, although it waits.
    LeaderIsLastCandidate => a_waiting_candidates_value_is_not_shown,
    /// A former leader replaces the value that is shown.
    ProclaimUnchecked => a_proclaimed_value_is_seen_and_only_the_leader_proclaims,
    /// A long value of a candidate is truncated.
    LeaderValueTruncated => largest_value_of_a_leader_is_shown_whole,
    /// Candidates have a lock of their own beside the mutex of the name.
    ElectionApart => election_and_mutex_of_a_name_exclude,
    /// A watch is notified of the begin and the end of a term, but not of a new value.
    ProclaimUnreported => observer_sees_terms_in_order,
}
