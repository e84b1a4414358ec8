//! Who holds and waits, as `/proc/locks` has it. To try the locks instead would make others' attempts fail.

use leasehold_core::{FencingToken, HolderRef, Inspection, LockKey, Mode, WaiterRef};

use super::{backend::FileBackend, identity::FileId, permit::read_number, record::Record};

/// A line of `/proc/locks`.
#[derive(Debug, PartialEq, Eq)]
struct Flock {
    exclusive: bool,
    blocked: bool,
    pid: u32,
    /// Major and minor number.
    device: (u32, u32),
    inode: u64,
}

pub(super) fn inspect(backend: &FileBackend, key: &LockKey) -> std::io::Result<Inspection> {
    let table = std::fs::read_to_string("/proc/locks")?;
    let locks: Vec<_> = table.lines().filter_map(parse).collect();
    let on = |suffix: &str| -> std::io::Result<Vec<&Flock>> {
        let path = backend.path(key, suffix);
        // The device is not compared: on overlays and subvolumes the table has another one than `stat`.
        let id = FileId::at(&path)?;
        let mut found: Vec<_> = locks.iter().filter(|lock| id.is_some_and(|id| id.ino == lock.inode)).collect();
        // Who holds a file that was removed is found by its shadow.
        if let Some(shadow) = backend.shadows.path_of(&path).and_then(|path| FileId::at(&path).ok().flatten()) {
            let device = (rustix::fs::major(shadow.dev), rustix::fs::minor(shadow.dev));
            let shadows = locks.iter().filter(|lock| lock.inode == shadow.ino && lock.device == device);
            let removed = shadows.filter(|shadow| !found.iter().any(|lock| !lock.blocked && lock.pid == shadow.pid));
            let removed: Vec<_> = removed.collect();
            found.extend(removed);
        }
        Ok(found)
    };
    let mut seen = Inspection::default();

    let record = Record::at(&backend.token_path(key)).ok().flatten();
    for lock in on(".lock")? {
        let mode = if lock.exclusive { Mode::Exclusive } else { Mode::Shared };
        if lock.blocked {
            seen.waiters.push(WaiterRef::new(Some(mode), who(lock.pid)));
            continue;
        }
        let mut holder = holder(key, lock, mode);
        if let Some(record) = &record {
            if !lock.exclusive {
                holder.token = record.last_token.checked_add(1).map(FencingToken::new);
            } else if record.pid == lock.pid {
                holder.token = Some(FencingToken::new(record.last_token));
                if !record.label.is_empty() {
                    holder.label.clone_from(&record.label);
                }
            }
        }
        seen.holders.push(holder);
    }
    let number = std::fs::File::open(backend.path(key, ".permits")).and_then(|file| read_number(&file)).ok().flatten();
    let permit = number.and_then(std::num::NonZeroU32::new).map(|of| Mode::Permit { of });
    if let (Some(number), Some(mode)) = (number, permit) {
        for n in 0..number {
            let held = on(&format!(".permit-{n}"))?;
            seen.holders.extend(held.into_iter().map(|lock| holder(key, lock, mode)));
        }
    }
    for (suffix, mode) in [(".writers", Some(Mode::Exclusive)), (".readers", Some(Mode::Shared)), (".waiters", permit)]
    {
        let waiting = on(suffix)?.into_iter().filter(|lock| !lock.exclusive);
        seen.waiters.extend(waiting.map(|lock| WaiterRef::new(mode, who(lock.pid))));
    }
    Ok(seen)
}

fn holder(key: &LockKey, lock: &Flock, mode: Mode) -> HolderRef {
    let mut holder = HolderRef::new(key.clone(), format!("{}:{}", lock.pid, lock.inode));
    holder.mode = Some(mode);
    holder.label = who(lock.pid);
    holder
}

/// Better than nothing for programs that leave no label.
fn who(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim_end()),
        Err(_) => format!("pid {pid}"),
    }
}

/// `1: FLOCK  ADVISORY  WRITE 9767 fe:00:10010751 0 EOF`; those who are blocked in `flock(2)` have a `->`.
fn parse(line: &str) -> Option<Flock> {
    let mut words = line.split_ascii_whitespace().skip(1).peekable();
    let blocked = words.next_if_eq(&"->").is_some();
    if words.next()? != "FLOCK" {
        return None;
    }
    let exclusive = words.nth(1)? == "WRITE";
    let pid = words.next()?.parse().ok()?;
    let mut file = words.next()?.split(':');
    let mut number = || u32::from_str_radix(file.next()?, 16).ok();
    let device = (number()?, number()?);
    let inode = file.next()?.parse().ok()?;
    Some(Flock { exclusive, blocked, pid, device, inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_understood() {
        let held = Flock { exclusive: true, blocked: false, pid: 9767, device: (0xfe, 0), inode: 10_010_751 };
        assert_eq!(parse("1: FLOCK  ADVISORY  WRITE 9767 fe:00:10010751 0 EOF"), Some(held));
        let waits = Flock { exclusive: false, blocked: true, pid: 12, device: (0, 0x2a), inode: 7 };
        assert_eq!(parse("3: -> FLOCK  ADVISORY  READ 12 00:2a:7 0 EOF"), Some(waits));
        assert_eq!(parse("2: POSIX  ADVISORY  WRITE 1 08:01:3 0 EOF"), None);
        assert_eq!(parse(""), None);
    }
}
