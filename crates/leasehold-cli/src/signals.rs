//! Signals: those that come, and those that are sent.

#[cfg(unix)]
pub(crate) use self::unix::{Signal, Signals, is_from_terminal, send};

#[cfg(not(unix))]
pub(crate) use self::other::{Signal, Signals};

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

    /// Those that are passed on. TSTP, TTIN and TTOU stop this command as any other; KILL and STOP
    /// cannot be caught.
    const PASSED_ON: [Signal; 7] = [
        Signal::INT,
        Signal::TERM,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::CONT,
    ];

    /// What comes to us. While it lives, these signals do not end this process.
    #[derive(Debug)]
    pub(crate) struct Signals(Vec<(Signal, Stream)>);

    impl Signals {
        /// Listens for all that are not ignored: what this command was started to ignore, by
        /// `nohup(1)` or as the background job of a script, it ignores, and the program inherits
        /// that.
        pub(crate) fn new() -> io::Result<Self> {
            let ignored = ignored();
            let listen = |sort: Signal| Ok((sort, signal(SignalKind::from_raw(sort.as_raw()))?));
            let heeded = PASSED_ON
                .into_iter()
                .filter(|sort| ignored & (1 << (sort.as_raw() - 1)) == 0);
            heeded.map(listen).collect::<io::Result<_>>().map(Self)
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

    /// Sends a signal. A process that is gone needs none.
    pub(crate) fn send(process: Pid, signal: Signal) {
        let sent = kill_process(process, signal);
        if let Err(error) = sent
            && error != Errno::SRCH
        {
            crate::exit::say(&format!(
                "cannot send a signal to process {}: {error}",
                process.as_raw_pid()
            ));
        }
    }

    /// Whether the terminal has sent this signal to the program already: it sends to its whole
    /// foreground group.
    pub(crate) fn is_from_terminal(signal: Signal) -> bool {
        (signal == Signal::INT || signal == Signal::QUIT)
            && terminal().and_then(|terminal| tcgetpgrp(terminal).ok()) == Some(getpgrp())
    }

    fn terminal() -> Option<File> {
        File::open("/dev/tty").ok()
    }

    /// The signals that this process ignores, a bit each. None where there is no `/proc`.
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
    use std::io;

    /// What this platform can tell us.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Signal;

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
}
