//! [`Sessions`]: the sessions of one backend.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    backend::request::Request,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    session::{
        SessionClock,
        driver::SessionTime,
        keep_alive,
        registration::{Claim, Claimed},
        session::{Session, SessionDriver},
    },
    signal::LossReason,
    ttl::Ttl,
};

/// The number of TTLs that can be in use at a time. Each TTL needs a session of its own, and each
/// session must be kept alive. A program that needs more TTLs most likely computes them.
pub const MAX_TTLS: usize = 4;

/// The number of sessions that a claim tries, if each one ends while the claim is made.
const MAX_SESSIONS_TRIED: usize = 4;

/// The number of names that a claim tries, if each one is taken.
const MAX_NAMES_TRIED: u32 = 16;

/// The sessions of one backend: one per TTL, opened lazily and shared by all locks of that TTL.
#[derive(Debug)]
pub struct Sessions<D: SessionDriver> {
    driver: Arc<D>,
    /// A TTL has several sessions only if the driver limits the capacity of a session.
    open: Mutex<HashMap<Ttl, Vec<Arc<Session<D>>>>>,
    /// Serialises opening. It stores the last failure: a task that waited for an attempt which
    /// began after its own request returns that failure instead of trying again.
    opening: tokio::sync::Mutex<Option<(Ttl, Timestamp, Error)>>,
    closed: AtomicBool,
}

impl<D: SessionDriver> Sessions<D> {
    /// Creates a set without open sessions.
    #[must_use]
    pub fn new(driver: Arc<D>) -> Self {
        Self {
            driver,
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Returns the driver.
    #[must_use]
    pub fn driver(&self) -> &Arc<D> {
        &self.driver
    }

    /// Registers a name in the session of the request's TTL. Opens the session if there is none,
    /// and renews it if little of its TTL is left. Call it before the request is sent.
    ///
    /// `name` returns the name for a session handle and a number. The number is 0 first, and is
    /// incremented while the name is taken. A driver that cannot choose its names ignores it.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Unsupported`] if [`MAX_TTLS`] other TTLs are in use,
    /// [`ErrorKind::Conflict`] if the session already has a claim of that name,
    /// [`ErrorKind::Closed`] after [`close`](Self::close), and the driver's error if opening or
    /// renewing the session fails.
    ///
    /// # Cancel safety
    /// Not cancel safe: the future must be driven to completion.
    pub async fn claim(
        &self,
        request: &Request,
        name: impl Fn(&D::Handle, u32) -> D::Claim + Send,
    ) -> Result<Claim<D>> {
        let mut ended = 0;
        while ended < MAX_SESSIONS_TRIED {
            let session = match self.find(request.ttl()) {
                Some(session) => session,
                None => self.open(request).await?,
            };
            match session.renew_if_stale().await {
                Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
                _ => {}
            }
            let mut number = 0;
            let claimed = loop {
                match session.claim(name(session.handle(), number)) {
                    Err(_taken) if number < MAX_NAMES_TRIED => number += 1,
                    claimed => break claimed?,
                }
            };
            match claimed {
                Claimed::Place(claim) => return Ok(claim),
                // The loop ends: each round opens one more session, or the driver refuses to.
                Claimed::Full => {}
                Claimed::Ended => ended += 1,
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "every session ended as soon as it was opened; see the server's log",
        ))
    }

    /// Returns the live sessions.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<Session<D>>> {
        self.lock()
            .values()
            .flatten()
            .filter(|session| session.is_live())
            .cloned()
            .collect()
    }

    /// Ends all sessions, in this process and on the server.
    ///
    /// # Errors
    /// Returns the first error of the driver. The remaining sessions are closed nevertheless.
    pub async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // Wait for a session that is being opened.
        let opening = self.opening.lock().await;
        let sessions: Vec<_> = self
            .lock()
            .drain()
            .flat_map(|(_, sessions)| sessions)
            .collect();
        drop(opening);
        let closed = sessions
            .iter()
            .map(|session| session.close(LossReason::ClientClosed));
        futures_util::future::join_all(closed)
            .await
            .into_iter()
            .collect()
    }

    fn find(&self, ttl: Ttl) -> Option<Arc<Session<D>>> {
        let capacity = self.driver.capacity();
        let open = self.lock();
        let mut live = open.get(&ttl)?.iter().filter(|session| session.is_live());
        live.find(|session| capacity == usize::MAX || !session.is_full())
            .cloned()
    }

    async fn open(&self, request: &Request) -> Result<Arc<Session<D>>> {
        let (asked, ttl) = (request.now(), request.ttl());
        let mut failure = self.opening.lock().await;
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the backend was closed"));
        }
        if let Some(session) = self.find(ttl) {
            return Ok(session);
        }
        if let Some((failed, sent, error)) = &*failure
            && *failed == ttl
            && *sent >= asked
        {
            return Err(error.clone());
        }
        self.make_room(ttl).await?;
        let time = SessionClock::of(request);
        let sent = time.now();
        match self.driver.open(&time).await {
            Ok(opened) => {
                let session = Arc::new(Session::new(&self.driver, opened, time, sent));
                // The task ends with the session, or when the last reference to the session is
                // dropped.
                drop(tokio::spawn(keep_alive::keep(Arc::downgrade(&session))));
                self.driver.started(&session);
                self.lock()
                    .entry(ttl)
                    .or_default()
                    .push(Arc::clone(&session));
                *failure = None;
                Ok(session)
            }
            Err(error) => {
                *failure = Some((ttl, sent, error.clone()));
                Err(error)
            }
        }
    }

    /// Removes ended sessions. Closes idle ones if too many TTLs or too many sessions are in use.
    async fn make_room(&self, ttl: Ttl) -> Result<()> {
        let idle = {
            let mut open = self.lock();
            for sessions in open.values_mut() {
                sessions.retain(|session| session.is_live());
            }
            open.retain(|_, sessions| !sessions.is_empty());
            if !open.contains_key(&ttl) && open.len() >= MAX_TTLS {
                take_idle_ttl(&mut open).ok_or_else(|| too_many_ttls(ttl, &open))?
            } else if open.values().map(Vec::len).sum::<usize>() >= self.driver.max_sessions() {
                take_idle_session(&mut open).into_iter().collect()
            } else {
                return Ok(());
            }
        };
        // A request that is about to use one of these sessions retries in another one.
        for session in idle {
            if let Err(error) = session.close(LossReason::Expired).await {
                tracing::debug!(target: "leasehold", %error, "session not closed; it expires");
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ttl, Vec<Arc<Session<D>>>>> {
        // Every change under the mutex is complete when it panics.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_idle_ttl<D: SessionDriver>(
    open: &mut HashMap<Ttl, Vec<Arc<Session<D>>>>,
) -> Option<Vec<Arc<Session<D>>>> {
    let idle = open
        .iter()
        .find(|(_, sessions)| sessions.iter().all(|session| session.claims() == 0));
    let ttl = *idle?.0;
    open.remove(&ttl)
}

fn take_idle_session<D: SessionDriver>(
    open: &mut HashMap<Ttl, Vec<Arc<Session<D>>>>,
) -> Option<Arc<Session<D>>> {
    open.values_mut().find_map(|sessions| {
        let idle = sessions.iter().position(|session| session.claims() == 0)?;
        Some(sessions.swap_remove(idle))
    })
}

fn too_many_ttls<D: SessionDriver>(ttl: Ttl, open: &HashMap<Ttl, Vec<Arc<Session<D>>>>) -> Error {
    let mut ttls: Vec<_> = open.keys().copied().collect();
    ttls.sort_unstable();
    let ttls: Vec<_> = ttls.iter().map(ToString::to_string).collect();
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "a TTL of {ttl} needs another session, and {MAX_TTLS} TTLs are in use ({}); use one of those, or another client",
            ttls.join(", ")
        ),
    )
}
