//! The `leasehold` command: runs a program under a distributed lock, and shows and revokes locks.
//!
//! `leasehold help` is its manual.
//!
//! # Threads
//! Everything except writing to standard error and the lines of `leader --watch` runs on the main
//! thread, also the start of the program. A parent-death signal is bound to the thread that forked,
//! and the main thread lives as long as the process.
//!
//! # Modules
//! | modules | |
//! |---|---|
//! | `once`, `runs`, `run`, `leader`, `status`, `revoke`, `info`, `init`, `exec` | one verb each |
//! | `args`, `duration` | the command line; the times in it |
//! | `backend`, `schemes` | from a URL to a client; the schemes and their features |
//! | `held` | the locks, or the term of an election, that a program runs under |
//! | `child`, `watchdog`, `signals` | the program; when it must end; signals in both directions |
//! | `os_string`, `output` | names of locks; tables and JSON |
//! | `exit`, `stderr` | exit codes; messages |
//!
//! Imports run from the top of this table to the bottom.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod args;
mod backend;
mod child;
mod duration;
mod exec;
mod exit;
mod held;
mod info;
#[cfg(feature = "redlock")]
mod init;
mod leader;
mod once;
mod os_string;
mod output;
mod revoke;
mod run;
mod runs;
mod schemes;
mod signals;
mod status;
mod stderr;
mod watchdog;

use std::{io::Write, panic, process::ExitCode};

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use crate::{
    args::{Args, Command, renamed},
    exit::Failure,
};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return refuse(&error),
    };
    let command = match args.command {
        Command::Exec(exec) => return exec::exec(&exec),
        command => command,
    };
    trace(args.verbose);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(failure) => return failure.report(),
    };
    let done = runtime.block_on(async {
        match command {
            Command::Run(run) => run::run(&run).await,
            Command::Once(once) => once::once(&once).await,
            Command::Runs(runs) => runs::runs(&runs).await,
            Command::Leader(leader) => leader::leader(&leader).await,
            Command::Status(status) => status::status(&status).await,
            Command::Revoke(revoke) => revoke::revoke(&revoke).await,
            Command::Info(info) => info::info(&info).await,
            #[cfg(feature = "redlock")]
            Command::Init(init) => init::init(&init).await,
            Command::Exec(_) => Ok(exit::SOFTWARE),
        }
    });
    // Tasks that still run must not delay the end. Locks that are still held expire.
    runtime.shutdown_background();
    match done {
        Ok(code) => {
            stderr::flush();
            code.into()
        }
        Err(failure) => failure.report(),
    }
}

/// Prints the error in the command line, or the help that it asks for.
fn refuse(error: &clap::Error) -> ExitCode {
    let rendered = error.render().to_string();
    // A failure to print cannot be reported.
    if !error.use_stderr() {
        drop(std::io::stdout().write_all(output::lines(&rendered).as_bytes()));
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<_> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let shown = schemes::without_urls(&rendered, &arguments);
    let mut text = output::lines(&shown);
    if shown != rendered || has_misplaced_url(&arguments) {
        text.push_str("\nThe URL comes after `--url`, or is in the variable LEASEHOLD_URL\n");
    }
    if let Some((old, new)) = renamed(error) {
        text.push_str(&format!("\n`{old}` is called `{new}` now\n"));
    }
    let command = arguments.iter().find(|argument| !argument.starts_with('-'));
    if command.is_some_and(|command| command == "run")
        && !arguments.iter().any(|argument| argument == "--")
    {
        text.push_str("\nThe program comes after `--`: leasehold run NAME -- COMMAND\n");
    }
    drop(std::io::stderr().write_all(text.as_bytes()));
    exit::USAGE.into()
}

/// Returns whether an argument before `--` is the URL of a server without its option.
fn has_misplaced_url(arguments: &[String]) -> bool {
    let own = arguments.split(|argument| argument == "--").next();
    let own = own.unwrap_or_default();
    own.iter().enumerate().any(|(at, argument)| {
        schemes::is_server_url(argument) && (at == 0 || own[at - 1] != "--url")
    })
}

/// Builds the runtime, which needs a few descriptors. Tokio panics if it cannot open those for
/// signals.
fn runtime() -> Result<Runtime, Failure> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let built = panic::catch_unwind(|| Builder::new_current_thread().enable_all().build());
    panic::set_hook(hook);
    let why = match built {
        Ok(Ok(runtime)) => return Ok(runtime),
        Ok(Err(error)) => error.to_string(),
        Err(_panic) => String::from("the runtime cannot open its descriptors"),
    };
    Err(Failure::new(
        exit::UNAVAILABLE,
        format!("cannot start: {why}; if too many files are open, raise `ulimit -n`"),
    ))
}

/// Writes traces to standard error: warnings, and more with each `-v`.
fn trace(verbose: u8) {
    let level = match verbose {
        // These are prefixes: all crates of Leasehold match.
        0 => "error,leasehold=warn",
        1 => "warn,leasehold=debug",
        _ => "trace",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(|| stderr::Stderr)
        // Spans show with `-v` how waits, renewals and releases ended.
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .without_time()
        .init();
}
