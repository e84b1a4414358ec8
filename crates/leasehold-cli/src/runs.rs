//! `leasehold runs`: the latest runs of a name.

use leasehold::once::{History, RunInfo};
use serde::Serialize;

use crate::{
    args::Runs,
    backend,
    exit::{self, Failure},
    once::{instant, shown},
    os_string::key_of,
    output::{self, or_dash},
    schemes,
};

/// The JSON of `leasehold runs`.
#[derive(Debug, Serialize)]
struct RunsJson<'a> {
    key: &'a leasehold::LockKey,
    #[serde(flatten)]
    history: Option<&'a History>,
}

pub(crate) async fn runs(args: &Runs) -> Result<u8, Failure> {
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.backend.url)?;
    schemes::warn_of_url(&args.name);
    let history = match backend::client(&args.backend.url).await? {
        Some(client) => {
            let history = client.once(&key).history().await;
            backend::close(&client).await;
            Some(history?)
        }
        None => None,
    };
    let runs = history.as_ref().map_or(&[][..], |history| &history.runs);
    if args.json {
        output::print_json(&RunsJson {
            key: &key,
            history: history.as_ref(),
        })?;
    } else if runs.is_empty() {
        output::print("no runs")?;
    } else {
        output::print(&table(runs))?;
    }
    Ok(if runs.is_empty() { exit::NOT_HELD } else { 0 })
}

fn table(runs: &[RunInfo]) -> String {
    let mut table = output::table(&[
        "OCCURRENCE",
        "STATE",
        "ATTEMPT",
        "BEGAN",
        "ENDED",
        "TOKEN",
        "BY",
        "NOTE",
    ]);
    for run in runs {
        table.add_row([
            output::one_line(&shown(&run.occurrence)),
            run.state.to_string(),
            run.attempt.to_string(),
            or_dash(run.began.map(instant)),
            or_dash(run.ended.map(instant)),
            or_dash(run.token),
            output::label(&run.by),
            or_dash(run.note.as_deref().map(output::one_line)),
        ]);
    }
    table.to_string()
}
