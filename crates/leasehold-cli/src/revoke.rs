//! `leasehold revoke`: revokes a lock from its holders.

use std::time::Duration;

use leasehold::{Error, HolderRef, LockClient, Revocation, RevokeOutcome};
use serde::Serialize;

use crate::{
    args::Revoke,
    backend,
    exit::{self, Failure},
    os_string::key_of,
    output, schemes, stderr,
};

/// The JSON of `leasehold revoke`, for one holder.
#[derive(Debug, Serialize)]
struct RevokedJson<'a> {
    #[serde(flatten)]
    holder: &'a HolderRef,
    #[serde(flatten)]
    outcome: Outcome,
}

/// The result for one holder.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Outcome {
    Freed,
    /// The lock is free when this time has passed, or at a deadline that is not known.
    FreeWithin {
        free_within_ms: Option<u64>,
    },
    AlreadyGone,
}

pub(crate) async fn revoke(args: &Revoke) -> Result<u8, Failure> {
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.backend.url)?;
    schemes::warn_of_url(&args.name);
    let holders;
    let (revoked, failed) = match backend::client(&args.backend.url).await? {
        Some(client) => {
            holders = client.inspect(&key).await?.holders;
            if args.now && client.capabilities().revoke && !holders.is_empty() {
                stderr::report(
                    "--now frees the lock while its holder may still use the resource; only fencing tokens protect that",
                );
            }
            let revoked = revoke_all(&client, &holders, args.now).await;
            backend::close(&client).await;
            revoked
        }
        None => (Vec::new(), None),
    };
    // Revocations before a failure are printed too.
    match failed {
        Some(error) if revoked.is_empty() => return Err(error.into()),
        _ if args.json => output::print_json(&revoked)?,
        _ if revoked.is_empty() => output::print("no holders")?,
        _ => output::print(
            &revoked
                .iter()
                .map(RevokedJson::line)
                .collect::<Vec<_>>()
                .join("\n"),
        )?,
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(if revoked.is_empty() {
            exit::NOT_HELD
        } else {
            0
        }),
    }
}

/// Revokes the lock from one holder after the other, until that fails.
async fn revoke_all<'a>(
    client: &LockClient,
    holders: &'a [HolderRef],
    now: bool,
) -> (Vec<RevokedJson<'a>>, Option<Error>) {
    let revocation = if now {
        Revocation::Immediate
    } else {
        Revocation::Graceful
    };
    let mut revoked = Vec::new();
    for holder in holders {
        let outcome = match client.revoke(holder, revocation).await {
            Ok(RevokeOutcome::Freed) => Outcome::Freed,
            Ok(RevokeOutcome::FreeWithin(left)) => Outcome::FreeWithin {
                free_within_ms: left.map(millis),
            },
            Ok(_) => Outcome::AlreadyGone,
            Err(error) => return (revoked, Some(error)),
        };
        revoked.push(RevokedJson { holder, outcome });
    }
    (revoked, None)
}

impl RevokedJson<'_> {
    /// Returns the line for people.
    fn line(&self) -> String {
        let what = match self.outcome {
            Outcome::Freed => String::from("freed"),
            Outcome::FreeWithin {
                free_within_ms: Some(left),
            } => {
                format!(
                    "no longer renewed, free in {} at the latest",
                    output::short(Duration::from_millis(left))
                )
            }
            Outcome::FreeWithin {
                free_within_ms: None,
            } => String::from("no longer renewed, but not free yet"),
            Outcome::AlreadyGone => String::from("was already gone"),
        };
        format!("{}: {what}", output::label(&self.holder.label))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

    /// A backend that revokes only the locks of the holder `ours`.
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
            Err(Error::new(
                ErrorKind::Unsupported,
                "this backend has no locks",
            ))
        }

        async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
            self.0.inspect(key).await
        }

        async fn revoke(&self, holder: &HolderRef, _: Revocation) -> Result<RevokeOutcome> {
            match holder.label.as_str() {
                "ours" => Ok(RevokeOutcome::Freed),
                _ => Err(Error::new(ErrorKind::Denied, "another user's lock")),
            }
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    fn holder(label: &str) -> HolderRef {
        let mut holder = HolderRef::new(LockKey::new("k").unwrap(), label);
        holder.label = String::from(label);
        holder
    }

    #[tokio::test]
    async fn revocations_before_a_failure_are_reported() {
        let client = LockClient::new(Strict(MemoryBackend::new()));
        let holders = ["ours", "theirs", "ours"].map(holder);
        let (revoked, failed) = revoke_all(&client, &holders, true).await;
        assert_eq!(
            revoked.iter().map(RevokedJson::line).collect::<Vec<_>>(),
            ["ours: freed"]
        );
        assert_eq!(failed.map(|error| error.kind()), Some(ErrorKind::Denied));
    }

    #[test]
    fn json_names_of_outcomes_are_stable() {
        let holder = holder("till 3");
        for (outcome, name) in [
            (Outcome::Freed, "freed"),
            (
                Outcome::FreeWithin {
                    free_within_ms: Some(1_500),
                },
                "free_within",
            ),
            (
                Outcome::FreeWithin {
                    free_within_ms: None,
                },
                "free_within",
            ),
            (Outcome::AlreadyGone, "already_gone"),
        ] {
            let json = serde_json::to_value(RevokedJson {
                holder: &holder,
                outcome,
            })
            .unwrap();
            assert_eq!(
                (&json["label"], &json["outcome"]),
                (&"till 3".into(), &name.into())
            );
            let left = if let Outcome::FreeWithin { free_within_ms } = outcome {
                free_within_ms
            } else {
                None
            };
            assert_eq!(json["free_within_ms"].as_u64(), left);
        }
    }
}
