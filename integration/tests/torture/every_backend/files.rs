use leasehold_integration::steps::millis;
use std::{fs, path::PathBuf, thread, time::SystemTime};

use rand::{RngExt, rngs::StdRng};
use tempfile::TempDir;

use super::{Target, elections::elects, survives};

/// Lock files in a folder of their own.
struct Files {
    folder: TempDir,
    /// Whether a cleaner of temporary files removes them.
    cleaned: bool,
}

impl Files {
    fn lock_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_file())
            .collect()
    }
}

impl Target for Files {
    fn url(&self, _: usize) -> String {
        format!("file:{}", self.folder.path().display())
    }

    fn ttl_ms(&self) -> u64 {
        500
    }

    fn strike(&mut self, rng: &mut StdRng) {
        thread::sleep(millis(rng.random_range(20..300)));
        match rng.random_range(if self.cleaned { 0 } else { 2 }..8) {
            // A cleaner of temporary files does this.
            0 => self
                .lock_files()
                .iter()
                .for_each(|path| drop(fs::remove_file(path))),
            1 => {
                drop(fs::remove_dir_all(self.folder.path()));
                fs::create_dir_all(self.folder.path()).unwrap();
            }
            // Another program reads and touches the files. Each access is an event for watchers of
            // the folder.
            _ => {
                for path in self.lock_files() {
                    drop(fs::read(&path));
                    if let Ok(file) = fs::File::options().write(true).open(&path) {
                        drop(file.set_modified(SystemTime::now()));
                    }
                }
                fs::write(self.folder.path().join("a stranger's file"), "").unwrap();
            }
        }
    }

    fn settle(&mut self) {}
}

#[test]
fn files_keep_their_promises_in_chaos() {
    survives(Files {
        folder: tempfile::tempdir().unwrap(),
        cleaned: true,
    });
}

#[test]
fn files_elect_one_leader_at_a_time_in_chaos() {
    // A cleaner would remove the values of the leaders.
    elects(Files {
        folder: tempfile::tempdir().unwrap(),
        cleaned: false,
    });
}
