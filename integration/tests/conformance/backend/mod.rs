//! [`ALL`]: the backends whose features are enabled, and their servers.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "local")]
mod local;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redlock")]
mod redlock;
#[cfg(feature = "zookeeper")]
mod zookeeper;

use leasehold_core::backend::BoxFuture;
use leasehold_testkit::FixtureFn;

/// A backend under test.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    simulated_time: bool,
    /// Creates the fixture of a case.
    pub(crate) fixture: fn() -> BoxFuture<'static, FixtureFn>,
}

/// All backends.
pub(crate) static ALL: &[Backend] = &[
    #[cfg(feature = "local")]
    local::MEMORY,
    #[cfg(feature = "local")]
    local::FILE,
    #[cfg(feature = "redis")]
    redis::REDIS,
    #[cfg(feature = "redlock")]
    redlock::REDLOCK,
    #[cfg(feature = "etcd")]
    etcd::ETCD,
    #[cfg(feature = "zookeeper")]
    zookeeper::ZOOKEEPER,
    #[cfg(feature = "postgres")]
    postgres::POSTGRES,
];

impl Backend {
    /// Runs a case on its own runtime: on two workers, or in simulated time on one thread, where
    /// the time advances when every task sleeps.
    pub(crate) fn run<T>(&self, case: impl Future<Output = T>) -> T {
        let runtime = if self.simulated_time {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
        } else {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
        };
        runtime.expect("a runtime").block_on(case)
    }
}

/// Creates fixtures at this URL, with a new connection for each "process" of a case.
fn at(url: String) -> FixtureFn {
    FixtureFn::new(move || {
        let url = url.clone();
        async move {
            leasehold::backend::connect(&url)
                .await
                .expect("a connection")
        }
    })
}

/// Returns the URL of an existing server, if the variable names one.
#[cfg(feature = "server")]
fn given(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}
