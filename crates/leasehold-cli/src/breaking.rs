//! `leasehold break`: takes a lock from its holders.

#[derive(Debug, Serialize)]
struct Taken {
    #[serde(flatten)]
    holder: Holder,
    /// `freed`, `free_within` or `already_gone`.
    outcome: &'static str,
    free_within_ms: Option<u64>,
    #[serde(skip)]
    within: Option<Duration>,
}

pub(crate) async fn break_lock(args: &Break) -> Result<u8, Failure> {
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.on.url)?;
    let client = backend::client(&args.on.url).await?;
    let inspection = client.inspect(&key).await?;
    if args.now && client.capabilities().break_lock && !inspection.holders.is_empty() {
        say(
            "--now frees the lock while its holder may still be at work; only fencing tokens protect what it writes to",
        );
    }
    let (taken, failed) = take(&client, &inspection.holders, args.now).await;
    backend::close(&client).await;
    // What was taken before it failed is told too.
    match failed {
        Some(error) if taken.is_empty() => return Err(error.into()),
        _ if args.json => show::print_json(&taken)?,
        _ if taken.is_empty() => show::print("nobody holds it")?,
        _ => show::print(&taken.iter().map(Taken::told).collect::<Vec<_>>().join("\n"))?,
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(if taken.is_empty() { exit::NOBODY } else { 0 }),
    }
}

/// Takes the lock from one holder after the other, until that fails.
async fn take(
    client: &LockClient,
    holders: &[HolderRef],
    now: bool,
) -> (Vec<Taken>, Option<Error>) {
    let mut taken = Vec::new();
    for holder in holders {
        let (outcome, within) = match client.break_lock(holder, now).await {
            Ok(Broken::Freed) => ("freed", None),
            Ok(Broken::FreeWithin(left)) => ("free_within", left),
            Ok(_) => ("already_gone", None),
            Err(error) => return (taken, Some(error)),
        };
        taken.push(Taken {
            holder: Holder::from(holder),
            outcome,
            free_within_ms: within.map(millis),
            within,
        });
    }
    (taken, None)
}

impl Taken {
    fn told(&self) -> String {
        let label = if self.holder.label.is_empty() {
            "(another program)"
        } else {
            &self.holder.label
        };
        let what = match (self.outcome, self.within) {
            ("freed", _) => String::from("freed"),
            ("free_within", Some(left)) => {
                format!("no longer renewed, free in {left:.1?} at the latest")
            }
            ("free_within", None) => String::from("no longer renewed, free at its deadline"),
            _ => String::from("had gone already"),
        };
        format!("{}: {what}", show::one_line(label))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leasehold::{
        Capabilities, ErrorKind, Inspection, LockKey, Result,
        backend::{Attempt, LockBackend, Request, async_trait},
        local::MemoryBackend,
    };

    use super::*;

    /// Frees the locks of the holder `ours` alone.
    #[derive(Debug)]
    struct Strict(MemoryBackend);

    impl std::fmt::Display for Strict {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    #[async_trait]
    impl LockBackend for Strict {
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }

        async fn try_acquire(self: Arc<Self>, _: Request) -> Result<Attempt> {
            Err(Error::new(ErrorKind::Unsupported, "not here"))
        }

        async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
            self.0.inspect(key).await
        }

        async fn break_lock(&self, holder: &HolderRef, _: bool) -> Result<Broken> {
            match holder.label.as_str() {
                "ours" => Ok(Broken::Freed),
                _ => Err(Error::new(ErrorKind::Denied, "it is another's")),
            }
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_was_taken_before_a_failure_is_told() {
        let client = LockClient::new(Strict(MemoryBackend::new()));
        let holder = |label: &str| {
            let mut holder = HolderRef::new(LockKey::new("k").unwrap(), label);
            holder.label = String::from(label);
            holder
        };
        let (taken, failed) = take(
            &client,
            &[holder("ours"), holder("theirs"), holder("ours")],
            true,
        )
        .await;
        assert_eq!(
            taken.iter().map(Taken::told).collect::<Vec<_>>(),
            ["ours: freed"]
        );
        assert_eq!(failed.map(|error| error.kind()), Some(ErrorKind::Denied));
    }
}
