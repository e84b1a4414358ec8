//! [`NodeMarker`]: what a provisioned node carries.

use std::fmt;

use leasehold_core::{FencingToken, Ttl, quorum::EpochRecord};

/// `R:<run>:<largest TTL in ms>:<above>`, or with `D` for a node that loses no token in a restart.
///
/// It is kept beside the locks. A server that was wiped has none; one that came back with older
/// data has one of an earlier run, and one that has another server's data has one of a run of that.
/// Every grant compares it with the run.
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

    /// Reads one back. What cannot be read is a mark of no run.
    pub(crate) fn parse(text: String) -> Self {
        let mut parts = text.split(':');
        let (kind, run) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default().to_owned(),
        );
        let ttl = parts
            .next()
            .and_then(|ttl| ttl.parse().ok())
            .and_then(|ttl| Ttl::from_millis(ttl).ok());
        let above = parts
            .next()
            .and_then(|above| above.parse().ok())
            .unwrap_or_default();
        Self {
            durable: kind == "D",
            run,
            largest_ttl: ttl,
            above,
            text,
        }
    }

    /// Returns whether there is no epoch record.
    pub(crate) fn is_blank(&self) -> bool {
        self.text.is_empty()
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    /// The run that was attested; `None` without any epoch record.
    pub(crate) fn run(&self) -> Option<&str> {
        (!self.is_blank()).then_some(&*self.run)
    }

    pub(crate) fn is_of_run(&self, run: &str) -> bool {
        !run.is_empty() && self.run == run
    }

    /// All tokens of the node exceed this one.
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
        assert!(!NodeMarker::parse(String::from("x")).is_of_run("x"));
    }
}
