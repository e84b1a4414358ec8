//! `leasehold break`: takes a lock from its holders.

use leasehold::Broken;
use serde::Serialize;

use crate::{
    args::Break,
    backend,
    exit::{self, Failure, say},
    name::key_of,
    schemes,
    show::{self, Holder, millis},
};

#[derive(Debug, Serialize)]
struct Taken {
    #[serde(flatten)]
    holder: Holder,
    /// `freed`, `free_within` or `already_gone`.
    outcome: &'static str,
    free_within_ms: Option<u64>,
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
    let (mut taken, mut told) = (Vec::new(), String::new());
    for holder in &inspection.holders {
        let broken = client.break_lock(holder, args.now).await?;
        let (outcome, within, text) = match broken {
            Broken::Freed => ("freed", None, String::from("freed")),
            Broken::FreeWithin(Some(left)) => {
                ("free_within", Some(left), format!("no longer renewed, free in {left:.1?} at the latest"))
            }
            Broken::FreeWithin(None) => ("free_within", None, String::from("no longer renewed, free at its deadline")),
            _ => ("already_gone", None, String::from("had gone already")),
        };
        let holder = Holder::from(holder);
        let label = if holder.label.is_empty() { "(another program)" } else { &holder.label };
        told = format!("{told}{}: {text}\n", show::one_line(label));
        taken.push(Taken { holder, outcome, free_within_ms: within.map(millis) });
    }
    backend::close(&client).await;
    if args.json {
        show::print_json(&taken)?;
    } else if taken.is_empty() {
        show::print("nobody holds it")?;
    } else {
        show::print(told.trim_end())?;
    }
    Ok(if taken.is_empty() { exit::NOBODY } else { 0 })
}
