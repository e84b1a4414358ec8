//! The paths of the files of a key. Two keys never share a path.

use std::path::{Path, PathBuf};

use leasehold_core::LockKey;

/// A file name has at most 255 bytes. The rest is for the longest suffix.
const MAX_NAME: usize = 220;
/// The length of one directory of a longer name.
const CHUNK: usize = 200;

/// Returns the path of a file of `key`: `<dir>/<encoded key><suffix>`.
///
/// Lower-case letters, digits, `_`, `-` and a `.` that is not the first byte stand for themselves.
/// Every other byte is encoded as `%` and two lower-case hexadecimal digits. Upper-case letters are
/// encoded too, so that two names differ on file systems that ignore case. An encoded name of more
/// than 220 bytes is split into directories of 200 bytes each, marked by a `~`, which no encoded
/// name contains. A suffix begins with the last `.` of a file name, so the files of two keys never
/// collide.
pub(super) fn path_of(dir: &Path, key: &LockKey, suffix: &str) -> PathBuf {
    path_of_bytes(dir, key.as_bytes(), suffix)
}

/// Returns the path of a file whose name is any bytes.
pub(super) fn path_of_bytes(dir: &Path, name: &[u8], suffix: &str) -> PathBuf {
    let mut path = dir.to_path_buf();
    let name = encode(name);
    let mut rest = name.as_str();
    while rest.len() > MAX_NAME {
        let (chunk, tail) = rest.split_at(CHUNK);
        path.push(format!("{chunk}~"));
        rest = tail;
    }
    path.push(format!("{rest}{suffix}"));
    path
}

fn encode(name: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut encoded = String::with_capacity(name.len() + 16);
    for (at, byte) in name.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => encoded.push(char::from(*byte)),
            b'.' if at > 0 => encoded.push('.'),
            _ => {
                encoded.push('%');
                encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
                encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn lock_path(name: impl AsRef<[u8]>) -> PathBuf {
        path_of(Path::new("/d"), &LockKey::new(name).unwrap(), ".lock")
    }

    #[test]
    fn the_encoding_is_frozen() {
        for (name, path) in [
            ("job-7_x.y", "/d/job-7_x.y.lock"),
            ("item/42", "/d/item%2f42.lock"),
            (".", "/d/%2e.lock"),
            ("..", "/d/%2e..lock"),
            ("../../etc/passwd", "/d/%2e.%2f..%2fetc%2fpasswd.lock"),
            ("A%a", "/d/%41%25a.lock"),
            ("a\0\n", "/d/a%00%0a.lock"),
            ("🔒", "/d/%f0%9f%94%92.lock"),
        ] {
            assert_eq!(lock_path(name), Path::new(path));
        }
        let long = lock_path("x".repeat(500));
        assert_eq!(
            long,
            PathBuf::from(format!(
                "/d/{0}~/{0}~/{1}.lock",
                "x".repeat(200),
                "x".repeat(100)
            ))
        );
    }

    #[test]
    fn different_names_have_different_paths_that_stay_inside() {
        let mut paths = HashSet::new();
        let alphabet: &[&[u8]] = &[
            b"a",
            b"A",
            b".",
            b"/",
            b"%",
            b"~",
            b"2e",
            b"\0",
            b"\xff",
            b".lock",
            b".permits",
        ];
        let mut names: Vec<Vec<u8>> = vec![Vec::new()];
        for _ in 0..4 {
            let longer: Vec<_> = names
                .iter()
                .flat_map(|name| alphabet.iter().map(|part| [name, *part].concat()))
                .collect();
            names.extend(longer);
        }
        names.extend((195..=1024).flat_map(|len| {
            [
                vec![b'x'; len],
                vec![b'/'; len],
                [b"y/".as_slice(), &vec![b'x'; len - 2]].concat(),
            ]
        }));
        let names: HashSet<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
        for name in &names {
            let path = lock_path(name);
            let relative = path.strip_prefix("/d").unwrap();
            assert!(relative.components().all(
                |part| matches!(part, std::path::Component::Normal(name) if name.len() <= 230)
            ));
            assert_eq!(
                path.to_str().unwrap().to_lowercase(),
                path.to_str().unwrap()
            );
            assert!(paths.insert(path), "{name:?} shares its path with another");
        }
    }
}
