//! `leasehold who`: holders and waiters.

use leasehold::Inspection;
use serde::Serialize;

use crate::{
    args::Who,
    backend,
    exit::{self, Failure},
    name::key_of,
    schemes,
    show::{self, Connection, Holder, or_dash},
};

#[derive(Debug, Serialize)]
struct Seen {
    key: String,
    holders: Vec<Holder>,
    waiters: Vec<Waiter>,
    /// Of a quorum.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Node {
    endpoint: String,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Waiter {
    mode: Option<String>,
    label: String,
}

pub(crate) async fn who(args: &Who) -> Result<u8, Failure> {
    let key = key_of(&args.name)?;
    schemes::check_excludes(&args.on.url)?;
    let client = backend::client(&args.on.url).await?;
    let inspection = client.inspect(&key).await;
    backend::close(&client).await;
    let inspection = inspection?;
    let held = !inspection.holders.is_empty();
    if args.json {
        show::print_json(&seen(key.to_string(), &inspection))?;
    } else {
        show::print(&tabled(&inspection))?;
    }
    Ok(if held { 0 } else { exit::NOBODY })
}

fn seen(key: String, inspection: &Inspection) -> Seen {
    let waiter = |waiter: &leasehold::WaiterRef| Waiter {
        mode: waiter.mode.map(|mode| mode.to_string()),
        label: waiter.label.clone(),
    };
    let node = |node: &leasehold::NodeStatus| Node {
        endpoint: node.endpoint.clone(),
        problem: node.problem.clone(),
    };
    Seen {
        key,
        holders: inspection.holders.iter().map(Holder::from).collect(),
        waiters: inspection.waiters.iter().map(waiter).collect(),
        nodes: inspection.nodes.iter().map(node).collect(),
    }
}

fn tabled(inspection: &Inspection) -> String {
    let mut text = holders_and_waiters(inspection);
    for node in &inspection.nodes {
        if let Some(problem) = &node.problem {
            text.push_str(&format!(
                "\n{}: {}",
                show::one_line(&node.endpoint),
                show::one_line(problem)
            ));
        }
    }
    text
}

fn holders_and_waiters(inspection: &Inspection) -> String {
    if inspection.holders.is_empty() && inspection.waiters.is_empty() {
        return String::from("nobody holds it or waits for it");
    }
    // Only some servers tell.
    let connected = inspection
        .holders
        .iter()
        .any(|holder| holder.connection.is_some());
    let columns = [
        "",
        "WHO",
        "MODE",
        "TOKEN",
        "LEFT, IF NOT RENEWED",
        "CONNECTED",
    ];
    let mut table = show::table(&columns[..if connected { 6 } else { 5 }]);
    for holder in &inspection.holders {
        let mut row = vec![
            String::from("holds"),
            who_of(&holder.label),
            or_dash(holder.mode),
            or_dash(holder.token),
            holder
                .expires_in
                .map_or_else(|| String::from("-"), |left| format!("{left:.1?}")),
        ];
        row.extend(
            holder
                .connection
                .as_ref()
                .map(|connection| Connection::from(connection).told()),
        );
        table.add_row(row);
    }
    for waiter in &inspection.waiters {
        table.add_row([
            String::from("waits"),
            who_of(&waiter.label),
            or_dash(waiter.mode),
            String::from("-"),
            String::from("-"),
        ]);
    }
    table.to_string()
}

fn who_of(label: &str) -> String {
    if label.is_empty() {
        String::from("(another program)")
    } else {
        show::one_line(label)
    }
}
