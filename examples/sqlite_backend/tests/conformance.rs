//! The example's backend keeps the contract.

use std::sync::Arc;

use leasehold::{Ttl, backend::LockBackend};
use leasehold_sqlite_example::SqliteBackend;
use leasehold_testkit::{FixtureFn, conformance};

/// A file for each case, opened anew for each "process" of it. Writers to one file wait for each
/// other's disk.
fn a_file() -> FixtureFn {
    let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
    let open = move || {
        let folder = Arc::clone(&folder);
        async move {
            let backend = SqliteBackend::open(folder.path().join("locks.db"))
                .await
                .expect("a file of ours");
            backend as Arc<dyn LockBackend>
        }
    };
    FixtureFn::new(open).with_ttl(Ttl::from_secs(2).expect("a TTL"))
}

conformance!(sqlite, a_file());

#[test]
fn it_is_short_enough_to_be_read() {
    let lines = include_str!("../backend.rs").lines().count();
    assert!(lines <= 180, "{lines} lines");
}
