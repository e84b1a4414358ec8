//! [`SessionConn`]: one holding connection, and what the server has for it.
//!
//! The server lets a session take what it has already: exclusively twice, exclusively beside
//! shared, and so on. So the table here decides what may be asked for at all. It is exact, because
//! it lives with the connection under one mutex, and a statement that fails is followed by a look
//! at what the server has, before anything else is asked.

mod markers;
mod plan;
mod server;

use std::{collections::HashMap, sync::Arc};

use leasehold_core::{Error, Result};
use sqlx::PgConnection;

use crate::{
    batch::{Answer, Done, Job, Name, WaiterMarkers, Want},
    connection::{Holding, Link},
    error,
    keys::AdvisoryKey,
    session::{Counted, SessionRef},
    session_conn::markers::MarkerCounts,
    statement::{Op, Row, Statements},
    waiters::WaiterRegistry,
};

pub(crate) struct SessionConn {
    /// `None` once it is gone, and everything with it.
    connection: Option<PgConnection>,
    counted: Option<Counted>,
    owner: SessionRef,
    /// Who waits in this process: the server does not show a session its own markers.
    waiters: Arc<WaiterRegistry>,
    statements: Statements,
    pid: i32,
    /// Whether commits wait for a standby.
    synchronous: bool,
    /// The database's oid.
    database: i64,
    held: HashMap<AdvisoryKey, Held>,
    /// WaiterMarkers and counts.
    markers: MarkerCounts,
    /// The marks of what an operator has broken gently.
    broken: HashMap<AdvisoryKey, i64>,
    /// What has become superfluous in the last statement, and goes with the next.
    superfluous: Vec<(Op, AdvisoryKey)>,
}

/// What is held, or is being asked for.
#[derive(Debug)]
pub(crate) enum Held {
    Exclusive(Name),
    /// The server has it once, whatever the number of readers.
    Shared {
        names: Vec<Name>,
        token: Option<i64>,
    },
    Permit {
        name: Name,
        count: i64,
    },
}

/// Rows that go out together, and what they are for.
#[derive(Default)]
pub(crate) struct Batch {
    rows: Vec<Row>,
    /// One for each row.
    planned: Vec<Planned>,
}

pub(crate) struct Planned {
    /// Whose answer it is.
    job: Option<usize>,
    /// The lock or the semaphore: what those wait for whom it concerns.
    of: AdvisoryKey,
    what: What,
}

pub(crate) enum What {
    /// `sole`: the statement takes the markers down with the grant.
    Take {
        name: Name,
        key: AdvisoryKey,
        markers: Option<WaiterMarkers>,
        sole: bool,
    },
    Join {
        name: Name,
        key: AdvisoryKey,
        markers: Option<WaiterMarkers>,
    },
    GiveBack,
    PutUp(i64),
    TakeDown,
}

impl Batch {
    fn add(&mut self, row: Row, job: Option<usize>, of: AdvisoryKey, what: What) {
        self.rows.push(row);
        self.planned.push(Planned { job, of, what });
    }

    fn add_sign(&mut self, op: Op, sign: i64, of: AdvisoryKey, what: What) {
        self.add(
            Row {
                op,
                key: AdvisoryKey::Int64(sign),
                waits: 0,
                beside: 0,
            },
            None,
            of,
            what,
        );
    }
}

impl SessionConn {
    pub(crate) fn new(holding: Holding, counted: Counted, waiters: &Arc<WaiterRegistry>) -> Self {
        let Holding {
            connection,
            statements,
            pid,
            synchronous,
            database,
        } = holding;
        Self {
            connection: Some(connection),
            counted: Some(counted),
            owner: SessionRef::default(),
            waiters: Arc::clone(waiters),
            statements,
            pid,
            synchronous,
            database,
            held: HashMap::new(),
            markers: MarkerCounts::default(),
            broken: HashMap::new(),
            superfluous: Vec::new(),
        }
    }

    /// Whom it tells when it is given up.
    pub(crate) fn owner(&self) -> SessionRef {
        self.owner.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.connection.is_none()
    }

    /// Runs the jobs in their order, in one statement but for permits. `leaving` are markers that
    /// nobody needs any more.
    pub(crate) async fn execute(
        &mut self,
        link: &Link,
        leaving: Vec<(Name, WaiterMarkers)>,
        jobs: &[Job],
    ) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = jobs.iter().map(|_| None).collect();
        let mut batch = Batch::default();
        for (name, markers) in leaving {
            self.take_down(name, markers, &mut batch);
        }
        for (place, job) in jobs.iter().enumerate() {
            match job {
                Job::Tidy => answers[place] = Some(Ok(Done::Tidied)),
                Job::Take(take) => match &take.want {
                    Want::Exclusive(key) => {
                        answers[place] = self.plan_take(take, *key, false, place, &mut batch);
                    }
                    Want::Shared(key) => {
                        answers[place] = self.plan_take(take, *key, true, place, &mut batch);
                    }
                    Want::Permit(family) => {
                        self.put_up(take, &mut batch);
                        self.run(link, std::mem::take(&mut batch), &mut answers)
                            .await;
                        answers[place] = Some(Box::pin(self.permit(link, take, family)).await);
                    }
                },
                Job::GiveBack {
                    name,
                    key,
                    semaphore,
                } => {
                    answers[place] =
                        self.plan_give_back(*name, *key, *semaphore, place, &mut batch);
                }
            }
        }
        self.run(link, batch, &mut answers).await;
        while !self.superfluous.is_empty() && !self.is_over() {
            let mut batch = Batch::default();
            for (op, key) in std::mem::take(&mut self.superfluous) {
                batch.add(
                    Row {
                        op,
                        key,
                        waits: key.waits(),
                        beside: 0,
                    },
                    None,
                    key,
                    What::TakeDown,
                );
            }
            self.run(link, batch, &mut answers).await;
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(error::over("acquire"))))
            .collect()
    }

    async fn run(&mut self, link: &Link, batch: Batch, answers: &mut [Option<Answer>]) {
        let Batch { rows, planned } = batch;
        if rows.is_empty() {
            return;
        }
        match self.ask(link, &rows).await {
            Ok(results) if results.len() == planned.len() => {
                for (planned, result) in planned.into_iter().zip(results) {
                    let answer = self.take_result(link, &planned, result);
                    if let Some(job) = planned.job {
                        answers[job] = Some(Ok(answer));
                    }
                }
            }
            outcome => {
                let failure = match outcome {
                    Ok(_) => Failure::Over(self.lose(error::protocol("acquire"))),
                    Err(failure) => failure,
                };
                // Apart, as with permits: what is rare does not make the usual future large.
                let of = planned.iter().map(|planned| planned.of).collect();
                let failure = Box::pin(self.recover(link, &planned, of, failure)).await;
                for planned in planned {
                    if let Some(job) = planned.job {
                        answers[job] = Some(match (&failure, &planned.what) {
                            // What was to be given back is certainly no longer ours.
                            (Ok(_), What::GiveBack) => Ok(Done::GivenBack(true)),
                            (Ok(error) | Err(error), _) => Err(error.clone()),
                        });
                    }
                }
            }
        }
    }

    fn take_result(&mut self, link: &Link, planned: &Planned, result: i64) -> Done {
        match planned.what {
            What::Take {
                name,
                key,
                markers,
                sole,
            } => {
                if result <= 0 {
                    self.held.remove(&key);
                    return Done::Refused {
                        signed: self.are_up_for(name, markers),
                    };
                }
                let drawn = link.config.fencing.then_some(result);
                if let Some(Held::Shared { token, .. }) = self.held.get_mut(&key) {
                    *token = drawn;
                }
                if sole {
                    markers
                        .iter()
                        .flat_map(WaiterMarkers::each)
                        .for_each(|sign| self.markers.fell(sign));
                } else {
                    self.needs_no_more(name, markers);
                }
                Done::Granted { key, token: drawn }
            }
            What::Join { name, key, markers } => {
                // The first reader may have been refused in this very statement.
                if let (Some(Held::Shared { token, .. }), true) = (self.held.get(&key), result < 0)
                {
                    let token = *token;
                    self.needs_no_more(name, markers);
                    return Done::Granted { key, token };
                }
                if let Some(Held::Shared { names, .. }) = self.held.get_mut(&key) {
                    names.retain(|joining| *joining != name);
                    if names.is_empty() {
                        // The others have left in this very statement.
                        self.held.remove(&key);
                        self.superfluous.push((Op::UnlockShared, key));
                    }
                }
                Done::Refused {
                    signed: self.are_up_for(name, markers),
                }
            }
            What::GiveBack => {
                self.waiters.wake(planned.of);
                Done::GivenBack(result != 0)
            }
            What::PutUp(sign) => {
                if result == 0 {
                    self.markers.fell(sign);
                }
                Done::Tidied
            }
            What::TakeDown => Done::Tidied,
        }
    }

    fn are_up_for(&self, name: Name, markers: Option<WaiterMarkers>) -> bool {
        markers.is_some_and(|markers| {
            markers
                .each()
                .all(|sign| self.markers.is_up_for(sign, name))
        })
    }

    /// A waiter waits no more.
    fn needs_no_more(&mut self, name: Name, markers: Option<WaiterMarkers>) {
        for sign in markers.iter().flat_map(WaiterMarkers::each) {
            if self.markers.remove(sign, name) {
                self.superfluous
                    .push((Op::Unsign, AdvisoryKey::Int64(sign)));
            }
        }
    }

    /// The statement failed, and some of its rows may have been done. Afterwards the server has
    /// what the table has, and none of what was asked for, and who waits for one `of` these is
    /// told; or the connection is gone, and `Err` says so.
    async fn recover(
        &mut self,
        link: &Link,
        planned: &[Planned],
        of: Vec<AdvisoryKey>,
        failure: Failure,
    ) -> Result<Error, Error> {
        for planned in planned {
            match &planned.what {
                What::Take {
                    key, markers, sole, ..
                } => {
                    self.held.remove(key);
                    if *sole {
                        // Those that its row has not taken down are removed below.
                        markers
                            .iter()
                            .flat_map(WaiterMarkers::each)
                            .for_each(|sign| self.markers.fell(sign));
                    }
                }
                What::Join { name, key, .. } => {
                    if let Some(Held::Shared { names, .. }) = self.held.get_mut(key) {
                        names.retain(|joining| joining != name);
                        if names.is_empty() {
                            self.held.remove(key);
                        }
                    }
                }
                What::PutUp(sign) => self.markers.fell(*sign),
                What::GiveBack | What::TakeDown => {}
            }
        }
        match failure {
            Failure::Over(error) => Err(error),
            Failure::Statement(error) => {
                self.clean(link, Vec::new(), of).await?;
                Ok(error)
            }
        }
    }
}

/// How a statement failed.
pub(crate) enum Failure {
    /// The connection is usable.
    Statement(Error),
    /// It is gone.
    Over(Error),
}

fn refused(signed: bool) -> Answer {
    Ok(Done::Refused { signed })
}
