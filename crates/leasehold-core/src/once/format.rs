//! The text `once1`: how the record of a name keeps its [`State`].
//!
//! ```text
//! once1 <through, ms|-> <schedule|->
//! <@ms|=name> <crashes> <failures> <state> <began, ms|-> <ended, ms|-> <token|-> <by|-> <note|->
//! ```
//!
//! The lines of runs are the newest first. Each line ends with `\n`. Words are separated by one
//! space. Names and texts are percent-encoded. It is a wire format: a program of any version reads
//! what one of any version wrote, so that the format is never changed. A new one has another first
//! word.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    backend::record::Record,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    once::{
        occurrence::OccurrenceId,
        run_state::RunState,
        state::{Entry, State},
        unix_millis::UnixMillis,
    },
};

const VERSION: &str = "once1";

/// The characters that are encoded: all but letters, digits and some marks. A lone `-` means that
/// there is no word.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'_')
    .remove(b'/')
    .remove(b':')
    .remove(b'*')
    .remove(b',');

/// Writes the text. Runs that do not fit into a record are forgotten, the oldest first.
pub(crate) fn write(state: &State) -> String {
    let through = or_dash(state.through.map(UnixMillis::get));
    let schedule = text(state.schedule.as_deref());
    let mut out = format!("{VERSION} {through} {schedule}\n");
    for entry in &state.runs {
        let before = out.len();
        line(&mut out, entry);
        if out.len() > Record::MAX_LEN {
            out.truncate(before);
            break;
        }
    }
    out
}

fn line(out: &mut String, entry: &Entry) {
    let id = match &entry.id {
        OccurrenceId::At(at) => format!("@{}", at.get()),
        OccurrenceId::Named(name) => format!("={}", encoded(name)),
    };
    let written = writeln!(
        out,
        "{id} {} {} {} {} {} {} {} {}",
        entry.crashes,
        entry.failures,
        entry.state,
        or_dash(entry.began.map(UnixMillis::get)),
        or_dash(entry.ended.map(UnixMillis::get)),
        or_dash(entry.token.map(FencingToken::get)),
        text(Some(&entry.by)),
        text(entry.note.as_deref()),
    );
    debug_assert!(written.is_ok(), "writing to a string never fails");
}

fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn text(text: Option<&str>) -> String {
    match text {
        None | Some("") => "-".to_owned(),
        Some(text) => encoded(text),
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Reads the text.
///
/// # Errors
/// - [`ErrorKind::Unsupported`] if a newer version of the format was written.
/// - [`ErrorKind::Conflict`] if the value is something else, such as the record of a program that
///   uses the same name, or is damaged.
pub(crate) fn parse(value: &[u8]) -> Result<State> {
    let text = std::str::from_utf8(value).map_err(|_| foreign("it is not text"))?;
    let first = text.split([' ', '\n']).next().unwrap_or_default();
    if first != VERSION {
        let newer = first
            .strip_prefix("once")
            .is_some_and(|version| version.parse::<u32>().is_ok_and(|version| version > 1));
        return Err(if newer {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the record is in the format `{first}` of a newer version; this version reads `{VERSION}`: update this program"
                ),
            )
        } else {
            foreign("its first word is another one")
        });
    }
    let mut lines = text
        .strip_suffix('\n')
        .ok_or_else(|| foreign("its end is missing"))?
        .split('\n');
    let header = lines.next().unwrap_or_default();
    let [_, through, schedule] = words(header, 1)?;
    let mut state = State {
        through: optional(through, 1, instant)?,
        schedule: optional(schedule, 1, decoded)?,
        runs: Vec::new(),
    };
    for (at, line) in lines.enumerate() {
        let entry = run(line, at + 2)?;
        // Watermarks are for instants alone.
        if entry.id.instant().is_some() != state.through.is_some() {
            return Err(damaged(at + 2));
        }
        state.runs.push(entry);
    }
    Ok(state)
}

fn run(line: &str, at: usize) -> Result<Entry> {
    let [id, crashes, failures, state, began, ended, token, by, note] = words(line, at)?;
    let id = match (id.strip_prefix('@'), id.strip_prefix('=')) {
        (Some(millis), _) => OccurrenceId::At(instant(millis).ok_or_else(|| damaged(at))?),
        (_, Some(name)) => {
            let name = decoded(name).ok_or_else(|| damaged(at))?;
            OccurrenceId::named(&name).map_err(|_| damaged(at))?
        }
        _ => return Err(damaged(at)),
    };
    let state = RunState::ALL
        .into_iter()
        .find(|known| known.word() == state)
        .ok_or_else(|| damaged(at))?;
    Ok(Entry {
        id,
        crashes: count(crashes).ok_or_else(|| damaged(at))?,
        failures: count(failures).ok_or_else(|| damaged(at))?,
        state,
        began: optional(began, at, instant)?,
        ended: optional(ended, at, instant)?,
        token: optional(token, at, |word| number(word).map(FencingToken::new))?,
        by: optional(by, at, decoded)?.unwrap_or_default(),
        note: optional(note, at, decoded)?,
    })
}

/// Splits a line into exactly this many words.
fn words<const N: usize>(line: &str, at: usize) -> Result<[&str; N]> {
    let words: Vec<&str> = line.split(' ').collect();
    words.try_into().map_err(|_| damaged(at))
}

/// Parses a word, where `-` means that there is none.
fn optional<'a, T>(
    word: &'a str,
    at: usize,
    parse: impl FnOnce(&'a str) -> Option<T>,
) -> Result<Option<T>> {
    match word {
        "-" => Ok(None),
        word => parse(word).map(Some).ok_or_else(|| damaged(at)),
    }
}

/// Parses digits alone: `parse` would accept a sign.
fn number(word: &str) -> Option<u64> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| word.parse().ok()).flatten()
}

fn count(word: &str) -> Option<u32> {
    number(word).and_then(|number| number.try_into().ok())
}

fn instant(word: &str) -> Option<UnixMillis> {
    number(word).and_then(UnixMillis::new)
}

/// Decodes a word that is not empty.
fn decoded(word: &str) -> Option<String> {
    let decoded = percent_decode_str(word).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

fn foreign(why: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "the record is not a history of runs: {why}; use a name that no other program uses"
        ),
    )
}

fn damaged(line: usize) -> Error {
    foreign(&format!("its line {line} is not of the format `{VERSION}`"))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;
    use crate::once::policies::Policies;

    fn at(millis: u64) -> UnixMillis {
        UnixMillis::new(millis).unwrap()
    }

    fn golden() -> State {
        let done = Entry {
            state: RunState::Ok,
            ended: Some(at(1_764_381_660_500)),
            token: Some(FencingToken::new(1_764_381_600_123_456)),
            by: "web-1/4711/shop".into(),
            note: Some("12 mails – 3%".into()),
            ..Entry::begun(
                OccurrenceId::At(at(1_764_381_600_000)),
                at(1_764_381_600_120),
            )
        };
        let skipped = Entry {
            state: RunState::Skipped,
            began: None,
            ended: Some(at(1_764_381_600_120)),
            note: Some("missed".into()),
            ..Entry::begun(OccurrenceId::At(at(1_764_378_000_000)), at(0))
        };
        let retried = Entry {
            crashes: 1,
            failures: 2,
            by: "-".into(),
            ..Entry::begun(
                OccurrenceId::At(at(1_764_385_200_000)),
                at(1_764_385_200_007),
            )
        };
        State {
            through: Some(at(1_764_385_199_999)),
            schedule: Some("0 * * * * Europe/Berlin".into()),
            runs: vec![retried, done, skipped],
        }
    }

    #[test]
    fn golden_text_of_scheduled_runs() {
        let text = "once1 1764385199999 0%20*%20*%20*%20*%20Europe/Berlin\n\
             @1764385200000 1 2 started 1764385200007 - - %2D -\n\
             @1764381600000 0 0 ok 1764381600120 1764381660500 1764381600123456 web%2D1/4711/shop 12%20mails%20%E2%80%93%203%25\n\
             @1764378000000 0 0 skipped - 1764381600120 - - missed\n";
        assert_eq!(write(&golden()), text);
        assert_eq!(parse(text.as_bytes()).unwrap(), golden());
    }

    #[test]
    fn golden_text_of_named_runs() {
        let states = [RunState::Failed, RunState::Overtime, RunState::Abandoned];
        let runs = states.into_iter().enumerate().map(|(number, state)| Entry {
            state,
            ..Entry::begun(
                OccurrenceId::named(&format!("=a b\n{number}")).unwrap(),
                at(number as u64),
            )
        });
        let state = State {
            runs: runs.collect(),
            ..State::default()
        };
        let text = "once1 - -\n\
            =%3Da%20b%0A0 0 0 failed 0 - - - -\n\
            =%3Da%20b%0A1 0 0 overtime 1 - - - -\n\
            =%3Da%20b%0A2 0 0 abandoned 2 - - - -\n";
        assert_eq!(write(&state), text);
        assert_eq!(parse(text.as_bytes()).unwrap(), state);
    }

    #[test]
    fn newer_formats_are_unsupported_and_others_conflict() {
        for newer in ["once2 5 - - -\n", "once2\n", "once10", "once4294967295 \n"] {
            let error = parse(newer.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{newer:?}");
            assert!(error.to_string().contains("update this program"), "{error}");
        }
        for foreign in [
            "",
            "\n",
            " once1 - -\n",
            "once",
            "once0 - -\n",
            "oncex - -\n",
            "10.0.0.7:8080",
            "once1",
            "once1 - -",
            "once1 -\n",
            "once1 - - -\n",
            "once1  - -\n",
            "once1 +5 -\n",
            "once1 253402300800000 -\n",
            "once1 99999999999999999999 -\n",
            "once1 5 \n",
            "once1 5 %FF\n",
            "once1 5 -\n\n",
            "once1 5 -\n@5 0 0 ok 1 2 3 - \n",
            "once1 5 -\n@5 0 0 ok 1 2 3 -\n",
            "once1 5 -\n@5 0 0 ok 1 2 3 - - -\n",
            "once1 5 -\n@5 0 0 fine 1 2 3 - -\n",
            "once1 5 -\n@5 0 4294967296 ok 1 2 3 - -\n",
            "once1 5 -\n@5 -1 0 ok 1 2 3 - -\n",
            "once1 5 -\n@ 0 0 ok 1 2 3 - -\n",
            "once1 5 -\n5 0 0 ok 1 2 3 - -\n",
            "once1 - -\n= 0 0 ok 1 2 3 - -\n",
            // A name among instants, and an instant without a watermark.
            "once1 5 -\n=a 0 0 ok 1 2 3 - -\n",
            "once1 - -\n@5 0 0 ok 1 2 3 - -\n",
        ] {
            let error = parse(foreign.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{foreign:?}");
            assert!(error.to_string().contains("no other program"), "{error}");
        }
        assert_eq!(
            parse(b"once1 \xff -\n").unwrap_err().kind(),
            ErrorKind::Conflict
        );
    }

    #[test]
    fn longest_history_is_cut_to_what_a_record_holds() {
        let longest = |number: u64| Entry {
            crashes: u32::MAX,
            failures: u32::MAX,
            ended: UnixMillis::new(253_402_300_799_999),
            token: Some(FencingToken::new(u64::MAX)),
            by: "%".repeat(100),
            note: Some("%".repeat(100)),
            ..Entry::begun(OccurrenceId::named(&"%".repeat(128)).unwrap(), at(number))
        };
        let state = State {
            through: None,
            schedule: Some("%".repeat(100)),
            runs: (0..Policies::MAX_HISTORY as u64).map(longest).collect(),
        };
        let text = write(&state);
        assert!(text.len() <= Record::MAX_LEN, "{}", text.len());
        let read = parse(text.as_bytes()).unwrap();
        assert!(read.runs.len() > 10, "{}", read.runs.len());
        assert_eq!(read.runs[..], state.runs[..read.runs.len()]);
    }

    fn any_text() -> impl Strategy<Value = String> {
        vec(any::<char>(), 1..20).prop_map(|chars| chars.into_iter().collect())
    }

    fn any_instant() -> impl Strategy<Value = UnixMillis> {
        (0..=253_402_300_799_999_u64).prop_map(at)
    }

    fn any_entry(named: bool) -> impl Strategy<Value = Entry> {
        let id = if named {
            any_text()
                .prop_map(|name| OccurrenceId::named(&name).unwrap())
                .boxed()
        } else {
            any_instant().prop_map(OccurrenceId::At).boxed()
        };
        let times = (option::of(any_instant()), option::of(any_instant()));
        let texts = (option::of(any_text()), option::of(any_text()));
        let counts = (any::<u32>(), any::<u32>(), option::of(any::<u64>()));
        (id, counts, select(&RunState::ALL[..]), times, texts).prop_map(
            |(id, (crashes, failures, token), state, (began, ended), (by, note))| Entry {
                id,
                crashes,
                failures,
                state,
                began,
                ended,
                token: token.map(FencingToken::new),
                by: by.unwrap_or_default(),
                note,
            },
        )
    }

    fn any_state() -> impl Strategy<Value = State> {
        any::<bool>().prop_flat_map(|named| {
            let through = if named {
                Just(None).boxed()
            } else {
                any_instant().prop_map(Some).boxed()
            };
            let parts = (through, option::of(any_text()), vec(any_entry(named), 0..8));
            parts.prop_map(|(through, schedule, runs)| State {
                through,
                schedule,
                runs,
            })
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(state in any_state()) {
            prop_assert_eq!(parse(write(&state).as_bytes()).unwrap(), state);
        }

        #[test]
        fn any_value_is_read_or_refused_by_kind(value in vec(any::<u8>(), 0..200)) {
            if let Err(error) = parse(&value) {
                prop_assert!(matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unsupported));
            }
        }

        #[test]
        fn damaged_text_is_read_or_refused_by_kind(
            state in any_state(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut value = write(&state).into_bytes();
            for (place, byte) in damage {
                let place = place.index(value.len());
                value[place] = byte;
            }
            match parse(&value) {
                // It can be written again.
                Ok(read) => prop_assert_eq!(parse(write(&read).as_bytes()).unwrap(), read),
                Err(error) => prop_assert!(
                    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unsupported)
                ),
            }
        }
    }
}
