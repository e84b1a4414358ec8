//! [`Snapshot`]: the processes that descend from this one, read from `/proc` on Linux.

use std::fs;

use rustix::process::{Pid, getpid, set_child_subreaper};

/// Makes this process the parent of every descendant whose own parent ends.
pub(super) fn adopt() {
    // Before Linux 3.4, the command does not wait for the processes that the program leaves behind.
    set_child_subreaper(Some(getpid())).ok();
}

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: Pid,
    parent: i32,
    pub(super) session: i32,
    ended: bool,
}

impl Process {
    /// Parses `/proc/PID/stat`.
    fn parse(stat: &str) -> Option<Self> {
        let (id, rest) = stat.split_once(" (")?;
        // The name may contain any character.
        let (_, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let threads: i32 = fields.nth(13)?.parse().ok()?;
        // A process whose first thread has ended is listed as a zombie, although it is alive.
        let ended = matches!(state, "Z" | "X") && threads <= 1;
        Some(Self {
            id: Pid::from_raw(id.parse().ok()?)?,
            parent,
            session,
            ended,
        })
    }
}

/// All processes at one time. A process that starts or ends meanwhile may be missing.
#[derive(Debug)]
pub(super) struct Snapshot {
    own: Process,
    processes: Vec<Process>,
}

impl Snapshot {
    /// Reads `/proc`. Returns `None` if it is missing or belongs to another process namespace.
    pub(super) fn take() -> Option<Self> {
        let own = Process::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        if own.id != getpid() {
            return None;
        }
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc").ok()? {
            let path = entry.ok()?.path();
            let is_process = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
            if is_process && let Ok(stat) = fs::read(path.join("stat")) {
                processes.extend(Process::parse(&String::from_utf8_lossy(&stat)));
            }
        }
        Some(Self { own, processes })
    }

    /// Returns the session of this process.
    pub(super) fn session(&self) -> i32 {
        self.own.session
    }

    /// Returns the chosen children of this process and all their descendants, if they are alive.
    pub(super) fn trees(&self, chosen: impl Fn(&Process) -> bool) -> Vec<Pid> {
        let children_of = |id: Pid| {
            self.processes
                .iter()
                .filter(move |process| process.parent == id.as_raw_pid())
        };
        let mut found: Vec<_> = children_of(self.own.id)
            .filter(|child| chosen(child))
            .collect();
        let mut seen = 0;
        while let Some(process) = found.get(seen) {
            found.extend(children_of(process.id));
            seen += 1;
        }
        found
            .into_iter()
            .filter(|process| !process.ended)
            .map(|process| process.id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_name_may_contain_spaces_and_brackets() {
        let stat = "42 (a) (b) c) S 7 41 40 0 -1 4194304 89 0 0 0 0 0 0 0 20 0 3 0 11 0 0";
        let process = Process::parse(stat).unwrap();
        assert_eq!(
            (process.id.as_raw_pid(), process.parent, process.session),
            (42, 7, 40)
        );
        assert!(!process.ended);
    }

    #[test]
    fn zombie_has_ended_unless_its_threads_live() {
        let zombie =
            |threads| format!("42 (x) Z 7 41 40 0 -1 4 89 0 0 0 0 0 0 0 20 0 {threads} 0 11 0 0");
        assert!(Process::parse(&zombie(1)).unwrap().ended);
        assert!(!Process::parse(&zombie(2)).unwrap().ended);
    }
}
