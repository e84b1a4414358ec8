//! What a job becomes: rows, or an answer at once.

use crate::{
    gather::{Answer, Done, GivenBack, Name, Signs, Take},
    keys::AdvisoryKey,
    statement::{Op, Row},
    wire::{Batch, Held, What, Wire, refused},
};

impl Wire {
    /// `Some` if the answer is known already.
    pub(super) fn plan_take(
        &mut self,
        take: &Take,
        key: AdvisoryKey,
        shared: bool,
        place: usize,
        batch: &mut Batch,
    ) -> Option<Answer> {
        let waits = take.signs.map_or_else(|| if take.courteous { key.waits() } else { 0 }, |signs| signs.waits);
        let writer_waits = if shared { key.writer_waits() } else { 0 };
        self.put_up(take, batch);
        // The server does not show a session its own signs.
        if shared && self.signs.is_up(writer_waits) {
            return Some(refused(take.signs.is_some()));
        }
        let beside = if shared { writer_waits } else { take.signs.and_then(|signs| signs.writer).unwrap_or(0) };
        match self.held.get_mut(&key) {
            Some(Held::Shared { names, .. }) if shared => {
                names.push(take.name);
                let what = What::Join { name: take.name, key, signs: take.signs };
                batch.add(Row { op: Op::Join, key, waits, beside }, Some(place), key, what);
                return None;
            }
            Some(_) => return Some(refused(take.signs.is_some())),
            None => {}
        }
        let name = take.name;
        let sole = take.signs.is_some_and(|signs| signs.each().all(|sign| self.signs.is_up_for_nobody_but(sign, name)));
        let op = match (shared, sole, take.courteous) {
            (false, true, _) => Op::ExclusiveOfWaiter,
            (true, true, _) => Op::SharedOfWaiter,
            (false, false, true) => Op::ExclusiveCourteous,
            (true, false, true) => Op::SharedCourteous,
            (false, false, false) => Op::Exclusive,
            (true, false, false) => Op::Shared,
        };
        let what = What::Take { name, key, signs: take.signs, sole };
        batch.add(Row { op, key, waits, beside }, Some(place), key, what);
        let held = if shared { Held::Shared { names: vec![name], token: None } } else { Held::Exclusive(name) };
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
                    return Some(Ok(Done::GivenBack(GivenBack::Freed)));
                }
                Op::UnlockShared
            }
            _ => return Some(Ok(Done::GivenBack(GivenBack::NotHeld))),
        };
        let waited_for = semaphore.unwrap_or(key);
        let row = Row { op, key, waits: waited_for.waits(), beside: waited_for.bits() };
        batch.add(row, Some(place), waited_for, What::GiveBack);
        if let Some(Held::Permit { count, .. }) = self.held.remove(&key) {
            self.take_down_one(count, name, waited_for, batch);
        }
        if let Some(mark) = self.broken.remove(&key) {
            self.take_down_one(mark, Name::of_mark(key), waited_for, batch);
        }
        None
    }

    /// Puts the signs up that are not. Who waits in a session that is granted the lock to another has lost them again.
    pub(super) fn put_up(&mut self, take: &Take, batch: &mut Batch) {
        let Some(signs) = take.signs else { return };
        for sign in signs.each() {
            if self.signs.add(sign, take.name) {
                batch.add_sign(Op::Sign, sign, signs.key, What::PutUp(sign));
            }
        }
    }

    pub(super) fn take_down(&mut self, name: Name, signs: Signs, batch: &mut Batch) {
        self.take_down_one(signs.waits, name, signs.key, batch);
        if let Some(writer) = signs.writer
            && self.signs.remove(writer, name)
        {
            let row = Row { op: Op::UnsignWriter, key: signs.key, waits: signs.waits, beside: writer };
            batch.add(row, None, signs.key, What::TakeDown);
        }
    }

    fn take_down_one(&mut self, sign: i64, name: Name, of: AdvisoryKey, batch: &mut Batch) {
        if self.signs.remove(sign, name) {
            batch.add_sign(Op::Unsign, sign, of, What::TakeDown);
        }
    }
}
