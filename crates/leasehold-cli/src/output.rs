//! What is printed: tables and JSON.

use std::{io::Write, net::IpAddr, time::Duration};

use comfy_table::{Table, presets::NOTHING};
use leasehold::{HolderConnection, HolderRef, text::Escaped};
use serde::Serialize;

use crate::exit::{self, Failure};

/// Who holds, or did.
#[derive(Debug, Serialize)]
pub(crate) struct Holder {
    pub(crate) mode: Option<String>,
    pub(crate) label: String,
    pub(crate) token: Option<u64>,
    pub(crate) expires_in_ms: Option<u64>,
    /// Where the server tells of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<Connection>,
}

/// What it holds by.
#[derive(Debug, Serialize)]
pub(crate) struct Connection {
    id: String,
    name: String,
    address: Option<IpAddr>,
    /// RFC 3339.
    since: Option<String>,
}

impl From<&HolderConnection> for Connection {
    fn from(connection: &HolderConnection) -> Self {
        Self {
            id: connection.id.clone(),
            name: connection.name.clone(),
            address: connection.address,
            since: connection
                .since
                .map(|since| humantime::format_rfc3339_seconds(since).to_string()),
        }
    }
}

impl Connection {
    /// From where, and since when.
    pub(crate) fn told(&self) -> String {
        let from = self.address.map(|address| format!("from {address}"));
        let since = self.since.as_ref().map(|since| format!("since {since}"));
        let told: Vec<String> = from.into_iter().chain(since).collect();
        if told.is_empty() {
            String::from("-")
        } else {
            told.join(" ")
        }
    }
}

impl From<&HolderRef> for Holder {
    fn from(holder: &HolderRef) -> Self {
        Self {
            mode: holder.mode.map(|mode| mode.to_string()),
            label: holder.label.clone(),
            token: holder.token.map(leasehold::FencingToken::get),
            expires_in_ms: holder.expires_in.map(millis),
            connection: holder.connection.as_ref().map(Connection::from),
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A table without lines, as `ps` prints.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

/// What may have been written by others, on one line.
pub(crate) fn one_line(text: &str) -> String {
    Escaped(text).to_string()
}

/// Escapes what does not print on each line, and leaves the lines.
pub(crate) fn lines(text: &str) -> String {
    text.split('\n')
        .map(one_line)
        .collect::<Vec<_>>()
        .join("\n")
}

pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| String::from("-"), |value| value.to_string())
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(exit::SOFTWARE, format!("cannot print JSON: {error}")))?;
    print(&printable_json(&text))
}

/// The same JSON, in which strings have escapes for what does not print.
fn printable_json(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        let mut buffer = [0; 4];
        let own = c.encode_utf8(&mut buffer);
        if c == '\n' || *one_line(own) == *own {
            printable.push(c);
        } else {
            c.encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| printable.push_str(&format!("\\u{unit:04x}")));
        }
    }
    printable
}

/// A reader that has gone away, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    match writeln!(std::io::stdout(), "{}", lines.join("\n")) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            exit::SOFTWARE,
            format!("cannot write: {error}"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_the_same_and_prints() {
        let text = "\u{7f}\u{9b}31m\u{202e}\u{feff}\u{e0041}\"\\\n\tcaf\u{e9} e\u{301} \u{1f512}";
        let value = serde_json::json!({ "label": text, text: [text] });
        let printed = printable_json(&serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&printed).unwrap(),
            value
        );
        assert_eq!(lines(&printed), printed);
        assert!(printed.contains("caf\u{e9} e\u{301} \u{1f512}"));
    }
}
