//! One term: the campaign, the value, and the end.

use std::{
    ops::ControlFlow,
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::FutureExt;
use leasehold_core::{ErrorKind, LockClient, LossReason, Record, Records, Released, Revocation};
use tokio::time::timeout;

use crate::{
    SOON, leader,
    scripted::{Script, Scripted},
    some,
    support::{secs, settle, simulated, two_processes},
};

#[tokio::test(start_paused = true)]
async fn value_is_shown_until_the_resignation() {
    let (one, other) = two_processes();
    let election = one.election("e").with_label("one");
    assert_eq!(leader(&other).await, None);
    let term = election.campaign("a").await.unwrap();
    let seen = other.election("e").leader().await.unwrap().unwrap();
    assert_eq!(
        (seen.value.as_slice(), seen.label.as_str()),
        (b"a".as_slice(), "one")
    );
    assert_eq!(seen.token, term.fencing_token());
    term.proclaim("b").await.unwrap();
    assert_eq!(leader(&other).await, some("b"));
    let info = term.info();
    info.proclaim("c").await.unwrap();
    assert_eq!(leader(&other).await, some("c"));
    assert_eq!(term.resign().await.unwrap(), Released::Freed);
    assert_eq!(leader(&other).await, None);
    let error = info.proclaim("d").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_value_is_shown_as_a_leader() {
    let (one, other) = two_processes();
    let _term = one.election("e").campaign("").await.unwrap();
    assert_eq!(leader(&other).await, some(""));
}

#[tokio::test(start_paused = true)]
async fn waiting_candidate_leads_after_the_resignation() {
    let (one, other) = two_processes();
    let first = one.election("e").campaign("one").await.unwrap();
    assert!(
        other
            .election("e")
            .try_campaign("other")
            .await
            .unwrap()
            .is_none()
    );
    let election = other.election("e");
    let refused = election
        .campaign_timeout("other", Duration::from_secs(1))
        .await;
    assert!(refused.unwrap().is_none());
    let waiting = tokio::spawn(async move { election.campaign("other").await });
    settle().await;
    assert_eq!(
        leader(&one).await,
        some("one"),
        "a candidate that waits is not shown"
    );
    first.resign().await.unwrap();
    let second = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(leader(&one).await, some("other"));
    assert!(second.is_held());
}

#[tokio::test(start_paused = true)]
async fn dropped_candidates_and_terms_leave_nothing() {
    let (one, other) = two_processes();
    let first = one.election("e").campaign("one").await.unwrap();
    let election = other.election("e");
    assert!(
        timeout(Duration::from_secs(1), election.campaign("other"))
            .await
            .is_err()
    );
    drop(first);
    settle().await;
    assert_eq!(leader(&one).await, None);
    let seen = one.inspect("e").await.unwrap();
    assert!(seen.holders.is_empty() && seen.waiters.is_empty());
}

/// Polls a campaign a number of times, and drops it. Returns whether it was complete by then.
async fn campaign_polled(client: &LockClient, standby: Option<Duration>, polls: usize) -> bool {
    let mut election = client.election("e");
    if let Some(delay) = standby {
        election = election.with_standby(delay);
    }
    let mut campaign = Box::pin(election.campaign("value"));
    for _ in 0..polls {
        if let Some(elected) = (&mut campaign).now_or_never() {
            drop(elected.unwrap());
            return true;
        }
        // A candidate on standby waits for this long.
        tokio::time::sleep(standby.unwrap_or_default()).await;
        tokio::task::yield_now().await;
    }
    false
}

#[tokio::test(start_paused = true)]
async fn campaign_dropped_at_any_poll_leaves_no_leader() {
    for standby in [None, Some(Duration::from_secs(1))] {
        let mut elected = Vec::new();
        for polls in 0..60 {
            let script = Script {
                yields: 2,
                ..Script::default()
            };
            let (client, _) = Scripted::client(script);
            elected.push(campaign_polled(&client, standby, polls).await);
            settle().await;
            assert_eq!(leader(&client).await, None, "after {polls} polls");
            let free = client.mutex("e").try_lock().await.unwrap();
            assert!(free.is_some(), "after {polls} polls");
        }
        let needed = elected.iter().filter(|elected| !**elected).count();
        assert!(
            (8..60).contains(&needed),
            "a campaign takes {needed} polls, each of which was tried"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn election_and_mutex_exclude_each_other() {
    let (one, other) = two_processes();
    let term = one.election("e").campaign("value").await.unwrap();
    assert!(other.mutex("e").try_lock().await.unwrap().is_none());
    term.resign().await.unwrap();
    let _guard = other.mutex("e").try_lock().await.unwrap().unwrap();
    assert!(
        one.election("e")
            .try_campaign("value")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn oversized_values_are_refused_before_anything_is_sent() {
    let (client, script) = Scripted::client(Script::default());
    let oversized = vec![0; Record::MAX_LEN + 1];
    let election = client.election("e");
    let refusals = [
        election.campaign(&oversized).await.err(),
        election.try_campaign(&oversized).await.err(),
        election.campaign_timeout(&oversized, SOON).await.err(),
        election
            .lead(&oversized, async |_| ControlFlow::Break(()))
            .await
            .err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(script.calls.load(SeqCst), 0, "nothing is sent");
    let term = election.campaign("value").await.unwrap();
    let refusal = term.proclaim(&oversized).await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::InvalidInput);
    assert_eq!(leader(&client).await, some("value"));
}

#[tokio::test(start_paused = true)]
async fn without_records_an_empty_value_elects_and_others_fail() {
    let script = Script {
        records: Some(Records::None),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let election = client.election("e");
    let refusals = [
        election.campaign("value").await.err(),
        election.try_campaign("value").await.err(),
        election.campaign_timeout("value", SOON).await.err(),
        election.leader().await.err(),
        election.observe().next().await.err(),
        election.clone().with_standby(SOON).campaign("").await.err(),
        election
            .lead("value", async |_| ControlFlow::Break(()))
            .await
            .err(),
    ];
    for refusal in refusals {
        let refusal = refusal.unwrap();
        assert_eq!(refusal.kind(), ErrorKind::Unsupported, "{refusal}");
    }
    assert_eq!(script.calls.load(SeqCst), 0, "nothing is sent");
    let term = election.campaign("").await.unwrap();
    assert!(election.try_campaign("").await.unwrap().is_none());
    let refusal = term.proclaim("value").await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Unsupported);
    assert!(term.is_held(), "the refusal ends no term");
}

#[tokio::test(start_paused = true)]
async fn term_has_no_value_to_clear() {
    let (client, _) = simulated();
    let term = client.election("e").campaign("value").await.unwrap();
    let refusal = term.clear_record().await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Unsupported);
    assert_eq!(leader(&client).await, some("value"));
}

#[tokio::test(start_paused = true)]
async fn proposals_are_sent_with_the_request_and_not_written() {
    for proposals in [false, true] {
        let script = Script {
            proposals,
            // Any write fails.
            failing_writes: Mutex::new(Some((usize::MAX, ErrorKind::Denied))),
            ..Script::default()
        };
        let (client, script) = Scripted::client(script);
        let elected = client.election("e").try_campaign("value").await;
        assert_eq!(
            elected.is_ok(),
            proposals,
            "the record is written without proposals"
        );
        let _guard = client.mutex("other").lock().await.unwrap();
        let proposed = script.proposed.lock().unwrap().clone();
        assert_eq!(proposed, [Some(b"value".to_vec()), None]);
    }
}

#[tokio::test(start_paused = true)]
async fn candidate_whose_value_is_not_written_does_not_lead() {
    let script = Script {
        failing_writes: Mutex::new(Some((1, ErrorKind::Denied))),
        ..Script::default()
    };
    let (client, _) = Scripted::client(script);
    let error = client.election("e").campaign("value").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        client.mutex("e").try_lock().await.unwrap().is_some(),
        "it released the lock"
    );
}

#[tokio::test(start_paused = true)]
async fn write_of_the_value_is_repeated_after_a_transient_fault() {
    let script = Script {
        failing_writes: Mutex::new(Some((2, ErrorKind::Indeterminate))),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let term = client.election("e").campaign("value").await.unwrap();
    assert_eq!(leader(&client).await, some("value"));
    term.resign().await.unwrap();

    *script.failing_writes.lock().unwrap() = Some((1, ErrorKind::Unavailable));
    let error = client
        .election("e")
        .try_campaign("value")
        .await
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "a single attempt writes once"
    );

    *script.failing_writes.lock().unwrap() = Some((usize::MAX, ErrorKind::Unavailable));
    let error = timeout(SOON, client.election("e").campaign("value"))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "the campaign ends after one TTL"
    );
    assert!(client.mutex("e").try_lock().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn write_of_the_value_ends_soon_whatever_the_ttl() {
    let script = Script {
        failing_writes: Mutex::new(Some((usize::MAX, ErrorKind::Unavailable))),
        ..Script::default()
    };
    let (client, _) = Scripted::client(script);
    let election = client.election("e").with_ttl(secs(24 * 3600));
    let campaign = timeout(SOON, election.campaign("value")).await;
    let error = campaign.expect("it ends long before the TTL").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(client.mutex("e").try_lock().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn term_that_is_lost_reports_it_and_proclaims_nothing() {
    let (one, other) = two_processes();
    let term = one.election("e").campaign("one").await.unwrap();
    let holder = other.inspect("e").await.unwrap().holders.remove(0);
    other.revoke(&holder, Revocation::Immediate).await.unwrap();
    let rival = other.election("e").campaign("other").await.unwrap();
    assert!(rival.fencing_token() > term.fencing_token());
    let error = term.proclaim("late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(leader(&one).await, some("other"));
    assert_eq!(
        timeout(SOON, term.lost()).await.unwrap(),
        LossReason::Replaced
    );
    assert_eq!(term.resign().await.unwrap(), Released::AlreadyLost);
}

#[test]
fn futures_of_an_election_are_send() {
    fn is_send(_: impl Send) {}
    let (client, _) = two_processes();
    let election = client.election("e").with_standby(SOON);
    is_send(election.campaign("value"));
    is_send(election.campaign_timeout("value", SOON));
    is_send(election.leader());
    is_send(election.observe());
    is_send(election.lead_with("value", |_| async { ControlFlow::Break(()) }));
    is_send(election.lead("value", async |_| ControlFlow::Break(())));
}
