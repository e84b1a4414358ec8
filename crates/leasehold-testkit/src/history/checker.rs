//! The checks of a history: mutual exclusion, token order and fenced writes.

use std::collections::BTreeMap;

use super::{
    event::{Event, Op, Phase, RegisterLine},
    violation::Violation,
};

/// The order in which two grants are known to have been made.
///
/// ```
/// use leasehold_testkit::history::{Event, Op, Order, Phase, tokens};
///
/// let step = |proc: &str, t_ns, phase, token| Event {
///     t_ns,
///     proc: proc.to_owned(),
///     attempt: 1,
///     key: "item/42".to_owned(),
///     op: Op::Acquire,
///     phase,
///     shared: false,
///     token,
///     deadline: None,
/// };
/// // Both requests began before the first grant, so either may have been granted first.
/// let events = [
///     step("a", 0, Phase::Invoke, None),
///     step("b", 1, Phase::Invoke, None),
///     step("b", 2, Phase::Ok, Some(5)),
///     step("a", 3, Phase::Ok, Some(4)),
/// ];
/// assert!(tokens(&events, Order::RealTime).is_empty());
/// assert_eq!(tokens(&events, Order::AsReported).len(), 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Grants were made in the order in which they were reported. This is true for a server that
    /// never loses a held lock.
    AsReported,
    /// A grant was made after another one only if its request began after the other was reported.
    /// Use this for a server that may lose its data.
    RealTime,
}

/// Returns the violations of mutual exclusion: holders of one lock at the same time, unless both
/// are shared.
#[must_use]
pub fn overlaps(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (key, mut intervals) in by_key(intervals(events)) {
        intervals.retain(|interval| interval.to > interval.from);
        intervals.sort_by_key(|interval| interval.from);
        // Compares with the interval that ends last, not only with the previous one. A reader is
        // compared with writers only.
        let (mut last_writer, mut last): (Option<&HeldInterval>, Option<&HeldInterval>) =
            (None, None);
        for interval in &intervals {
            let rival = if interval.shared { last_writer } else { last };
            if let Some(first) = rival.filter(|first| first.to > interval.from) {
                found.push(Violation::Overlap {
                    key: key.clone(),
                    first: (first.proc.clone(), first.token),
                    second: (interval.proc.clone(), interval.token),
                    for_ns: first.to.min(interval.to) - interval.from,
                });
            }
            last = last
                .filter(|last| last.to >= interval.to)
                .or(Some(interval));
            if !interval.shared {
                last_writer = last_writer
                    .filter(|last| last.to >= interval.to)
                    .or(Some(interval));
            }
        }
    }
    found
}

/// Returns the violations of token order.
///
/// Every exclusive grant has a token of its own, and later grants have larger ones. A reader's
/// token is larger than those of earlier writers and smaller than those of later writers. Readers
/// are not compared with each other.
#[must_use]
pub fn tokens(events: &[Event], order: Order) -> Vec<Violation> {
    let mut found = Vec::new();
    for (key, intervals) in by_key(intervals(events)) {
        let (mut writers, mut readers) = (Vec::new(), Vec::new());
        for interval in intervals {
            let grants = if interval.shared {
                &mut readers
            } else {
                &mut writers
            };
            match interval.token {
                // A grant that was reported after its deadline has no place in that order.
                Some(_) if order == Order::AsReported && interval.deadline <= interval.from => {}
                Some(token) => grants.push(Grant {
                    invoked: interval.invoked,
                    reported: interval.from,
                    token,
                }),
                None => found.push(Violation::NoToken {
                    proc: interval.proc,
                }),
            }
        }
        let mut sorted: Vec<_> = writers.iter().map(|grant| grant.token).collect();
        sorted.sort_unstable();
        let repeated = sorted.windows(2).filter(|pair| pair[0] == pair[1]);
        found.extend(repeated.map(|pair| Violation::RepeatedToken {
            key: key.clone(),
            token: pair[0],
        }));
        for (earlier, later) in [
            (&writers, &writers),
            (&writers, &readers),
            (&readers, &writers),
        ] {
            found.extend(fallen(&key, earlier, later, order));
        }
    }
    found
}

/// Returns the violations of fenced writes. The accesses that the register accepted have increasing
/// tokens, and each write is based on the previous one.
#[must_use]
pub fn register(history: &[RegisterLine]) -> Vec<Violation> {
    let mut found = Vec::new();
    let (mut token, mut value) = (0, 0);
    for line in history {
        if line.token < token {
            found.push(Violation::StaleAccess {
                seen: token,
                taken: line.token,
            });
        }
        if let Some(write) = &line.write
            && write.read != value
        {
            found.push(Violation::LostUpdate {
                proc: write.proc.clone(),
                read: write.read,
                was: value,
            });
        }
        (token, value) = (line.token.max(token), line.value);
    }
    found
}

/// Returns the number of grants that were reported from `from_ns` until before `to_ns` to the
/// processes whose name `is` accepts.
#[must_use]
pub fn grants_between(
    events: &[Event],
    is: impl Fn(&str) -> bool,
    from_ns: u64,
    to_ns: u64,
) -> usize {
    let granted =
        |event: &&Event| event.op == Op::Acquire && event.phase == Phase::Ok && is(&event.proc);
    events
        .iter()
        .filter(granted)
        .filter(|event| (from_ns..to_ns).contains(&event.t_ns))
        .count()
}

/// A grant with its token.
#[derive(Debug, Clone, Copy)]
struct Grant {
    invoked: u64,
    reported: u64,
    token: u64,
}

/// Returns a violation for each grant of `later` that has a smaller token than a grant of `earlier`
/// that preceded it in `order`.
fn fallen(key: &str, earlier: &[Grant], later: &[Grant], order: Order) -> Vec<Violation> {
    let mut reported: Vec<_> = earlier
        .iter()
        .map(|grant| (grant.reported, grant.token))
        .collect();
    let starts = |grant: &Grant| match order {
        Order::AsReported => (grant.reported, grant.token),
        Order::RealTime => (grant.invoked, grant.token),
    };
    let mut started: Vec<_> = later.iter().map(starts).collect();
    reported.sort_unstable();
    started.sort_unstable();
    let (mut found, mut largest, mut reported) =
        (Vec::new(), None, reported.into_iter().peekable());
    for (start, token) in started {
        while let Some((_, earlier)) = reported.next_if(|(at, _)| *at < start) {
            largest = largest.max(Some(earlier));
        }
        if let Some(earlier) = largest.filter(|earlier| *earlier > token) {
            found.push(Violation::FallenToken {
                key: key.to_owned(),
                earlier,
                later: token,
            });
        }
    }
    found
}

/// The time for which a process held a lock.
#[derive(Debug)]
struct HeldInterval {
    proc: String,
    key: String,
    shared: bool,
    token: Option<u64>,
    invoked: u64,
    from: u64,
    to: u64,
    deadline: u64,
}

/// Returns the held interval of each grant.
fn intervals(events: &[Event]) -> Vec<HeldInterval> {
    let mut attempts: BTreeMap<(&str, u64), Vec<&Event>> = BTreeMap::new();
    // The process dies between these two times. It may act until the second, and another process
    // may be granted the lock from the first on.
    let mut kills: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for event in events {
        if event.op == Op::Kill {
            let (begun, done) = kills.entry(&event.proc).or_insert((event.t_ns, event.t_ns));
            (*begun, *done) = (event.t_ns.min(*begun), event.t_ns.max(*done));
        } else {
            attempts
                .entry((&event.proc, event.attempt))
                .or_default()
                .push(event);
        }
    }
    let grant = |steps: Vec<&Event>| {
        let granted = steps
            .iter()
            .find(|step| (step.op, step.phase) == (Op::Acquire, Phase::Ok))?;
        let killed = kills
            .get(granted.proc.as_str())
            .filter(|(_, done)| *done >= granted.t_ns);
        let ends = steps.iter().filter(|step| {
            matches!(
                (step.op, step.phase),
                (Op::Release, Phase::Invoke) | (Op::Check, Phase::Fail)
            )
        });
        let end = ends
            .map(|step| step.t_ns)
            .chain(killed.map(|(begun, _)| *begun))
            .min()
            .unwrap_or(u64::MAX);
        // Renewals extend the deadline. The last one that was recorded within the interval counts.
        let deadline = steps
            .iter()
            .filter(|step| step.t_ns <= end)
            .filter_map(|step| step.deadline)
            .max();
        let deadline = deadline.unwrap_or(u64::MAX);
        Some(HeldInterval {
            proc: granted.proc.clone(),
            key: granted.key.clone(),
            shared: granted.shared,
            token: granted.token,
            invoked: steps.iter().map(|step| step.t_ns).min()?,
            from: granted.t_ns,
            to: end.min(deadline),
            deadline,
        })
    };
    attempts.into_values().filter_map(grant).collect()
}

fn by_key(intervals: Vec<HeldInterval>) -> BTreeMap<String, Vec<HeldInterval>> {
    let mut keys: BTreeMap<String, Vec<HeldInterval>> = BTreeMap::new();
    for interval in intervals {
        keys.entry(interval.key.clone()).or_default().push(interval);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Write;

    /// Returns the steps of a grant of `k`, with the times of its request, report and release
    /// (`None`: never).
    fn held(
        proc: &str,
        (asked, reported, released): (u64, u64, Option<u64>),
        token: u64,
        deadline: u64,
    ) -> Vec<Event> {
        let step = |t_ns, op, phase, token, deadline| Event {
            t_ns,
            proc: proc.into(),
            attempt: asked,
            key: "k".into(),
            op,
            phase,
            shared: false,
            token,
            deadline,
        };
        let mut steps = vec![
            step(asked, Op::Acquire, Phase::Invoke, None, None),
            step(
                reported,
                Op::Acquire,
                Phase::Ok,
                Some(token),
                Some(deadline),
            ),
        ];
        steps.extend(
            released.map(|at| step(at, Op::Release, Phase::Invoke, Some(token), Some(deadline))),
        );
        steps
    }

    fn event(
        proc: &str,
        attempt: u64,
        t_ns: u64,
        (op, phase): (Op, Phase),
        deadline: Option<u64>,
    ) -> Event {
        Event {
            t_ns,
            proc: proc.into(),
            attempt,
            key: "k".into(),
            op,
            phase,
            shared: false,
            token: None,
            deadline,
        }
    }

    #[test]
    fn correct_history_passes() {
        let events = [
            held("a", (1, 10, Some(20)), 5, 100),
            held("b", (2, 21, Some(30)), 7, 100),
            held("a", (25, 31, None), 8, 131),
        ]
        .concat();
        assert_eq!(overlaps(&events), []);
        assert_eq!(tokens(&events, Order::AsReported), []);
        assert_eq!(tokens(&events, Order::RealTime), []);
    }

    fn read(grant: Vec<Event>) -> Vec<Event> {
        grant
            .into_iter()
            .map(|event| Event {
                shared: true,
                ..event
            })
            .collect()
    }

    #[test]
    fn readers_share_and_exclude_writers() {
        let readers = [
            read(held("a", (1, 10, Some(30)), 5, 100)),
            read(held("b", (2, 20, Some(40)), 6, 100)),
        ]
        .concat();
        assert_eq!(overlaps(&readers), []);
        let writer = held("w", (3, 35, Some(50)), 7, 100);
        assert_eq!(overlaps(&[readers.clone(), writer].concat()).len(), 1);
        let writer = held("w", (3, 5, Some(15)), 7, 100);
        assert_eq!(overlaps(&[readers, writer].concat()).len(), 1);
    }

    #[test]
    fn a_readers_token_below_an_earlier_writers_is_caught() {
        let history = |writer, reader, last| {
            [
                held("w", (1, 10, Some(20)), writer, 100),
                read(held("r", (21, 30, Some(40)), reader, 100)),
                held("w", (41, 50, Some(60)), last, 150),
            ]
            .concat()
        };
        for order in [Order::AsReported, Order::RealTime] {
            assert_eq!(tokens(&history(5, 6, 7), order), []);
            assert_eq!(tokens(&history(5, 4, 7), order).len(), 1);
            assert_eq!(tokens(&history(5, 8, 7), order).len(), 1);
        }
    }

    #[test]
    fn two_holders_at_a_time_are_caught() {
        let events = [
            held("a", (1, 10, Some(20)), 5, 100),
            held("b", (2, 19, Some(30)), 7, 100),
        ]
        .concat();
        let found = overlaps(&events);
        assert!(
            matches!(&found[..], [Violation::Overlap { for_ns: 1, .. }]),
            "{found:?}"
        );
    }

    #[test]
    fn overlap_with_an_earlier_grant_is_caught() {
        let events = [
            held("a", (1, 10, Some(90)), 5, 100),
            held("b", (2, 20, Some(30)), 7, 100),
            held("c", (3, 40, Some(50)), 8, 100),
        ]
        .concat();
        assert_eq!(overlaps(&events).len(), 2);
    }

    #[test]
    fn interval_ends_at_deadline_and_earlier_grant_is_caught() {
        // The holder never releases the lock, because it was stopped.
        let late = [
            held("a", (1, 10, None), 5, 100),
            held("b", (2, 100, Some(120)), 7, 200),
        ]
        .concat();
        assert_eq!(overlaps(&late), []);
        let early = [
            held("a", (1, 10, None), 5, 100),
            held("b", (2, 99, Some(120)), 7, 200),
        ]
        .concat();
        assert_eq!(overlaps(&early).len(), 1);
    }

    #[test]
    fn a_deadline_that_renewals_have_moved_counts() {
        let mut events = [
            held("a", (1, 10, None), 5, 100),
            held("b", (2, 150, Some(160)), 7, 250),
        ]
        .concat();
        assert_eq!(overlaps(&events), []);
        events.push(event("a", 1, 60, (Op::Check, Phase::Ok), Some(180)));
        assert_eq!(overlaps(&events).len(), 1);
    }

    #[test]
    fn interval_ends_with_an_observed_loss_or_a_kill() {
        let events = [
            held("a", (1, 10, None), 5, 100),
            held("b", (2, 50, Some(60)), 7, 150),
        ]
        .concat();
        assert_eq!(overlaps(&events).len(), 1);
        for end in [(1, Op::Check, Phase::Fail), (0, Op::Kill, Phase::Ok)] {
            let mut ended = events.clone();
            ended.push(event("a", end.0, 40, (end.1, end.2), None));
            assert_eq!(overlaps(&ended), [], "{end:?}");
        }
    }

    #[test]
    fn grant_during_a_kill_is_no_overlap_and_one_before_is() {
        let mut events = held("a", (1, 10, None), 5, 100);
        events.push(event("a", 0, 40, (Op::Kill, Phase::Invoke), None));
        events.push(event("a", 0, 50, (Op::Kill, Phase::Ok), None));
        let dying = [events.clone(), held("b", (2, 45, Some(60)), 7, 150)].concat();
        assert_eq!(overlaps(&dying), []);
        let alive = [events, held("b", (2, 39, Some(60)), 7, 150)].concat();
        assert_eq!(overlaps(&alive).len(), 1);
        // A grant that is reported during the kill can have no effect any more.
        let mut last = held("a", (1, 45, None), 5, 100);
        last.push(event("a", 0, 40, (Op::Kill, Phase::Invoke), None));
        last.push(event("a", 0, 50, (Op::Kill, Phase::Ok), None));
        assert_eq!(
            overlaps(&[last, held("b", (2, 60, Some(70)), 7, 150)].concat()),
            []
        );
    }

    #[test]
    fn different_locks_may_be_held_at_a_time() {
        let mut other = held("b", (2, 15, Some(30)), 7, 100);
        other.iter_mut().for_each(|step| step.key = "other".into());
        let events = [held("a", (1, 10, Some(20)), 5, 100), other].concat();
        assert_eq!(overlaps(&events), []);
    }

    #[test]
    fn a_token_that_repeats_is_caught() {
        let events = [
            held("a", (1, 10, Some(20)), 5, 100),
            held("b", (2, 21, Some(30)), 5, 100),
        ]
        .concat();
        for order in [Order::AsReported, Order::RealTime] {
            let found = tokens(&events, order);
            assert!(
                matches!(&found[..], [Violation::RepeatedToken { token: 5, .. }]),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_token_that_falls_is_caught_also_from_an_older_grant() {
        let events = [
            held("a", (1, 10, Some(20)), 9, 100),
            held("b", (11, 21, Some(30)), 5, 100),
            held("c", (31, 40, Some(50)), 6, 140),
        ]
        .concat();
        let found = tokens(&events, Order::RealTime);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found.contains(&Violation::FallenToken {
                key: "k".into(),
                earlier: 9,
                later: 6
            }),
            "{found:?}"
        );
    }

    #[test]
    fn concurrent_requests_are_ordered_only_as_reported() {
        let events = [
            held("a", (1, 10, Some(20)), 9, 100),
            held("b", (2, 21, Some(30)), 5, 100),
        ]
        .concat();
        assert_eq!(tokens(&events, Order::RealTime), []);
        assert_eq!(tokens(&events, Order::AsReported).len(), 1);
    }

    #[test]
    fn a_grant_without_a_token_is_caught() {
        let mut events = held("a", (1, 10, Some(20)), 9, 100);
        events.iter_mut().for_each(|step| step.token = None);
        assert_eq!(
            tokens(&events, Order::AsReported),
            [Violation::NoToken { proc: "a".into() }]
        );
    }

    fn line(token: u64, value: u64, read: Option<u64>) -> RegisterLine {
        RegisterLine {
            token,
            value,
            write: read.map(|read| Write {
                proc: "a".into(),
                read,
            }),
        }
    }

    #[test]
    fn a_register_whose_writes_build_on_each_other_passes() {
        let history = [
            line(3, 1, Some(0)),
            line(5, 1, None),
            line(5, 2, Some(1)),
            line(5, 3, Some(2)),
        ];
        assert_eq!(register(&history), []);
    }

    #[test]
    fn a_lost_update_is_caught() {
        let history = [line(3, 1, Some(0)), line(5, 1, Some(0))];
        assert_eq!(
            register(&history),
            [Violation::LostUpdate {
                proc: "a".into(),
                read: 0,
                was: 1
            }]
        );
    }

    #[test]
    fn a_stale_access_is_caught() {
        let history = [
            line(3, 1, Some(0)),
            line(5, 2, Some(1)),
            line(4, 3, Some(2)),
        ];
        assert_eq!(
            register(&history),
            [Violation::StaleAccess { seen: 5, taken: 4 }]
        );
    }

    #[test]
    fn grants_are_counted_between_two_times() {
        let events = [
            held("a", (1, 10, Some(20)), 5, 100),
            held("a", (2, 30, None), 6, 100),
        ]
        .concat();
        assert_eq!(grants_between(&events, |proc| proc == "a", 0, 31), 2);
        assert_eq!(grants_between(&events, |proc| proc == "a", 10, 30), 1);
        assert_eq!(grants_between(&events, |proc| proc != "a", 0, 100), 0);
    }
}
