//! Leaders of an election whose process is killed or stopped, or that are cut off.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use leasehold_core::{
    ErrorKind, FencingToken, Leader, Leaders, LockClient, Released, Term, TermInfo,
};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    steps::{is_a_fault, millis},
    worker::{Answer, Command},
};

use crate::{
    fixture::Fixture,
    support::{cut_at_each, granted, locked, nothing_left, soon, until_waiting},
};

/// Returns the value of the leader as text.
fn text(leader: &Leader) -> String {
    String::from_utf8_lossy(&leader.value).into_owned()
}

async fn value(client: &LockClient) -> Option<String> {
    let leader = soon("the leader is read", client.election("k").leader()).await;
    leader.unwrap().as_ref().map(text)
}

fn is(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn campaign(value: &str) -> Command {
    Command::Campaign {
        slot: 0,
        key: "k".to_owned(),
        value: value.to_owned(),
    }
}

fn proclaim(value: &str) -> Command {
    Command::Proclaim {
        slot: 0,
        value: value.to_owned(),
    }
}

/// Campaigns, and repeats it after each fault.
async fn elected(client: &LockClient, value: &str) -> Term {
    let election = client.election("k");
    let campaign = async {
        loop {
            match election.campaign(value).await {
                Ok(term) => return term,
                Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
            }
            tokio::time::sleep(millis(20)).await;
        }
    };
    soon("the candidate is elected", campaign).await
}

fn token(term: &TermInfo) -> u64 {
    term.fencing_token().map_or(0, FencingToken::get)
}

/// An observer, and the newest token that it has seen.
struct Seen {
    leaders: Leaders,
    newest: u64,
}

impl Seen {
    fn by(client: &LockClient) -> Self {
        Self {
            leaders: client.election("k").observe(),
            newest: 0,
        }
    }

    /// Waits until the leader with this token and this value is seen. Nobody before is older than
    /// what was seen earlier.
    async fn until(&mut self, token: u64, value: &str) {
        let seeing = async {
            loop {
                let Some(leader) = self.leaders.next().await.unwrap() else {
                    continue;
                };
                let seen = leader.token.map_or(0, FencingToken::get);
                assert!(seen >= self.newest, "{seen} after {}", self.newest);
                self.newest = seen;
                if (seen, text(&leader).as_str()) == (token, value) {
                    return;
                }
            }
        };
        soon(&format!("an observer sees `{value}`"), seeing).await;
    }
}

pub(crate) async fn killed_leader_is_followed_and_seen_no_more(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (client, next) = (fixture.client().await, fixture.client().await);
    let mut seen = Seen::by(&client);
    let mut doomed = stage.worker("doomed");
    let (old, _) = granted(doomed.ask(campaign("old")).unwrap());
    seen.until(old, "old").await;
    let electing = tokio::spawn(async move { elected(&next, "new").await });
    until_waiting(&client, 1).await;
    assert_eq!(value(&client).await, is("old"), "a candidate waits");
    doomed.kill().unwrap();
    let term = soon("a candidate follows", electing).await.unwrap();
    assert_eq!(value(&client).await, is("new"), "the next leader is shown");
    assert!(token(&term) > old, "{} after {old}", token(&term));
    seen.until(token(&term), "new").await;
    term.resign().await.unwrap();
    assert_eq!(value(&client).await, None, "nobody leads");
    nothing_left(fixture);
}

/// Verifies that an observer sees the end of a leader that no candidate follows.
pub(crate) async fn vacancy_after_a_killed_leader_is_seen(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let client = fixture.client().await;
    let mut seen = Seen::by(&client);
    let mut doomed = stage.worker("doomed");
    let (old, _) = granted(doomed.ask(campaign("old")).unwrap());
    seen.until(old, "old").await;
    doomed.kill().unwrap();
    let vacant = async { while seen.leaders.next().await.unwrap().is_some() {} };
    soon("an observer sees that nobody leads", vacant).await;
    assert_eq!(value(&client).await, None, "nobody leads");
    nothing_left(fixture);
}

pub(crate) async fn stopped_leader_knows_its_loss_and_proclaims_nothing(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let client = fixture.client().await;
    let mut seen = Seen::by(&client);
    let mut stopped = stage.worker("stopped");
    let (old, _) = granted(stopped.ask(campaign("old")).unwrap());
    seen.until(old, "old").await;
    stopped.pause().unwrap();
    let term = elected(&client, "new").await;
    assert!(token(&term) > old, "{} after {old}", token(&term));
    // The first thing that it does when it continues.
    let asked = stopped.send(proclaim("late")).unwrap();
    stopped.resume().unwrap();
    match stopped.answer(asked, crate::support::SOON).unwrap() {
        Answer::Failed { kind, .. } => assert_eq!(kind, "Lost"),
        other => panic!("a former leader proclaims: {other:?}"),
    }
    let checked = stopped.ask(Command::Check { slot: 0 }).unwrap();
    assert!(
        matches!(checked, Answer::Checked { held: false, .. }),
        "{checked:?}"
    );
    assert_eq!(value(&client).await, is("new"), "the leader stays");
    seen.until(token(&term), "new").await;
    assert_eq!(term.resign().await.unwrap(), Released::Freed);
    nothing_left(fixture);
}

/// Verifies that a leader that is cut off knows its loss before another candidate is elected, that
/// an observer sees the next leader, and that a value which the former one sent changes nothing.
pub(crate) async fn cut_off_leader_is_lost_before_another_leads(fixture: &mut dyn Fixture) {
    let route = fixture.route();
    let (far, near) = (fixture.client_at(&route.url).await, fixture.client().await);
    let mut seen = Seen::by(&near);
    let former = elected(&far, "old").await;
    seen.until(token(&former), "old").await;
    // The lease is renewed at least once before the cut.
    tokio::time::sleep(fixture.ttl().as_duration() / 2).await;
    assert!(former.is_held());
    // The proxy passes later requests on once the route heals.
    route.each(|proxy| proxy.hold(Direction::ClientToServer));
    let (info, next) = (former.info(), near.clone());
    let electing = tokio::spawn(async move {
        let term = elected(&next, "new").await;
        (info.is_held(), term)
    });
    let info = former.info();
    let late = tokio::spawn(async move { info.proclaim("late").await });
    soon("the leader learns of its loss", former.lost()).await;
    let (both, term) = soon("another candidate is elected", electing)
        .await
        .unwrap();
    assert!(!both, "two leaders");
    assert!(token(&term) > token(&former));
    seen.until(token(&term), "new").await;
    route.each(Proxy::heal);
    let late = soon("the late value is answered", late).await.unwrap();
    let error = late.expect_err("a former leader proclaims");
    assert!(is_a_fault(error.kind()), "{error:?}");
    let refused = former.proclaim("later").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost, "{refused:?}");
    // Earlier requests have arrived before this one.
    locked(&far, "other").await.release().await.unwrap();
    assert_eq!(value(&near).await, is("new"), "the leader stays");
    assert!(term.is_held());
    assert_eq!(term.resign().await.unwrap(), Released::Freed);
    drop(former);
    elected(&far, "again").await.resign().await.unwrap();
    nothing_left(fixture);
}

/// The terms of three candidates that lead one after the other.
#[derive(Default)]
struct Terms {
    infos: Mutex<Vec<(usize, TermInfo)>>,
    overlaps: AtomicUsize,
    /// Whether the work is to end.
    over: AtomicBool,
}

impl Terms {
    /// Works as the leader until the term is lost or the test is over.
    async fn work(&self, candidate: usize, term: TermInfo) -> ControlFlow<()> {
        {
            let mut infos = self.infos.lock().unwrap();
            let held = infos.iter().filter(|(_, earlier)| earlier.is_held());
            self.overlaps.fetch_add(held.count(), SeqCst);
            infos.push((candidate, term));
        }
        while !self.over.load(SeqCst) {
            tokio::time::sleep(millis(5)).await;
        }
        ControlFlow::Break(())
    }

    /// Waits until a candidate other than `former` works. Returns it.
    async fn next(&self, former: Option<usize>) -> usize {
        let next = async {
            loop {
                let last = self.infos.lock().unwrap().last().cloned();
                if let Some((candidate, term)) = last
                    && Some(candidate) != former
                    && term.is_held()
                {
                    return candidate;
                }
                tokio::time::sleep(millis(5)).await;
            }
        };
        soon("another candidate leads", next).await
    }
}

/// The number of leaders that are cut off one after the other.
const CUTS: usize = 4;

pub(crate) async fn leaders_that_are_cut_off_follow_each_other(fixture: &mut dyn Fixture) {
    let (routes, terms) = ([(); 3].map(|()| fixture.route()), Arc::<Terms>::default());
    let near = fixture.client().await;
    let mut leading = Vec::new();
    for (candidate, route) in routes.iter().enumerate() {
        let (client, terms) = (fixture.client_at(&route.url).await, Arc::clone(&terms));
        leading.push(tokio::spawn(async move {
            let election = client.election("k");
            let name = candidate.to_string();
            let work = |term| {
                let terms = Arc::clone(&terms);
                async move { terms.work(candidate, term).await }
            };
            election.lead_with(&name, work).await
        }));
    }
    let mut seen = Seen::by(&near);
    let mut former = None;
    for cut in 0..=CUTS {
        let leader = terms.next(former).await;
        if let Some(former) = former {
            let route: &crate::fixture::Route = &routes[former];
            route.each(Proxy::heal);
        }
        if cut < CUTS {
            routes[leader].each(|proxy| proxy.blackhole(Direction::Both));
        }
        former = Some(leader);
    }
    let (last, term) = terms.infos.lock().unwrap().last().cloned().unwrap();
    seen.until(token(&term), &last.to_string()).await;
    terms.over.store(true, SeqCst);
    for candidate in leading {
        let led = soon("each candidate leads and ends", candidate).await;
        led.unwrap().unwrap();
    }
    assert_eq!(terms.overlaps.load(SeqCst), 0, "two leaders at a time");
    {
        let infos = terms.infos.lock().unwrap();
        let tokens: Vec<_> = infos.iter().map(|(_, term)| token(term)).collect();
        assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
        assert!(tokens.len() > CUTS, "{tokens:?}");
    }
    nothing_left(fixture);
}

pub(crate) async fn observer_behind_a_cut_sees_the_last_leader_once_it_heals(
    fixture: &mut dyn Fixture,
) {
    let route = fixture.route();
    let (far, near) = (fixture.client_at(&route.url).await, fixture.client().await);
    let mut seen = Seen::by(&far);
    let mut former = None;
    for how in [Proxy::disconnect, |proxy: &Proxy| {
        proxy.blackhole(Direction::Both);
    }] {
        let before = elected_after(&near, former.take(), "before the cut").await;
        seen.until(token(&before), "before the cut").await;
        route.each(how);
        let unseen = elected_after(&near, Some(before), "unseen").await;
        let last = elected_after(&near, Some(unseen), "last").await;
        route.each(Proxy::heal);
        seen.until(token(&last), "last").await;
        former = Some(last);
    }
    drop(former);
    nothing_left(fixture);
}

/// Ends a term, and begins the next one.
async fn elected_after(client: &LockClient, former: Option<Term>, value: &str) -> Term {
    if let Some(former) = former {
        former.resign().await.unwrap();
    }
    elected(client, value).await
}

/// The point at which the connections of a candidate are cut.
type Cut = (Direction, u64);

/// Cuts the connections of a candidate. Returns whether this point was reached.
async fn cut_within(fixture: &dyn Fixture, near: &LockClient, cut: Cut) -> bool {
    let (route, key) = (fixture.route(), format!("{cut:?}"));
    let far = fixture.client_at(&route.url).await;
    // A busy machine may take longer to open a session than the default timeout.
    locked(&far, &format!("warm {key}"))
        .await
        .release()
        .await
        .unwrap();
    route.each(|proxy| proxy.cut_after_chunks(cut.0, cut.1));
    let election = far.election(&key);
    let campaign = election.campaign_timeout("cut", millis(5_000));
    match soon(&key, campaign).await {
        Ok(Some(term)) => {
            let shown = soon(&key, near.election(&key).leader()).await.unwrap();
            let shown = shown.as_ref().map(text);
            // PostgreSQL ends the term with the connection, and the next renewal notices it.
            assert!(
                shown == is("cut") || soon(&key, term.renew()).await.is_err(),
                "{key}: elected, and {shown:?} is shown"
            );
            if let Err(error) = term.resign().await {
                assert!(is_a_fault(error.kind()), "{key}: {error:?}");
            }
        }
        Ok(None) => panic!("{key}: refused without a leader"),
        Err(error) => assert!(is_a_fault(error.kind()), "{key}: {error:?}"),
    }
    // No lock and no waiter stays behind: another candidate follows.
    let next = near.election(&key);
    let term = soon(&key, next.campaign("next")).await.unwrap();
    let shown = soon(&key, next.leader()).await.unwrap();
    assert_eq!(shown.as_ref().map(text), is("next"), "{key}");
    term.resign().await.unwrap();
    let tripped = route.proxies.iter().any(|proxy| proxy.counters().trips > 0);
    // The servers have few connections.
    drop(far.close().await);
    tripped
}

pub(crate) async fn cut_anywhere_in_a_campaign_leaves_no_leader(fixture: &mut dyn Fixture) {
    let (near, fixture) = (fixture.client().await, &*fixture);
    cut_at_each(fixture, (8, 4), |cut| cut_within(fixture, &near, cut)).await;
}
