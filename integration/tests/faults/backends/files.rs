use std::{collections::BTreeSet, path::PathBuf};

use leasehold_core::Ttl;
use leasehold_integration::{Result, leftovers};
use tempfile::TempDir;

use super::{AT_ONCE, ttl};
use crate::fixture::{Backend, Fixture, Lease, Need, Route};

const NO_SERVER: &str = "lock files have no server";
const NO_EXPIRY: &str = "a lock file is locked until its holder releases it or ends";

pub(super) const FILE: Backend = Backend {
    name: "file",
    start: |lease| Box::new(Files::start(lease)),
    lacks: &[
        (Need::Server, NO_SERVER),
        (Need::Expiry, NO_EXPIRY),
        (Need::HeldAfterDeath, AT_ONCE),
        (
            Need::SkipsStopped,
            "the kernel may lock a file for a waiter that is stopped",
        ),
    ],
};

struct Files {
    lease: Lease,
    folder: TempDir,
}

impl Files {
    fn start(lease: Lease) -> Self {
        Self {
            lease,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn locks(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

impl Fixture for Files {
    fn url(&self) -> String {
        format!("file:{}", self.locks().display())
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn resume(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn kill(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn restart(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn route(&self) -> Route {
        panic!("{NO_SERVER}");
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        leftovers::files(&self.locks())
    }
}
