//! `leasehold init`: initializes the servers of a quorum.

use std::{pin::pin, time::Duration};

use leasehold::{backend::LockBackend, quorum};

use crate::{args::Init, exit::Failure, output, schemes, stderr};

/// Servers that need no waiting time reply within this time.
const NOTICE_AFTER: Duration = Duration::from_secs(1);

pub(crate) async fn init(args: &Init) -> Result<u8, Failure> {
    schemes::check_is_quorum(&args.url)?;
    schemes::check(&args.url)?;
    let quorum = leasehold::quorum::connect(&args.url).await?;
    let options = quorum::Provision::new(args.largest_ttl)
        .with_durable(args.durable)
        .with_never_used(args.assume_fresh);
    let nodes = {
        let mut provisioned = pin!(quorum.provision(&options));
        tokio::select! {
            nodes = &mut provisioned => nodes,
            () = tokio::time::sleep(NOTICE_AFTER) => {
                let longest = humantime::format_duration(args.largest_ttl.as_duration());
                stderr::report(&format!(
                    "waits until locks that a server may have lost have expired: up to {longest} (--largest-ttl)"
                ));
                provisioned.await
            }
        }
    };
    // This command holds no locks, and the reply is here: a failure to close changes nothing.
    drop(quorum.close().await);
    let nodes = nodes?;
    let mut table = output::table(&["SERVER", "VOTES"]);
    for node in nodes {
        let votes = node.problem.unwrap_or_else(|| String::from("yes"));
        table.add_row([output::one_line(&node.endpoint), output::one_line(&votes)]);
    }
    output::print(&table.to_string())?;
    Ok(0)
}
