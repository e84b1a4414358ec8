//! [`Cron`]: a schedule as five fields of text. This is the only file that knows croner and jiff.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use croner::parser::{CronParser, Seconds, Year};
use jiff::{Timestamp, Zoned, tz::TimeZone};

use crate::{
    error::{Error, ErrorKind, Result},
    once::schedule::Schedule,
    text::Escaped,
};

/// A schedule as five fields of text: minute, hour, day of the month, month, day of the week.
///
/// The text is that of cron: `*`, lists `1,15`, ranges `1-5`, steps `*/10`, names such as `MON` and
/// `JAN`, `L` for the last day, `15W` for the nearest weekday, `5#2` for the second Friday, and
/// `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. If both the day of the month and the day
/// of the week are restricted, either suffices. With `+` before the day of the week, both must
/// match.
///
/// # Time zone
/// The fields are in UTC unless [`in_zone`](Self::in_zone) names another zone. The zone of the host
/// is never used, because replicas on different hosts must have the same schedule. Zones come from
/// the time zone database of the operating system.
///
/// # Daylight saving time
/// A fixed time that a change of the clocks skips is due once, right after the change. A fixed time
/// that occurs twice is due at its first pass. A schedule whose minute or hour is a wildcard is due
/// in both passes.
///
/// ```
/// use leasehold_core::once::{Cron, Schedule};
///
/// let nightly = Cron::new("0 3 * * *")?.in_zone("Europe/Berlin")?;
/// assert_eq!(nightly.text(), "0 3 * * * Europe/Berlin");
///
/// let error = Cron::new("0 25 * * *").unwrap_err();
/// assert!(error.to_string().contains("hour"));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Cron {
    cron: croner::Cron,
    zone: TimeZone,
    text: String,
}

impl Cron {
    /// Parses the five fields, or a nickname such as `@daily`. They are in UTC.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names the wrong field and what it may contain, or if no
    /// instant ever matches, as for the 30th of February.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let cron = parse(&text).map_err(|error| explain(&text, &error))?;
        let this = Self {
            cron,
            zone: TimeZone::UTC,
            text,
        };
        if this.next(SystemTime::UNIX_EPOCH).is_none() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the schedule `{}` never matches: no month that it names has such a day; correct the day or the month",
                    this.text
                ),
            ));
        }
        Ok(this)
    }

    /// Sets the time zone by its name in the IANA database, such as `Europe/Berlin`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the host has no zone of this name.
    pub fn in_zone(mut self, zone: &str) -> Result<Self> {
        self.zone = TimeZone::get(zone).map_err(|error| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the time zone `{}` is not in the time zone database of this host; use a name such as `Europe/Berlin`, and install the package `tzdata` if it is missing",
                    Escaped(zone)
                ),
            )
            .with_source(error)
        })?;
        Ok(self)
    }

    fn zoned(&self, time: SystemTime) -> Option<Zoned> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let second = i64::try_from(since.as_secs()).ok()?;
        let second = Timestamp::from_second(second).ok()?;
        Some(second.to_zoned(self.zone.clone()))
    }
}

impl Schedule for Cron {
    fn latest(&self, at_or_before: SystemTime) -> Option<SystemTime> {
        let from = self.zoned(at_or_before)?;
        time(&self.cron.find_previous_occurrence(&from, true).ok()?)
    }

    fn next(&self, after: SystemTime) -> Option<SystemTime> {
        let from = self.zoned(after)?;
        time(&self.cron.find_next_occurrence(&from, false).ok()?)
    }

    fn text(&self) -> String {
        match self.zone.iana_name() {
            Some(zone) if zone != "UTC" => format!("{} {zone}", self.text),
            _ => self.text.clone(),
        }
    }
}

impl FromStr for Cron {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cron(\"{}\")", self.text())
    }
}

fn time(found: &Zoned) -> Option<SystemTime> {
    let second = u64::try_from(found.timestamp().as_second()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(second))
}

fn parse(text: &str) -> Result<croner::Cron, croner::errors::CronError> {
    CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build()
        .parse(text)
}

/// Returns the error for text that croner refuses, with the field that is wrong.
fn explain(text: &str, error: &croner::errors::CronError) -> Error {
    const FIELDS: [(&str, &str); 5] = [
        ("minute", "0-59"),
        ("hour", "0-23"),
        ("day of the month", "1-31, L or 15W"),
        ("month", "1-12 or JAN-DEC"),
        ("day of the week", "0-7 or SUN-SAT, 5#2 or 5L"),
    ];
    let fields: Vec<&str> = text.split(' ').filter(|field| !field.is_empty()).collect();
    let wrong = |message: String| Error::new(ErrorKind::InvalidInput, message);
    if fields.len() != FIELDS.len() {
        return wrong(format!(
            "the schedule `{}` has {} fields; write five: minute, hour, day of the month, month, day of the week, such as `0 3 * * *`",
            Escaped(text),
            fields.len()
        ));
    }
    for (at, (name, range)) in FIELDS.iter().enumerate() {
        let mut alone = ["*"; 5];
        alone[at] = fields[at];
        if parse(&alone.join(" ")).is_err() {
            return wrong(format!(
                "the {name} `{}` of the schedule `{}` is invalid; it may be {range}, `*`, a list, a range, or a step such as `*/2`",
                Escaped(fields[at]),
                Escaped(text)
            ));
        }
    }
    wrong(format!(
        "the schedule `{}` is invalid: {error}; write five fields such as `0 3 * * *`",
        Escaped(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the instant that an RFC 3339 text names.
    fn utc(text: &str) -> SystemTime {
        let at: Timestamp = text.parse().unwrap();
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at.as_second()).unwrap())
    }

    fn zoned(text: &str, zone: &str) -> Cron {
        Cron::new(text).unwrap().in_zone(zone).unwrap()
    }

    /// Returns all instants in (from, to], and checks that `latest` sees the same ones.
    fn due(cron: &Cron, from: &str, to: &str) -> Vec<String> {
        let (from, to) = (utc(from), utc(to));
        let forward: Vec<_> = std::iter::successors(cron.next(from), |at| cron.next(*at))
            .take_while(|at| *at <= to)
            .collect();
        let before = |at: SystemTime| at - Duration::from_millis(1);
        let mut backward: Vec<_> =
            std::iter::successors(cron.latest(to), |at| cron.latest(before(*at)))
                .take_while(|at| *at > from)
                .collect();
        backward.reverse();
        assert_eq!(forward, backward, "{cron:?}");
        let shown = |at: &SystemTime| Timestamp::try_from(*at).unwrap().to_string();
        forward.iter().map(shown).collect()
    }

    #[test]
    fn fixed_time_in_the_berlin_gap_runs_right_after_it() {
        // 02:00 becomes 03:00 on 2026-03-29, which is 01:00 UTC.
        let cron = zoned("30 2 * * *", "Europe/Berlin");
        assert_eq!(
            due(&cron, "2026-03-28T02:00:00Z", "2026-03-30T02:00:00Z"),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
    }

    #[test]
    fn fixed_time_in_the_berlin_overlap_runs_at_its_first_pass() {
        // 03:00 becomes 02:00 on 2026-10-25, which is 01:00 UTC.
        let cron = zoned("30 2 * * *", "Europe/Berlin");
        assert_eq!(
            due(&cron, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn wildcards_run_in_both_passes_of_the_berlin_overlap() {
        let cron = zoned("*/30 2 * * *", "Europe/Berlin");
        assert_eq!(
            due(&cron, "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z"),
            [
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z"
            ]
        );
    }

    #[test]
    fn half_hour_changes_of_lord_howe_skip_and_repeat_nothing() {
        // 02:00 becomes 02:30 on 2026-10-04 (15:30 UTC the day before), and 02:00 becomes 01:30 on
        // 2026-04-05 (15:00 UTC the day before).
        let cron = zoned("15 2 * * *", "Australia/Lord_Howe");
        assert_eq!(
            due(&cron, "2026-10-02T18:00:00Z", "2026-10-04T18:00:00Z"),
            ["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"]
        );
        let cron = zoned("45 1 * * *", "Australia/Lord_Howe");
        assert_eq!(
            due(&cron, "2026-04-03T18:00:00Z", "2026-04-05T18:00:00Z"),
            ["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"]
        );
    }

    #[test]
    fn without_a_zone_the_fields_are_utc() {
        let cron = Cron::new("  0 3   * * MON ").unwrap();
        assert_eq!(cron.text(), "0 3 * * MON");
        assert_eq!(
            due(&cron, "2026-11-29T00:00:00Z", "2026-12-08T00:00:00Z"),
            ["2026-11-30T03:00:00Z", "2026-12-07T03:00:00Z"]
        );
        assert!(Cron::new("@daily").is_ok());
    }

    #[test]
    fn parts_of_a_second_do_not_hide_an_instant() {
        let cron = Cron::new("* * * * *").unwrap();
        let at = utc("2026-11-29T00:01:00Z");
        let millis = Duration::from_millis;
        assert_eq!(cron.latest(at + millis(999)), Some(at));
        assert_eq!(cron.latest(at), Some(at));
        assert_eq!(cron.latest(at - millis(1)), Some(at - millis(60_000)));
        assert_eq!(cron.next(at - millis(1)), Some(at));
        assert_eq!(cron.next(at), Some(at + millis(60_000)));
    }

    #[test]
    fn wrong_text_names_the_field_and_the_remedy() {
        for (text, expected) in [
            ("60 * * * *", ["the minute `60`", "0-59"]),
            ("0 25 * * *", ["the hour `25`", "0-23"]),
            ("0 0 32 * *", ["the day of the month `32`", "1-31"]),
            ("0 0 1 13 *", ["the month `13`", "JAN-DEC"]),
            (
                "0 0 * * FRYDAY",
                ["the day of the week `FRYDAY`", "SUN-SAT"],
            ),
            ("0 0 x * *", ["the day of the month `x`", "1-31"]),
            ("", ["has 0 fields", "write five"]),
            ("0 3 * *", ["has 4 fields", "write five"]),
            ("0 0 3 * * *", ["has 6 fields", "write five"]),
            ("@dayly", ["has 1 fields", "write five"]),
            ("0 0 30 2 *", ["never matches", "day or the month"]),
        ] {
            let error = Cron::new(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            for part in expected {
                assert!(error.to_string().contains(part), "{text:?}: {error}");
            }
        }
    }

    #[test]
    fn unknown_zone_names_the_zone_and_the_remedy() {
        let cron = Cron::new("0 3 * * *").unwrap();
        let error = cron.in_zone("Europe/Atlantis").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let message = error.to_string();
        assert!(message.contains("`Europe/Atlantis`") && message.contains("tzdata"));
    }
}
