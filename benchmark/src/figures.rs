//! Medians and latencies.

use hdrhistogram::Histogram;

/// Latencies, in a histogram with three significant digits.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Self {
        Self(Histogram::new(3).expect("three digits are valid"))
    }

    pub(super) fn of(nanos: &[u64]) -> Self {
        let mut latencies = Self::new();
        latencies.extend(nanos);
        latencies
    }

    pub(super) fn extend(&mut self, nanos: &[u64]) {
        for value in nanos {
            // The histogram resizes itself.
            self.0.record(*value).expect("any u64 can be recorded");
        }
    }

    /// Returns a quantile in microseconds.
    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Returns the maximum in microseconds.
    pub(super) fn max(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }
}

/// Returns the median, or `None` without values.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
