//! A process that a test drives: see [`leasehold_integration::worker`].

use leasehold_integration::{HarnessError, Result, worker};

#[tokio::main]
async fn main() -> Result<()> {
    let argument = std::env::args().nth(1).ok_or_else(|| HarnessError::new("the tests start this, with a setup"))?;
    let setup = serde_json::from_str(&argument).map_err(|error| HarnessError::caused_by("not a setup", error))?;
    worker::serve(setup).await
}
