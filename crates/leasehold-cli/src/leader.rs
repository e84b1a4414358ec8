//! `leasehold leader`: who leads an election.

use std::{ops::ControlFlow, str};

use leasehold::{FencingToken, Leader, LockClient, LockKey};
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::{
    args, backend,
    exit::{self, Failure},
    os_string::key_of,
    output::{self, or_dash},
    schemes,
    signals::Signals,
};

/// The JSON of `leasehold leader`.
#[derive(Debug, Serialize)]
struct ElectionJson<'a> {
    key: &'a LockKey,
    leader: Option<LeaderJson<'a>>,
}

#[derive(Debug, Serialize)]
struct LeaderJson<'a> {
    /// `None` if it is not UTF-8.
    value: Option<&'a str>,
    /// The bytes of a value that is not UTF-8, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    token: Option<FencingToken>,
    version: u64,
    label: &'a str,
}

impl<'a> From<&'a Leader> for LeaderJson<'a> {
    fn from(leader: &'a Leader) -> Self {
        let value = str::from_utf8(&leader.value).ok();
        let hex = || leader.value.iter().map(|byte| format!("{byte:02x}"));
        Self {
            value,
            value_hex: value.is_none().then(|| hex().collect()),
            token: leader.token,
            version: leader.version,
            label: &leader.label,
        }
    }
}

pub(crate) async fn leader(args: &args::Leader) -> Result<u8, Failure> {
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.backend.url)?;
    schemes::warn_of_url(&args.name);
    if args.watch {
        return watch_until_signal(args, &key).await;
    }
    let leader = match backend::client(&args.backend.url).await? {
        Some(client) => {
            let leader = client.election(&key).leader().await;
            backend::close(&client).await;
            leader?
        }
        None => None,
    };
    let text = match &leader {
        leader if args.json => json(&key, leader.as_ref())?,
        Some(leader) => {
            let mut table = output::table(&["VALUE", "TOKEN", "LABEL"]);
            table.add_row(columns(leader));
            table.to_string()
        }
        None => String::from(NOBODY),
    };
    output::print(&text)?;
    Ok(if leader.is_some() { 0 } else { exit::NOT_HELD })
}

/// The line if nobody leads.
const NOBODY: &str = "no leader";

/// Prints a line for each change, until a signal ends the command.
async fn watch_until_signal(args: &args::Leader, key: &LockKey) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let mut opened = None;
    let done = tokio::select! {
        biased;
        code = signals.end() => Ok(code),
        done = watch(args, key, &mut opened) => done.map(|()| 0),
    };
    if let Some(client) = opened {
        backend::close(&client).await;
    }
    done
}

/// Prints a line for each change, until nobody reads them. The client that it opens is left in
/// `opened`.
async fn watch(
    args: &args::Leader,
    key: &LockKey,
    opened: &mut Option<LockClient>,
) -> Result<(), Failure> {
    let mut printed_vacancy = false;
    let client = match backend::client(&args.backend.url).await? {
        Some(client) => client,
        None => {
            if print_line(args, key, None).await?.is_break() {
                return Ok(());
            }
            printed_vacancy = true;
            backend::client_once_created(&args.backend.url).await?
        }
    };
    let mut leaders = opened.insert(client).election(key).observe();
    loop {
        let leader = leaders.next().await?;
        let is_printed = std::mem::take(&mut printed_vacancy) && leader.is_none();
        if !is_printed && print_line(args, key, leader.as_ref()).await?.is_break() {
            return Ok(());
        }
    }
}

/// Prints a line on another thread, because signals must end a command whose output nobody reads.
async fn print_line(
    args: &args::Leader,
    key: &LockKey,
    leader: Option<&Leader>,
) -> Result<ControlFlow<()>, Failure> {
    let line = match leader {
        leader if args.json => json(key, leader)?,
        Some(leader) => columns(leader).join("  "),
        None => String::from(NOBODY),
    };
    match spawn_blocking(move || output::try_print(&line)).await {
        Ok(printed) => printed,
        Err(error) => Err(Failure::new(
            exit::SOFTWARE,
            format!("cannot write: {error}"),
        )),
    }
}

fn json(key: &LockKey, leader: Option<&Leader>) -> Result<String, Failure> {
    output::json_line(&ElectionJson {
        key,
        leader: leader.map(LeaderJson::from),
    })
}

/// Returns the value, the token and the label of a leader. An empty value is a dash.
fn columns(leader: &Leader) -> [String; 3] {
    let value = Some(&leader.value).filter(|value| !value.is_empty());
    [
        or_dash(value.map(|value| output::bytes(value))),
        or_dash(leader.token),
        output::label(&leader.label),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn json_names_of_leaders_are_stable() {
        let key = LockKey::new("scheduler").unwrap();
        let mut election = ElectionJson {
            key: &key,
            leader: None,
        };
        let expected = json!({ "key": "scheduler", "leader": null });
        assert_eq!(to_value(&election).unwrap(), expected);
        election.leader = Some(LeaderJson {
            value: Some("10.0.0.7"),
            value_hex: None,
            token: Some(FencingToken::new(41)),
            version: 3,
            label: "host 7",
        });
        let leader = json!({ "value": "10.0.0.7", "token": 41, "version": 3, "label": "host 7" });
        assert_eq!(to_value(&election).unwrap()["leader"], leader);
        election.leader = Some(LeaderJson {
            value: None,
            value_hex: Some(String::from("ff00")),
            token: None,
            version: 1,
            label: "",
        });
        let leader = json!({
            "value": null, "value_hex": "ff00", "token": null, "version": 1, "label": "",
        });
        assert_eq!(to_value(&election).unwrap()["leader"], leader);
    }
}
