//! The command line.

use std::{ffi::OsString, time::Duration};

use clap::{
    ArgAction, Args as ClapArgs, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use leasehold::{
    Ttl,
    once::{Cron, Every, Missed, Occurrence, Overlap, Retry},
};

use crate::{
    duration::{duration, ttl},
    exit::{self, Failure},
    schemes,
};

fn after() -> String {
    format!(
        "Backends (--url, or the variable LEASEHOLD_URL):\n{}\n\
         Other users can see a password in --url in the list of processes. LEASEHOLD_URL hides it. \
         The path after file: begins with `/`.",
        schemes::help()
    )
}

const RUN_AFTER: &str = "\
Examples:
  leasehold run nightly-report -- ./report.sh
  leasehold run -n --url redis://cache/ nightly-report -- ./report.sh
  leasehold run --wait 30s deploy -- sh -c 'echo \"token $LEASEHOLD_TOKEN\"; exec ./deploy'
  leasehold run account/4 account/7 -- ./transfer.sh  # both locks, or neither
  leasehold run --value 10.0.0.7:8080 scheduler -- ./serve   # leads, and shows its address
  leasehold run -- -n -- ./report.sh                  # a name that begins with `-`

Several names:
  The program runs when all of the locks are held, and the options apply to all of them together.
  Commands with several names never wait for each other in a cycle, in whatever order they name
  them. While the command waits for one lock, it keeps those whose names are smaller. If one of the
  locks is lost, the program is terminated as for a single one.

Elections:
  With --value the program runs while this command leads the election NAME. `leasehold leader NAME`
  shows the value everywhere, until the program has ended or the lock is lost. The election is the
  lock NAME: it and a `run` without --value exclude each other. The backend must keep records:
  `leasehold info` shows whether it does.

Environment of the program:
  LEASEHOLD_KEY    the name of the lock
  LEASEHOLD_TOKEN  the fencing token, which grows with every grant. A resource that refuses
                   smaller tokens is safe from a program that has lost the lock
  LEASEHOLD_KEY_1, LEASEHOLD_TOKEN_1, LEASEHOLD_KEY_2, ...
                   the same for each name, in the order of the command line. With several names,
                   LEASEHOLD_KEY and LEASEHOLD_TOKEN are removed
  LEASEHOLD_KEYS   the number of names
  LEASEHOLD_URL    is removed, because it may contain a password. With --keep-url it is the URL of
                   this lock

End:
  The lock is held until the program and everything that it started have ended. Daemons are not
  waited for: processes that called setsid(2) and whose parent has ended. (On Linux. On other
  systems only the program is waited for.)

Signals:
  INT, TERM, HUP, QUIT, USR1, USR2 and CONT are passed on to the program. While the command waits
  for the lock, they end the wait. A signal that was ignored at the start (nohup, a background job
  of a script) stays ignored, here and in the program.
  If the program has ended after TERM, or because of INT or QUIT, the processes that it left behind
  get TERM.
  The program stays in the process group of the command: Ctrl-C, Ctrl-Z, timeout(1) and a signal to
  the group reach both. A signal to the group is also passed on, so that the program gets it twice,
  except INT and QUIT from the terminal.

Loss of the lock:
  If renewals fail, the program and everything that it started get TERM when a third of the TTL is
  left, and KILL when a tenth is left, before another process can get the lock.
  A revoke without --now stops the renewals: the program has the same time as if they failed.
  If a renewal finds that the lock was taken away (deleted, or revoke --now), they get TERM at once,
  and KILL after a tenth of the TTL or a second, whichever is shorter.
  File locks do not expire: after a stop (Ctrl-Z) of any length the program continues. The command
  checks every third of the TTL whether the lock file was removed.
  If the command itself is killed, a file lock is held as long as the program or a process that it
  started lives. On a server, the program is killed with the command (on Linux), but the processes
  that it started are not.
  A program with more rights than this command (sudo, set-uid) is not killed with it and may refuse
  its signals. Put the command inside: sudo leasehold run NAME -- COMMAND

Exit codes:
  The exit code of the program, or 128 + N if signal N ended it. Otherwise:
   64  the name, an option or the URL is wrong, or the backend does not support the request
   69  the backend cannot be reached
   70  an internal error
   75  another process holds the lock, or one of several (--no-wait, --wait)
   76  a lock was lost or about to be lost, and the program was terminated
   77  the backend refused the user, the password or the access
  126  the program cannot be executed
  127  the program was not found
  128 + N  signal N ended the wait for the lock";

const ONCE_AFTER: &str = "\
Call it on every host, for example from cron. Each occurrence is run by one of them.
Examples:
  leasehold once --cron '0 3 * * *' --zone Europe/Berlin nightly-report -- ./report.sh
  leasehold once --every 1h mails -- ./send.sh
  leasehold once --occurrence 2031-04 invoices -- ./invoices.sh
  leasehold once --at-least 10m cleanup -- ./cleanup.sh    # at most every ten minutes

What is due is judged by the clock of the server. The command waits for an occurrence that is less
than 10 s ahead, and while another host runs it: if that host crashes, this one takes over. The
backend must keep records: `leasehold info` shows whether it does.

Environment of the program: as for `leasehold run`, and
  LEASEHOLD_OCCURRENCE  the scheduled instant in RFC 3339, or the name of the occurrence
  LEASEHOLD_ATTEMPT     the number of the attempt, from 1

Exit codes:
  The exit code of the program if it ran here, or 128 + N if signal N ended it. Every code but 0 is
  recorded as a failure. Otherwise:
    0  nothing is due, or the occurrence ran already; standard error says which
   75  another host runs it (--no-wait), or it may begin again later
   76  the lock was lost or about to be lost, and the program was terminated
  124  the program took longer than --at-most, and was terminated
  others as for `leasehold run`";

const LEADER_AFTER: &str = "\
Examples:
  leasehold leader --url redis://cache/ scheduler
  leasehold leader --watch --json --url redis://cache/ scheduler
  leasehold run --value 10.0.0.7:8080 --url redis://cache/ scheduler -- ./serve    # leads

The leader is the program that holds the lock NAME with a value: `leasehold run --value`, or a
program that uses the library. The token grows with every leader. The backend must keep records:
`leasehold info` shows whether it does.

What is printed may be out of date when it is read: another may lead by then. Only a resource that
refuses smaller tokens is safe from a former leader.

Without --watch there is a table, or one JSON object. With --watch there is one line for the state at
the start and one for each change: the value, the token and the label of the leader, or `no leader`.
A change may be left out if another follows at once, but the last one never is. The command ends by
a signal, or when nobody reads its output any more. While the backend cannot be reached it waits.

Bytes that do not print are shown as escapes, such as \\n and \\xff.

Exit codes:
    0  somebody leads; with --watch: nobody reads the output any more
    1  nobody leads
   64  the name, an option or the URL is wrong, or the backend keeps no records
   69  the backend cannot be reached; with --watch: at the start
  128 + N  signal N ended --watch
  others as for `leasehold run`";

/// Runs a program under a distributed lock, and shows and revokes locks.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, about, after_help = after(), disable_help_subcommand = false)]
pub(crate) struct Args {
    /// Log to standard error what happens; repeat for all details
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program under a lock, or under several
    #[command(after_help = RUN_AFTER, override_usage = "leasehold run [OPTIONS] NAME... -- COMMAND [ARGUMENT]...")]
    Run(Run),
    /// Run a program once per occurrence, on whichever host comes first
    #[command(after_help = ONCE_AFTER, override_usage = "leasehold once [OPTIONS] NAME -- COMMAND [ARGUMENT]...")]
    Once(Box<Once>),
    /// Show the latest runs of a name; exit code 1 if none is known
    Runs(Runs),
    /// Show who leads an election; exit code 1 if nobody does
    #[command(after_help = LEADER_AFTER)]
    Leader(Leader),
    /// Show the holders of a lock and its waiters; exit code 1 if it is not held
    ///
    /// The column EXPIRES IN shows when the lock becomes free if it is not renewed. A holder renews
    /// it at the latest when a third of its TTL has passed.
    Status(Status),
    /// Revoke a lock from its holders; exit code 1 if it is not held
    ///
    /// Without --now the renewals stop. The holder keeps the lock until its deadline, and
    /// `leasehold run` terminates its program before that. The lock is free earlier if the holder
    /// releases it. File locks cannot be revoked: end their holder
    Revoke(Revoke),
    /// Show what a backend guarantees and where it is
    Info(Info),
    /// Initialize the servers of a Redlock quorum, so that its fencing tokens hold
    ///
    /// Needed once before the first use, and after a majority of the servers has lost its data at
    /// the same time. All servers must reply. The command waits up to the longest TTL, until all
    /// locks have expired that a server may have lost. With --assume-fresh it does not wait.
    #[cfg(feature = "redlock")]
    Init(Init),
    /// Become a program that dies with this parent.
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
}

/// The options that choose the backend.
#[derive(Debug, ClapArgs)]
pub(crate) struct BackendArgs {
    /// The backend that keeps the locks
    #[arg(
        long,
        value_name = "URL",
        env = "LEASEHOLD_URL",
        hide_env_values = true,
        default_value = "file:"
    )]
    pub(crate) url: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// How long the lock stays held after its holder died, was stopped or lost its connection.
    /// The command renews the lock while the program runs. File locks do not expire: they are free
    /// when the holder and all processes that inherited the lock have ended [default: 30s, or the
    /// nearest that the backend accepts]
    #[arg(long, value_name = "D", value_parser = ttl)]
    pub(crate) ttl: Option<Ttl>,
    /// Do not wait if another process holds the lock: exit with code 75
    #[arg(short = 'n', long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait at most this long for the lock, then exit with code 75; 0s is the same as --no-wait
    /// [default: wait without limit]
    #[arg(short, long, value_name = "D", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Lead the election NAME with this value, which `leasehold leader` shows: any bytes, up to
    /// 16384
    #[arg(long, value_name = "V")]
    pub(crate) value: Option<OsString>,
    /// The label that `status` shows [default: host, process id and program]
    #[arg(long, value_name = "L")]
    pub(crate) label: Option<String>,
    /// Pass the URL, and the password in it, to the program, as its variable LEASEHOLD_URL
    #[arg(long)]
    pub(crate) keep_url: bool,
    /// The name of the lock: any bytes, up to 1024. Up to 64 names are locked together
    #[arg(value_name = "NAME")]
    names: Vec<OsString>,
    /// The program and its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

impl Run {
    /// Returns the names of the locks, and the program with its arguments. The names may follow a
    /// `--` of their own, so that the first can begin with `-`.
    pub(crate) fn names_and_command(&self) -> Result<(&[OsString], &[OsString]), Failure> {
        let wrong = |what| {
            Failure::new(
                exit::USAGE,
                format!("{what}: leasehold run NAME -- COMMAND [ARGUMENT]..."),
            )
        };
        let words = self.words.as_slice();
        if !self.names.is_empty() {
            return match words {
                [] => Err(wrong("the program is missing; it comes after `--`")),
                command => Ok((&self.names, command)),
            };
        }
        let separator = words.iter().skip(1).position(|word| word == "--");
        match separator.map(|at| words.split_at(at + 1)) {
            Some((names, [_, command @ ..])) if !command.is_empty() => Ok((names, command)),
            None if words.len() > 1 => {
                Err(wrong("there is no `--` between a name and the program"))
            }
            _ => Err(wrong("the name of the lock or the program is missing")),
        }
    }
}

/// The policy of `--missed`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MissedArg(pub(crate) Missed);

#[derive(Debug, ClapArgs)]
pub(crate) struct Once {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// The schedule as five fields: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["every", "occurrence"])]
    pub(crate) cron: Option<Cron>,
    /// The time zone of --cron, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron")]
    pub(crate) zone: Option<String>,
    /// The schedule as a period, counted from 1970-01-01 00:00 UTC
    #[arg(long, value_name = "D", value_parser = every, conflicts_with = "occurrence")]
    pub(crate) every: Option<Every>,
    /// The occurrence: a scheduled instant in RFC 3339 such as 2031-04-01T03:00:00Z, or a name,
    /// which counts as decided while the history has it
    #[arg(long, value_name = "ID", value_parser = occurrence)]
    pub(crate) occurrence: Option<Occurrence>,
    /// The least time from one begin to the next. Without a schedule, the program is due whenever
    /// this time has passed
    #[arg(long, value_name = "D", value_parser = duration, required_unless_present_any = ["cron", "every", "occurrence"])]
    pub(crate) at_least: Option<Duration>,
    /// The policy for occurrences that nobody ran in time: latest, skip, or all:N
    #[arg(long, value_name = "POLICY", value_parser = missed, default_value = "latest")]
    pub(crate) missed: MissedArg,
    /// The policy for occurrences that fall due during a run: skip or queue
    #[arg(long, value_name = "POLICY", value_parser = overlap, default_value = "skip")]
    pub(crate) overlap: Overlap,
    /// How often an occurrence begins again after its runner crashed or lost the lock
    #[arg(long, value_name = "N", default_value_t = Retry::default().crashes)]
    pub(crate) crashes: u32,
    /// How often an occurrence begins again after the program failed
    #[arg(long, value_name = "N", default_value_t = Retry::default().failures)]
    pub(crate) failures: u32,
    /// The time from a failure to the next attempt
    #[arg(long, value_name = "D", value_parser = duration, default_value = "30s")]
    pub(crate) retry_delay: Duration,
    /// The longest time for the program. After it the program gets TERM, and KILL after 5 s
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) at_most: Option<Duration>,
    /// How many runs are remembered, from 1 to 100
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) history: usize,
    /// Do not wait while another host runs it: exit with code 75
    #[arg(short = 'n', long)]
    pub(crate) no_wait: bool,
    /// How long the lock stays held after its holder died, was stopped or lost its connection
    /// [default: 30s, or the nearest that the backend accepts]
    #[arg(long, value_name = "D", value_parser = ttl)]
    pub(crate) ttl: Option<Ttl>,
    /// The label that `runs` and `status` show [default: host, process id and program]
    #[arg(long, value_name = "L")]
    pub(crate) label: Option<String>,
    /// Pass the URL, and the password in it, to the program, as its variable LEASEHOLD_URL
    #[arg(long)]
    pub(crate) keep_url: bool,
    /// The name under which the runs are recorded: any bytes, up to 1024
    #[arg(value_name = "NAME")]
    pub(crate) name: OsString,
    /// The program and its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND", required = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Runs {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The name under which the runs are recorded
    pub(crate) name: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Leader {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Print a line for each change until a signal ends the command
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    pub(crate) json: bool,
    /// The name of the election
    pub(crate) name: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The name of the lock
    pub(crate) name: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Revoke {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Free the lock at once. Unsafe: the holder may still use the resource and does not know yet
    #[arg(long)]
    pub(crate) now: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The name of the lock
    pub(crate) name: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(feature = "redlock")]
#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    /// The servers: redlock://HOST,HOST,HOST
    #[arg(
        long,
        value_name = "URL",
        env = "LEASEHOLD_URL",
        hide_env_values = true
    )]
    pub(crate) url: String,
    /// The longest TTL that any lock may have: a server that restarts does not vote for that long
    #[arg(long, value_name = "D", value_parser = ttl, default_value = "60s")]
    pub(crate) largest_ttl: Ttl,
    /// The servers keep all data through a restart (appendonly yes, appendfsync always). The
    /// command checks the settings of each server
    #[arg(long)]
    pub(crate) durable: bool,
    /// No lock was ever held on these servers, so that they cannot have lost one: do not wait
    #[arg(long)]
    pub(crate) assume_fresh: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Exec {
    /// The process to die with
    pub(crate) parent: i32,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Verbs and options before the first release, and their names today.
const RENAMED: [(&str, &str); 8] = [
    ("--never-used", "--assume-fresh"),
    ("--on", "--url"),
    ("--try", "--no-wait"),
    ("--within", "--wait"),
    ("break", "revoke"),
    ("caps", "info"),
    ("provision", "init"),
    ("who", "status"),
];

/// Returns the old and the new name of the verb or option that `error` does not know.
pub(crate) fn renamed(error: &clap::Error) -> Option<(&'static str, &'static str)> {
    let unknown = error
        .get(ContextKind::InvalidArg)
        .or_else(|| error.get(ContextKind::InvalidSubcommand));
    let Some(ContextValue::String(unknown)) = unknown else {
        return None;
    };
    RENAMED.into_iter().find(|(old, _)| old == unknown)
}

fn every(text: &str) -> Result<Every, String> {
    Every::new(duration(text)?).map_err(|error| error.message().to_owned())
}

fn occurrence(text: &str) -> Result<Occurrence, String> {
    Ok(match humantime::parse_rfc3339(text) {
        Ok(instant) => instant.into(),
        Err(_) => text.into(),
    })
}

fn missed(text: &str) -> Result<MissedArg, String> {
    let limit = text.strip_prefix("all:").map(str::parse);
    match (text, limit) {
        ("latest", _) => Ok(MissedArg(Missed::Latest)),
        ("skip", _) => Ok(MissedArg(Missed::Skip)),
        (_, Some(Ok(limit))) => Ok(MissedArg(Missed::All { limit })),
        _ => Err(String::from(
            "write `latest`, `skip`, or `all:N`, as in all:24",
        )),
    }
}

fn overlap(text: &str) -> Result<Overlap, String> {
    match text {
        "skip" => Ok(Overlap::Skip),
        "queue" => Ok(Overlap::Queue),
        _ => Err(String::from("write `skip` or `queue`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn old_verb_or_option_names_its_successor() {
        for (old, new) in RENAMED {
            let line = match old {
                "--never-used" if cfg!(not(feature = "redlock")) => continue,
                "--never-used" => vec!["leasehold", "init", "--url", "redlock://a,b,c", old],
                _ if old.starts_with("--") => vec!["leasehold", "run", old, "k", "--", "true"],
                _ => vec!["leasehold", old, "k"],
            };
            let error = Args::try_parse_from(line).unwrap_err();
            assert_eq!(renamed(&error), Some((old, new)), "{error}");
        }
        let error = Args::try_parse_from(["leasehold", "run", "--nonsense"]).unwrap_err();
        assert_eq!(renamed(&error), None);
    }
}
