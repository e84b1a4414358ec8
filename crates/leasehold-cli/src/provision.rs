//! `leasehold provision`: attesting the servers of a quorum.

use leasehold::{LockBackend, quorum};

use crate::{args::Provision, exit::Failure, show};

pub(crate) async fn provision(args: &Provision) -> Result<u8, Failure> {
    let quorum = leasehold::redlock(&args.url).await?;
    let how = quorum::Provision::new(args.largest_ttl).with_durable(args.durable).with_never_used(args.never_used);
    let nodes = quorum.provision(&how).await;
    // What is held is not ours, and the answer is in hand.
    drop(quorum.close().await);
    let nodes = nodes?;
    let mut table = show::table(&["SERVER", "VOTES"]);
    for node in nodes {
        let votes = node.problem.unwrap_or_else(|| String::from("yes"));
        table.add_row([show::one_line(&node.endpoint), show::one_line(&votes)]);
    }
    show::print(&table.to_string())?;
    Ok(0)
}
