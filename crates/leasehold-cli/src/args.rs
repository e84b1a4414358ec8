//! The command line.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use leasehold::Ttl;

use crate::{
    exit::{self, Failure},
    schemes,
};

fn after() -> String {
    format!(
        "Where locks live (--on, or the variable LEASEHOLD_URL):\n{}\n\
         A password in --on can be seen by other users in the list of processes; LEASEHOLD_URL hides it. The path after \
         file: begins with `/`.",
        schemes::help()
    )
}

const RUN_AFTER: &str = "\
Examples:
  leasehold run nightly-report -- ./report.sh
  leasehold run --try --on redis://cache/ nightly-report -- ./report.sh
  leasehold run --within 30s deploy -- sh -c 'echo \"token $LEASEHOLD_TOKEN\"; exec ./deploy'
  leasehold run -- -n -- ./report.sh                  # a name that begins with `-`

The program has LEASEHOLD_KEY (the name) and LEASEHOLD_TOKEN (a number that grows from grant to grant: let what it writes \
to refuse smaller ones) in its environment. It does not get LEASEHOLD_URL, which may have a password in it, unless --keep-url is \
given.

The lock is held until the program and everything that it started have ended. Daemons are not waited for: processes that \
made a session of their own (setsid) and whose parent has ended. (On Linux; elsewhere only the program is waited for.)

Signals: INT, TERM, HUP, QUIT, USR1, USR2 and CONT are passed on to the program; while the lock is waited for they end the \
wait. What was ignored at the start (nohup, a script's background job) stays ignored, here and in the program. When the \
program has ended after TERM, or by INT or QUIT, what it left behind gets TERM. The program stays in the command's process \
group: Ctrl-C, Ctrl-Z, timeout(1) and a signal to the group reach both. A signal to the group is passed on as well, so that \
the program gets it twice; INT and QUIT from the terminal are not.

Loss: when renewals fail, the program and what it started get TERM with a third of the TTL left and KILL with a tenth left, \
before the lock could be another's. When the lock is taken away they get TERM at once and KILL after a tenth of the TTL, at \
most a second. File locks do not expire: after a stop (Ctrl-Z) of any length the program continues, and a third of the TTL is \
how often a removed lock file is looked for. If this command itself is killed, files keep the lock for as long as the program \
and what it started live; elsewhere the program (Linux; not what it started) is killed with the command. A program with more \
rights than this command (sudo, or any that is set-uid) is not killed with it, and may refuse its signals, so that it could run on \
without the lock: put the command inside, `sudo leasehold run ... -- COMMAND`.

Exit codes:
  the program's own, or 128 + N if signal N ended it; otherwise
   64  the name, an option or the URL is wrong, or the backend cannot do it
   69  the backend cannot be reached
   70  an internal error
   75  another holds the lock (--try, --within)
   76  the lock was lost, or about to be, and the program terminated
   77  the backend refused the user, the password or the access
  126  the program cannot be executed
  127  the program was not found
  128 + N  signal N came while the lock was waited for";

/// Runs a program under a distributed lock, and shows who holds one.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, about, after_help = after(), disable_help_subcommand = false)]
pub(crate) struct Args {
    /// Tell on standard error what happens; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program under a lock
    #[command(after_help = RUN_AFTER, override_usage = "leasehold run [OPTIONS] NAME -- COMMAND [ARGUMENT]...")]
    Run(Run),
    /// Show who holds a lock and who waits for it; exit code 1 if nobody holds it
    ///
    /// The time left is that until the lock is free if it is not renewed. Holders renew it at a
    /// third of their TTL at the latest.
    Who(Who),
    /// Take a lock from its holders; exit code 1 if nobody holds it
    ///
    /// Gentle: the holder's renewals stop, and the lock is free at its deadline, when the holder
    /// has noticed.
    Break(Break),
    /// Show what a backend promises and where it lives
    Caps(Caps),
    /// Attest the servers of a Redlock quorum, so that its fencing tokens hold
    ///
    /// Needed once before the first use, and after a majority of the servers has lost its memory at
    /// the same time. All servers must answer. Waits until locks that a server may have forgotten
    /// have expired, for the longest TTL at most, unless nobody has used the servers yet.
    #[cfg(feature = "redlock")]
    Provision(Provision),
    /// Become a program that dies with this parent.
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
}

/// Where the locks live.
#[derive(Debug, ClapArgs)]
pub(crate) struct On {
    /// Where the locks live
    #[arg(
        long = "on",
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
    pub(crate) on: On,
    /// How long the lock outlives a holder that died, was stopped or was cut off; it is renewed
    /// while the program runs. Files have no such time: the death of the last holder frees them at
    /// once, and nothing else does
    #[arg(long, value_name = "D", value_parser = ttl, default_value = "30s")]
    pub(crate) ttl: Ttl,
    /// Do not wait if another holds the lock: exit with code 75
    #[arg(long = "try", conflicts_with = "within")]
    pub(crate) no_wait: bool,
    /// Wait at most this long, then exit with code 75
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) within: Option<Duration>,
    /// Who this is, as `who` shows it [default: host, process id, the program that runs under the
    /// lock]
    #[arg(long, value_name = "L")]
    pub(crate) label: Option<String>,
    /// Leave LEASEHOLD_URL, and the password in it, in the program's environment
    #[arg(long)]
    pub(crate) keep_url: bool,
    /// The name of the lock: any bytes, up to 1024
    name: Option<OsString>,
    /// The program and its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

impl Run {
    /// The name, and the program with its arguments. The name may stand after a `--` of its own, so
    /// that it can begin with `-`.
    pub(crate) fn name_and_command(&self) -> Result<(&OsStr, &[OsString]), Failure> {
        let wrong = |what| {
            Failure::new(
                exit::USAGE,
                format!("{what}: leasehold run NAME -- COMMAND [ARGUMENT]..."),
            )
        };
        match (&self.name, self.words.as_slice()) {
            (Some(name), command @ [_, ..]) => Ok((name, command)),
            (None, [name, separator, command @ ..]) if separator == "--" && !command.is_empty() => {
                Ok((name, command))
            }
            (Some(_), []) => Err(wrong("the program is missing; it comes after `--`")),
            (None, [_, _, ..]) => Err(wrong("there is no `--` between a name and the program")),
            (None, _) => Err(wrong("the name of the lock or the program is missing")),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Who {
    #[command(flatten)]
    pub(crate) on: On,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The name of the lock
    pub(crate) name: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Break {
    #[command(flatten)]
    pub(crate) on: On,
    /// Free it at once. Unsafe: the holder may still be at work and does not know yet
    #[arg(long)]
    pub(crate) now: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The name of the lock
    pub(crate) name: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Caps {
    #[command(flatten)]
    pub(crate) on: On,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(feature = "redlock")]
#[derive(Debug, ClapArgs)]
pub(crate) struct Provision {
    /// The servers: redlock://HOST,HOST,HOST
    #[arg(
        long = "on",
        value_name = "URL",
        env = "LEASEHOLD_URL",
        hide_env_values = true
    )]
    pub(crate) url: String,
    /// The longest TTL that any lock may have: a server that restarts does not vote for that long
    #[arg(long, value_name = "D", value_parser = ttl, default_value = "60s")]
    pub(crate) largest_ttl: Ttl,
    /// The servers keep everything through a restart (appendonly yes, appendfsync always): each is
    /// asked whether that is so
    #[arg(long)]
    pub(crate) durable: bool,
    /// Nobody has held a lock on these servers, so there is nothing that they could have forgotten:
    /// do not wait
    #[arg(long)]
    pub(crate) never_used: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Exec {
    /// The process to die with
    pub(crate) parent: i32,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

fn ttl(text: &str) -> Result<Ttl, String> {
    Ttl::new(duration(text)?).map_err(|error| error.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, as in 500ms, 30s or 5m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
