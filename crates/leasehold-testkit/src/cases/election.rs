//! Elections: who leads, and the value that shows it.

use std::sync::Arc;

use leasehold_core::{
    ErrorKind, FencingToken, Leader, Leaders, LockClient, LockKey, Record,
    backend::{Lease, RecordWrite},
};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{Backend, client, granted, key, must, must_grant, queued, release, request},
};

/// Returns the value as text.
fn text(leader: &Leader) -> String {
    String::from_utf8_lossy(&leader.value).into_owned()
}

async fn leader(client: &LockClient, key: &LockKey) -> Option<Leader> {
    must(
        client.election(key).leader().await,
        "a read of the leader is answered",
    )
}

/// Returns the value of the leader as text.
async fn value(client: &LockClient, key: &LockKey) -> Option<String> {
    leader(client, key).await.as_ref().map(text)
}

fn is(value: &str) -> Option<String> {
    Some(value.to_owned())
}

/// Checks that the value of a leader is shown from its election to its resignation, with its token,
/// to every client, and that the holder of a mutex is no leader. An observer is notified of the end
/// of each term.
pub async fn leader_shows_the_value_of_who_leads(fixture: &dyn BackendFixture) {
    let clients = [client(fixture).await, client(fixture).await];
    let key = key(fixture, "leader");
    let mut leaders = clients[1].election(&key).observe();
    let vacant = must(leaders.next().await, "an observer sees the present state");
    assert_eq!(vacant, None, "an unused name has no leader");
    for (candidate, proposed) in [(0, "first"), (1, "second"), (1, "third"), (0, "fourth")] {
        let guard = must(clients[0].mutex(&key).lock().await, "a mutex is granted");
        let shown = value(&clients[1], &key).await;
        assert_eq!(shown, None, "the holder of a mutex is no leader");
        must(guard.release().await, "a release is answered");

        let election = clients[candidate].election(&key);
        let term = must(election.campaign(proposed).await, "a candidate is elected");
        for observer in &clients {
            let Some(leader) = leader(observer, &key).await else {
                panic!("the leader is not shown once it was elected")
            };
            assert_eq!(text(&leader), proposed, "the value of the leader is shown");
            assert_eq!(
                leader.token,
                term.fencing_token(),
                "the token of the leader is shown"
            );
        }
        let seen = must(leaders.next().await, "an observer is answered");
        assert_eq!(
            seen.as_ref().map(text),
            is(proposed),
            "an observer sees each term"
        );
        must(term.resign().await, "a resignation is answered");
        for observer in &clients {
            let shown = value(observer, &key).await;
            assert_eq!(shown, None, "nobody is shown after the resignation");
        }
        let seen = must(leaders.next().await, "an observer is answered");
        assert_eq!(seen, None, "an observer sees the end of each term");
    }
}

/// Checks that the value of a candidate that waits, or that was refused, is not shown, and that it
/// is shown once the candidate leads.
pub async fn a_waiting_candidates_value_is_not_shown(fixture: &dyn BackendFixture) {
    let (one, other, third) = (
        client(fixture).await,
        client(fixture).await,
        client(fixture).await,
    );
    let key = key(fixture, "candidates");
    let term = must(
        one.election(&key).campaign("leader").await,
        "a candidate is elected",
    );
    let election = other.election(&key);
    let campaign = election.campaign("waiting");
    let watching = async {
        queued(&third, &key).await;
        let refused = must(
            third.election(&key).try_campaign("refused").await,
            "an attempt is answered",
        );
        assert!(refused.is_none(), "another candidate leads");
        for observer in [&one, &other, &third] {
            assert_eq!(
                value(observer, &key).await,
                is("leader"),
                "only the leader is shown while others wait"
            );
        }
        must(term.resign().await, "a resignation is answered");
    };
    let (elected, ()) = tokio::join!(campaign, watching);
    let next = must(elected, "a candidate that waits is elected");
    assert_eq!(
        value(&third, &key).await,
        is("waiting"),
        "the next leader is shown"
    );
    must(next.resign().await, "a resignation is answered");
}

/// Returns the lease of a candidate that was elected, for calls of the backend itself.
async fn elected(
    fixture: &dyn BackendFixture,
    backend: &Backend,
    key: &LockKey,
    value: &str,
) -> Arc<dyn Lease> {
    let asked = request(fixture, backend, key).with_proposal(value.as_bytes());
    let lease = granted(backend, asked, "a candidate is elected").await;
    if !backend.capabilities().proposals {
        let written = proclaim(&lease, 1, value).await;
        must(written, "the leader proclaims a value");
    }
    lease
}

async fn proclaim(
    lease: &Arc<dyn Lease>,
    sequence: u64,
    value: &str,
) -> leasehold_core::Result<u64> {
    let write = must(
        RecordWrite::new(sequence, value),
        "a short value is a record",
    );
    Arc::clone(lease).write_record(write).await
}

/// Checks that the values that a leader proclaims are shown, by the guard and by a view of it, and
/// that a former leader proclaims nothing: neither while nobody leads, nor while another candidate
/// does.
pub async fn a_proclaimed_value_is_seen_and_only_the_leader_proclaims(
    fixture: &dyn BackendFixture,
) {
    let (one, other, backend) = (
        client(fixture).await,
        client(fixture).await,
        fixture.open().await,
    );
    let key = key(fixture, "proclaimed");
    let former = elected(fixture, &backend, &key, "former").await;
    assert_eq!(value(&one, &key).await, is("former"), "its value is shown");
    must(
        proclaim(&former, 2, "former, again").await,
        "the leader proclaims a value",
    );
    assert_eq!(
        value(&one, &key).await,
        is("former, again"),
        "the proclaimed value is shown"
    );
    release(&former).await;
    let refused = async |sequence, claim: &str| match proclaim(&former, sequence, "late").await {
        Ok(_) => panic!("{claim} was not refused"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{claim}: {error:?}"),
    };
    refused(3, "a value proclaimed after the resignation").await;

    let term = must(
        one.election(&key).campaign("leader").await,
        "a candidate is elected",
    );
    refused(4, "a value proclaimed while another candidate leads").await;
    assert_eq!(
        value(&other, &key).await,
        is("leader"),
        "a former leader changes no value"
    );
    let info = term.info();
    for proposed in ["a", "b", "a", "a"] {
        must(term.proclaim(proposed).await, "the leader proclaims");
        assert_eq!(value(&other, &key).await, is(proposed), "it is shown");
        let longer = format!("{proposed}, of a view");
        must(info.proclaim(&longer).await, "a view of the term proclaims");
        assert_eq!(value(&other, &key).await, is(&longer), "it is shown");
    }
    refused(5, "a value proclaimed while another candidate leads").await;
    assert_eq!(value(&other, &key).await, is("a, of a view"), "it stays");
    must(term.resign().await, "a resignation is answered");
    match info.proclaim("late").await {
        Ok(()) => panic!("a value was proclaimed after the resignation"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}"),
    }
}

/// Checks that a value of any bytes, up to the largest, is shown whole, that an empty value is one,
/// and that a larger value is refused as invalid input.
pub async fn largest_value_of_a_leader_is_shown_whole(fixture: &dyn BackendFixture) {
    let (client, key) = (client(fixture).await, key(fixture, "largest_value"));
    let largest: Vec<u8> = (0..Record::MAX_LEN)
        .map(|at| (at % 256).to_le_bytes()[0])
        .collect();
    let values = [Vec::new(), largest, b"a\n\0b\r\n".to_vec()];
    let shown = async |expected: &[u8]| {
        let Some(leader) = leader(&client, &key).await else {
            panic!("a value of {} bytes is not shown", expected.len())
        };
        assert_eq!(
            leader.value.len(),
            expected.len(),
            "the whole value is shown"
        );
        assert!(leader.value == expected, "the bytes are unchanged");
    };
    let election = client.election(&key);
    for campaigned in &values {
        let term = must(election.campaign(campaigned).await, "it is elected");
        shown(campaigned).await;
        for proclaimed in &values {
            must(term.proclaim(proclaimed).await, "it proclaims");
            shown(proclaimed).await;
        }
        must(term.resign().await, "a resignation is answered");
    }
    match election.campaign(vec![b'x'; Record::MAX_LEN + 1]).await {
        Ok(_) => panic!("a candidate with an oversized value was elected"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}"),
    }
}

/// Checks that an election and the mutex of the same name exclude each other, also in one client,
/// and that each waits for the other. The same holds for the readers of a read-write lock.
pub async fn election_and_mutex_of_a_name_exclude(fixture: &dyn BackendFixture) {
    let (one, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "election_and_mutex");
    let capabilities = other.capabilities().clone();
    for candidate in [&one, &other] {
        let term = must(
            candidate.election(&key).campaign("").await,
            "a candidate is elected",
        );
        let attempt = must(one.mutex(&key).try_lock().await, "an attempt is answered");
        assert!(attempt.is_none(), "a mutex was granted while another leads");
        if capabilities.shared {
            let attempt = must(one.rwlock(&key).try_read().await, "an attempt is answered");
            assert!(
                attempt.is_none(),
                "a reader was granted while another leads"
            );
        }
        must(term.resign().await, "a resignation is answered");

        let guard = must_grant(
            candidate.mutex(&key).try_lock().await,
            "a mutex is granted after the resignation",
        );
        let attempt = must(
            one.election(&key).try_campaign("").await,
            "an attempt is answered",
        );
        assert!(attempt.is_none(), "a candidate was elected under a mutex");
        must(guard.release().await, "a release is answered");
    }
    if capabilities.shared {
        let reader = must(one.rwlock(&key).read().await, "a reader is granted");
        let attempt = must(
            other.election(&key).try_campaign("").await,
            "an attempt is answered",
        );
        assert!(attempt.is_none(), "a candidate was elected beside a reader");
        must(reader.release().await, "a release is answered");
    }

    let guard = must(one.mutex(&key).lock().await, "a mutex is granted");
    let election = other.election(&key);
    let releasing = async {
        queued(&one, &key).await;
        must(guard.release().await, "a release is answered");
    };
    let (elected, ()) = tokio::join!(election.campaign(""), releasing);
    let term = must(elected, "a candidate is elected after the release");
    let mutex = one.mutex(&key);
    let resigning = async {
        queued(&other, &key).await;
        must(term.resign().await, "a resignation is answered");
    };
    let (granted, ()) = tokio::join!(mutex.lock(), resigning);
    let guard = must(granted, "a mutex is granted after the resignation");
    must(guard.release().await, "a release is answered");
}

/// Waits until an observer sees this value. No leader before it is older than one that the observer
/// has seen.
async fn sees(leaders: &mut Leaders, expected: &str, newest: &mut Option<FencingToken>) {
    loop {
        let Some(leader) = must(leaders.next().await, "an observer is answered") else {
            continue;
        };
        assert!(
            leader.token >= *newest,
            "an observer sees no older leader after a newer one"
        );
        *newest = leader.token;
        if text(&leader) == expected {
            return;
        }
    }
}

/// Checks that an observer is notified of each leader and of each value, in their order, and that
/// it sees the last one, however quickly they follow each other.
pub async fn observer_sees_terms_in_order(fixture: &dyn BackendFixture) {
    let (one, other, third) = (
        client(fixture).await,
        client(fixture).await,
        client(fixture).await,
    );
    let key = key(fixture, "observed");
    let mut leaders = third.election(&key).observe();
    let mut newest = None;
    for (number, candidate) in [&one, &other, &other, &one].into_iter().enumerate() {
        let proposed = format!("term {number}");
        let term = must(
            candidate.election(&key).campaign(&proposed).await,
            "a candidate is elected",
        );
        sees(&mut leaders, &proposed, &mut newest).await;
        let proclaiming = async {
            // The observer waits by then.
            tokio::time::sleep(crate::fixtures::SOON).await;
            must(term.proclaim("next").await, "the leader proclaims");
        };
        tokio::join!(sees(&mut leaders, "next", &mut newest), proclaiming);
        must(term.resign().await, "a resignation is answered");
    }
    for candidate in [&one, &other, &one, &other] {
        let term = must(
            candidate.election(&key).campaign("quick").await,
            "a candidate is elected",
        );
        must(term.resign().await, "a resignation is answered");
    }
    let term = must(
        one.election(&key).campaign("last").await,
        "a candidate is elected",
    );
    sees(&mut leaders, "last", &mut newest).await;
    assert_eq!(newest, term.fencing_token(), "it is the last term");
    must(term.resign().await, "a resignation is answered");
}

/// Checks that a backend without records elects a candidate with an empty value, and refuses other
/// values and the question who leads with a typed error.
pub async fn election_without_records_has_only_an_empty_value(fixture: &dyn BackendFixture) {
    let (one, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "no_leader");
    let election = one.election(&key);
    let errors = [
        election.campaign("value").await.err(),
        election.try_campaign("value").await.err(),
        election.leader().await.err(),
        election.observe().next().await.err(),
    ];
    for error in errors {
        let Some(error) = error else {
            panic!("a backend without records answered")
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    }
    let term = must(election.campaign("").await, "a candidate is elected");
    let attempt = must(
        other.election(&key).try_campaign("").await,
        "an attempt is answered",
    );
    assert!(attempt.is_none(), "two candidates lead");
    match term.proclaim("value").await {
        Ok(()) => panic!("a backend without records shows a value"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
    }
    assert!(term.is_held(), "the refusal ends no term");
    must(term.resign().await, "a resignation is answered");
}
