//! The crash of a simulated process.

use std::{future::Future, mem, panic, thread};

use tokio::runtime::{Builder, Handle, RuntimeFlavor};

use crate::backend_fixture::BackendFixture;

/// Runs `life` to its end as a separate process, which then stops for ever.
///
/// The tasks that the process spawned are never polled again, and its connections stay open and
/// silent. This is harder on other processes than a kill, which closes the connections.
///
/// `life` must forget the values that it owns, because their destructors could release locks. In
/// paused time it runs on the runtime of the case.
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
