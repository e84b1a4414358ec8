//! Recorded histories: an event is read as it was written, and the checks agree with a comparison
//! of every pair.

use leasehold_testkit::history::{
    Event, Op, Order, Phase, RegisterLine, overlaps, register, tokens,
};

pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let events: Vec<Event> = text.lines().filter_map(read).take(64).collect();
    let found = overlaps(&events);
    for order in [Order::AsReported, Order::RealTime] {
        for violation in tokens(&events, order) {
            assert!(!violation.to_string().is_empty());
        }
    }
    assert_eq!(
        found.is_empty(),
        !any_pair_overlaps(&events),
        "{events:#?}\n{found:#?}"
    );

    let accesses: Vec<RegisterLine> = text.lines().filter_map(read).collect();
    let expected = accesses
        .windows(2)
        .any(|pair| pair[1].token < pair[0].token)
        || accesses.iter().enumerate().any(|(at, access)| {
            let before = at.checked_sub(1).map_or(0, |before| accesses[before].value);
            access
                .write
                .as_ref()
                .is_some_and(|write| write.read != before)
        });
    assert_eq!(!register(&accesses).is_empty(), expected, "{accesses:?}");
}

/// Reads a line, and checks that it is read again from what is written of it.
fn read<T>(line: &str) -> Option<T>
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let read: T = serde_json::from_str(line).ok()?;
    let written = serde_json::to_string(&read).unwrap();
    assert_eq!(serde_json::from_str::<T>(&written).unwrap(), read, "{line}");
    Some(read)
}

/// A time for which a process holds a lock, from the first event that grants it.
struct Held<'a> {
    key: &'a str,
    shared: bool,
    from: u64,
    to: u64,
}

/// Compares every pair of grants, as the documentation of the checker describes them.
fn any_pair_overlaps(events: &[Event]) -> bool {
    let is_first = |at: usize, event: &Event| {
        let same = |other: &Event| {
            (&other.proc, other.attempt, other.op, other.phase)
                == (&event.proc, event.attempt, event.op, event.phase)
        };
        !events[..at].iter().any(same)
    };
    let grants = events.iter().enumerate().filter(|(at, event)| {
        (event.op, event.phase) == (Op::Acquire, Phase::Ok) && is_first(*at, event)
    });
    let held: Vec<Held<'_>> = grants.map(|(_, grant)| held(events, grant)).collect();
    held.iter().enumerate().any(|(at, one)| {
        held[..at].iter().any(|other| {
            one.key == other.key
                && !(one.shared && other.shared)
                && one.from.max(other.from) < one.to.min(other.to)
        })
    })
}

fn held<'a>(events: &[Event], grant: &'a Event) -> Held<'a> {
    let of_attempt = |event: &&Event| {
        event.op != Op::Kill && (&event.proc, event.attempt) == (&grant.proc, grant.attempt)
    };
    let kills = events
        .iter()
        .filter(|event| event.op == Op::Kill && event.proc == grant.proc);
    let times: Vec<u64> = kills.map(|event| event.t_ns).collect();
    let killed = times.iter().any(|time| *time >= grant.t_ns);
    let mut to = times
        .into_iter()
        .min()
        .filter(|_| killed)
        .unwrap_or(u64::MAX);
    for event in events.iter().filter(of_attempt) {
        if matches!(
            (event.op, event.phase),
            (Op::Release, Phase::Invoke) | (Op::Check, Phase::Fail)
        ) {
            to = to.min(event.t_ns);
        }
    }
    let until = events
        .iter()
        .filter(of_attempt)
        .filter(|event| event.t_ns <= to);
    let deadline = until.filter_map(|event| event.deadline).max();
    Held {
        key: &grant.key,
        shared: grant.shared,
        from: grant.t_ns,
        to: to.min(deadline.unwrap_or(u64::MAX)),
    }
}
