//! `forked_processes_draw_different_ids`: a process that has drawn an id forks, and both processes
//! draw another one.
//!
//! The test has no harness, because a process can fork safely only while it has one thread.

use std::{fs::File, io::Write, path::Path};

use fork::Fork;
use leasehold_core::AcquisitionId;

fn draw_into(path: &Path) {
    File::create(path)
        .unwrap()
        .write_all(AcquisitionId::random().to_string().as_bytes())
        .unwrap();
}

fn main() {
    println!("\nrunning 1 test");
    let folder = tempfile::tempdir().unwrap();
    let (parents, childs) = (folder.path().join("parent"), folder.path().join("child"));
    let before = AcquisitionId::random();
    match fork::fork().expect("it can fork") {
        Fork::Child => {
            draw_into(&childs);
            std::process::exit(0);
        }
        Fork::Parent(child) => {
            draw_into(&parents);
            fork::waitpid(child).expect("the child ends");
        }
    }
    let ids = [parents, childs].map(|path| {
        std::fs::read_to_string(path)
            .unwrap()
            .parse::<AcquisitionId>()
            .unwrap()
    });
    assert_ne!(ids[0], ids[1], "both processes drew the same id");
    assert!(!ids.contains(&before));
    println!("test forked_processes_draw_different_ids ... ok");
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
