//! [`Candidate`]: an acquisition that has a place in a session, or is about to.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use leasehold_core::{
    Error, ErrorKind, Lease, Request, Result,
    session::{Claim, Sessions},
};
use zookeeper_client::{Error as Driver, EventType, OneshotWatcher, WatchedEvent};

use crate::{
    backend::{Trouble, cancelled},
    connection::{Link, Room},
    error::{self, Effect, named},
    gather::{Created, Done, Job, Work},
    keys::{Directory, Node, REVOKE, Uuid, data_of},
    lease::ZookeeperLease,
    loss::Held,
    queue::{Standing, Wait, find, standing},
    session::{ZookeeperSessions, note, run},
    wake::{self, Event, Set},
};

/// How often a node is created because the one before was certainly not.
const CREATIONS: usize = 3;
/// How often who could not be watched is looked at.
const UNWATCHED: Duration = Duration::from_millis(100);

/// Claimed before anything is sent.
pub(crate) struct Candidate {
    claim: Claim<ZookeeperSessions>,
    request: Request,
    directory: Directory,
    pub(crate) lane: u64,
}

impl Candidate {
    pub(crate) async fn claim(
        sessions: &Sessions<ZookeeperSessions>,
        request: &Request,
        directory: &Directory,
    ) -> Result<Self> {
        let exclusive = sessions.driver().cluster.names.exclusive;
        let name = |handle: &crate::session::Handle, _| {
            directory.node(request.mode(), exclusive, Uuid::new(handle.tag, request.owner()))
        };
        let claim = sessions.claim(request, name).await.map_err(|error| named(error, "acquire"))?;
        claim.session().handle().attend(claim.session());
        Ok(Self { claim, request: request.clone(), directory: directory.clone(), lane: directory.lane() })
    }

    /// Creates its node. If the answer is lost, finds out what became of it.
    pub(crate) async fn enqueue(&self) -> Result<Created> {
        let node = self.claim.name();
        let mut tries = 0;
        loop {
            tries += 1;
            let (directory, data) = (self.directory.clone(), data_of(&self.request));
            let work = Work::Create { directory, node: node.clone(), data };
            let error = match run(&self.claim, Job { operation: "acquire", lane: self.lane, work }).await {
                Ok(Done::Created(created)) => return Ok(created),
                Ok(Done::Deleted(_)) => return Err(error::protocol("acquire")),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Indeterminate {
                return Err(error);
            }
            match self.recover(node).await {
                Some(Some(created)) => return Ok(created),
                // It was certainly not created, and will not be.
                Some(None) if tries < CREATIONS && !self.request.is_cancelled() => {}
                Some(None) => {
                    return Err(error::plain(ErrorKind::Unavailable, "acquire", error.message()).with_source(error));
                }
                // The next renewal removes whatever there is.
                None => return Err(error),
            }
        }
    }

    /// After a lost answer: the node of its uuid, `Some(None)` if there is none, `None` if that cannot be told.
    async fn recover(&self, node: &Node) -> Option<Option<Created>> {
        let (session, started) = (self.claim.session(), self.request.now());
        let handle = session.handle();
        let mut trouble = Trouble::default();
        loop {
            match self.look_for(node).await {
                Ok(found) => return Some(found),
                Err(error) => {
                    note(&self.claim, &error);
                    // The driver reconnects meanwhile.
                    let patience = handle.patience * 2;
                    if !session.is_live()
                        || self.request.is_cancelled()
                        || self.request.now().since(started) >= patience
                    {
                        return None;
                    }
                    trouble.ride_out(error, &self.request).ok()?;
                    tokio::time::sleep(trouble.pause).await;
                }
            }
        }
    }

    async fn look_for(&self, node: &Node) -> Result<Option<Created>> {
        let handle = self.claim.session().handle();
        let (cluster, link) = (&handle.cluster, handle.link("acquire")?);
        let looked = async {
            // A creation that is still on its way goes before this on the same connection, and on an older one it is refused from
            // now on: the session has moved. So what is not there now never will be.
            let (sync, list) =
                (link.client.sync(self.directory.path()), link.client.list_children(self.directory.path()));
            let (synced, listed) = futures_util::future::join(sync, list).await;
            match (synced, listed) {
                (Err(Driver::NoNode), _) | (_, Err(Driver::NoNode)) => Ok(None),
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(()), Ok(children)) => {
                    let Some((name, _)) = find(&children, node.uuid) else { return Ok(None) };
                    let path = self.directory.child(name);
                    let stat = link.client.check_stat(&path).await?;
                    // Nobody else's, whatever it is called.
                    let ours = stat.filter(|stat| stat.ephemeral_owner == handle.session);
                    Ok(ours.map(|stat| Created { path: path.into(), czxid: stat.czxid, children: Some(children) }))
                }
            }
        };
        cluster.ask("acquire", Effect::None, handle.patience, looked).await
    }

    /// Who is there.
    pub(crate) async fn list(&self) -> Result<Vec<String>> {
        let handle = self.claim.session().handle();
        let link = handle.link("acquire")?;
        let listed = handle.cluster.list("acquire", &link, handle.patience, &self.directory).await;
        listed.inspect_err(|error| note(&self.claim, error))
    }

    /// Where it stands among those who were there when it came.
    pub(crate) async fn first_look(&self, queued: &Created) -> Result<Standing> {
        match &queued.children {
            Some(children) => self.standing(children),
            None => self.standing(&self.list().await?),
        }
    }

    fn standing(&self, children: &[String]) -> Result<Standing> {
        standing(self.request.key(), self.request.mode(), self.claim.name().uuid, children)
    }

    /// Waits in the queue until it holds; then with the watch on its own node, if it has one.
    pub(crate) async fn wait(&self, queued: &mut Created) -> Result<Option<Event>> {
        let mut own = None;
        let mut trouble = Trouble::default();
        loop {
            match self.step(queued, &mut own).await {
                Ok(true) => return Ok(own),
                Ok(false) => trouble = Trouble::default(),
                Err(error) => {
                    note(&self.claim, &error);
                    trouble.ride_out(error, &self.request)?;
                    tokio::select! {
                        () = tokio::time::sleep(trouble.pause) => {}
                        () = self.claim.session().ended() => return Err(lost_place()),
                        () = self.request.cancelled() => return Err(cancelled()),
                    }
                }
            }
        }
    }

    /// Looks where it stands, and waits for one change. Whether it holds.
    async fn step(&self, queued: &mut Created, own: &mut Option<Event>) -> Result<bool> {
        let handle = self.claim.session().handle();
        let link = handle.link("acquire")?;
        // From before the watches: a connection that broke since may have mixed up the order of what they tell.
        let mut connection = link.client.state_watcher();
        let (children, anybody) = match queued.children.take() {
            Some(children) => (children, None),
            None if self.request.mode().is_permit() => {
                let listed = wake::children(&link, &self.directory);
                let (children, watch) = handle.cluster.ask("acquire", Effect::None, handle.patience, listed).await?;
                (children, Some(watch))
            }
            None => (self.list().await?, None),
        };
        let wait = match self.standing(&children)? {
            Standing::Holds => return Ok(true),
            Standing::Absent => return Err(lost_place()),
            Standing::Waits(wait) => wait,
        };
        let ahead = match (wait, anybody) {
            (Wait::For { child, only }, _) => Ahead::Node { path: self.directory.child(&child), only },
            (Wait::Any, Some(watch)) => Ahead::Anybody(watch),
            // Looked without a watch: look with one.
            (Wait::Any, None) => return Ok(false),
        };
        let watching = self.watch(&link, &queued.path, own, ahead);
        let watching = async { Ok(watching.await) };
        let (event, only) = match handle.cluster.ask("acquire", Effect::None, handle.patience, watching).await? {
            Ok(Set::Watching((event, only))) => (Some(event), only),
            Ok(Set::NoRoom) => (None, false),
            Ok(Set::Gone) => return Ok(false),
            Err(error) => return Err(error),
        };
        let (event, net) = match event {
            Some(event) => (event, handle.cluster.config.safety_net),
            None => (Box::pin(std::future::pending()) as Event, UNWATCHED),
        };
        tokio::select! {
            // Its own first: if both have gone, it must not take the lock for its own.
            biased;
            told = told(own) => {
                *own = None;
                match told.event_type {
                    EventType::NodeDeleted | EventType::Session => Err(lost_place()),
                    _ => Ok(false),
                }
            }
            _ = event => Ok(only && connection.changed().now_or_never().is_none()),
            () = self.claim.session().ended() => Err(lost_place()),
            () = self.request.cancelled() => Err(cancelled()),
            () = tokio::time::sleep(net) => Ok(false),
        }
    }

    /// Watches what is ahead, and its own node, in one round trip.
    async fn watch(
        &self,
        link: &Arc<Link>,
        path: &str,
        own: &mut Option<Event>,
        ahead: Ahead,
    ) -> Result<Set<(Event, bool)>> {
        let handle = self.claim.session().handle();
        let failed = |error| error::of_driver(error, "acquire", Effect::None, &handle.cluster.endpoint());
        let mine = async {
            if own.is_none() {
                match wake::node(link, path).await.map_err(failed)? {
                    // Once it holds, whoever watches over it reads this again.
                    Set::Watching((.., data)) if data.starts_with(REVOKE) => return Ok(false),
                    Set::Watching((watcher, room, _)) => *own = Some(wake::told(watcher, room)),
                    Set::Gone => return Err(lost_place()),
                    Set::NoRoom => return Ok(false),
                }
            }
            Ok(true)
        };
        let other = async {
            Ok::<_, Error>(match ahead {
                Ahead::Node { path, only } => match wake::node(link, &path).await.map_err(failed)? {
                    Set::Watching((watcher, room, _)) => Set::Watching((wake::told(watcher, room), only)),
                    Set::Gone => Set::Gone,
                    Set::NoRoom => Set::NoRoom,
                },
                Ahead::Anybody(Some((watcher, room))) => Set::Watching((wake::told(watcher, room), false)),
                Ahead::Anybody(None) => Set::NoRoom,
            })
        };
        let (mine, other) = futures_util::future::join(mine, other).await;
        // Without an eye on its own node it must look again before it holds.
        Ok(match (mine?, other?) {
            (false, Set::Watching((event, _))) => Set::Watching((event, false)),
            (_, other) => other,
        })
    }

    /// Makes a lease of it, if its session still stands.
    pub(crate) async fn granted(self, queued: Created, own: Option<Event>) -> Result<Arc<dyn Lease>> {
        let now = self.request.now();
        if self.claim.valid_until().is_past(now) || !self.claim.hold(self.request.loss_sink()) {
            self.leave(&queued).await;
            return Err(lost_place());
        }
        let Self { claim, request, lane, .. } = self;
        let held = Held::new(queued.path, claim.name().uuid, request.loss_sink());
        claim.session().handle().losses.add(&held, own);
        Ok(Arc::new(ZookeeperLease::new(claim, request, held, lane, queued.czxid)))
    }

    /// Takes its node away, whatever it stood for.
    pub(crate) async fn leave(&self, queued: &Created) {
        if !self.claim.session().is_live() {
            // Its end on the server takes the node with it.
            return;
        }
        let work = Work::Delete { path: Arc::clone(&queued.path) };
        if let Err(error) = run(&self.claim, Job { operation: "acquire", lane: self.lane, work }).await {
            tracing::debug!(target: "leasehold", path = %queued.path, %error, "not taken away; the next renewal does");
            self.claim.doubt();
        }
    }
}

/// What a waiter waits for, besides its own node.
enum Ahead {
    Node {
        path: String,
        only: bool,
    },
    /// Whoever comes or goes; `None` if there was no room for a watch.
    Anybody(Option<(OneshotWatcher, Room)>),
}

/// Completes when a watch tells; without one, never.
async fn told(watch: &mut Option<Event>) -> WatchedEvent {
    match watch {
        Some(watch) => watch.await,
        None => std::future::pending().await,
    }
}

pub(crate) fn lost_place() -> Error {
    error::plain(
        ErrorKind::Lost,
        "acquire",
        "the session ended, or an operator took the place away, before it was granted",
    )
}
