//! `handoff`: the time from the start of a release until a waiting process holds the lock.
//! `handoff-busy`: the same while another client writes to the server.
//!
//! Two processes alternate, so that every sample is a change of process. Their timestamps come from
//! a shared clock.

use std::{pin::pin, task::Poll, thread, time::Duration};

use leasehold_integration::{
    HarnessError, Result,
    peer::{Peer, tell},
};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Scenario;
use crate::{
    arguments::WorkerArguments,
    backend::Backend,
    figures::Latencies,
    plan::Plan,
    process,
    progress::Progress,
    row::{Figure, Row},
    runtime::RuntimeKind,
    subject::{Lock, Locks, Source, Subject},
    worker,
};

/// The minimum hold after the other process began to wait, so that its request has been refused.
const HOLD: Duration = Duration::from_millis(2);
/// The rate of background writes in `handoff-busy`.
const WRITES_PER_SECOND: u32 = 500;
/// Long enough for subjects that poll.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(
    scenario: Scenario,
    plan: &Plan,
    backend: &dyn Backend,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let name = backend.name().name();
    let Some(location) = backend.location() else {
        progress.skip(format_args!(
            "{} of {name}: it lives in one process",
            scenario.name()
        ));
        return Ok(Vec::new());
    };
    let busy = match scenario {
        Scenario::HandoffBusy => match backend.busy(WRITES_PER_SECOND)? {
            Some(busy) => Some(busy),
            None => {
                progress.skip(format_args!(
                    "{} of {name}: no background writes for this backend",
                    scenario.name()
                ));
                return Ok(Vec::new());
            }
        },
        _ => None,
    };
    let subjects = plan.subjects(backend, scenario);
    let mut rows = Vec::new();
    for &kind in plan.runtimes {
        progress.step(format_args!("{name}: {}, {}", scenario.name(), kind.name()));
        let mut measured = Vec::new();
        for subject in &subjects {
            measured.push((
                Game::start(backend, &location, &**subject, kind)?,
                Latencies::new(),
                Vec::new(),
            ));
        }
        for _ in 0..plan.rounds {
            for (subject, (game, latencies, medians)) in subjects.iter().zip(&mut measured) {
                let (woken, polling) = plan.handoffs;
                let handoffs = if subject.period().is_zero() {
                    woken
                } else {
                    polling
                };
                let nanos = game.play(handoffs)?;
                medians.push(Latencies::of(&nanos).quantile(0.5));
                latencies.extend(&nanos);
            }
        }
        for (subject, (game, latencies, medians)) in subjects.iter().zip(measured) {
            game.end()?;
            let row = Row::new(name, scenario, 2, &**subject, kind, Figure::Costs(medians));
            rows.push(row.with_latencies(&latencies));
        }
    }
    if let Some(busy) = busy {
        progress.step(format_args!(
            "{name}: beside {:.0} writes per second",
            busy.per_second()
        ));
    }
    Ok(rows)
}

/// Two processes that pass a lock to each other. The first one holds it.
struct Game {
    holder: Peer,
    waiter: Peer,
    period: Duration,
}

impl Game {
    fn start(
        backend: &dyn Backend,
        location: &str,
        subject: &dyn Subject,
        runtime: RuntimeKind,
    ) -> Result<Self> {
        let spawn = || {
            worker::spawn(&WorkerArguments {
                role: Scenario::Handoff,
                on: backend.name(),
                at: location.to_owned(),
                subject: subject.name().to_owned(),
                runtime,
                count: 1,
                seconds: 0,
            })
        };
        let mut game = Self {
            holder: spawn()?,
            waiter: spawn()?,
            period: subject.period(),
        };
        game.holder.say("acquire")?;
        heard(&mut game.holder, "waiting")?;
        heard(&mut game.holder, "held")?;
        // Warms up both processes.
        game.play(2)?;
        Ok(game)
    }

    /// Returns the duration of each hand-off in nanoseconds.
    fn play(&mut self, handoffs: usize) -> Result<Vec<u64>> {
        let mut nanos = Vec::with_capacity(handoffs);
        for _ in 0..handoffs {
            self.waiter.say("acquire")?;
            heard(&mut self.waiter, "waiting")?;
            // The release happens at a random time of the polling period.
            thread::sleep(HOLD + self.period.max(HOLD).mul_f64(rand::random()));
            self.holder.say("release")?;
            let released = heard(&mut self.holder, "released")?;
            let held = heard(&mut self.waiter, "held")?;
            nanos.push(held.saturating_sub(released));
            std::mem::swap(&mut self.holder, &mut self.waiter);
        }
        Ok(nanos)
    }

    /// Ends both processes. Otherwise the lock would stay held for a TTL, and the next game would
    /// wait.
    fn end(mut self) -> Result<()> {
        self.holder.say("release")?;
        heard(&mut self.holder, "released").map(drop)
    }
}

/// Returns the timestamp of the peer's next message, which must be `expected`.
fn heard(peer: &mut Peer, expected: &str) -> Result<u64> {
    let line = peer.hear(TIMEOUT)?;
    let stamp = line
        .strip_prefix(expected)
        .and_then(|stamp| stamp.trim().parse().ok());
    stamp
        .ok_or_else(|| HarnessError::new(format!("a worker sent {line:?} instead of {expected:?}")))
}

/// Runs the worker: acquires and releases on command.
pub(crate) async fn take_turns<S: Source>(
    source: &S,
    mut orders: UnboundedReceiver<String>,
) -> Result<()> {
    let locks = source.open().await?;
    let mut lock = locks.lock("handoff");
    let mut held = None;
    while let Some(order) = orders.recv().await {
        match (&*order, held.take()) {
            ("acquire", None) => {
                let mut acquiring = pin!(lock.acquire());
                // The first poll sends the request.
                let at_once = std::future::poll_fn(|cx| match acquiring.as_mut().poll(cx) {
                    Poll::Ready(acquired) => Poll::Ready(Some(acquired)),
                    Poll::Pending => Poll::Ready(None),
                })
                .await;
                tell(format_args!("waiting {}", process::now()));
                let acquired = match at_once {
                    Some(acquired) => acquired?,
                    None => acquiring.await?,
                };
                tell(format_args!("held {}", process::now()));
                held = Some(acquired);
            }
            ("release", Some(held)) => {
                let begun = process::now();
                lock.release(held).await?;
                tell(format_args!("released {begun}"));
            }
            _ => return Err(HarnessError::new(format!("unexpected command: {order:?}"))),
        }
    }
    Ok(())
}
