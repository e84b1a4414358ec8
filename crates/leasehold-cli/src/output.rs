//! Tables and JSON on standard output.

use std::{
    io::{ErrorKind, Write},
    ops::ControlFlow,
    time::Duration,
};

use comfy_table::{Table, presets::NOTHING};
use leasehold::backend::text::Escaped;
use serde::Serialize;

use crate::exit::{self, Failure};

/// Returns a table without lines, in the style of `ps`.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

/// Escapes what does not print, so that text of another program stays on one line.
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

/// Returns bytes of another program on one line: as they are if they print, and otherwise as
/// escapes. A backslash is doubled.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        shown.push_str(&one_line(&chunk.valid().replace('\\', r"\\")));
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// Returns the value as text, or a dash for none.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| String::from("-"), |value| value.to_string())
}

/// Returns the label of a holder or waiter on one line.
pub(crate) fn label(label: &str) -> String {
    if label.is_empty() {
        String::from("(another program)")
    } else {
        one_line(label)
    }
}

/// Returns a duration to a tenth of its unit.
pub(crate) fn short(duration: Duration) -> String {
    format!("{duration:.1?}")
}

/// Prints `value` as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| cannot_print_json(&error))?;
    print(&printable_json(&text))
}

/// Returns `value` as JSON on one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value).map_err(|error| cannot_print_json(&error))?;
    Ok(printable_json(&text))
}

fn cannot_print_json(error: &serde_json::Error) -> Failure {
    Failure::new(exit::SOFTWARE, format!("cannot print JSON: {error}"))
}

/// Returns the same JSON, in which strings have escapes for what does not print.
fn printable_json(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        let mut buffer = [0; 4];
        let text = c.encode_utf8(&mut buffer);
        if c == '\n' || *one_line(text) == *text {
            printable.push(c);
        } else {
            c.encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| printable.push_str(&format!("\\u{unit:04x}")));
        }
    }
    printable
}

/// Prints `text`. A reader that has ended, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    try_print(text).map(|_| ())
}

/// Prints `text` as [`print()`] does, and returns `Break` if the reader has ended.
pub(crate) fn try_print(text: &str) -> Result<ControlFlow<()>, Failure> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    match writeln!(std::io::stdout(), "{}", lines.join("\n")) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Failure::new(
            exit::SOFTWARE,
            format!("cannot write: {error}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_json_prints_and_has_the_same_value() {
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

    #[test]
    fn escaped_bytes_print_and_differ_as_the_bytes_do() {
        for (bytes, shown) in [
            (&b"10.0.0.7:8080"[..], "10.0.0.7:8080"),
            (b"", ""),
            (b"a\nb\x1b[2J", r"a\nb\u{1b}[2J"),
            (b"\xff\xfea", r"\xff\xfea"),
            (br"\xff", r"\\xff"),
            ("caf\u{e9} \u{202e}".as_bytes(), "caf\u{e9} \\u{202e}"),
        ] {
            assert_eq!(super::bytes(bytes), shown);
        }
    }
}
