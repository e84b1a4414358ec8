//! Compares the file backend with a model: after each random step, the acquisitions that succeed
//! are those that the model allows.
//!
//! The steps are events that happen to lock files in production. They and their directory are
//! removed while locks are held, holders leave child processes behind that inherited all
//! descriptors, and other programs call `flock(2)` on the same file.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    num::NonZeroU32,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use leasehold_core::{
    FencingToken, LockKey, Mode, Released,
    backend::{Attempt, Lease, LockBackend, Request},
};
use leasehold_local::{FileBackend, FileConfig};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Exclusive,
    Shared,
    Permit,
}

const PERMITS: u32 = 2;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Acquires with the backend of this number. Each backend stands for one program.
    Try(usize, Want),
    /// Releases one of the leases.
    Release(usize),
    /// All holders leave a child process behind that inherits their descriptors.
    LeaveChild,
    RemoveFiles,
    RemoveDirectory,
    /// Another program locks the file for an instant.
    Flock,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let want = prop_oneof![
        Just(Want::Exclusive),
        Just(Want::Shared),
        Just(Want::Permit)
    ];
    let step = prop_oneof![
        8 => (0..3_usize, want).prop_map(|(backend, want)| Step::Try(backend, want)),
        6 => (0..8_usize).prop_map(Step::Release),
        1 => Just(Step::LeaveChild),
        2 => Just(Step::RemoveFiles),
        1 => Just(Step::RemoveDirectory),
        1 => Just(Step::Flock),
    ];
    prop::collection::vec(step, 1..40)
}

fn request(want: Want) -> Request {
    let request = Request::new(LockKey::new("k").unwrap());
    match want {
        Want::Exclusive => request,
        Want::Shared => request.with_mode(Mode::Shared),
        Want::Permit => request.with_permit_of(NonZeroU32::new(PERMITS).unwrap()),
    }
}

/// A holder, and whether its file was removed.
struct Held {
    want: Want,
    removed: bool,
    lease: Arc<dyn Lease>,
}

fn admits(held: &[Held], want: Want) -> bool {
    let count = |of: Want| held.iter().filter(|held| held.want == of).count();
    match want {
        Want::Exclusive => count(Want::Exclusive) + count(Want::Shared) == 0,
        Want::Shared => count(Want::Exclusive) == 0,
        Want::Permit => count(Want::Permit) < PERMITS as usize,
    }
}

struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn remove_files(dir: &Path) {
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        // The tokens of a removed directory continue from the clock. In this test, they must
        // continue from the file too.
        if path
            .extension()
            .is_none_or(|extension| extension != "token")
        {
            fs::remove_file(path).unwrap();
        }
    }
}

async fn run(steps: Vec<Step>) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("locks");
    let config = FileConfig::new()
        .with_fallback_poll_interval(Duration::from_secs(3600))
        .with_inherited_by_children(true);
    let open = || Arc::new(FileBackend::open_with(&dir, config.clone()).unwrap());
    let backends = [open(), open(), open()];
    let (mut held, mut children) = (Vec::<Held>::new(), Children(Vec::new()));
    let mut last_writer = 0;
    for (at, step) in steps.iter().enumerate() {
        match *step {
            Step::Try(backend, want) => {
                let attempt = Arc::clone(&backends[backend])
                    .try_acquire(request(want))
                    .await
                    .unwrap();
                match attempt {
                    Attempt::Granted(lease) => {
                        assert!(
                            admits(&held, want),
                            "{at}: a second holder after {:?}",
                            &steps[..=at]
                        );
                        if let Some(token) = lease.fencing_token().map(FencingToken::get) {
                            assert!(
                                token > last_writer,
                                "{at}: a token fell after {:?}",
                                &steps[..=at]
                            );
                            if want == Want::Exclusive {
                                last_writer = token;
                            }
                        }
                        held.push(Held {
                            want,
                            removed: false,
                            lease,
                        });
                    }
                    Attempt::Contended(_) => {
                        // The holder of a removed `.permits` file counts, but the number of permits
                        // cannot be set in the meantime.
                        let displaced = want == Want::Permit
                            && held.iter().any(|held| held.want == want && held.removed);
                        assert!(
                            !admits(&held, want) || displaced,
                            "{at}: refused, though free, after {:?}",
                            &steps[..=at]
                        );
                    }
                }
            }
            Step::Release(lease) if !held.is_empty() => {
                let held = held.swap_remove(lease % held.len());
                let released = held.lease.release().await.unwrap();
                assert_eq!(
                    released == Released::AlreadyLost,
                    held.removed,
                    "{at}: {:?}",
                    &steps[..=at]
                );
            }
            Step::Release(_) => {}
            Step::LeaveChild if children.0.len() < 2 => {
                children
                    .0
                    .push(Command::new("sleep").arg("60").spawn().unwrap());
            }
            Step::LeaveChild => {}
            Step::RemoveFiles | Step::RemoveDirectory => {
                match *step {
                    Step::RemoveFiles => remove_files(&dir),
                    _ if dir.exists() => {
                        fs::remove_dir_all(&dir).unwrap();
                        fs::create_dir(&dir).unwrap();
                    }
                    _ => {}
                }
                held.iter_mut().for_each(|held| held.removed = true);
            }
            Step::Flock => {
                let path = backends[0].path_of(&LockKey::new("k").unwrap());
                if let Ok(file) = File::open(path) {
                    let free = file.try_lock().is_ok();
                    // Another program does not see holders whose file was removed.
                    let in_place = |held: &&Held| !held.removed && held.want != Want::Permit;
                    assert_eq!(
                        free,
                        held.iter().filter(in_place).count() == 0,
                        "{at}: {:?}",
                        &steps[..=at]
                    );
                }
            }
        }
    }
    // Nothing stays locked, whatever child processes are left.
    for held in held.drain(..) {
        held.lease.release().await.unwrap();
    }
    for want in [Want::Exclusive, Want::Permit] {
        let attempt = Arc::clone(&backends[0])
            .try_acquire(request(want))
            .await
            .unwrap();
        assert!(
            matches!(attempt, Attempt::Granted(_)),
            "at the end nobody holds it: {steps:?}"
        );
    }
}

#[test]
fn grants_match_the_model_whatever_happens_to_the_files() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&steps(), |steps| {
            runtime.block_on(run(steps));
            Ok(())
        })
        .unwrap();
}
