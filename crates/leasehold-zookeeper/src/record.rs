//! The record beside a lock: one persistent node.
//!
//! A write is one transaction. It checks that the holder's node exists, and replaces the data if
//! the version of the record's node is the one that was read before. Nodes of holders are never
//! created twice, so the write of a former holder fails wherever it was delayed.
//!
//! A candidate of an election writes its proposal instead, which is the data of its node.
//!
//! A read follows a transaction on the same connection. A `sync` would not be enough: a leader that
//! was stopped and deposed answers it without asking the other servers, and a client on its side
//! would read a record that the next holder has replaced. The servers execute the requests of a
//! session in order, so both take one round trip.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::{BoxFuture, OptionFuture, join5};
use leasehold_core::{
    AcquisitionId, ErrorKind, FencingToken, Mode, Record, Result,
    backend::{RecordRead, RecordReading, RecordWrite, Request, support::StoredRecord},
    session::Claim,
};
use zookeeper_client::{
    Client, CreateMode, Error as Driver, MultiWriteError, MultiWriteResult, Stat,
};

use crate::{
    candidate::{self, may_be_candidate, proposal},
    connection::{Cluster, Link, time_of},
    error::{self, ERRORS, SideEffect, unless_gone},
    keys::Member,
    proclaim::Proclaimed,
    queue::holders_in_order,
    session::{ZookeeperSessions, note},
    wake::{self, Event, event_of},
};

const READ: &str = "read_record";
const WRITE: &str = "write_record";

/// The most attempts of one write. Only other programs change the record meanwhile, and writes of
/// the same holder whose answers were lost.
const TRIES: usize = 8;

/// The data of a record's node, if the node exists.
type Found = Option<(Vec<u8>, Stat)>;

/// Reads the record beside a lock, or the proposal of the candidate that holds the lock.
pub(crate) async fn read(cluster: &Arc<Cluster>, read: &RecordRead) -> Result<RecordReading> {
    let link = cluster.shared(READ).await?;
    let patience = cluster.config.timeout;
    let asked = ask(cluster, &link, read);
    let Answer {
        found,
        children,
        watch: written,
        now,
    } = cluster.ask(READ, SideEffect::None, patience, asked).await?;
    let stored = match &found {
        Some((data, stat)) => StoredRecord::decode(&read.key, data).map(|mut stored| {
            // The writer's clock is in the data. This is the leader's.
            stored.written = time_of(stat.mtime);
            Some(stored)
        }),
        None => Ok(None),
    };
    let mut first = First::default();
    if read.while_held {
        let writer = stored.as_ref().ok().and_then(Option::as_ref);
        let asked = ask_first(cluster, &link, read, children, writer.map(|it| it.owner));
        first = cluster.ask(READ, SideEffect::None, patience, asked).await?;
    }
    let holds = |writer| first.name.as_ref().is_some_and(|name| is_of(name, writer));
    let record = match first.proposal {
        Some(proposal) => Some(proposal),
        None => {
            let stored = stored.map_err(|error| ERRORS.named(error, READ))?;
            let record = stored.and_then(StoredRecord::into_record);
            record.filter(|record| !read.while_held || holds(record.owner))
        }
    };
    let mut reading = RecordReading::new(record);
    reading.now = now;
    let ended = match read.while_held {
        true => first.changed,
        // A record outlives its writer.
        false => Some(Box::pin(std::future::pending()) as Event),
    };
    reading.changed = written
        .zip(ended)
        .map(|(written, ended)| changed(cluster, written, ended));
    Ok(reading)
}

/// Returns whether a node belongs to this acquisition. Once it has written a record, it holds the
/// lock for as long as its node exists.
fn is_of(name: &str, owner: AcquisitionId) -> bool {
    Member::read(name)
        .and_then(|member| member.uuid)
        .is_some_and(|uuid| uuid.is_of(owner))
}

/// The node that is first in the queue of a lock, if there is one.
#[derive(Default)]
struct First {
    name: Option<String>,
    /// Its proposal, if it is the node of a candidate.
    proposal: Option<Record>,
    /// The next change of the node, or without one the next change of the directory. `None` if it
    /// is not wanted, or if there is no room for the watch.
    changed: Option<Event>,
}

/// Looks for the first node among these children of a lock's directory. `writer` has written the
/// record, and is no candidate.
///
/// A node that is gone by the time of its read was followed by the next one that exists then, as
/// later nodes have larger numbers.
async fn ask_first(
    cluster: &Cluster,
    link: &Arc<Link>,
    read: &RecordRead,
    mut children: Vec<String>,
    writer: Option<AcquisitionId>,
) -> Result<First, Driver> {
    let (client, directory) = (&link.client, cluster.names.directory(&read.key, false));
    loop {
        let members = holders_in_order(&children);
        if members.is_empty() && !read.watch {
            return Ok(First::default());
        }
        for (name, member) in members {
            let wrote = writer.is_some_and(|writer| is_of(name, writer));
            let mut first = First {
                name: Some(name.to_owned()),
                ..First::default()
            };
            if !read.watch && (wrote || !may_be_candidate(&member)) {
                return Ok(first);
            }
            let path = directory.child(name);
            let answer = match read.watch.then(|| link.room(&path)).flatten() {
                Some(room) => client
                    .get_and_watch_data(&path)
                    .await
                    .map(|(data, stat, watcher)| (data, stat, Some(event_of(watcher, room)))),
                None => client
                    .get_data(&path)
                    .await
                    .map(|(data, stat)| (data, stat, None)),
            };
            let Some((data, stat, changed)) = unless_gone(answer)? else {
                continue;
            };
            first.proposal = proposal(&member, &data, cluster.names.election)
                .map(|proposal| candidate::record(&member, proposal, &stat));
            first.changed = changed;
            return Ok(first);
        }
        let listed = wake::children(link, &directory).await;
        let watch = match unless_gone(listed)? {
            Some((listed, watch)) => {
                children = listed;
                watch
            }
            None => {
                children = Vec::new();
                let Some(room) = link.room(directory.path()) else {
                    return Ok(First::default());
                };
                match client.check_and_watch_stat(directory.path()).await? {
                    (None, watcher) => Some((watcher, room)),
                    // It was created since.
                    (Some(_), _) => continue,
                }
            }
        };
        if holders_in_order(&children).is_empty() {
            let changed = watch.map(|(watcher, room)| event_of(watcher, room));
            return Ok(First {
                changed: changed.filter(|_| read.watch),
                ..First::default()
            });
        }
    }
}

/// The answers to one read.
struct Answer {
    found: Found,
    /// The nodes of holders and waiters, if only the record of a holder is wanted.
    children: Vec<String>,
    /// The watch on the record, if it is wanted and there is room for it.
    watch: Option<Event>,
    now: Option<SystemTime>,
}

/// Sends all requests of a read before any of them is answered.
async fn ask(cluster: &Cluster, link: &Arc<Link>, read: &RecordRead) -> Result<Answer, Driver> {
    let client = &link.client;
    let path = cluster.names.record(&read.key);
    let directory = cluster.names.directory(&read.key, false);
    let transaction = transaction(client)?;
    let room = read.watch.then(|| link.room(&path)).flatten();
    let watch = room.is_some().then(|| client.check_and_watch_stat(&path));
    let found = client.get_data(&path);
    let children = read
        .while_held
        .then(|| client.list_children(directory.path()));
    let now = read.clock.then(|| cluster.leader_time(link));
    let (transaction, watch, found, children, now) = join5(
        transaction,
        OptionFuture::from(watch),
        found,
        OptionFuture::from(children),
        OptionFuture::from(now),
    )
    .await;
    transaction?;
    Ok(Answer {
        found: unless_gone(found)?,
        children: children
            .map(unless_gone)
            .transpose()?
            .flatten()
            .unwrap_or_default(),
        watch: watch
            .transpose()?
            .zip(room)
            .map(|((_, watcher), room)| event_of(watcher, room)),
        now: now.transpose()?,
    })
}

/// Sends a transaction that changes nothing. Every later answer on this connection shows at least
/// what was committed before it.
///
/// The servers commit a transaction that fails, too.
fn transaction(
    client: &Client,
) -> Result<impl Future<Output = Result<(), Driver>> + Send + '_, Driver> {
    let mut check = client.new_multi_writer();
    check.add_check_version("/", -1)?;
    let committed = check.commit();
    Ok(async move {
        match committed.await {
            Ok(_) | Err(MultiWriteError::OperationFailed { .. }) => Ok(()),
            Err(MultiWriteError::RequestFailed { source }) => Err(source),
        }
    })
}

/// Returns a future that completes when another read may have another answer: after a write, after
/// a change of the first node in the queue, and at the latest after the option
/// `fallback-poll-interval`.
fn changed(cluster: &Cluster, written: Event, ended: Event) -> BoxFuture<'static, ()> {
    let interval = cluster.config.fallback_poll_interval;
    Box::pin(async move {
        tokio::select! {
            _ = written => {}
            _ = ended => {}
            () = tokio::time::sleep(interval) => {}
        }
    })
}

/// A grant, as the writer of a record.
pub(crate) struct Grant<'a> {
    pub(crate) claim: &'a Claim<ZookeeperSessions>,
    pub(crate) request: &'a Request,
    /// Its node.
    pub(crate) path: &'a str,
    pub(crate) token: Option<FencingToken>,
    /// The values that it has proclaimed, if it is a candidate of an election.
    pub(crate) proclaimed: Option<&'a Proclaimed>,
}

impl Grant<'_> {
    /// Replaces or clears the record, or replaces the proposal of a candidate.
    pub(crate) async fn write_record(&self, write: &RecordWrite) -> Result<u64> {
        if self.request.mode() != Mode::Exclusive {
            return Err(ERRORS.error(
                ErrorKind::Unsupported,
                WRITE,
                "only the holder of an exclusive lock writes its record; use a mutex or a write lock",
            ));
        }
        let handle = self.claim.session().handle();
        let link = handle.link(WRITE)?;
        for _ in 0..TRIES {
            let mut tried = self.try_once(&link, write).await;
            if handle.cluster.is_cured(WRITE, &link, &tried).await {
                tried = self.try_once(&link, write).await;
            }
            match tried {
                Ok(Some(version)) => return Ok(version),
                Ok(None) => {}
                Err(error) => {
                    if error.kind() == ErrorKind::Lost {
                        note(self.claim, &error);
                    }
                    return Err(error);
                }
            }
        }
        Err(ERRORS.error(
            ErrorKind::Unavailable,
            WRITE,
            "other programs change the record at each attempt of the write; stop them, or choose another name",
        ))
    }

    async fn try_once(&self, link: &Arc<Link>, write: &RecordWrite) -> Result<Option<u64>> {
        match self.proclaimed {
            Some(proclaimed) => {
                proclaimed
                    .try_write(self.claim, self.path, link, write)
                    .await
            }
            None => self.try_write(link, write).await,
        }
    }

    /// Reads the record and replaces it. Returns its version, or `None` if another write came in
    /// between.
    async fn try_write(&self, link: &Arc<Link>, write: &RecordWrite) -> Result<Option<u64>> {
        let handle = self.claim.session().handle();
        let (cluster, patience, key) = (&handle.cluster, handle.patience, self.request.key());
        let path = cluster.names.record(key);
        let found = cluster.read(WRITE, link, patience, &path).await?;
        let (previous, version) = match found {
            None => (None, None),
            Some((data, stat)) => {
                let stored = StoredRecord::decode(key, &data);
                let stored = stored.map_err(|error| ERRORS.named(error, WRITE))?;
                (Some(stored), Some(stat.version))
            }
        };
        if let Some(previous) = &previous
            && previous.supersedes(self.request.owner(), write.sequence())
        {
            return Ok(Some(previous.version));
        }
        let now = SystemTime::now();
        let record = StoredRecord::after(previous.as_ref(), self.request, self.token, write, now);
        let data = record.encode();
        let committed = self.commit(link, &path, version, &data);
        let committed = async { Ok(committed.await) };
        match cluster
            .ask(WRITE, SideEffect::Writes, patience, committed)
            .await?
        {
            Ok(_) => Ok(Some(record.version)),
            Err(MultiWriteError::OperationFailed {
                index: 0,
                source: Driver::NoNode,
            }) => Err(error::no_longer_held(WRITE)),
            Err(MultiWriteError::OperationFailed {
                source: Driver::BadVersion | Driver::NodeExists,
                ..
            }) => Ok(None),
            Err(MultiWriteError::OperationFailed {
                source: Driver::NoNode,
                ..
            }) => {
                if version.is_none() {
                    self.make_parent(link).await?;
                }
                Ok(None)
            }
            Err(MultiWriteError::OperationFailed { source, .. }) => Err(error::from_driver(
                source,
                WRITE,
                SideEffect::None,
                &cluster.endpoint(),
            )),
            Err(MultiWriteError::RequestFailed { source }) => Err(error::from_driver(
                source,
                WRITE,
                SideEffect::Writes,
                &cluster.endpoint(),
            )),
        }
    }

    /// Replaces the record of this version, or creates it, if the node of the holder exists.
    async fn commit(
        &self,
        link: &Link,
        path: &str,
        version: Option<i32>,
        data: &[u8],
    ) -> Result<Vec<MultiWriteResult>, MultiWriteError> {
        let acls = self.claim.session().handle().cluster.config.access.acls();
        let mut writer = link.client.new_multi_writer();
        writer.add_check_version(self.path, -1)?;
        match version {
            Some(version) => writer.add_set_data(path, data, Some(version))?,
            None => writer.add_create(path, data, &CreateMode::Persistent.with_acls(acls))?,
        }
        writer.commit().await
    }

    /// Creates the parent of all records.
    async fn make_parent(&self, link: &Link) -> Result<()> {
        let handle = self.claim.session().handle();
        let (cluster, path) = (&handle.cluster, handle.cluster.names.records());
        let persistent = CreateMode::Persistent.with_acls(cluster.config.access.acls());
        let made = link.client.mkdir(&path, &persistent);
        // A lost answer is harmless: nothing else depends on it.
        cluster
            .ask(WRITE, SideEffect::None, handle.patience, made)
            .await
    }
}
