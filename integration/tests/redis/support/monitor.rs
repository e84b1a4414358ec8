//! A record of the commands that a server runs, and a check of the keys that scripts touch.

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A `redis-cli monitor`. It ends when this value is dropped.
pub(super) struct Monitor(Child);

impl Monitor {
    /// Starts to add the server's commands to a file. Returns `None` if the server requires a
    /// password.
    pub(super) fn start(socket: &Path, record: &Path) -> Option<Self> {
        let open = || File::options().create(true).append(true).open(record);
        let before = std::fs::read_to_string(record).unwrap_or_default().len();
        let child = Command::new("redis-cli")
            .arg("-s")
            .arg(socket)
            .arg("monitor")
            .stdin(Stdio::null())
            .stdout(open().unwrap())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-cli is installed with redis-server");
        let monitor = Self(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let record = std::fs::read_to_string(record).unwrap();
            match record[before..].lines().next() {
                Some("OK") => return Some(monitor),
                Some(_) => return None,
                None => assert!(Instant::now() < deadline, "redis-cli shows nothing"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The scripts of a server.
#[derive(Debug, Default)]
pub(crate) struct Scripts {
    /// The sources that were loaded.
    pub(crate) loaded: HashSet<String>,
    /// The hashes of the scripts that ran.
    pub(crate) ran: HashSet<String>,
}

impl Scripts {
    /// Reads a record of commands.
    ///
    /// # Panics
    /// A script ran a command on a key that it had not declared.
    pub(super) fn read(record: &Path) -> Self {
        let mut scripts = Self::default();
        // The script that is running, and its keys.
        let (mut running, mut declared) = (String::new(), HashSet::new());
        for line in std::fs::read_to_string(record).unwrap().lines() {
            let words = words(line);
            let command = words.first().map(|word| word.to_lowercase());
            let by_script = line.split(' ').nth(2) == Some("lua]");
            match command.as_deref() {
                Some("time" | "info") => {}
                Some(_) if by_script => {
                    assert!(
                        declared.contains(&words[1]),
                        "a script has not declared a key, it has declared {declared:?}: {line}\n{running}"
                    );
                }
                Some("evalsha" | "eval") => {
                    let count = words[2].parse().unwrap();
                    declared = words[3..].iter().take(count).cloned().collect();
                    if command.as_deref() == Some("evalsha") {
                        scripts.ran.insert(words[1].clone());
                    }
                    running = words[1].clone();
                }
                Some("script") if words[1].eq_ignore_ascii_case("load") => {
                    scripts.loaded.insert(words[2].clone());
                }
                _ => {}
            }
        }
        scripts
    }
}

/// Returns the quoted words of a line, with their escape sequences.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (&mut word, c) {
            (None, '"') => word = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') => words.extend(word.take()),
            (Some(text), '\\') => text.extend([c].into_iter().chain(chars.next())),
            (Some(text), _) => text.push(c),
        }
    }
    words
}

/// Returns the file of a server's record.
pub(super) fn record_in(folder: &Path) -> PathBuf {
    folder.join("monitor")
}
