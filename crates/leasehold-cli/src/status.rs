//! `leasehold status`: the holders of a lock and its waiters.

use leasehold::{HolderConnection, HolderRef, Inspection};
use serde::Serialize;

use crate::{
    args::Status,
    backend,
    exit::{self, Failure},
    os_string::key_of,
    output::{self, or_dash},
    schemes,
};

/// The JSON of `leasehold status`.
#[derive(Debug, Serialize)]
struct StatusJson<'a> {
    key: &'a leasehold::LockKey,
    #[serde(flatten)]
    inspection: &'a Inspection,
}

pub(crate) async fn status(args: &Status) -> Result<u8, Failure> {
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.backend.url)?;
    schemes::warn_of_url(&args.name);
    let inspection = match backend::client(&args.backend.url).await? {
        Some(client) => {
            let inspection = client.inspect(&key).await;
            backend::close(&client).await;
            inspection?
        }
        None => Inspection::default(),
    };
    if args.json {
        output::print_json(&StatusJson {
            key: &key,
            inspection: &inspection,
        })?;
    } else {
        output::print(&table(&inspection))?;
    }
    Ok(if inspection.holders.is_empty() {
        exit::NOT_HELD
    } else {
        0
    })
}

/// Returns the holders and waiters, and the nodes of a quorum that have a problem.
fn table(inspection: &Inspection) -> String {
    let mut text = holders_and_waiters(inspection);
    for node in &inspection.nodes {
        if let Some(problem) = &node.problem {
            text.push_str(&format!(
                "\n{}: {}",
                output::one_line(&node.endpoint),
                output::one_line(problem)
            ));
        }
    }
    text
}

fn holders_and_waiters(inspection: &Inspection) -> String {
    if inspection.holders.is_empty() && inspection.waiters.is_empty() {
        return String::from("no holders and no waiters");
    }
    // Only some servers report connections.
    let with_connections = inspection
        .holders
        .iter()
        .any(|holder| holder.connection.is_some());
    let columns = ["", "LABEL", "MODE", "TOKEN", "EXPIRES IN", "CONNECTION"];
    let mut table = output::table(&columns[..if with_connections { 6 } else { 5 }]);
    for holder in &inspection.holders {
        table.add_row(holder_row(holder));
    }
    for waiter in &inspection.waiters {
        let [role, dash] = ["waiter", "-"].map(String::from);
        table.add_row([
            role,
            output::label(&waiter.label),
            or_dash(waiter.mode),
            dash.clone(),
            dash,
        ]);
    }
    table.to_string()
}

fn holder_row(holder: &HolderRef) -> Vec<String> {
    let mut row = vec![
        String::from("holder"),
        output::label(&holder.label),
        or_dash(holder.mode),
        or_dash(holder.token),
        or_dash(holder.expires_in.map(output::short)),
    ];
    row.extend(holder.connection.as_ref().map(connection));
    row
}

/// Returns the address of a connection and its start.
fn connection(connection: &HolderConnection) -> String {
    let from = connection.address.map(|address| format!("from {address}"));
    let since = connection
        .since
        .map(|since| format!("since {}", humantime::format_rfc3339_seconds(since)));
    let known: Vec<String> = from.into_iter().chain(since).collect();
    if known.is_empty() {
        String::from("-")
    } else {
        known.join(" ")
    }
}
