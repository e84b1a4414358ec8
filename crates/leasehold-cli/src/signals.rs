//! Signals that this process receives and sends.

#[cfg(unix)]
pub(crate) use self::unix::{Signal, Signals, exit_code, is_from_terminal, send};

#[cfg(not(unix))]
pub(crate) use self::other::{Signal, Signals, exit_code};

#[cfg(unix)]
mod unix {
    use std::{fs::File, io, task::Poll};

    pub(crate) use rustix::process::Signal;
    use rustix::{
        io::Errno,
        process::{Pid, getpgrp, kill_process},
        termios::tcgetpgrp,
    };
    use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

    use crate::exit::{self, Failure};

    /// The signals that are passed on to the program. TSTP, TTIN and TTOU stop this command, and
    /// KILL and STOP cannot be caught.
    const PASSED_ON: [Signal; 7] = [
        Signal::INT,
        Signal::TERM,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::CONT,
    ];

    /// A stream of received signals. These signals do not end this process while the stream exists.
    #[derive(Debug)]
    pub(crate) struct Signals(Vec<(Signal, Stream)>);

    impl Signals {
        /// Listens for all signals that are not ignored.
        ///
        /// A signal that was ignored at the start, by `nohup(1)` or for a background job of a
        /// script, stays ignored here and in the program.
        pub(crate) fn new() -> Result<Self, Failure> {
            let ignored = ignored();
            let listen = |kind: Signal| Ok((kind, signal(SignalKind::from_raw(kind.as_raw()))?));
            let kinds = PASSED_ON
                .into_iter()
                .filter(|kind| ignored & (1 << (kind.as_raw() - 1)) == 0);
            let streams = kinds.map(listen).collect::<io::Result<_>>();
            streams.map(Self).map_err(|error| {
                let message = format!("cannot listen for signals: {error}");
                Failure::new(exit::SOFTWARE, message)
            })
        }

        /// Waits for the next signal.
        ///
        /// # Cancel safety
        /// Safe.
        pub(crate) async fn next(&mut self) -> Signal {
            std::future::poll_fn(|context| {
                for (kind, stream) in &mut self.0 {
                    if stream.poll_recv(context).is_ready() {
                        return Poll::Ready(*kind);
                    }
                }
                Poll::Pending
            })
            .await
        }

        /// Waits for a signal that ends this command, and returns the exit code.
        pub(crate) async fn end(&mut self) -> u8 {
            loop {
                if let Some(code) = exit_code(self.next().await) {
                    return code;
                }
            }
        }
    }

    /// Returns the exit code if the signal ends this command while no program runs.
    pub(crate) fn exit_code(signal: Signal) -> Option<u8> {
        (signal != Signal::CONT).then(|| 128 + u8::try_from(signal.as_raw()).unwrap_or(0))
    }

    /// Sends a signal. A process that has ended is no failure.
    pub(crate) fn send(process: Pid, signal: Signal) {
        let sent = kill_process(process, signal);
        if let Err(error) = sent
            && error != Errno::SRCH
        {
            crate::stderr::report(&format!(
                "cannot send a signal to process {}: {error}",
                process.as_raw_pid()
            ));
        }
    }

    /// Returns whether the terminal may have sent this signal to the program already: a terminal
    /// sends to its whole foreground group.
    pub(crate) fn is_from_terminal(signal: Signal) -> bool {
        (signal == Signal::INT || signal == Signal::QUIT)
            && terminal().and_then(|terminal| tcgetpgrp(terminal).ok()) == Some(getpgrp())
    }

    fn terminal() -> Option<File> {
        File::open("/dev/tty").ok()
    }

    /// Returns the signals that this process ignores, one bit each, or no bits without `/proc`.
    fn ignored() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        ignored
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    }
}

#[cfg(not(unix))]
mod other {
    use crate::exit::Failure;

    /// The only signal that this platform reports: Ctrl-C.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Signal;

    /// A stream of Ctrl-C, which the program receives as well.
    #[derive(Debug)]
    pub(crate) struct Signals;

    impl Signals {
        pub(crate) fn new() -> Result<Self, Failure> {
            Ok(Self)
        }

        pub(crate) async fn next(&mut self) -> Signal {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
            Signal
        }

        pub(crate) async fn end(&mut self) -> u8 {
            self.next().await;
            130
        }
    }

    /// Returns the exit code if the signal ends this command while no program runs.
    pub(crate) fn exit_code(_: Signal) -> Option<u8> {
        Some(130)
    }
}
