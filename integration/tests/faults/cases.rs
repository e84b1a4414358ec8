//! [`ALL`]: the cases and their needs.

use futures_util::future::LocalBoxFuture;

use crate::{
    closing, crowd, dropped, election,
    fixture::{
        Fixture,
        Lease::{self, Long, Short},
        Need::{self, *},
    },
    network, once, processes, release, server, together,
};

/// A claim about every backend.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) lease: Lease,
    pub(crate) run: for<'a> fn(&'a mut dyn Fixture) -> LocalBoxFuture<'a, ()>,
}

macro_rules! cases {
    ($($lease:ident $module:ident::$name:ident: [$($need:ident),*];)+) => {
        &[$(Case {
            name: stringify!($name),
            needs: &[$($need),*],
            lease: $lease,
            run: |fixture| Box::pin($module::$name(fixture)),
        }),+]
    };
}

/// All cases.
pub(crate) static ALL: &[Case] = cases! {
    Long processes::the_lock_of_a_killed_holder_is_free_at_once: [FreeAtDeath];
    Short processes::a_killed_holder_keeps_its_lock_until_its_deadline: [HeldAfterDeath];
    Long processes::a_killed_waiter_blocks_for_seconds_whatever_its_ttl: [];
    Long processes::a_killed_waiter_in_any_mode_blocks_nobody_for_long: [];
    Long processes::killed_waiting_writer_keeps_no_reader_out: [];
    Long processes::a_stopped_waiter_blocks_for_seconds_and_waits_again: [SkipsStopped];
    Short processes::stopped_holder_knows_its_loss_and_stale_write_is_refused: [Expiry];
    Short processes::without_a_fence_the_stale_write_corrupts: [Expiry];
    Long server::waits_for_a_stopped_server_fail_and_name_the_cause: [Server];
    Long server::first_attempt_on_a_stopped_server_is_retried_like_others: [Server];
    Short server::silent_server_fails_calls_and_holder_by_deadline: [Server];
    Short server::dead_server_fails_calls_and_holder_by_deadline: [Server];
    Short server::a_killed_and_restarted_server_grants_larger_tokens: [Server];
    Long server::a_killed_and_restarted_server_keeps_the_lock_and_its_waiter:
        [Server, HeldOverRestart];
    Short server::a_server_that_is_stopped_for_a_while_admits_no_second_holder: [Server];
    Short network::black_holed_holder_is_lost_by_its_deadline_and_recovers: [Server];
    Short network::holder_without_requests_is_lost_by_its_deadline_and_recovers: [Server];
    Short network::holder_without_replies_is_lost_by_its_deadline_and_recovers: [Server];
    Short network::holder_with_cut_connections_is_lost_by_deadline_and_recovers: [Server];
    Long network::a_waiter_behind_a_cut_is_granted_after_it_heals: [Server];
    Short network::a_short_cut_costs_the_holder_nothing: [Server, HeldOverReset];
    Short network::late_request_leaves_no_lock_for_good: [Server];
    Short network::cut_anywhere_in_acquisition_leaves_no_lock_and_no_waiter: [Server];
    Long closing::nothing_runs_on_after_a_client_with_many_locks_is_closed: [];
    Long closing::nothing_runs_on_after_a_client_of_a_dead_server_is_dropped:
        [Server, EndsTasks];
    Long closing::grant_during_close_is_released_before_close_returns: [Server];
    Long closing::client_closes_while_server_is_dead_and_releases_fail: [Server];
    Long dropped::acquisition_dropped_at_any_poll_leaves_nothing: [];
    Long dropped::one_thread_acquisition_dropped_leaves_nothing: [];
    Long dropped::acquisition_cancelled_at_any_poll_leaves_nothing: [];
    Long release::a_release_that_races_a_renewal_wins: [];
    Long release::guard_can_be_released_during_its_renewal: [Server];
    Short release::second_release_reports_loss_and_spares_the_rival: [Expiry];
    Short together::keys_of_a_killed_holder_pass_on_together: [];
    Short together::a_killed_waiter_for_several_keys_keeps_no_part: [];
    Short together::a_stopped_holder_of_several_keys_knows_its_loss: [Expiry];
    Short together::cut_off_holder_of_several_keys_loses_them_before_a_rival: [Server];
    Short election::killed_leader_is_followed_and_seen_no_more: [Records];
    Short election::vacancy_after_a_killed_leader_is_seen: [Records];
    Short election::stopped_leader_knows_its_loss_and_proclaims_nothing: [Records, Expiry];
    Short election::cut_off_leader_is_lost_before_another_leads: [Server, Records];
    Short election::leaders_that_are_cut_off_follow_each_other: [Server, Records];
    Long election::observer_behind_a_cut_sees_the_last_leader_once_it_heals: [Server, Records];
    Short election::cut_anywhere_in_a_campaign_leaves_no_leader: [Server, Records];
    Short once::run_that_is_cut_off_anywhere_is_completed_once: [Server, Records];
    Short once::cut_off_runner_is_cancelled_before_another_runs: [Server, Records];
    Long crowd::lone_waiter_beside_a_thousand_is_served_soon: [];
    Long crowd::ten_thousand_waiters_on_a_hundred_keys_are_all_served: [];
};
