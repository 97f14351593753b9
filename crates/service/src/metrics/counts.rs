//! Numbers that a process counts while it works, by their labels. Clones count together.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub(super) type Labels<const N: usize> = [(&'static str, String); N];
pub(super) type CounterFamily<const N: usize> = Family<Labels<N>, Counter<f64, AtomicU64>>;
pub(super) type GaugeFamily<const N: usize> = Family<Labels<N>, Gauge<f64, AtomicU64>>;
pub(super) type HistogramFamily<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Upper ends of the buckets of durations, in seconds: a step of a small model takes milliseconds, a version of a large one
/// minutes on its way.
const BUCKETS: [f64; 16] =
    [0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// A number that only grows, by `N` labels.
#[derive(Clone, Debug)]
pub struct Counts<const N: usize> {
    pub(super) names: [&'static str; N],
    pub(super) family: CounterFamily<N>,
}

/// A number that goes up and down, by `N` labels.
#[derive(Clone, Debug)]
pub struct Levels<const N: usize> {
    pub(super) names: [&'static str; N],
    pub(super) family: GaugeFamily<N>,
}

/// How long something takes, by `N` labels.
#[derive(Clone, Debug)]
pub struct Durations<const N: usize> {
    pub(super) names: [&'static str; N],
    pub(super) family: HistogramFamily<N>,
}

impl<const N: usize> Counts<N> {
    /// Nothing yet, by labels of these names. What is in `known` is shown as 0 until it happens, so that its rate can be
    /// taken from the first time on.
    pub fn new<const M: usize>(names: [&'static str; N], known: [[&str; N]; M]) -> Self {
        let counts = Self { names, family: Family::default() };
        known.into_iter().for_each(|values| counts.add(values, 0.0));
        counts
    }

    /// Counts one more.
    pub fn count(&self, values: [&str; N]) {
        self.add(values, 1.0);
    }

    /// Adds what is not negative.
    pub fn add(&self, values: [&str; N], amount: f64) {
        self.family.get_or_create(&labels(self.names, values)).inc_by(amount.max(0.0));
    }
}

impl<const N: usize> Levels<N> {
    /// Nothing yet, by labels of these names.
    pub fn new(names: [&'static str; N]) -> Self {
        Self { names, family: Family::default() }
    }

    /// It is that much now.
    pub fn set(&self, values: [&str; N], level: f64) {
        self.family.get_or_create(&labels(self.names, values)).set(level);
    }

    /// It is one higher until what is returned is dropped.
    pub fn raise(&self, values: [&str; N]) -> Raised {
        let gauge = self.family.get_or_create_owned(&labels(self.names, values));
        gauge.inc();
        Raised { gauge }
    }
}

/// One of what a level counts.
#[derive(Debug)]
pub struct Raised {
    gauge: Gauge<f64, AtomicU64>,
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl<const N: usize> Durations<N> {
    /// Nothing yet, by labels of these names.
    pub fn new(names: [&'static str; N]) -> Self {
        Self { names, family: Family::new_with_constructor(|| Histogram::new(BUCKETS)) }
    }

    /// Takes note of one.
    pub fn observe(&self, values: [&str; N], duration: Duration) {
        self.family.get_or_create(&labels(self.names, values)).observe(duration.as_secs_f64());
    }
}

/// Values beside their names.
pub(super) fn labels<const N: usize>(names: [&'static str; N], values: [&str; N]) -> Labels<N> {
    std::array::from_fn(|position| (names[position], values[position].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Exposition;

    #[test]
    fn clones_count_together_and_a_level_falls_by_itself() {
        let (counts, levels) = (Counts::new(["cause"], []), Levels::new(["reward"]));
        counts.clone().count(["full"]);
        counts.add(["full"], -3.0);
        let raised = levels.raise(["shapes"]);
        let text = || {
            let mut exposition = Exposition::default();
            exposition.counts("tempflow_retries_total", "Retries", &counts);
            exposition.levels("tempflow_waiting", "What waits", &levels);
            exposition.text()
        };
        assert!(text().contains("tempflow_retries_total{cause=\"full\"} 1.0\n"), "{}", text());
        assert!(text().contains("tempflow_waiting{reward=\"shapes\"} 1.0\n"));
        drop(raised);
        assert!(text().contains("tempflow_waiting{reward=\"shapes\"} 0.0\n"));
    }
}
