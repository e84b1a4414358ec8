//! Batches the requests of many tasks into one transaction.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{join, join_all};
use leasehold_core::{
    Error, Result,
    backend::{BoxFuture, support},
};
use zookeeper_client::{
    CreateMode, CreateOptions, Error as Driver, MultiReadResult, MultiWriteError, MultiWriteResult,
    MultiWriter,
};

use crate::{
    connection::{Cluster, Link},
    error::{self, ERRORS, SideEffect},
    keys::{Directory, Node},
    node_data::MAX_LABEL,
};

/// The most attempts to create the directory of a lock, which the server may remove again.
const TRIES: usize = 16;
/// The most directories that are remembered to exist.
const KNOWN: usize = 100_000;

/// The longest data of a node that is created together with others. That of a mutex is shorter. The
/// proposals of 64 candidates would not fit into one request of 1 MiB (`jute.maxbuffer`).
const DATA_TOGETHER: usize = MAX_LABEL + 128;

/// The request of one task.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) operation: &'static str,
    /// The lock. All nodes of one transaction have the same czxid, which is the fencing token. So
    /// two jobs on one lock must not share a transaction.
    pub(crate) lane: u64,
    pub(crate) work: Work,
}

impl Job {
    /// Returns whether it fits into a transaction with as many others as there may be.
    fn is_small(&self) -> bool {
        match &self.work {
            Work::Create { data, .. } | Work::Move { data, .. } => data.len() <= DATA_TOGETHER,
            Work::Delete { .. } => true,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Work {
    /// Creates a node, and lists its directory.
    Create {
        directory: Directory,
        node: Node,
        data: Vec<u8>,
    },
    /// Deletes a node.
    Delete { path: Arc<str> },
    /// Deletes a node of another session and creates one of this session, in one transaction.
    Move {
        from: Arc<str>,
        to: Arc<str>,
        data: Vec<u8>,
    },
}

#[derive(Debug)]
pub(crate) enum Done {
    Created(Created),
    /// Whether the node existed.
    Deleted(bool),
    /// Whether the node existed. Otherwise nothing was created.
    Moved(bool),
}

/// A node that this client has created.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) path: Arc<str>,
    /// The transaction that created it.
    pub(crate) czxid: i64,
    /// The children of its directory, listed after its creation, if they are known.
    pub(crate) children: Option<Vec<String>>,
}

/// The connection of one session, until it is closed.
#[derive(Default)]
pub(crate) struct Line(Mutex<Option<Arc<Link>>>);

impl Line {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self(Mutex::new(Some(link)))
    }

    /// Returns the connection.
    pub(crate) fn link(&self, operation: &'static str) -> Result<Arc<Link>> {
        self.lock().clone().ok_or_else(|| error::over(operation))
    }

    /// Takes the connection. Every later request fails.
    pub(crate) fn cut(&self) -> Option<Arc<Link>> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Link>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Executes the jobs of one session.
pub(crate) struct BatchExecutor {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) line: Arc<Line>,
    pub(crate) patience: Duration,
    /// The ZooKeeper session.
    pub(crate) session: i64,
    /// The session's node, and its data.
    pub(crate) node: String,
    pub(crate) label: Vec<u8>,
    /// The lanes of directories that existed.
    pub(crate) known: Mutex<HashSet<u64>>,
}

impl support::BatchExecutor for BatchExecutor {
    type Job = Job;
    type Answer = Result<Done>;

    fn lane(&self, job: &Job) -> Option<u64> {
        Some(job.lane)
    }

    fn execute(self: Arc<Self>, mut jobs: Vec<Job>) -> BoxFuture<'static, Vec<Self::Answer>> {
        Box::pin(async move {
            if jobs.len() == 1
                && let Some(job) = jobs.pop()
            {
                return vec![self.alone(job).await];
            }
            self.together(jobs).await
        })
    }
}

impl BatchExecutor {
    /// Executes one job in a request of its own. A creation and the listing after it take one round
    /// trip, because the server executes the requests of a session in order.
    async fn alone(&self, job: Job) -> Result<Done> {
        let link = self.line.link(job.operation)?;
        match job.work {
            Work::Create {
                directory,
                node,
                data,
            } => {
                let created = self.create(&link, &directory, &node, &data);
                let created = self
                    .cluster
                    .ask(job.operation, SideEffect::Writes, self.patience, created)
                    .await?;
                self.remember(job.lane);
                Ok(Done::Created(created))
            }
            Work::Delete { path } => {
                let delete = link.client.delete(&path, None);
                let deleted = async {
                    match delete.await {
                        Ok(()) => Ok(true),
                        Err(Driver::NoNode) => Ok(false),
                        Err(error) => Err(error),
                    }
                };
                self.cluster
                    .ask(job.operation, SideEffect::Writes, self.patience, deleted)
                    .await
                    .map(Done::Deleted)
            }
            Work::Move { from, to, data } => {
                let moved = async {
                    let mut writer = link.client.new_multi_writer();
                    self.add_move(&mut writer, &from, &to, &data)?;
                    match writer.commit().await {
                        Ok(_) => Ok(true),
                        Err(MultiWriteError::OperationFailed {
                            index: 0,
                            source: Driver::NoNode,
                        }) => Ok(false),
                        Err(error) => Err(Driver::from(error)),
                    }
                };
                self.cluster
                    .ask(job.operation, SideEffect::Writes, self.patience, moved)
                    .await
                    .map(Done::Moved)
            }
        }
    }

    async fn create(
        &self,
        link: &Link,
        directory: &Directory,
        node: &Node,
        data: &[u8],
    ) -> Result<Created, Driver> {
        let mut tries = 0;
        loop {
            tries += 1;
            // Both are sent before either is answered.
            let creation = link.client.create(&node.path, data, &self.ephemeral());
            let listing = link.client.list_children(directory.path());
            let (created, listed) = join(creation, listing).await;
            match created {
                Ok((stat, _)) if stat.ephemeral_owner != self.session => {
                    return Err(Driver::SessionMoved);
                }
                Ok((stat, sequence)) => {
                    let path = format!("{}{sequence}", node.path).into();
                    return Ok(Created {
                        path,
                        czxid: stat.czxid,
                        children: listed.ok(),
                    });
                }
                Err(Driver::NoNode) if tries < TRIES => self.cluster.make(link, directory).await?,
                Err(error) => return Err(error),
            }
        }
    }

    fn ephemeral(&self) -> CreateOptions<'_> {
        CreateMode::EphemeralSequential.with_acls(self.cluster.config.access.acls())
    }

    fn add_move(
        &self,
        writer: &mut MultiWriter<'_>,
        from: &str,
        to: &str,
        data: &[u8],
    ) -> Result<(), Driver> {
        writer.add_delete(from, None)?;
        writer.add_create(
            to,
            data,
            &CreateMode::Ephemeral.with_acls(self.cluster.config.access.acls()),
        )
    }

    /// Executes the jobs whose directories exist in one transaction, and the rest one by one.
    async fn together(&self, jobs: Vec<Job>) -> Vec<Result<Done>> {
        let mut answers: Vec<Option<Result<Done>>> = jobs.iter().map(|_| None).collect();
        let (mut many, mut single): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .enumerate()
            .partition(|(_, job)| self.is_known(job) && job.is_small());
        if let Some(done) = self.transaction(&many).await {
            for ((at, _), done) in many.drain(..).zip(done) {
                answers[at] = Some(done);
            }
        }
        // One failure fails the whole transaction, and nothing was done.
        single.append(&mut many);
        let places: Vec<_> = single.iter().map(|(at, _)| *at).collect();
        let done = join_all(single.into_iter().map(|(_, job)| self.alone(job))).await;
        for (at, done) in places.into_iter().zip(done) {
            answers[at] = Some(done);
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(ERRORS.unexpected("batch"))))
            .collect()
    }

    /// Executes the jobs in one transaction. Returns `None` if one of them failed, and so all did.
    async fn transaction(&self, jobs: &[(usize, Job)]) -> Option<Vec<Result<Done>>> {
        if jobs.len() < 2 {
            return None;
        }
        let all = |error: Error| {
            let each = |(_, job): &(usize, Job)| Err(error.clone().with_operation(job.operation));
            Some(jobs.iter().map(each).collect())
        };
        let link = match self.line.link("batch") {
            Ok(link) => link,
            Err(error) => return all(error),
        };
        let committed = self.commit(&link, jobs);
        let outcome = async { Ok(committed.await) };
        match self
            .cluster
            .ask("batch", SideEffect::Writes, self.patience, outcome)
            .await
        {
            Ok(Ok(done)) => Some(done),
            Ok(Err(MultiWriteError::OperationFailed {
                index: 0,
                source: Driver::NoNode,
            })) => all(error::over("batch")),
            Ok(Err(MultiWriteError::OperationFailed { .. })) => None,
            Ok(Err(MultiWriteError::RequestFailed { source })) => all(error::from_driver(
                source,
                "batch",
                SideEffect::Writes,
                &self.cluster.endpoint(),
            )),
            Err(error) => all(error),
        }
    }

    async fn commit(
        &self,
        link: &Link,
        jobs: &[(usize, Job)],
    ) -> Result<Vec<Result<Done>>, MultiWriteError> {
        let mut writer = link.client.new_multi_writer();
        let mut reader = link.client.new_multi_reader();
        // The answer to this write has the czxid of the transaction. Servers before 3.8.2 do not
        // return it for a node that a transaction creates.
        writer.add_set_data(&self.node, &self.label, None)?;
        for (_, job) in jobs {
            match &job.work {
                Work::Create {
                    directory,
                    node,
                    data,
                } => {
                    writer.add_create(&node.path, data, &self.ephemeral())?;
                    reader.add_get_children(directory.path())?;
                }
                Work::Delete { path } => writer.add_delete(path, None)?,
                Work::Move { from, to, data } => self.add_move(&mut writer, from, to, data)?,
            }
        }
        let (write, read) = (writer.commit(), reader.commit());
        let (written, listed) = join(write, read).await;
        let mut written = written?.into_iter();
        let Some(MultiWriteResult::SetData { stat }) = written.next() else {
            return Err(Driver::UnexpectedError("the transaction has another shape".into()).into());
        };
        let mut listed = listed.unwrap_or_default().into_iter();
        let done = jobs
            .iter()
            .map(|(_, job)| match (&job.work, written.next()) {
                (Work::Create { .. }, Some(MultiWriteResult::Create { path, .. })) => {
                    let children = match listed.next() {
                        Some(MultiReadResult::Children { children }) => Some(children),
                        _ => None,
                    };
                    Ok(Done::Created(Created {
                        path: path.into(),
                        czxid: stat.mzxid,
                        children,
                    }))
                }
                (Work::Delete { .. }, Some(MultiWriteResult::Delete)) => Ok(Done::Deleted(true)),
                (Work::Move { .. }, Some(MultiWriteResult::Delete)) => match written.next() {
                    Some(MultiWriteResult::Create { .. }) => Ok(Done::Moved(true)),
                    _ => Err(ERRORS.unexpected(job.operation)),
                },
                _ => Err(ERRORS.unexpected(job.operation)),
            });
        Ok(done.collect())
    }

    fn is_known(&self, job: &Job) -> bool {
        matches!(job.work, Work::Delete { .. } | Work::Move { .. })
            || self.known().contains(&job.lane)
    }

    fn remember(&self, lane: u64) {
        let mut known = self.known();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(lane);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for BatchExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BatchExecutor({})", self.node)
    }
}
