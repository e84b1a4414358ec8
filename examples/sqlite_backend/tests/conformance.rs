//! The SQLite backend passes the conformance suite.

use std::sync::Arc;

use leasehold::{Ttl, backend::LockBackend};
use leasehold_sqlite_example::SqliteBackend;
use leasehold_testkit::{FixtureFn, conformance};

/// Returns a fixture with a file of its own for each case, since writers to one file wait for each
/// other.
fn new_file() -> FixtureFn {
    let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
    let open = move || {
        let folder = Arc::clone(&folder);
        async move {
            let backend = SqliteBackend::open(folder.path().join("locks.db"))
                .await
                .expect("a new file can be opened");
            backend as Arc<dyn LockBackend>
        }
    };
    FixtureFn::new(open).with_ttl(Ttl::from_secs(2).expect("a TTL"))
}

conformance!(sqlite, new_file());

#[test]
fn backend_has_at_most_180_lines_of_code() {
    let code = include_str!("../backend.rs")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"));
    let lines = code.count();
    assert!(lines <= 180, "{lines} lines");
}
