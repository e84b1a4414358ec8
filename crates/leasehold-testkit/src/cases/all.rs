//! The list of all cases.

use crate::case::Case;

/// Calls `$callback! { $args concept { case: needs, … } … }` with every case. This is the only
/// list; the test `every_case_is_listed` fails for a case that is missing here.
#[doc(hidden)]
#[macro_export]
macro_rules! __with_cases {
    ([$($callback:tt)+], [$($args:tt)*]) => {
        $($callback)+! {
            [$($args)*]
            exclusion {
                two_clients_exclude_each_other: exclusive,
                two_acquisitions_of_one_client_exclude_each_other: exclusive,
                try_lock_reports_contended: exclusive,
                sixty_four_waiters_are_all_served_once: exclusive,
            }
            expiry {
                expired_lock_is_granted_to_another: expiry,
                deadline_is_counted_from_before_the_request: exclusive,
                is_held_is_false_past_the_deadline: exclusive,
                loss_is_reported_at_the_deadline: exclusive,
                work_is_cancelled_before_the_deadline: exclusive,
                skewed_clock_steals_nothing: exclusive,
                holder_that_vanishes_frees_after_ttl: expiry,
                crash_at_any_point_frees_after_ttl: expiry,
            }
            fencing {
                tokens_grow_over_grants: tokens,
                tokens_grow_after_expiry: tokens_and_expiry,
                shared_tokens_lie_between_exclusive_ones: shared_tokens,
                permits_carry_no_token: permits,
            }
            release {
                stale_release_does_not_free_successor: expiry,
                release_is_idempotent_and_reports_outcome: exclusive,
                guard_dropped_releases: exclusive,
                guard_dropped_in_a_panic_releases: exclusive,
                guard_dropped_outside_a_runtime_releases: exclusive,
            }
            renewal {
                renewal_extends: exclusive,
                late_renewal_does_not_revive: expiry,
                nothing_renews_after_release: exclusive,
                renewal_racing_release_never_leaves_it_held: exclusive,
            }
            waiting {
                waiter_is_notified_without_polling: pushed_notification,
                waiter_takes_over_after_expiry: expiry,
                lock_timeout_gives_up_in_time: exclusive,
            }
            cancellation {
                cancelled_waiter_leaves_nothing: inspection,
                dropped_at_every_poll_point_leaves_nothing: exclusive,
            }
            panics {
                panic_in_any_call_is_an_error_of_that_call: exclusive,
                panic_in_a_renewal_ends_no_other: exclusive,
                panicking_subscriber_leaks_no_lock: exclusive,
            }
            modes {
                readers_share: shared,
                writer_excludes_readers: shared,
                no_reader_overtakes_a_waiting_writer: shared,
                permits_bound_holders: permits,
                permit_counts_must_match: permits,
                unsupported_modes_are_refused_typed: a_mode_is_missing,
            }
            together {
                all_takes_all_or_nothing_and_never_deadlocks: exclusive,
                all_shares_what_it_only_reads: shared,
            }
            reentrancy {
                owner_reenters_and_last_release_frees: exclusive,
                other_owner_waits: exclusive,
            }
            inspection {
                inspect_shows_holder_and_waiter: inspection,
                loss_is_reported: revocation_is_reported,
                revocation_never_hits_a_newer_holder: revocation,
                graceful_revocation_grants_nobody_early: revocation,
                graceful_revocation_leaves_the_holder_its_time: revocation,
            }
            local_queue {
                local_queue_yields_to_other_clients: pushed_notification,
            }
            input {
                awkward_names_are_distinct: exclusive,
                ttl_outside_capabilities_is_refused_typed: bounded_ttl,
            }
            close {
                close_releases_all_and_refuses_later_calls: exclusive,
                drain_refuses_new_locks_and_waits_for_holders: exclusive,
            }
            records {
                record_is_read_by_anyone_and_outlives_the_release: records,
                record_outlives_the_expiry_of_its_writer: records_and_expiry,
                only_the_holder_writes_the_record: records,
                delayed_write_is_refused_once_another_holds: records_and_expiry,
                write_racing_release_is_over_for_the_next_holder: records,
                late_write_of_the_same_grant_changes_nothing: records,
                repeated_write_counts_once: records,
                later_read_sees_the_later_write: records,
                versions_grow_over_holders_and_clearing: records,
                records_of_awkward_names_are_distinct: records,
                largest_record_is_kept_whole: records,
                readers_and_permits_write_no_record: records_and_another_mode,
                revoked_holder_writes_until_its_lock_ends: records_and_revocation,
                watcher_is_notified_of_each_write: records_and_notification,
                record_wanted_while_held_ends_with_the_hold: records,
                watcher_is_notified_of_the_end_of_the_hold: records_and_notification,
                missing_records_are_refused_typed: no_records,
            }
            election {
                leader_shows_the_value_of_who_leads: records,
                a_waiting_candidates_value_is_not_shown: records,
                a_proclaimed_value_is_seen_and_only_the_leader_proclaims: records,
                largest_value_of_a_leader_is_shown_whole: records,
                election_and_mutex_of_a_name_exclude: exclusive,
                observer_sees_terms_in_order: records,
                election_without_records_has_only_an_empty_value: no_records,
            }
            once {
                once_decides_each_occurrence_once: records,
            }
            liveness {
                ping_is_answered_beside_a_held_lock: exclusive,
            }
        }
    };
}

macro_rules! list {
    ([] $($concept:ident { $($case:ident: $needs:ident,)* })*) => {
        vec![$($(Case {
            name: stringify!($case),
            concept: stringify!($concept),
            needs: crate::case::$needs,
            run: |fixture| Box::pin(crate::cases::$concept::$case(fixture)),
        },)*)*]
    };
}

/// Returns every case, grouped by concept.
///
/// ```
/// use leasehold_testkit::cases;
///
/// assert!(cases::all().iter().any(|case| case.name == "readers_share"));
/// ```
#[must_use]
pub fn all() -> Vec<Case> {
    crate::__with_cases!([list], [])
}
