//! `leasehold once`: runs a program once per occurrence.

use std::{cell::Cell, ffi::OsString, fmt, time::Duration};

use leasehold::{
    AllInfo, Result,
    once::{Occurrence, Retry, Run, RunInfo, Turn},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::sleep,
};

use crate::{
    args::Once,
    backend,
    child::{Child, Environment},
    exit::{self, Failure, code_of_status},
    os_string::key_of,
    run::{act, client, is_freed_by_death},
    schemes,
    signals::{Signal, Signals, exit_code},
    stderr,
    watchdog::Watchdog,
};

/// The time that a program has between TERM and KILL once it has taken too long.
const OVERTIME_GRACE: Duration = Duration::from_secs(5);

/// The end of a program by a failure.
struct Failed {
    code: u8,
    why: String,
}

/// The note in the history.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

pub(crate) async fn once(args: &Once) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.backend.url)?;
    schemes::check_names(std::slice::from_ref(&args.name))?;
    let client = tokio::select! {
        code = signals.end() => return Ok(code),
        backend = backend::open(&args.backend.url) => {
            client(args.label.as_deref(), &args.command, backend?)
        }
    };
    let mut once = client
        .once(key)
        .with_missed(args.missed.0)
        .with_overlap(args.overlap)
        .with_retry(Retry {
            crashes: args.crashes,
            failures: args.failures,
            delay: args.retry_delay,
        })
        .with_at_least(args.at_least.unwrap_or_default())
        .with_history(args.history);
    // As for `run`, a deadline would end the lease of a command that was stopped for longer.
    let dies_with_us = !is_freed_by_death(&client);
    if !dies_with_us {
        once = once.with_ttl(client.capabilities().max_ttl);
    } else if let Some(ttl) = args.ttl {
        once = once.with_ttl(ttl);
    }
    if args.no_wait {
        once = once.with_wait(Duration::ZERO);
    }
    if let Some(cron) = args.cron.clone() {
        once = once.with_schedule(match &args.zone {
            Some(zone) => cron.in_zone(zone)?,
            None => cron,
        });
    } else if let Some(every) = args.every {
        once = once.with_schedule(every);
    }

    let running = Cell::new(false);
    let (to_program, mut passed_on) = unbounded_channel();
    let work = async |run: Run| {
        running.set(true);
        let ended = program(args, &run, dies_with_us, &mut passed_on).await;
        running.set(false);
        ended
    };
    let turn = async {
        match &args.occurrence {
            Some(occurrence) => once.run(occurrence.clone(), work).await,
            None => once.run_due(work).await,
        }
    };
    let mut turn = std::pin::pin!(turn);
    let turn = loop {
        tokio::select! {
            biased;
            turn = &mut turn => break Ok(turn),
            signal = signals.next() => if running.get() {
                // The receiver lives as long as the work.
                let sent = to_program.send(signal);
                debug_assert!(sent.is_ok(), "the work receives signals");
            } else if let Some(code) = exit_code(signal) {
                break Err(code);
            },
        }
    };
    let done = match turn {
        Ok(Ok(turn)) => Ok(report(args, turn)),
        Ok(Err(error)) => Err(error.into()),
        Err(code) => Ok(code),
    };
    backend::close(&client).await;
    done
}

/// Runs the program until it has ended, or until its lock is lost.
async fn program(
    args: &Once,
    run: &Run,
    dies_with_us: bool,
    passed_on: &mut UnboundedReceiver<Signal>,
) -> Result<(), Failed> {
    let failed = |failure: Failure| Failed {
        code: failure.code(),
        why: failure.message().to_owned(),
    };
    let environment = Environment {
        names: std::slice::from_ref::<OsString>(&args.name),
        run: Some((shown(run.occurrence()), run.attempt())),
        url: args.keep_url.then_some(args.backend.url.as_str()),
        dies_with_us,
    };
    let leases = AllInfo::from(run.lease().clone());
    let mut child = Child::start(&args.command, &leases, &environment).map_err(failed)?;
    let mut watchdog = Watchdog::new(leases.clone());
    let mut overtime = std::pin::pin!(until(args.at_most));
    let mut is_late = false;
    let mut kill = std::pin::pin!(until(None));
    let status = loop {
        tokio::select! {
            biased;
            action = watchdog.next() => act(action, &mut child, &leases),
            status = child.ended() => break status.map_err(failed)?,
            Some(signal) = passed_on.recv() => child.pass_on(signal),
            () = &mut overtime, if !is_late => {
                is_late = true;
                child.terminate();
                kill.set(until(Some(OVERTIME_GRACE)));
            }
            () = &mut kill => {
                child.kill();
                kill.set(until(None));
            }
        }
    };
    let code = code_of_status(status);
    match (watchdog.has_acted(), is_late, code) {
        (true, ..) => Err(Failed {
            code: exit::LOST,
            why: String::from("the lock was about to be lost, and the program was terminated"),
        }),
        (_, true, _) => Err(Failed {
            code: exit::OVERTIME,
            why: format!(
                "the program took longer than {:?}, and was terminated",
                args.at_most.unwrap_or_default()
            ),
        }),
        (_, _, 0) => Ok(()),
        (_, _, code) => Err(Failed {
            code,
            why: format!("exit code {code}"),
        }),
    }
}

/// Waits for this time, or for ever.
async fn until(after: Option<Duration>) {
    match after {
        Some(after) => sleep(after).await,
        None => std::future::pending().await,
    }
}

/// Says on standard error why the program did not run or failed, and returns the exit code.
fn report(args: &Once, turn: Turn<(), Failed>) -> u8 {
    let name = args.name.display();
    let (code, message) = match turn {
        Turn::Ran(()) => return 0,
        Turn::Failed(failed) if failed.code == exit::LOST || failed.code == exit::OVERTIME => {
            (failed.code, failed.why)
        }
        Turn::Failed(failed) if failed.why.starts_with("exit code ") => return failed.code,
        Turn::Failed(failed) => (failed.code, failed.why),
        Turn::Decided(run) => (0, decided(run)),
        Turn::NotDue(Some(next)) => (0, format!("nothing is due until {}", instant(next))),
        Turn::NotYet(wait) => (
            exit::CONTENDED,
            format!("it may begin in {wait:.0?}; try again then"),
        ),
        Turn::Busy => (
            exit::CONTENDED,
            String::from("another holds the lock; wait for it, or try again later"),
        ),
        _ => (0, String::from("nothing is due")),
    };
    stderr::report(&format!("`{name}`: {message}"));
    code
}

fn decided(run: Option<RunInfo>) -> String {
    match run {
        Some(run) => format!(
            "`{}` is decided: {} by {}",
            shown(&run.occurrence),
            run.state,
            if run.by.is_empty() { "nobody" } else { &run.by }
        ),
        None => String::from("the occurrence is decided"),
    }
}

/// Returns an occurrence as the program and people see it.
pub(crate) fn shown(occurrence: &Occurrence) -> String {
    match occurrence {
        Occurrence::At(at) => instant(*at),
        Occurrence::Named(name) => name.clone(),
    }
}

/// Returns an instant in RFC 3339.
pub(crate) fn instant(at: std::time::SystemTime) -> String {
    humantime::format_rfc3339(at).to_string()
}
