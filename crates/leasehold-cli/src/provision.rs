//! `leasehold provision`: attesting the servers of a quorum.

use leasehold::backend::LockBackend;

/// Servers that need no grace have answered by then.
const QUIET: Duration = Duration::from_secs(1);

pub(crate) async fn provision(args: &Provision) -> Result<u8, Failure> {
    schemes::check(&args.url)?;
    schemes::check_is_quorum(&args.url)?;
    let quorum = leasehold::redlock(&args.url).await?;
    let how = quorum::Provision::new(args.largest_ttl)
        .with_durable(args.durable)
        .with_never_used(args.never_used);
    let nodes = {
        let mut provisioned = pin!(quorum.provision(&how));
        tokio::select! {
            nodes = &mut provisioned => nodes,
            () = tokio::time::sleep(QUIET) => {
                let longest = humantime::format_duration(args.largest_ttl.as_duration());
                say(&format!("waits until what a server may have forgotten has expired: up to {longest} (--largest-ttl)"));
                provisioned.await
            }
        }
    };
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
