//! Tests of the conformance suite: every broken backend fails exactly its case.

use leasehold_testkit::{
    Case,
    mutants::{Bug, ModelFixture},
    run_all,
};

#[tokio::test(start_paused = true)]
async fn healthy_model_passes_every_case() {
    let report = run_all(&ModelFixture::healthy(), |_| true).await;
    assert_eq!(report.failed(), Vec::<&str>::new(), "\n{report}");
}

/// In real time a crash is simulated in another way.
#[tokio::test(flavor = "multi_thread")]
async fn crash_between_two_steps_is_found_in_real_time() {
    let bug = Bug::SetnxThenExpire;
    let report = run_all(&ModelFixture::with_in_real_time(bug), |case| {
        case.name == bug.case()
    })
    .await;
    assert_eq!(report.failed(), [bug.case()], "\n{report}");
}

/// Returns whether a case checks one property of a model with this bug. Those of `once` and of
/// several locks together need several properties at once, so that many bugs fail them. So do those
/// of elections, unless the model stores proposals: they then need records.
fn is_of_one_property(case: &Case, bug: Bug) -> bool {
    match case.concept {
        "once" => false,
        "election" => bug.is_of_proposals(),
        _ => case.name != "all_takes_all_or_nothing_and_never_deadlocks",
    }
}

#[tokio::test(start_paused = true)]
async fn record_that_dies_with_its_lock_runs_work_again() {
    let fixture = ModelFixture::with(Bug::RecordDiesWithLock);
    let report = run_all(&fixture, |case| case.concept == "once").await;
    let failed = report.failed();
    assert_eq!(failed, ["once_decides_each_occurrence_once"], "\n{report}");
}

macro_rules! each_fails_exactly_its_case {
    ($($test:ident: $bug:ident,)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $test() {
                let bug = Bug::$bug;
                let chosen = |case: &Case| is_of_one_property(case, bug) || case.name == bug.case();
                let report = run_all(&ModelFixture::with(bug), chosen).await;
                assert_eq!(report.failed(), [bug.case()], "\n{report}");
            }
        )*

        #[test]
        fn every_bug_is_tested() {
            assert_eq!(Bug::ALL, [$(Bug::$bug),*]);
        }
    };
}

each_fails_exactly_its_case! {
    setnx_then_expire: SetnxThenExpire,
    client_timestamp: ClientTimestamp,
    no_owner_value: NoOwnerValue,
    owner_per_object: OwnerPerObject,
    reentrant_by_accident: ReentrantByAccident,
    deadline_from_reply: DeadlineFromReply,
    no_notification: NoNotification,
    token_resets: TokenResets,
    token_per_client: TokenPerClient,
    shared_tokens_apart: SharedTokensApart,
    permits_carry_tokens: PermitsCarryTokens,
    renewal_outlives_guard: RenewalOutlivesGuard,
    renewal_undoes_release: RenewalUndoesRelease,
    late_renewal_revives: LateRenewalRevives,
    release_always_reports_freed: ReleaseAlwaysReportsFreed,
    local_queue_never_yields: LocalQueueNeverYields,
    reader_overtakes_writer: ReaderOvertakesWriter,
    one_permit_too_many: OnePermitTooMany,
    permit_counts_may_differ: PermitCountsMayDiffer,
    batch_shares_one_answer: BatchSharesOneAnswer,
    traces_before_ownership: TracesBeforeOwnership,
    cancelled_waiter_stays: CancelledWaiterStays,
    names_collide: NamesCollide,
    revocation_hits_newer_holder: RevocationHitsNewerHolder,
    graceful_revocation_frees_at_once: GracefulRevocationFreesAtOnce,
    graceful_revocation_ends_the_hold: GracefulRevocationEndsTheHold,
    loss_unreported: LossUnreported,
    record_dies_with_lock: RecordDiesWithLock,
    record_expires: RecordExpires,
    record_unchecked: RecordUnchecked,
    record_check_then_write: RecordCheckThenWrite,
    record_order_ignored: RecordOrderIgnored,
    record_retry_counts: RecordRetryCounts,
    record_read_is_cached: RecordReadIsCached,
    record_version_restarts: RecordVersionRestarts,
    record_names_collide: RecordNamesCollide,
    record_truncated: RecordTruncated,
    record_by_reader: RecordByReader,
    record_refused_after_revocation: RecordRefusedAfterRevocation,
    record_watch_armed_late: RecordWatchArmedLate,
    record_outlives_hold: RecordOutlivesHold,
    record_hold_end_unreported: RecordHoldEndUnreported,
    leader_outlives_term: LeaderOutlivesTerm,
    leader_is_last_candidate: LeaderIsLastCandidate,
    proclaim_unchecked: ProclaimUnchecked,
    leader_value_truncated: LeaderValueTruncated,
    election_apart: ElectionApart,
    proclaim_unreported: ProclaimUnreported,
}
