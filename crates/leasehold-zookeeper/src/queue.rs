//! The lock recipe: the position of a node among the children of a lock's directory.
//!
//! The server numbers the children in the order of their creation, as long as its
//! [numbers](Sequence) last. A writer waits for all nodes before it, a reader for the writers
//! before it, and of permits the first `of` nodes hold. Each waiter watches one node, so a release
//! notifies one waiter. A waiter for a permit watches the whole directory.

use leasehold_core::{ErrorKind, LockKey, Mode, Result};

use crate::{
    error::ERRORS,
    keys::{Member, Part, Sequence, Uuid},
};

/// The position of one acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It holds the lock.
    Holds,
    /// It must wait.
    Waits(Wait),
    /// It has no node.
    Absent,
}

/// The event that a waiter waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// This child is deleted.
    For(String),
    /// Any child is deleted.
    Any,
}

/// Returns the child that has this uuid.
pub(crate) fn find(children: &[String], uuid: Uuid) -> Option<(&str, Member)> {
    children
        .iter()
        .filter_map(|name| Some((name.as_str(), Member::read(name)?)))
        .find(|(_, member)| member.uuid == Some(uuid))
}

/// Returns the position of the acquisition of this uuid among these children.
pub(crate) fn standing(
    name: &LockKey,
    mode: Mode,
    uuid: Uuid,
    children: &[String],
) -> Result<Standing> {
    if let Mode::Permit { of } = mode {
        return permits(name, of.get(), uuid, children);
    }
    let Some((_, own)) = find(children, uuid) else {
        return Ok(Standing::Absent);
    };
    Ok(match in_the_way(mode, Some(own.sequence), children) {
        None => Standing::Holds,
        Some(child) => Standing::Waits(Wait::For(child.to_owned())),
    })
}

/// Returns what a client would wait for that is not among these children. `None` if it would not
/// wait.
pub(crate) fn refusal(name: &LockKey, mode: Mode, children: &[String]) -> Result<Option<Wait>> {
    if let Mode::Permit { of } = mode {
        let taken = counted(name, of.get(), children)?.len();
        return Ok((taken >= of.get() as usize).then_some(Wait::Any));
    }
    Ok(in_the_way(mode, None, children).map(|child| Wait::For(child.to_owned())))
}

/// Returns the last child that excludes this mode and came before `own`.
fn in_the_way(mode: Mode, own: Option<Sequence>, children: &[String]) -> Option<&str> {
    let excludes = |part| match part {
        Part::Mutex | Part::Latch | Part::Writer => true,
        Part::Reader => mode != Mode::Shared,
        Part::Permit => false,
    };
    let members = children
        .iter()
        .filter_map(|name| Some((name.as_str(), Member::read(name)?)));
    let ahead = members
        .filter(|(_, member)| excludes(member.part) && own.is_none_or(|own| member.sequence < own));
    ahead
        .max_by_key(|(_, member)| member.sequence)
        .map(|(name, _)| name)
}

fn permits(name: &LockKey, of: u32, uuid: Uuid, children: &[String]) -> Result<Standing> {
    let members = counted(name, of, children)?;
    let Some(own) = members.iter().find(|member| member.uuid == Some(uuid)) else {
        return Ok(Standing::Absent);
    };
    let ahead = members
        .iter()
        .filter(|member| member.sequence < own.sequence)
        .count();
    Ok(if ahead < of as usize {
        Standing::Holds
    } else {
        Standing::Waits(Wait::Any)
    })
}

/// Returns the members of a semaphore. All must have the same number of permits.
fn counted(name: &LockKey, ours: u32, children: &[String]) -> Result<Vec<Member>> {
    let members: Vec<_> = children
        .iter()
        .filter_map(|name| Member::read(name))
        .filter(|member| member.part == Part::Permit)
        .collect();
    match members
        .iter()
        .filter_map(|member| member.of)
        .find(|of| *of != ours)
    {
        None => Ok(members),
        Some(theirs) => Err(ERRORS.error(
            ErrorKind::Conflict,
            "acquire",
            format!(
                "`{name}` was requested with {ours} permits and is in use with {theirs}; \
                 use the same number everywhere"
            ),
        )),
    }
}

/// Returns the children that take part in a lock, in the order of their creation.
pub(crate) fn in_order(children: &[String]) -> Vec<(&str, Member)> {
    let mut members: Vec<_> = children
        .iter()
        .filter_map(|name| Some((name.as_str(), Member::read(name)?)))
        .collect();
    members.sort_by_key(|(_, member)| member.sequence);
    members
}

/// Returns the nodes of exclusive and shared holders among these children, and of those who wait to
/// be one, in the order of their creation.
pub(crate) fn holders_in_order(children: &[String]) -> Vec<(&str, Member)> {
    let mut members = in_order(children);
    members.retain(|(_, member)| member.part != Part::Permit);
    members
}

#[cfg(test)]
mod tests {
    use leasehold_core::AcquisitionId;

    use super::*;

    const PERMIT: Mode = Mode::Permit {
        of: std::num::NonZeroU32::new(2).unwrap(),
    };

    fn uuid(number: u128) -> Uuid {
        Uuid::new(1, AcquisitionId::from(number))
    }

    fn child(number: u128, mark: &str, sequence: i32) -> String {
        format!("_c_{}-{mark}{sequence:010}", uuid(number))
    }

    fn stand(mode: Mode, number: u128, children: &[String]) -> Standing {
        standing(&LockKey::new("k").unwrap(), mode, uuid(number), children).unwrap()
    }

    fn waits(child: &str) -> Standing {
        Standing::Waits(Wait::For(child.into()))
    }

    #[test]
    fn a_writer_waits_for_whoever_came_last_before_it() {
        let (reader, writer) = (child(1, "__READ__", 8), child(2, "lock-", 9));
        let children = [
            child(3, "lock-", 10),
            writer.clone(),
            reader.clone(),
            "other".into(),
        ];
        assert_eq!(stand(Mode::Exclusive, 3, &children), waits(&writer));
        assert_eq!(stand(Mode::Exclusive, 2, &children), waits(&reader));
        assert_eq!(stand(Mode::Exclusive, 4, &children), Standing::Absent);
        assert_eq!(stand(Mode::Exclusive, 3, &children[..1]), Standing::Holds);
    }

    #[test]
    fn reader_waits_for_the_last_writer_before_it_only() {
        let writer = child(1, "__WRIT__", 7);
        let children = [
            child(2, "__READ__", 6),
            child(3, "__READ__", 8),
            writer.clone(),
            child(4, "lock-", 9),
        ];
        assert_eq!(stand(Mode::Shared, 2, &children), Standing::Holds);
        assert_eq!(stand(Mode::Shared, 3, &children), waits(&writer));
        assert_eq!(stand(Mode::Exclusive, 1, &children), waits(&children[0]));
    }

    #[test]
    fn a_number_that_is_negative_comes_after_all_others() {
        let (last, first) = (
            child(1, "lock-", i32::MAX),
            format!("_c_{}-lock--2147483648", uuid(2)),
        );
        let children = [first.clone(), last.clone()];
        assert_eq!(stand(Mode::Exclusive, 2, &children), waits(&last));
        let names: Vec<_> = in_order(&children)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, [&last, &first]);
    }

    /// The server numbers the children of a directory up to the end, stays there, and gives
    /// negative numbers while several creations are in flight. A node without an ordered number
    /// takes no part.
    #[test]
    fn the_end_of_the_numbers_never_lets_two_hold() {
        for seed in 1..50_u64 {
            let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut roll = |sides: u64| {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                dice % sides
            };
            let start = [i32::MAX - 1_000_010, i32::MAX - 10][usize::try_from(roll(2)).unwrap()];
            let (mut next, mut children, mut number) = (start, Vec::<String>::new(), 0);
            for _ in 0..60 {
                if roll(2) == 0 || children.is_empty() {
                    number += 1;
                    let sequence = if next == i32::MAX && roll(3) == 0 {
                        i32::MIN
                    } else {
                        next
                    };
                    next = next.saturating_add(1);
                    let name = format!("_c_{}-lock-{sequence:010}", uuid(number));
                    if Member::read(&name).unwrap().sequence.is_ordered() {
                        children.push(name);
                    } else if children.is_empty() {
                        next = 0;
                    }
                } else {
                    children.swap_remove(usize::try_from(roll(children.len() as u64)).unwrap());
                }
                let stands = |child: &String| {
                    standing(
                        &LockKey::new("k").unwrap(),
                        Mode::Exclusive,
                        Uuid::of_name(child).unwrap(),
                        &children,
                    )
                };
                let holds = |child: &&String| stands(child).unwrap() == Standing::Holds;
                assert!(
                    children.iter().filter(holds).count() <= 1,
                    "seed {seed}: {children:?}"
                );
            }
        }
    }

    /// A waiter in the model below.
    struct Waiter {
        number: u128,
        /// Its last read, which may be old, shows that nothing is ahead of it.
        may_move: bool,
        /// It has moved, and considers the lock held.
        holds: bool,
        token: i32,
    }

    /// Simulates waiters whose nodes are in another session until they hold. That session may end
    /// at any time, also between a waiter's read and its move. Returns whether two waiters never
    /// held at once, and tokens grew.
    fn moves_keep_order(seed: u64, checked: bool) -> bool {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |sides: usize| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            usize::try_from(dice % sides as u64).unwrap()
        };
        let (mut children, mut waiters, mut next, mut arrived) =
            (Vec::<String>::new(), Vec::<Waiter>::new(), 0, 0);
        let mut last = -1;
        for _ in 0..200 {
            if waiters.is_empty() || roll(4) == 0 {
                arrived += 2;
                children.push(child(arrived, "lock-", next));
                waiters.push(Waiter {
                    number: arrived,
                    may_move: false,
                    holds: false,
                    token: next,
                });
                next += 1;
            }
            let at = roll(waiters.len());
            let waiter = &mut waiters[at];
            let node = children
                .iter()
                .position(|name| Uuid::of_name(name) == Some(uuid(waiter.number)));
            match (roll(4), node) {
                (0, Some(_)) if !waiter.holds => {
                    waiter.may_move =
                        stand(Mode::Exclusive, waiter.number, &children) == Standing::Holds;
                }
                // Its session ends, and it has not noticed.
                (1, Some(node)) if !waiter.holds => drop(children.swap_remove(node)),
                (2, node) if waiter.may_move => {
                    waiter.may_move = false;
                    if node.is_none() && checked {
                        waiters.swap_remove(at);
                        continue;
                    }
                    children.retain(|name| Uuid::of_name(name) != Some(uuid(waiter.number)));
                    // The new node has the same number. The server counts its creation as well.
                    children.push(child(waiter.number + 1, "lock-", waiter.token));
                    waiter.holds = true;
                    next += 1;
                    if waiter.token <= last {
                        return false;
                    }
                    last = waiter.token;
                }
                (3, _) if waiter.holds => {
                    children.retain(|name| Uuid::of_name(name) != Some(uuid(waiter.number + 1)));
                    waiters.swap_remove(at);
                }
                _ => {}
            }
            if waiters.iter().filter(|waiter| waiter.holds).count() > 1 {
                return false;
            }
        }
        true
    }

    #[test]
    fn a_waiter_that_moves_never_holds_beside_another() {
        for seed in 1..=1_000 {
            assert!(moves_keep_order(seed, true), "seed {seed}");
        }
        let found = (1..=1_000)
            .filter(|seed| !moves_keep_order(*seed, false))
            .count();
        assert!(
            found > 100,
            "a move that does not check its own node is found in {found} runs of 1000"
        );
    }

    #[test]
    fn of_permits_the_first_hold_and_the_count_is_one() {
        let children = [
            child(3, "2-lease-", 9),
            child(1, "2-lease-", 7),
            child(2, "2-lease-", 8),
        ];
        assert_eq!(stand(PERMIT, 1, &children), Standing::Holds);
        assert_eq!(stand(PERMIT, 2, &children), Standing::Holds);
        assert_eq!(stand(PERMIT, 3, &children), Standing::Waits(Wait::Any));
        let key = LockKey::new("k").unwrap();
        assert_eq!(refusal(&key, PERMIT, &children[..1]).unwrap(), None);
        assert_eq!(
            refusal(&key, PERMIT, &children[..2]).unwrap(),
            Some(Wait::Any)
        );
        let error = standing(&key, PERMIT, uuid(1), &[child(1, "3-lease-", 1)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }

    #[test]
    fn who_is_not_queued_would_wait_for_the_last() {
        let key = LockKey::new("k").unwrap();
        let children = [child(1, "__READ__", 7), child(2, "__READ__", 8)];
        assert_eq!(refusal(&key, Mode::Shared, &children).unwrap(), None);
        let wait = Wait::For(children[1].clone());
        assert_eq!(
            refusal(&key, Mode::Exclusive, &children).unwrap(),
            Some(wait)
        );
    }
}
