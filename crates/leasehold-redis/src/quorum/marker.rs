//! [`NodeMarker`]: the marker of a node that has lost no data.

use std::fmt;

use leasehold_core::{FencingToken, Ttl, quorum::EpochRecord, text::parse_exact};

/// The marker of a provisioned node: `R:<run>:<largest TTL in ms>:<above>`, or `D:…` for a node
/// that loses no token in a restart.
///
/// The marker is stored beside the locks. A server that was wiped has none. A server that returned
/// with older data has the marker of an earlier run, and one with the data of another server has
/// the marker of a run of that server. Every grant compares the marker with the current run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeMarker {
    text: String,
    run: String,
    durable: bool,
    pub(crate) largest_ttl: Option<Ttl>,
    pub(crate) above: u64,
}

impl NodeMarker {
    pub(crate) fn new(record: &EpochRecord) -> Self {
        let kind = if record.durable { 'D' } else { 'R' };
        let ttl = record.largest_ttl.as_millis();
        Self::parse(format!(
            "{kind}:{}:{ttl}:{}",
            record.incarnation,
            record.above.get()
        ))
    }

    /// Parses a marker. A text that cannot be parsed is the marker of no run.
    pub(crate) fn parse(text: String) -> Self {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts[..] {
            [kind @ ("R" | "D"), run, ttl, above] => parse_exact(ttl)
                .and_then(|ttl| Ttl::from_millis(ttl).ok())
                .zip(parse_exact(above))
                .map(|(ttl, above)| (kind == "D", run.to_owned(), ttl, above)),
            _ => None,
        };
        match parsed {
            Some((durable, run, ttl, above)) => Self {
                durable,
                run,
                largest_ttl: Some(ttl),
                above,
                text,
            },
            None => Self {
                text,
                ..Self::default()
            },
        }
    }

    /// Returns whether the node was never attested.
    pub(crate) fn is_blank(&self) -> bool {
        self.text.is_empty()
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    /// Returns the run that was attested, or `None` if the node was never attested.
    pub(crate) fn run(&self) -> Option<&str> {
        (!self.is_blank()).then_some(&*self.run)
    }

    pub(crate) fn is_of_run(&self, run: &str) -> bool {
        !run.is_empty() && self.run == run
    }

    /// Returns the token that all tokens of the node exceed.
    pub(crate) fn least(&self) -> FencingToken {
        FencingToken::new(self.above)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for NodeMarker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_values() {
        let mut record = EpochRecord {
            incarnation: "5f".repeat(20),
            version: String::new(),
            durable: false,
            largest_ttl: Ttl::DEFAULT,
            above: FencingToken::new(7),
        };
        let mark = NodeMarker::new(&record);
        assert_eq!(mark.as_str(), format!("R:{}:30000:7", "5f".repeat(20)));
        assert!(
            mark.is_of_run(&record.incarnation)
                && !mark.is_of_run("")
                && !mark.is_durable()
                && !mark.is_blank()
        );
        record.durable = true;
        assert!(NodeMarker::new(&record).is_durable());
        assert_eq!(NodeMarker::parse(mark.as_str().to_owned()), mark);
        assert!(NodeMarker::parse(String::new()).is_blank());
        for text in [
            "x",
            "x:5f",
            "R:5f",
            "R:5f:0:7",
            "R:5f:+1:7",
            "R:5f:1:07",
            "R:5f:1:7:",
        ] {
            let foreign = NodeMarker::parse(String::from(text));
            assert!(
                !foreign.is_of_run("5f") && !foreign.is_of_run("x"),
                "{text}"
            );
            assert!(!foreign.is_durable() && !foreign.is_blank(), "{text}");
        }
    }
}
