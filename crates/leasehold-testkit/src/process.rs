//! Another process, and its death.

use std::{future::Future, mem, panic, thread};

use tokio::runtime::{Builder, Handle, RuntimeFlavor};

use crate::backend_fixture::BackendFixture;

/// Lets `life` run as another process, up to its end; then nothing in that process goes on. What it
/// spawned and what it is connected by stays as it stands, open and silent: a process that was
/// stopped for ever, which is harder on others than one that was killed.
///
/// What `life` owns it must forget itself: dropped, it could say goodbye. In paused time it runs on
/// the runtime of the case.
pub(crate) async fn die_after<Fut: Future<Output = ()> + Send>(
    fixture: &dyn BackendFixture,
    life: impl FnOnce() -> Fut + Send,
) {
    if fixture.is_time_paused() {
        return life().await;
    }
    let live = || {
        thread::scope(|scope| {
            let lived = scope.spawn(|| {
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => panic!("no tokio runtime: {error}"),
                };
                runtime.block_on(life());
                mem::forget(runtime);
            });
            lived.join()
        })
    };
    let lived = match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => live(),
        _ => tokio::task::block_in_place(live),
    };
    if let Err(panic) = lived {
        panic::resume_unwind(panic);
    }
}
