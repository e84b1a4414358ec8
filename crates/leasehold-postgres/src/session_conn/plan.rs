//! What a job becomes: rows, or an answer at once.

use crate::{
    batch::{Answer, Done, Name, Take, WaiterMarkers},
    keys::AdvisoryKey,
    session_conn::{Batch, Held, SessionConn, What, refused},
    statement::{Op, Row},
};

impl SessionConn {
    /// `Some` if the answer is known already.
    pub(super) fn plan_take(
        &mut self,
        take: &Take,
        key: AdvisoryKey,
        shared: bool,
        place: usize,
        batch: &mut Batch,
    ) -> Option<Answer> {
        let waits = take.markers.map_or_else(
            || if take.yielding { key.waits() } else { 0 },
            |markers| markers.waits,
        );
        let writer_waits = if shared { key.writer_waits() } else { 0 };
        self.put_up(take, batch);
        // The server does not show a session its own markers.
        if shared && self.markers.is_up(writer_waits) {
            return Some(refused(take.markers.is_some()));
        }
        let beside = if shared {
            writer_waits
        } else {
            take.markers.and_then(|markers| markers.writer).unwrap_or(0)
        };
        match self.held.get_mut(&key) {
            Some(Held::Shared { names, .. }) if shared => {
                names.push(take.name);
                let what = What::Join {
                    name: take.name,
                    key,
                    markers: take.markers,
                };
                batch.add(
                    Row {
                        op: Op::Join,
                        key,
                        waits,
                        beside,
                    },
                    Some(place),
                    key,
                    what,
                );
                return None;
            }
            Some(_) => return Some(refused(take.markers.is_some())),
            None => {}
        }
        let name = take.name;
        let sole = take.markers.is_some_and(|markers| {
            markers
                .each()
                .all(|sign| self.markers.is_up_for_nobody_but(sign, name))
        });
        let op = match (shared, sole, take.yielding) {
            (false, true, _) => Op::ExclusiveOfWaiter,
            (true, true, _) => Op::SharedOfWaiter,
            (false, false, true) => Op::ExclusiveCourteous,
            (true, false, true) => Op::SharedCourteous,
            (false, false, false) => Op::Exclusive,
            (true, false, false) => Op::Shared,
        };
        let what = What::Take {
            name,
            key,
            markers: take.markers,
            sole,
        };
        batch.add(
            Row {
                op,
                key,
                waits,
                beside,
            },
            Some(place),
            key,
            what,
        );
        let held = if shared {
            Held::Shared {
                names: vec![name],
                token: None,
            }
        } else {
            Held::Exclusive(name)
        };
        self.held.insert(key, held);
        None
    }

    pub(super) fn plan_give_back(
        &mut self,
        name: Name,
        key: AdvisoryKey,
        semaphore: Option<AdvisoryKey>,
        place: usize,
        batch: &mut Batch,
    ) -> Option<Answer> {
        let op = match self.held.get_mut(&key) {
            Some(Held::Exclusive(held)) if *held == name => Op::Unlock,
            Some(Held::Permit { name: held, .. }) if *held == name => Op::UnlockPermit,
            Some(Held::Shared { names, .. }) if names.contains(&name) => {
                names.retain(|held| *held != name);
                if !names.is_empty() {
                    return Some(Ok(Done::GivenBack(true)));
                }
                Op::UnlockShared
            }
            _ => return Some(Ok(Done::GivenBack(false))),
        };
        let waited_for = semaphore.unwrap_or(key);
        let row = Row {
            op,
            key,
            waits: waited_for.waits(),
            beside: waited_for.bits(),
        };
        batch.add(row, Some(place), waited_for, What::GiveBack);
        if let Some(Held::Permit { count, .. }) = self.held.remove(&key) {
            self.take_down_one(count, name, waited_for, batch);
        }
        if let Some(mark) = self.broken.remove(&key) {
            self.take_down_one(mark, Name::of_mark(key), waited_for, batch);
        }
        None
    }

    /// Puts the markers up that are not. Who waits in a session that is granted the lock to another
    /// has lost them again.
    pub(super) fn put_up(&mut self, take: &Take, batch: &mut Batch) {
        let Some(markers) = take.markers else { return };
        for sign in markers.each() {
            if self.markers.add(sign, take.name) {
                batch.add_sign(Op::Sign, sign, markers.key, What::PutUp(sign));
            }
        }
    }

    pub(super) fn take_down(&mut self, name: Name, markers: WaiterMarkers, batch: &mut Batch) {
        self.take_down_one(markers.waits, name, markers.key, batch);
        if let Some(writer) = markers.writer
            && self.markers.remove(writer, name)
        {
            let row = Row {
                op: Op::UnsignWriter,
                key: markers.key,
                waits: markers.waits,
                beside: writer,
            };
            batch.add(row, None, markers.key, What::TakeDown);
        }
    }

    fn take_down_one(&mut self, sign: i64, name: Name, of: AdvisoryKey, batch: &mut Batch) {
        if self.markers.remove(sign, name) {
            batch.add_sign(Op::Unsign, sign, of, What::TakeDown);
        }
    }
}
