//! The `leasehold` command: runs a program under a distributed lock, and shows who holds one.
//!
//! `leasehold help` is its manual; this is how it is built. Everything but the writing to standard
//! error runs on the main thread, children are started from it too, and it lives as long as the
//! process: a parent-death signal is tied to the thread that forked.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod args;
mod backend;
mod breaking;
mod caps;
mod child;
mod exec;
mod exit;
mod name;
#[cfg(feature = "redlock")]
mod provision;
mod run;
mod schemes;
mod show;
mod signals;
mod stderr;
mod watchdog;
mod who;

use std::{io::Write, panic, process::ExitCode};

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use crate::{
    args::{Args, Command},
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
        Err(failure) => return failure.tell(),
    };
    let done = runtime.block_on(async {
        match command {
            Command::Run(run) => run::run(&run).await,
            Command::Who(who) => who::who(&who).await,
            Command::Break(breaking) => breaking::break_lock(&breaking).await,
            Command::Caps(caps) => caps::caps(&caps).await,
            #[cfg(feature = "redlock")]
            Command::Provision(provision) => provision::provision(&provision).await,
            Command::Exec(_) => Ok(exit::SOFTWARE),
        }
    });
    // Nothing that is left may hold up the end; what is held expires.
    runtime.shutdown_background();
    match done {
        Ok(code) => {
            stderr::flush();
            code.into()
        }
        Err(failure) => failure.tell(),
    }
}

/// Prints what is wrong with the command line, or the help that it asks for.
fn refuse(error: &clap::Error) -> ExitCode {
    let rendered = error.render().to_string();
    // Nothing can be done if the terminal is gone.
    if !error.use_stderr() {
        drop(std::io::stdout().write_all(show::lines(&rendered).as_bytes()));
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<_> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let shown = schemes::without_urls(&rendered, &arguments);
    let mut text = show::lines(&shown);
    if shown != rendered {
        text.push_str("\nThe URL comes after `--on`, or is in the variable LEASEHOLD_URL\n");
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

/// Traces to standard error: warnings, and with each `-v` more.
fn trace(verbose: u8) {
    let level = match verbose {
        0 => "error,leasehold=warn,leasehold_redis=warn,leasehold_local=warn",
        1 => {
            "warn,leasehold=debug,leasehold_core=debug,leasehold_redis=debug,leasehold_local=debug"
        }
        _ => "trace",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(|| stderr::Stderr)
        // With `-v`: what was waited for, held, renewed and released, and how that ended.
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .without_time()
        .init();
}
