//! A process that a test controls, see [`leasehold_integration::worker`].

use leasehold_integration::{HarnessError, Result, worker};

#[tokio::main]
async fn main() -> Result<()> {
    // A panic in any task or thread ends the process, so that the test notices it.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    let argument = std::env::args()
        .nth(1)
        .ok_or_else(|| HarnessError::new("this program is started by tests, with a setup"))?;
    let setup = serde_json::from_str(&argument)
        .map_err(|error| HarnessError::caused_by("invalid setup", error))?;
    worker::serve(setup).await
}
