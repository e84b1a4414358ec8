//! What is said to the server.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use leasehold_core::{Error, ErrorKind, Result, backend::support::contained, session as claims};
use sqlx::{
    Connection, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;

use crate::{
    batch::{Answer, Done, Job, Name, Take},
    connection::Link,
    error::{self, Limit},
    identity::Answerer,
    keys::{AdvisoryKey, Family},
    session_conn::{Batch, Failure, Held, SessionConn, What},
    statement::{Op, Row},
};

/// How often it is tried to tell waiters: the first may be cancelled by somebody.
const TELLINGS: usize = 2;

/// A lock that the server says this session has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owned {
    key: AdvisoryKey,
    exclusive: bool,
    /// By this session.
    ours: bool,
}

impl SessionConn {
    /// One result for each row.
    pub(super) async fn ask(&mut self, link: &Link, rows: &[Row]) -> Result<Vec<i64>, Failure> {
        if let [row] = rows
            && let Some(query) = self.alone(row)
        {
            let row = self
                .fetch(link, "acquire", async |connection| {
                    query.fetch_one(connection).await
                })
                .await?;
            return self.read(&row).map(|result| vec![result]);
        }
        let operations: Vec<i16> = rows.iter().map(Row::code).collect();
        let keys: Vec<i64> = rows.iter().map(|row| row.key.bits()).collect();
        let waits: Vec<i64> = rows.iter().map(|row| row.waits).collect();
        let beside: Vec<i64> = rows.iter().map(|row| row.beside).collect();
        // Nobody's token depends on a commit that only tells waiters.
        let takes = rows.iter().any(|row| row.op.takes());
        let reads = rows.iter().any(|row| row.op.reads());
        let statements = &self.statements;
        // Who waits comes with its sign.
        let text = match (
            reads,
            rows.iter().any(|row| row.op.reads() && row.waits != 0),
        ) {
            (false, _) => &statements.batch,
            (true, false) => &statements.batch_with_readers,
            (true, true) => &statements.batch_with_waiting_readers,
        };
        let mut query = sqlx::query(text.clone())
            .bind(operations)
            .bind(keys)
            .bind(waits)
            .bind(beside)
            .bind(self.synchronous)
            .bind(if takes { "on" } else { "off" });
        if reads {
            query = query.bind(self.database);
        }
        let row = self
            .fetch(link, "acquire", async |connection| {
                query.fetch_one(connection).await
            })
            .await?;
        self.read(&row)
    }

    /// The statement of the usual rows, where one is alone.
    fn alone(&self, row: &Row) -> Option<Query<'static, Postgres, PgArguments>> {
        let AdvisoryKey::Int64(key) = row.key else {
            return None;
        };
        let statements = &self.statements;
        let (text, taken) = match row.op {
            Op::Exclusive => (&statements.take, true),
            Op::ExclusiveCourteous => (&statements.take_courteously, true),
            Op::ExclusiveOfWaiter => (&statements.take_waited_for, true),
            Op::Unlock => (&statements.give_back, false),
            _ => return None,
        };
        let mut query = sqlx::query(text.clone()).bind(key);
        if taken {
            query = query.bind(self.synchronous);
        }
        if row.op != Op::Exclusive {
            query = query.bind(row.waits);
        }
        if row.op == Op::ExclusiveOfWaiter {
            query = query.bind(row.beside);
        }
        Some(query)
    }

    /// The first column, if the second says that our backend answers.
    fn read<T>(&mut self, row: &PgRow) -> Result<T, Failure>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        self.check_answerer(row.try_get(1))?;
        row.try_get(0)
            .map_err(|_| Failure::Over(self.lose(error::protocol("acquire"))))
    }

    /// Whatever another backend answers, the locks may be anybody's: the session is over.
    fn check_answerer(&mut self, answer: Result<i32, sqlx::Error>) -> Result<(), Failure> {
        let why = match answer.map(Answerer::of) {
            Ok(Answerer::Ours(pid)) if pid == self.pid => return Ok(()),
            Ok(Answerer::Standby) => error::plain(
                ErrorKind::Lost,
                "acquire",
                "the server has become a standby, which shares no locks with its primary",
            ),
            Ok(Answerer::Ours(_) | Answerer::Another) => error::plain(
                ErrorKind::Lost,
                "acquire",
                "another backend answered than the one that holds the locks; is there a pooler in transaction mode?",
            ),
            Err(_) => error::protocol("acquire"),
        };
        Err(Failure::Over(self.lose(why)))
    }

    /// Waits for an answer. On a fault that the connection does not survive, it is gone; who is not
    /// answered for as long as the session may live [gives it up](Self::give_up).
    async fn fetch<T>(
        &mut self,
        link: &Link,
        operation: &'static str,
        ask: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Failure> {
        let Some(connection) = &mut self.connection else {
            return Err(Failure::Over(error::over(operation)));
        };
        // After a panic nobody knows what the connection stands at.
        let asked = contained(async { Ok(ask(connection).await) }).await;
        match asked
            .map_err(|panic| Failure::Over(self.lose(error::over(operation).with_source(panic))))?
        {
            Ok(answer) => Ok(answer),
            Err(error) if !error::is_over(&error) => {
                Err(Failure::Statement(link.failed(error, operation)))
            }
            Err(error) => {
                let why = error::over(operation).with_source(link.failed(error, operation));
                Err(Failure::Over(self.lose(why)))
            }
        }
    }

    /// No answer came within `ttl`, and none is waited for any more.
    pub(crate) fn give_up(&mut self, link: &Link, operation: &'static str, ttl: Duration) -> Error {
        self.lose(error::timed_out(
            ErrorKind::Lost,
            operation,
            &link.endpoint(),
            Limit::Ttl(ttl),
        ))
    }

    /// Gives the connection up, and with it all that it has. Those who hold are told before the
    /// server can free it.
    pub(super) fn lose(&mut self, why: Error) -> Error {
        self.owner.end();
        (self.connection, self.counted) = (None, None);
        self.held.clear();
        self.markers.clear();
        why
    }

    /// Tries the permits of a family.
    pub(super) async fn permit(&mut self, link: &Link, take: &Take, family: &Family) -> Answer {
        // Everybody begins elsewhere: those that are taken need not be walked over.
        let start =
            (take.name.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % family.of.max(1);
        let order = (start..family.of)
            .chain(0..start)
            .map(|number| family.permit(number + 1));
        let candidates: Vec<i64> = order
            .filter(|key| !self.held.contains_key(&AdvisoryKey::Int64(*key)))
            .collect();
        let count = family.count();
        let query = sqlx::query(self.statements.permit.clone())
            .bind(&candidates)
            .bind(count)
            .bind(family.any_count())
            .bind(!self.markers.is_up(count))
            .bind(self.database);
        let asked = self
            .fetch(link, "acquire", async |connection| {
                query.fetch_one(connection).await
            })
            .await;
        let result: i64 = match asked.and_then(|row| self.read(&row)) {
            Ok(result) => result,
            Err(failure) => {
                let (Ok(error) | Err(error)) =
                    self.recover(link, &[], vec![family.key()], failure).await;
                return Err(error);
            }
        };
        let granted = usize::try_from(result)
            .ok()
            .and_then(|place| candidates.get(place.checked_sub(1)?))
            .copied();
        if let Some(key) = granted {
            let key = AdvisoryKey::Int64(key);
            self.held.insert(
                key,
                Held::Permit {
                    name: take.name,
                    count,
                },
            );
            // The statement has put it up, if it was not.
            self.markers.add(count, take.name);
            self.needs_no_more(take.name, take.markers);
            return Ok(Done::Granted { key, token: None });
        }
        if result <= -2 {
            let other = -2 - result;
            return Err(error::plain(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "this semaphore is in use with {other} permits and was asked for with {}; say the same number everywhere",
                    family.of
                ),
            ));
        }
        Ok(Done::Refused {
            signed: self.are_up_for(take.name, take.markers),
        })
    }

    /// Says something, so that the server does not take the session for silent.
    pub(crate) async fn renew(&mut self, link: &Link) -> Result<()> {
        let query = sqlx::query(self.statements.renew.clone());
        let asked = self
            .fetch(link, "renew", async |connection| {
                query.fetch_one(connection).await
            })
            .await;
        match asked.and_then(|row| self.read::<i64>(&row)) {
            Ok(_) => Ok(()),
            Err(Failure::Statement(error) | Failure::Over(error)) => Err(error),
        }
    }

    async fn owned(&mut self, link: &Link, marks: Vec<i64>) -> Result<Vec<Owned>, Failure> {
        let query = sqlx::query(self.statements.owned.clone())
            .bind(marks)
            .bind(self.database);
        let rows = self
            .fetch(link, "reconcile", async |connection| {
                query.fetch_all(connection).await
            })
            .await?;
        self.check_answerer(
            rows.first()
                .map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(5)),
        )?;
        let owned = |row: &PgRow| -> Result<Option<Owned>, sqlx::Error> {
            let Some(classid) = row.try_get(0)? else {
                return Ok(None);
            };
            let key = AdvisoryKey::of_pg_locks(classid, row.try_get(1)?, row.try_get(2)?);
            Ok(Some(Owned {
                key,
                exclusive: row.try_get(3)?,
                ours: row.try_get(4)?,
            }))
        };
        let read = |row| {
            owned(row)
                .map_err(|error| Failure::Statement(link.failed(error, "reconcile")))
                .transpose()
        };
        rows.iter().filter_map(read).collect()
    }

    /// What the server and the table have: whose locks they are. What only the server has is
    /// removed, and what only the table has is forgotten. Marks of gentle breaks are taken note of.
    pub(crate) async fn reconcile(&mut self, link: &Link) -> Result<claims::Owned<Name>> {
        let marks: HashMap<i64, AdvisoryKey> = self
            .held
            .keys()
            .map(|key| (key.breaks(self.pid), *key))
            .collect();
        let owned = self
            .clean(link, marks.keys().copied().collect(), Vec::new())
            .await?;
        let ours: HashSet<AdvisoryKey> = owned
            .iter()
            .filter(|owned| owned.ours)
            .map(|owned| owned.key)
            .collect();
        self.held.retain(|key, _| ours.contains(key));
        let mut batch = Batch::default();
        for mark in owned
            .iter()
            .filter(|owned| !owned.ours)
            .map(|owned| owned.key.bits())
        {
            if let Some(key) = marks.get(&mark)
                && self.broken.insert(*key, mark).is_none()
            {
                // So that who breaks sees that it was noted.
                self.markers.add(mark, Name::of_mark(*key));
                batch.add_sign(Op::Sign, mark, *key, What::PutUp(mark));
            }
        }
        self.run(link, batch, &mut []).await;
        let names = |held: &Held| match held {
            Held::Exclusive(name) | Held::Permit { name, .. } => vec![*name],
            Held::Shared { names, .. } => names.clone(),
        };
        let broken = self
            .held
            .iter()
            .filter(|(key, _)| self.broken.contains_key(key));
        Ok(claims::Owned {
            claims: self.held.values().flat_map(names).collect(),
            revoked: broken.flat_map(|(_, held)| names(held)).collect(),
        })
    }

    /// Removes what only the server has, and tells who waits for that or for one `of` these; what
    /// it had before, and which of these marks others have.
    pub(super) async fn clean(
        &mut self,
        link: &Link,
        marks: Vec<i64>,
        of: Vec<AdvisoryKey>,
    ) -> Result<Vec<Owned>> {
        let mut freed = of;
        let mut cleaned = self.try_clean(link, marks.clone(), &mut freed).await;
        if let Err(Failure::Statement(error)) = &cleaned {
            // One that somebody cancelled, say.
            tracing::debug!(target: "leasehold", %error, "asking again");
            cleaned = self.try_clean(link, marks, &mut freed).await;
        }
        let owned = cleaned.map_err(|failure| match failure {
            Failure::Over(error) => error,
            // Nobody knows what it has.
            Failure::Statement(error) => self.lose(error::over("reconcile").with_source(error)),
        })?;
        self.tell(link, freed).await?;
        Ok(owned)
    }

    async fn try_clean(
        &mut self,
        link: &Link,
        marks: Vec<i64>,
        freed: &mut Vec<AdvisoryKey>,
    ) -> Result<Vec<Owned>, Failure> {
        let owned = self.owned(link, marks).await?;
        let unknown: Vec<Owned> = owned
            .iter()
            .copied()
            .filter(|owned| owned.ours && !self.knows(*owned))
            .collect();
        if unknown.is_empty() {
            return Ok(owned);
        }
        tracing::debug!(target: "leasehold", ?unknown, "removing what nobody here owns");
        freed.extend(unknown.iter().map(|owned| owned.key));
        let keys: Vec<i64> = unknown.iter().map(|owned| owned.key.bits()).collect();
        let pairs: Vec<bool> = unknown.iter().map(|owned| owned.key.is_pair()).collect();
        let exclusive: Vec<bool> = unknown.iter().map(|owned| owned.exclusive).collect();
        let query = sqlx::query(self.statements.unlock.clone())
            .bind(keys)
            .bind(pairs)
            .bind(exclusive);
        let row = self
            .fetch(link, "reconcile", async |connection| {
                query.fetch_one(connection).await
            })
            .await?;
        self.read::<bool>(&row)?;
        Ok(owned)
    }

    /// Tells who waits for these, here and elsewhere, as a release does. Whoever cannot be told
    /// looks by himself later.
    async fn tell(&mut self, link: &Link, freed: Vec<AdvisoryKey>) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        let markers: Vec<i64> = freed.iter().map(|key| key.waits()).collect();
        let payloads: Vec<String> = freed.iter().map(|key| key.payload()).collect();
        freed.iter().for_each(|key| self.waiters.wake(*key));
        for _ in 0..TELLINGS {
            let query = sqlx::query(self.statements.tell.clone())
                .bind(&markers)
                .bind(&payloads);
            let told = self
                .fetch(link, "reconcile", async |connection| {
                    query.fetch_one(connection).await
                })
                .await;
            match told.and_then(|row| self.read::<i64>(&row)) {
                Ok(_) => break,
                Err(Failure::Over(error)) => return Err(error),
                Err(Failure::Statement(error)) => {
                    tracing::debug!(target: "leasehold", %error, "waiters were not told");
                }
            }
        }
        Ok(())
    }

    fn knows(&self, owned: Owned) -> bool {
        match (self.held.get(&owned.key), owned.key) {
            (Some(Held::Shared { .. }), _) => !owned.exclusive,
            (Some(_), _) => owned.exclusive,
            (None, AdvisoryKey::Int64(sign)) => !owned.exclusive && self.markers.is_up(sign),
            (None, AdvisoryKey::Int32Pair(..)) => false,
        }
    }

    /// What holds the lock of this name, if anything does.
    fn key_held_by(&self, name: Name) -> Option<AdvisoryKey> {
        let has = |held: &Held| match held {
            Held::Exclusive(held) | Held::Permit { name: held, .. } => *held == name,
            Held::Shared { names, .. } => names.contains(&name),
        };
        self.held
            .iter()
            .find(|(_, held)| has(held))
            .map(|(key, _)| *key)
    }

    /// Gives back what these hold.
    pub(crate) async fn give_back(&mut self, link: &Link, names: &[Name]) -> Result<()> {
        let give_back = |name: &Name| {
            let key = self.key_held_by(*name)?;
            let semaphore = (key != name.key).then_some(name.key);
            Some(Job::GiveBack {
                name: *name,
                key,
                semaphore,
            })
        };
        let jobs: Vec<Job> = names.iter().filter_map(give_back).collect();
        self.execute(link, Vec::new(), &jobs)
            .await
            .into_iter()
            .try_for_each(|answer| answer.map(drop))
    }

    /// Ends the session.
    pub(crate) async fn close(&mut self, link: &Link) -> Result<()> {
        let Some(connection) = self.connection.take() else {
            return Ok(());
        };
        let _counted_until_closed = self.counted.take();
        self.held.clear();
        self.markers.clear();
        match timeout(link.config.timeout, connection.close()).await {
            Ok(closed) => closed.map_err(|error| link.failed(error, "close")),
            Err(_elapsed) => {
                Err(link.timed_out(ErrorKind::Indeterminate, "close", link.config.timeout))
            }
        }
    }
}
