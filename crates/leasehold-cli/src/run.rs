//! `leasehold run`: runs a program under a lock, or as the leader of an election.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use leasehold::{
    AllInfo, ErrorKind, Expiry, LeaseInfo, LockClient, LockKey, Released, Result, Ttl,
};

use crate::{
    args::Run,
    backend,
    child::{Child, Environment},
    exit::{self, Failure, code_of_status, with_causes},
    held::Held,
    os_string::{key_of, program_of, value_of},
    schemes,
    signals::Signals,
    stderr,
    watchdog::{Action, Watchdog},
};

pub(crate) async fn run(args: &Run) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let (names, command) = args.names_and_command()?;
    let keys = names
        .iter()
        .map(|name| key_of(name))
        .collect::<Result<Vec<_>>>()?;
    if args.value.is_some() && keys.len() != 1 {
        return Err(Failure::new(
            exit::USAGE,
            format!(
                "--value is for one name, and there are {}: lead one election, or lock all of them without --value",
                keys.len()
            ),
        ));
    }
    schemes::check_excludes(&args.backend.url)?;
    schemes::check_names(names)?;
    let client = tokio::select! {
        code = signals.end() => return Ok(code),
        backend = backend::open(&args.backend.url) => client(args.label.as_deref(), command, backend?),
    };
    // A deadline would end the lease of a command that was stopped for longer, although nobody else
    // can get the lock.
    let ttl = if is_freed_by_death(&client) {
        Some(client.capabilities().max_ttl)
    } else {
        args.ttl
    };
    let locked = tokio::select! {
        biased;
        code = signals.end() => Err(code),
        locked = acquire(args, &client, &keys, ttl) => Ok(locked),
    };
    let done = match locked {
        Ok(Ok(None)) => Err(contended(args, &keys)),
        Ok(Ok(Some(held))) => run_under(args, &client, held, &mut signals).await,
        Ok(Err(error)) => Err(error.into()),
        Err(code) => Ok(code),
    };
    backend::close(&client).await;
    done
}

/// Acquires the locks, or leads the election of the only key. Returns `None` if that was refused.
async fn acquire(
    args: &Run,
    client: &LockClient,
    keys: &[LockKey],
    ttl: Option<Ttl>,
) -> Result<Option<Held>> {
    if let (Some(value), [key]) = (&args.value, keys) {
        let mut election = client.election(key);
        if let Some(ttl) = ttl {
            election = election.with_ttl(ttl);
        }
        let value = value_of(value)?;
        let term = match args.wait {
            _ if args.no_wait => election.try_campaign(value).await?,
            Some(limit) => election.campaign_timeout(value, limit).await?,
            None => Some(election.campaign(value).await?),
        };
        return Ok(term.map(Held::Term));
    }
    let mut locks = client.all(keys);
    if let Some(ttl) = ttl {
        locks = locks.with_ttl(ttl);
    }
    let guard = match args.wait {
        _ if args.no_wait => locks.try_lock().await?,
        Some(limit) => locks.lock_timeout(limit).await?,
        None => Some(locks.lock().await?),
    };
    Ok(guard.map(Held::Locks))
}

/// The failure of an attempt or a wait during which another held one of the locks.
fn contended(args: &Run, keys: &[LockKey]) -> Failure {
    let held = match keys {
        [key] => format!("another holds `{key}`"),
        keys => format!("another holds one of {}", listed(keys)),
    };
    let message = match args.wait {
        Some(limit) if !args.no_wait && !limit.is_zero() => match keys {
            [key] => format!("`{key}` was not granted within {limit:?}: another holds it"),
            _ => format!("the locks were not granted within {limit:?}: {held}"),
        },
        _ => format!("{held}; wait for it, or try again later"),
    };
    Failure::new(exit::CONTENDED, message)
}

fn listed(keys: &[LockKey]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
    keys.join(", ")
}

/// Returns the client of a program, with its label.
pub(crate) fn client(
    label: Option<&str>,
    command: &[OsString],
    backend: impl leasehold::backend::LockBackend,
) -> LockClient {
    let label = label.map_or_else(|| label_of(program_of(command).0), str::to_owned);
    LockClient::builder(backend).with_label(label).build()
}

/// Returns the default label: host, process id of the command, and name of `program`.
fn label_of(program: &OsStr) -> String {
    #[cfg(unix)]
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(unix))]
    let host = std::env::var("COMPUTERNAME").unwrap_or_else(|_| String::from("?"));
    let program = Path::new(program)
        .file_name()
        .unwrap_or(program)
        .to_string_lossy();
    format!("{host}/{}/{program}", std::process::id())
}

/// Runs the program until it has ended, or until one of its locks is lost.
async fn run_under(
    args: &Run,
    client: &LockClient,
    held: Held,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    // The death of a process frees a file lock, but not before all processes have ended that
    // inherited the descriptor.
    let dies_with_us = !is_freed_by_death(client);
    let (names, command) = args.names_and_command()?;
    let environment = Environment {
        names,
        run: None,
        url: args.keep_url.then_some(args.backend.url.as_str()),
        dies_with_us,
    };
    let leases = held.info();
    let mut child = Child::start(command, &leases, &environment)?;
    let mut watchdog = Watchdog::new(leases.clone());
    let check_interval = args.ttl.unwrap_or(Ttl::DEFAULT).as_duration() / 3;
    let status = loop {
        tokio::select! {
            biased;
            action = watchdog.next() => act(action, &mut child, &leases),
            status = child.ended() => break status?,
            signal = signals.next() => child.pass_on(signal),
            // This notices a lock file that was removed. The watchdog sees the loss.
            () = tokio::time::sleep(check_interval), if !dies_with_us => drop(held.renew().await),
        }
    };
    if watchdog.has_acted() {
        let how = if leases.is_held() {
            "was about to be lost"
        } else {
            "was lost"
        };
        let message = format!(
            "the lock `{}` {how}, and the program was terminated",
            endangered(&leases)
        );
        return Err(Failure::new(exit::LOST, message));
    }
    let leases = leases.leases();
    let keys: Vec<_> = leases.iter().map(|lease| lease.key().clone()).collect();
    let remaining = leases.iter().map(LeaseInfo::remaining).max();
    let remaining = remaining.unwrap_or_default();
    match held.release().await {
        Ok(released) => {
            let lost = |(_, released): &&(LockKey, Released)| *released == Released::AlreadyLost;
            match released.iter().find(lost) {
                Some((key, _)) => Err(Failure::new(
                    exit::LOST,
                    format!(
                        "the lock `{key}` was lost before the program ended: another process may have held it"
                    ),
                )),
                None => Ok(code_of_status(status)),
            }
        }
        Err(error) if error.kind() == ErrorKind::Lost => Err(error.into()),
        // The program ended under the locks, so its own exit code is the result.
        Err(error) => {
            let causes = with_causes(&error);
            let held = match keys.as_slice() {
                [key] => format!("the lock `{key}` is not released yet; it is"),
                keys => format!(
                    "of the locks {} not all are released yet; they are",
                    listed(keys)
                ),
            };
            stderr::report(&format!("{held} free in {remaining:.0?}: {causes}"));
            Ok(code_of_status(status))
        }
    }
}

/// Returns the key that was lost, or else the one whose deadline is the earliest.
fn endangered(leases: &AllInfo) -> LockKey {
    let earliest = || {
        let leases = leases.leases().iter();
        leases
            .min_by_key(|lease| lease.deadline())
            .map(|lease| lease.key().clone())
    };
    let lost = leases.loss().map(|(key, _)| key).or_else(earliest);
    lost.unwrap_or_else(|| unreachable!("a guard has at least one lease"))
}

/// Returns whether only the death of its holder frees a lock. Then a lock needs no deadline.
pub(crate) fn is_freed_by_death(client: &LockClient) -> bool {
    client.capabilities().expiry == Expiry::ProcessDeath
}

/// Ends the program as the watchdog demands.
pub(crate) fn act(action: Action, child: &mut Child, guard: &AllInfo) {
    let why = match guard.loss() {
        Some((_, reason)) => format!("is lost ({reason})"),
        None => format!("expires in {:.0?} and cannot be renewed", guard.remaining()),
    };
    match action {
        Action::Terminate => {
            child.terminate();
            stderr::report(&format!(
                "the lock `{}` {why}; asked the program to terminate",
                endangered(guard)
            ));
        }
        Action::Kill => {
            child.kill();
            stderr::report(&format!(
                "the lock `{}` {why}; killed the program",
                endangered(guard)
            ));
        }
    }
}
