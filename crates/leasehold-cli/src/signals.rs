//! Signals: those that come, and those that are sent.

#[cfg(unix)]
pub(crate) use self::unix::{Signal, Signals, send, should_lead_group};

#[cfg(not(unix))]
pub(crate) use self::other::{Signal, Signals, send, should_lead_group};

#[cfg(unix)]
mod unix {
    use std::{fs::File, io, task::Poll};

    pub(crate) use rustix::process::Signal;
    use rustix::{
        process::{Pid, getpgrp, kill_process, kill_process_group},
        termios::tcgetpgrp,
    };
    use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

    /// Those that are passed on. TSTP, TTIN and TTOU stop this command as any other; KILL and STOP cannot be caught.
    const PASSED_ON: [Signal; 7] =
        [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::CONT];

    /// What comes to us. While it lives, these signals do not end this process.
    #[derive(Debug)]
    pub(crate) struct Signals(Vec<(Signal, Stream)>);

    impl Signals {
        pub(crate) fn new() -> io::Result<Self> {
            let listen = |sort: Signal| Ok((sort, signal(SignalKind::from_raw(sort.as_raw()))?));
            PASSED_ON.into_iter().map(listen).collect::<io::Result<_>>().map(Self)
        }

        /// The next one. May be dropped and called again.
        pub(crate) async fn next(&mut self) -> Signal {
            std::future::poll_fn(|context| {
                for (sort, stream) in &mut self.0 {
                    if stream.poll_recv(context).is_ready() {
                        return Poll::Ready(*sort);
                    }
                }
                Poll::Pending
            })
            .await
        }

        /// The next one that asks us to end.
        pub(crate) async fn end(&mut self) -> u8 {
            loop {
                let signal = self.next().await;
                if signal != Signal::CONT {
                    return 128 + u8::try_from(signal.as_raw()).unwrap_or(0);
                }
            }
        }
    }

    /// Sends a signal. One that is gone needs none.
    pub(crate) fn send(process: u32, signal: Signal, to_group: bool) {
        let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return };
        let sent = if to_group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        if let Err(error) = sent {
            // Between `process_group` and exec nothing can fail; a group whose leader is all that was left may be gone.
            crate::exit::say(&format!("cannot send a signal to process {process}: {error}"));
        }
    }

    /// Whether the program gets a process group of its own. With a controlling terminal it stays in ours, as a shell's
    /// pipeline does: the terminal serves one group, and its Ctrl-C and Ctrl-Z are for both.
    pub(crate) fn should_lead_group() -> bool {
        terminal().is_none()
    }

    /// Whether the terminal has sent this signal to the program already: it sends to its whole foreground group.
    pub(crate) fn is_from_terminal(signal: Signal) -> bool {
        (signal == Signal::INT || signal == Signal::QUIT)
            && terminal().and_then(|terminal| tcgetpgrp(terminal).ok()) == Some(getpgrp())
    }

    fn terminal() -> Option<File> {
        File::open("/dev/tty").ok()
    }
}

#[cfg(unix)]
pub(crate) use self::unix::is_from_terminal;

#[cfg(not(unix))]
mod other {
    use std::io;

    /// What this platform can tell us.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Signal;

    impl Signal {
        pub(crate) const TERM: Self = Self;
    }

    /// What comes to us: Ctrl-C, which the program has got as well.
    #[derive(Debug)]
    pub(crate) struct Signals;

    impl Signals {
        pub(crate) fn new() -> io::Result<Self> {
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

    pub(crate) fn send(_: u32, _: Signal, _: bool) {}

    pub(crate) fn should_lead_group() -> bool {
        false
    }

    pub(crate) fn is_from_terminal(_: Signal) -> bool {
        true
    }
}

#[cfg(not(unix))]
pub(crate) use self::other::is_from_terminal;
