//! Inspection: holders and waiters, from `/proc/locks`. Attempts at the locks instead would make
//! attempts of other processes fail.
//!
//! The table shows no process of another PID namespace, except in the first namespace. In other
//! namespaces, a lock without a holder in the table is tried for an instant, so that a lock which
//! another container holds is not reported as free.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    thread,
};

use leasehold_core::{FencingToken, HolderRef, Inspection, LockKey, Mode, WaiterRef};

use super::{
    access, identity::FileId, last_grant::LastGrant, lock_dir::LockDir, locked_file::LockedFile,
    permit::read_number, waiter_marker::WaiterMarker,
};

/// The first PID namespace has this number in every kernel (`PROC_PID_INIT_INO`).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";
/// The label of a holder that is not in the table.
const UNSEEN: &str = "a process of another PID namespace";
/// The size of one piece of the table, somewhat less than a page. The kernel finds the next piece
/// by a count of locks: if a lock of an earlier piece has ended in the meantime, it skips another
/// one.
const PIECE: usize = 3800;
/// The number of readings. They do not all skip the same lock.
const MAX_READINGS: usize = 8;
/// The number of attempts at a lock. Another process may try it for an instant at the same time.
const TRIES: usize = 16;

/// A line of `/proc/locks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flock {
    exclusive: bool,
    pub(super) blocked: bool,
    /// `None` if the process is not in the table.
    pid: Option<u32>,
    /// The major and minor number.
    device: (u32, u32),
    pub(super) inode: u64,
}

/// The contents of `/proc/locks`, for one directory.
struct Table {
    locks: Vec<Flock>,
    /// The device of the directory in the table. On overlays and subvolumes, `stat` returns another
    /// one.
    device: Option<(u32, u32)>,
    /// Whether the table shows the processes of all PID namespaces.
    shows_all: bool,
    /// Whether the table was read in one piece.
    is_whole: bool,
}

impl Table {
    fn read(dir: &Path) -> io::Result<Self> {
        let table = read_in_pieces("/proc/locks")?;
        Ok(Self {
            is_whole: table.len() < PIECE,
            locks: locks_in(&table),
            device: device_of(dir),
            shows_all: fs::read_link("/proc/self/ns/pid")
                .is_ok_and(|namespace| namespace == Path::new(FIRST_NAMESPACE)),
        })
    }

    /// Returns the locks on the file at `path`.
    fn on(&self, dir: &LockDir, path: &Path) -> io::Result<Vec<Flock>> {
        let id = FileId::at(path)?;
        let is_it = |lock: &&Flock| {
            id.is_some_and(|id| id.ino == lock.inode)
                && self.device.is_none_or(|device| device == lock.device)
        };
        let mut found: Vec<_> = self.locks.iter().filter(is_it).cloned().collect();
        // The holder of a file that was removed is found by its shadow.
        if let Some(shadow) = dir
            .shadows
            .path_of(path)
            .and_then(|path| FileId::at(&path).ok().flatten())
        {
            let device = device_numbers(shadow.dev);
            let shadows = self
                .locks
                .iter()
                .filter(|lock| lock.inode == shadow.ino && lock.device == device);
            let removed = shadows.filter(|shadow| {
                !found
                    .iter()
                    .any(|lock| !lock.blocked && lock.pid == shadow.pid)
            });
            let removed: Vec<_> = removed.cloned().collect();
            found.extend(removed);
        }
        Ok(found)
    }

    /// Returns the locks on the file at `path`, with a holder that the table does not show.
    fn holders_on(&self, dir: &LockDir, path: &Path) -> io::Result<Vec<Flock>> {
        let mut found = self.on(dir, path)?;
        if !self.shows_all
            && !found.iter().any(|lock| !lock.blocked)
            && let (Some(exclusive), Some(id)) = (is_locked(path)?, FileId::at(path)?)
        {
            found.push(Flock {
                exclusive,
                blocked: false,
                pid: None,
                device: (0, 0),
                inode: id.ino,
            });
        }
        Ok(found)
    }
}

pub(super) fn inspect(dir: &LockDir, key: &LockKey) -> io::Result<Inspection> {
    let mut readings = 1;
    loop {
        let table = Table::read(dir.path())?;
        let found = read_once(dir, key, &table)?;
        if table.is_whole || !found.holders.is_empty() || readings == MAX_READINGS {
            return Ok(found);
        }
        readings += 1;
    }
}

fn read_once(dir: &LockDir, key: &LockKey, table: &Table) -> io::Result<Inspection> {
    let mut found = Inspection::default();

    let last = LastGrant::at(&dir.token_file(key)).ok().flatten();
    for lock in table.holders_on(dir, &dir.file(key, ".lock"))? {
        let mode = if lock.exclusive {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        if lock.blocked {
            found
                .waiters
                .push(WaiterRef::new(Some(mode), process_label(lock.pid)));
            continue;
        }
        let mut holder = holder(key, &lock, mode);
        if let Some(last) = &last {
            if !lock.exclusive {
                holder.token = last.token.checked_add(1).map(FencingToken::new);
            } else if lock
                .pid
                .is_some_and(|pid| pid == last.pid || innermost(pid) == Some(last.pid))
            {
                holder.token = Some(FencingToken::new(last.token));
                if !last.label.is_empty() {
                    holder.label.clone_from(&last.label);
                }
            }
        }
        found.holders.push(holder);
    }
    let number = access::open_readable(&dir.file(key, ".permits"))
        .and_then(|file| read_number(&file))
        .ok()
        .flatten();
    let permit = number
        .and_then(std::num::NonZeroU32::new)
        .map(|of| Mode::Permit { of });
    if let (Some(number), Some(mode)) = (number, permit) {
        for n in 0..number {
            let held = table.holders_on(dir, &dir.file(key, &format!(".permit-{n}")))?;
            found
                .holders
                .extend(held.iter().map(|lock| holder(key, lock, mode)));
        }
    }
    for (suffix, mode) in [
        (".writers", Some(Mode::Exclusive)),
        (".readers", Some(Mode::Shared)),
        (".waiters", permit),
    ] {
        let path = dir.file(key, suffix);
        let mut waiting = table.on(dir, &path)?;
        waiting.retain(|lock| !lock.exclusive);
        found.waiters.extend(
            waiting
                .iter()
                .map(|lock| WaiterRef::new(mode, process_label(lock.pid))),
        );
        if !table.shows_all
            && waiting.is_empty()
            && WaiterMarker::is_present(&path).unwrap_or(false)
        {
            found.waiters.push(WaiterRef::new(mode, UNSEEN));
        }
    }
    Ok(found)
}

/// Reads the file with a large buffer. For a small one, the kernel returns smaller pieces.
fn read_in_pieces(path: &str) -> io::Result<String> {
    let (mut file, mut text, mut piece) = (File::open(path)?, Vec::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            len => text.extend_from_slice(&piece[..len]),
        }
    }
}

/// Returns the locks of a table. A file has one exclusive lock at most: between two pieces, a new
/// lock moves those behind it, so that the next piece repeats one, or a lock changes hands.
fn locks_in(table: &str) -> Vec<Flock> {
    let mut locks: Vec<Flock> = Vec::new();
    for lock in table.lines().filter_map(parse) {
        let is_exclusive = |lock: &Flock| lock.exclusive && !lock.blocked;
        if is_exclusive(&lock) {
            let file = (lock.device, lock.inode);
            locks.retain(|earlier| {
                !is_exclusive(earlier) || (earlier.device, earlier.inode) != file
            });
        }
        locks.push(lock);
    }
    locks
}

/// Tries a lock for an instant. Returns `None` if it is free, and otherwise whether it is held
/// exclusively.
fn is_locked(path: &Path) -> io::Result<Option<bool>> {
    let Ok(mut file) = access::open_existing(path) else {
        return Ok(None);
    };
    for _ in 0..TRIES {
        match LockedFile::try_lock(file, false)? {
            Ok(_free) => return Ok(None),
            Err(held) => file = held,
        }
        thread::yield_now();
    }
    Ok(Some(LockedFile::try_lock(file, true)?.is_err()))
}

/// Returns the device of files in `dir` in `/proc/locks`: the device of the mount, which may differ
/// from that of `stat`.
#[cfg(target_os = "linux")]
fn device_of(dir: &Path) -> Option<(u32, u32)> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{Mode, OFlags};

    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_raw_fd())).ok()?;
    let mount = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    device_in(&String::from_utf8_lossy(&mounts), mount)
}

#[cfg(not(target_os = "linux"))]
fn device_of(_: &Path) -> Option<(u32, u32)> {
    None
}

/// Returns the numbers of a device as `/proc/locks` has them.
#[cfg(target_os = "linux")]
fn device_numbers(dev: u64) -> (u32, u32) {
    (rustix::fs::major(dev), rustix::fs::minor(dev))
}

#[cfg(not(target_os = "linux"))]
fn device_numbers(_: u64) -> (u32, u32) {
    (0, 0)
}

/// Parses the device from lines such as
/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, which begin with the mount,
/// its parent and its device.
#[cfg(target_os = "linux")]
pub(super) fn device_in(mounts: &str, mount: &str) -> Option<(u32, u32)> {
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next() == Some(mount)).then(|| words.nth(1))?
    })?;
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Returns the id of a process in its own PID namespace.
fn innermost(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}

fn holder(key: &LockKey, lock: &Flock, mode: Mode) -> HolderRef {
    let pid = lock
        .pid
        .map_or_else(|| String::from("?"), |pid| pid.to_string());
    let mut holder = HolderRef::new(key.clone(), format!("{pid}:{}", lock.inode));
    holder.mode = Some(mode);
    holder.label = process_label(lock.pid);
    holder
}

/// Returns a label for programs that leave none.
fn process_label(pid: Option<u32>) -> String {
    let Some(pid) = pid else {
        return String::from(UNSEEN);
    };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim_end()),
        Err(_) => format!("pid {pid}"),
    }
}

/// Parses a line such as `1: FLOCK ADVISORY WRITE 9767 fe:00:10010751 0 EOF`. A process that is
/// blocked in `flock(2)` has a `->` after the number.
pub(super) fn parse(line: &str) -> Option<Flock> {
    let mut words = line.split_ascii_whitespace().skip(1).peekable();
    let blocked = words.next_if_eq(&"->").is_some();
    if words.next()? != "FLOCK" {
        return None;
    }
    let exclusive = words.nth(1)? == "WRITE";
    let pid = Some(words.next()?.parse().ok()?);
    let mut file = words.next()?.split(':');
    let mut number = || u32::from_str_radix(file.next()?, 16).ok();
    let device = (number()?, number()?);
    let inode = file.next()?.parse().ok()?;
    Some(Flock {
        exclusive,
        blocked,
        pid,
        device,
        inode,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_locks_are_parsed() {
        let held = Flock {
            exclusive: true,
            blocked: false,
            pid: Some(9767),
            device: (0xfe, 0),
            inode: 10_010_751,
        };
        assert_eq!(
            parse("1: FLOCK  ADVISORY  WRITE 9767 fe:00:10010751 0 EOF"),
            Some(held)
        );
        let waits = Flock {
            exclusive: false,
            blocked: true,
            pid: Some(12),
            device: (0, 0x2a),
            inode: 7,
        };
        assert_eq!(
            parse("3: -> FLOCK  ADVISORY  READ 12 00:2a:7 0 EOF"),
            Some(waits)
        );
        assert_eq!(parse("2: POSIX  ADVISORY  WRITE 1 08:01:3 0 EOF"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn exclusive_lock_in_two_pieces_of_the_table_is_one() {
        let pids =
            |table: &str| -> Vec<_> { locks_in(table).iter().map(|lock| lock.pid).collect() };
        let first = "1: FLOCK  ADVISORY  WRITE 11 fe:00:7 0 EOF\n2: FLOCK  ADVISORY  READ 12 fe:00:8 0 EOF\n";
        let (repeated, handed_on) = (
            "3: FLOCK  ADVISORY  WRITE 11 fe:00:7 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 13 fe:00:7 0 EOF\n",
            "3: FLOCK  ADVISORY  WRITE 14 fe:00:7 0 EOF\n4: FLOCK  ADVISORY  READ 12 fe:00:8 0 EOF\n",
        );
        assert_eq!(pids(&format!("{first}{repeated}")), [12, 11, 13].map(Some));
        assert_eq!(pids(&format!("{first}{handed_on}")), [12, 14, 12].map(Some));
    }

    #[test]
    fn the_device_of_a_mount_is_found() {
        let mounts = "36 35 98:0 / /mnt rw,noatime - ext3 /dev/root rw\n361 36 0:42 /a\\040b /b rw - tmpfs none rw\n";
        assert_eq!(device_in(mounts, "361"), Some((0, 42)));
        assert_eq!(device_in(mounts, "3"), None);
        assert!(device_of(Path::new("/proc/self")).is_some());
    }
}
