//! The example's backend keeps the contract.

#[path = "../sqlite_backend/backend.rs"]
mod backend;

use std::sync::{Arc, LazyLock};

use leasehold::LockBackend;
use leasehold_testkit::{SubjectOf, conformance};

/// One file for all cases, opened anew for each "process" of a case.
async fn open() -> Arc<dyn LockBackend> {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));
    backend::SqliteBackend::open(FOLDER.path().join("locks.db")).await.expect("a file of ours")
}

conformance!(sqlite, SubjectOf::new(open));

#[test]
fn it_is_short_enough_to_be_read() {
    let lines = include_str!("../sqlite_backend/backend.rs").lines().count();
    assert!(lines < 200, "{lines} lines");
}
