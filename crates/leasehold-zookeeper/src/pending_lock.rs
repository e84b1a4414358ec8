//! [`PendingLock`]: an acquisition that is not granted yet.

use std::sync::Arc;

use leasehold_core::{
    Error, ErrorKind, Result, Ttl,
    backend::{Lease, Request, support::RetryBudget},
    session::{Claim, Sessions},
    text::Escaped,
};
use zookeeper_client::Error as Driver;

use crate::{
    batch::{Created, Done, Job, Work},
    error::{self, ERRORS, SideEffect},
    keys::{Directory, Member, Sequence, Uuid},
    lease::ZookeeperLease,
    node_data::{Says, data_of},
    queue::{Standing, find, refusal, standing},
    session::{Handle, ZookeeperSessions, note, run},
    session_tasks,
    wake::Event,
    watch_queue::WatchedLease,
};

/// The most attempts to create a node. Another one is made if the node certainly was not created.
const CREATIONS: usize = 3;

/// An acquisition that is not granted yet. It is registered in its session before anything is sent.
pub(crate) struct PendingLock {
    pub(crate) claim: Claim<ZookeeperSessions>,
    /// The claim in another session, with a short time-out, which its node belongs to while it
    /// waits. So the node of a dead waiter blocks the waiters behind it for seconds, whatever its
    /// TTL.
    waiting: Option<Claim<ZookeeperSessions>>,
    pub(crate) request: Request,
    pub(crate) directory: Directory,
    pub(crate) lane: u64,
}

impl PendingLock {
    pub(crate) async fn claim(
        sessions: &Sessions<ZookeeperSessions>,
        request: &Request,
        directory: &Directory,
    ) -> Result<Self> {
        let claim = claim_in(sessions, request, directory).await?;
        let (request, directory, lane) = (request.clone(), directory.clone(), directory.lane());
        Ok(Self {
            claim,
            waiting: None,
            request,
            directory,
            lane,
        })
    }

    /// Waits in a session of `sessions`, which have this TTL, until it holds. Must be called before
    /// anything is sent.
    pub(crate) async fn wait_in(
        mut self,
        sessions: &Sessions<ZookeeperSessions>,
        ttl: Ttl,
    ) -> Result<Self> {
        let request = self.request.clone().with_ttl(ttl);
        self.waiting = Some(claim_in(sessions, &request, &self.directory).await?);
        Ok(self)
    }

    /// Returns the claim in the session that its node belongs to while it waits.
    pub(crate) fn place(&self) -> &Claim<ZookeeperSessions> {
        self.waiting.as_ref().unwrap_or(&self.claim)
    }

    /// Waits until a session has ended that it needs.
    pub(crate) async fn ended(&self) {
        match &self.waiting {
            Some(waiting) => tokio::select! {
                () = self.claim.session().ended() => {}
                () = waiting.session().ended() => {}
            },
            None => self.claim.session().ended().await,
        }
    }

    /// Creates its node. Returns `None` while the numbers of the directory are used up and the
    /// directory is not empty. Such a directory takes no newcomers; it is removed when it is empty.
    pub(crate) async fn enqueue(&self) -> Result<Option<Created>> {
        let handle = self.place().session().handle();
        let used_up = &handle.cluster.used_up;
        loop {
            if let Some(since) = used_up.since(self.lane) {
                let link = handle.link("acquire")?;
                let gone = handle
                    .cluster
                    .renumber(&link, handle.patience, &self.directory, since)
                    .await;
                if !gone.inspect_err(|error| note(self.place(), error))? {
                    return Ok(None);
                }
                used_up.forget(self.lane);
            }
            let created = self.create().await?;
            if sequence_of(&created).is_none_or(Sequence::is_ordered) {
                return Ok(Some(created));
            }
            tracing::warn!(
                target: "leasehold",
                path = %Escaped(self.directory.path()),
                "the sequence numbers of this lock are used up: it is granted again once its directory is empty"
            );
            used_up.note(self.lane, created.czxid);
            self.leave(&created).await;
        }
    }

    /// Creates its node.
    async fn create(&self) -> Result<Created> {
        let place = self.place();
        let says = if self.waiting.is_some() {
            Says::Waits
        } else {
            Says::Holds { since: None }
        };
        let work = || {
            let (directory, node, data) = (
                self.directory.clone(),
                place.name().clone(),
                data_of(&self.request, says),
            );
            Work::Create {
                directory,
                node,
                data,
            }
        };
        match self.settle(place, work).await? {
            Done::Created(created) => Ok(created),
            Done::Deleted(_) | Done::Moved(_) => Err(ERRORS.unexpected("acquire")),
        }
    }

    /// Converts it into a lease. Nothing may be ahead of it in the queue.
    pub(crate) async fn hold(self, queued: Created, own: Option<Event>) -> Result<Arc<dyn Lease>> {
        match self.move_in(&queued).await? {
            // The watch was on the node that waited, which is gone.
            Some(moved) => self.granted(moved, None).await,
            None => self.granted(queued, own).await,
        }
    }

    /// Returns whether the other nodes among these children would refuse an equal request.
    pub(crate) fn is_contended(&self, children: &[String]) -> bool {
        let own = self.place().name().uuid;
        let others: Vec<_> = children
            .iter()
            .filter(|name| Uuid::of_name(name) != Some(own))
            .cloned()
            .collect();
        !matches!(
            refusal(self.request.key(), self.request.mode(), &others),
            Ok(None)
        )
    }

    /// Moves its node from the session of waiters to its own, if it waited there. The node keeps
    /// its number, and so its position, for Leasehold and for other programs.
    async fn move_in(&self, queued: &Created) -> Result<Option<Created>> {
        let Some(waiting) = &self.waiting else {
            return Ok(None);
        };
        let node = &self.claim.name().path;
        let number = queued
            .path
            .strip_prefix(&*waiting.name().path)
            .ok_or_else(|| ERRORS.unexpected("acquire"))?;
        let to: Arc<str> = format!("{node}{number}").into();
        let work = || Work::Move {
            from: Arc::clone(&queued.path),
            to: Arc::clone(&to),
            data: data_of(
                &self.request,
                Says::Holds {
                    since: Some(queued.czxid),
                },
            ),
        };
        let settled = self.settle(&self.claim, work).await;
        let moved = Created {
            path: to,
            czxid: queued.czxid,
            children: None,
        };
        match settled {
            Ok(Done::Moved(true) | Done::Created(_)) => Ok(Some(moved)),
            // The node was removed from the queue, with its session or by an operator.
            Ok(Done::Moved(false)) => Err(lost_place()),
            Ok(Done::Deleted(_)) => Err(ERRORS.unexpected("acquire")),
            Err(error) => {
                // Once it has left the queue, a transaction that is still in flight moves nothing.
                self.leave(queued).await;
                self.leave(&moved).await;
                Err(error)
            }
        }
    }

    /// Runs a job in the session of `claim` that creates the node of that claim. If the answer is
    /// lost, it finds out whether the node was created.
    async fn settle(
        &self,
        claim: &Claim<ZookeeperSessions>,
        work: impl Fn() -> Work,
    ) -> Result<Done> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match run(
                claim,
                Job {
                    operation: "acquire",
                    lane: self.lane,
                    work: work(),
                },
            )
            .await
            {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if error.kind() == ErrorKind::Denied {
                let handle = claim.session().handle();
                let (link, denied) = (handle.link("acquire")?, Err::<(), _>(error.clone()));
                if tries < CREATIONS && handle.cluster.is_cured("acquire", &link, &denied).await {
                    continue;
                }
            }
            if error.kind() != ErrorKind::Indeterminate {
                return Err(error);
            }
            match self.recover(claim).await {
                Some(Some(created)) => return Ok(Done::Created(created)),
                // The node was not created, and will not be.
                Some(None) if tries < CREATIONS && !self.request.is_cancelled() => {}
                Some(None) => {
                    let kind = ErrorKind::Unavailable;
                    return Err(error::restated(
                        kind,
                        "acquire",
                        error.message().to_owned(),
                        &error,
                    ));
                }
                // The next renewal removes the node if it exists.
                None => return Err(error),
            }
        }
    }

    /// Looks for the node of this claim after a lost answer. Returns `Some(None)` if it does not
    /// exist, and `None` if that is unknown.
    async fn recover(&self, claim: &Claim<ZookeeperSessions>) -> Option<Option<Created>> {
        let (session, started) = (claim.session(), self.request.now());
        let handle = session.handle();
        let mut trouble = RetryBudget::none();
        loop {
            match self.look_for(claim).await {
                Ok(found) => return Some(found),
                Err(error) => {
                    note(claim, &error);
                    // The driver reconnects meanwhile.
                    let patience = handle.patience * 2;
                    if !session.is_live()
                        || self.request.is_cancelled()
                        || self.request.now().since(started) >= patience
                    {
                        return None;
                    }
                    trouble.spend(error, &self.request).ok()?;
                    tokio::time::sleep(trouble.pause()).await;
                }
            }
        }
    }

    async fn look_for(&self, claim: &Claim<ZookeeperSessions>) -> Result<Option<Created>> {
        let handle = claim.session().handle();
        let (cluster, link) = (&handle.cluster, handle.link("acquire")?);
        let looked = async {
            // A creation in flight precedes this request on the same connection. On an older
            // connection it is refused from now on, because the session has moved. So a node that
            // does not exist now will never exist.
            let (sync, list) = (
                link.client.sync(self.directory.path()),
                link.client.list_children(self.directory.path()),
            );
            let (synced, listed) = futures_util::future::join(sync, list).await;
            match (synced, listed) {
                (Err(Driver::NoNode), _) | (_, Err(Driver::NoNode)) => Ok(None),
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(()), Ok(children)) => {
                    let Some((name, _)) = find(&children, claim.name().uuid) else {
                        return Ok(None);
                    };
                    let path = self.directory.child(name);
                    let stat = link.client.check_stat(&path).await?;
                    // Another program may have created a node of that name.
                    let ours = stat.filter(|stat| stat.ephemeral_owner == handle.session);
                    Ok(ours.map(|stat| Created {
                        path: path.into(),
                        czxid: stat.czxid,
                        children: Some(children),
                    }))
                }
            }
        };
        cluster
            .ask("acquire", SideEffect::None, handle.patience, looked)
            .await
    }

    /// Lists the children of its directory.
    pub(crate) async fn list(&self) -> Result<Vec<String>> {
        let handle = self.place().session().handle();
        let link = handle.link("acquire")?;
        let listed = handle
            .cluster
            .list("acquire", &link, handle.patience, &self.directory)
            .await;
        listed.inspect_err(|error| note(self.place(), error))
    }

    /// Returns its position among the nodes that existed when it was created.
    pub(crate) async fn first_look(&self, queued: &Created) -> Result<Standing> {
        match &queued.children {
            Some(children) => self.standing(children),
            None => self.standing(&self.list().await?),
        }
    }

    pub(crate) fn standing(&self, children: &[String]) -> Result<Standing> {
        standing(
            self.request.key(),
            self.request.mode(),
            self.place().name().uuid,
            children,
        )
    }

    /// Converts it into a lease, if its session is still valid.
    async fn granted(self, queued: Created, own: Option<Event>) -> Result<Arc<dyn Lease>> {
        let now = self.request.now();
        if self.claim.valid_until().is_past(now) || !self.claim.hold(self.request.loss_notifier()) {
            self.leave(&queued).await;
            return Err(lost_place());
        }
        let Self {
            claim,
            waiting: _,
            request,
            directory: _,
            lane,
        } = self;
        let held = WatchedLease::new(queued.path, claim.name().uuid, request.loss_notifier());
        claim.session().handle().losses.add(&held, own);
        Ok(Arc::new(ZookeeperLease::new(
            claim,
            request,
            held,
            lane,
            queued.czxid,
        )))
    }

    /// Deletes its node.
    pub(crate) async fn leave(&self, queued: &Created) {
        let claims = || self.waiting.iter().chain([&self.claim]);
        let Some(live) = claims().find(|claim| claim.session().is_live()) else {
            // The server deletes the node with the session.
            return;
        };
        let work = Work::Delete {
            path: Arc::clone(&queued.path),
        };
        if let Err(error) = run(
            live,
            Job {
                operation: "acquire",
                lane: self.lane,
                work,
            },
        )
        .await
        {
            tracing::debug!(target: "leasehold", path = %Escaped(&queued.path), %error, "not deleted; the next renewal does");
            claims().for_each(Claim::mark_uncertain);
        }
    }
}

async fn claim_in(
    sessions: &Sessions<ZookeeperSessions>,
    request: &Request,
    directory: &Directory,
) -> Result<Claim<ZookeeperSessions>> {
    let part = sessions.driver().cluster.names.exclusive_part(request);
    let name = |handle: &Handle, _| {
        directory.node(request.mode(), part, Uuid::new(handle.tag, request.owner()))
    };
    let claim = sessions
        .claim(request, name)
        .await
        .map_err(|error| ERRORS.named(error, "acquire"))?;
    session_tasks::start(claim.session());
    Ok(claim)
}

/// Returns the number that the server gave to this node.
fn sequence_of(created: &Created) -> Option<Sequence> {
    let name = created.path.rsplit('/').next()?;
    Member::read(name).map(|own| own.sequence)
}

pub(crate) fn lost_place() -> Error {
    ERRORS.error(
        ErrorKind::Lost,
        "acquire",
        "the session ended, or an operator took the place away, before it was granted",
    )
}
