//! The page that a scraper reads, and the rows of the table in docs/monitoring.md, of the same calls.

use super::counts::{Counts, Durations, GaugeFamily, Labels, Levels, labels};
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Metric, Registry};

/// What every name begins with.
const PREFIX: &str = "tempflow_";
/// What ends the name of a number that only grows.
const COUNTER_SUFFIX: &str = "_total";

/// Numbers with their names, as they are at a moment. Names are said as they are shown: with `tempflow_` and `_total`.
#[derive(Debug, Default)]
pub struct Exposition {
    registry: Registry,
    rows: Vec<String>,
}

impl Exposition {
    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, meaning: &str, value: f64) {
        self.add(name, "gauge", &[], (meaning, ConstGauge::new(value)));
    }

    /// A number that only grows while the process lives.
    pub fn counter(&mut self, name: &str, meaning: &str, value: u64) {
        self.add(name, "counter", &[], (meaning, ConstCounter::new(value)));
    }

    /// Numbers that go up and down, each with its values of `names`.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &str,
        meaning: &str,
        names: [&'static str; N],
        values: impl IntoIterator<Item = ([String; N], f64)>,
    ) {
        let family = GaugeFamily::<N>::default();
        for (of_labels, value) in values {
            let of_labels = of_labels.each_ref().map(String::as_str);
            family.get_or_create(&labels(names, of_labels)).set(value);
        }
        self.add(name, "gauge", &names, (meaning, family));
    }

    /// Numbers that only grow while the process lives, each with its values of `names`.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        meaning: &str,
        names: [&'static str; N],
        values: impl IntoIterator<Item = ([String; N], u64)>,
    ) {
        let family = Family::<Labels<N>, Counter>::default();
        for (of_labels, value) in values {
            let of_labels = of_labels.each_ref().map(String::as_str);
            family.get_or_create(&labels(names, of_labels)).inc_by(value);
        }
        self.add(name, "counter", &names, (meaning, family));
    }

    /// What was counted while the process worked.
    pub fn counts<const N: usize>(&mut self, name: &str, meaning: &str, counts: &Counts<N>) {
        self.add(name, "counter", &counts.names, (meaning, counts.family.clone()));
    }

    /// What went up and down while the process worked.
    pub fn levels<const N: usize>(&mut self, name: &str, meaning: &str, levels: &Levels<N>) {
        self.add(name, "gauge", &levels.names, (meaning, levels.family.clone()));
    }

    /// How long something took, as a histogram.
    pub fn durations<const N: usize>(&mut self, name: &str, meaning: &str, durations: &Durations<N>) {
        self.add(name, "histogram", &durations.names, (meaning, durations.family.clone()));
    }

    fn add(&mut self, name: &str, kind: &str, names: &[&str], (meaning, metric): (&str, impl Metric)) {
        debug_assert!(name.starts_with(PREFIX) && name.ends_with(COUNTER_SUFFIX) == (kind == "counter"));
        // The library ends names of counters and meanings by itself.
        let bare = name.strip_suffix(COUNTER_SUFFIX).unwrap_or(name);
        self.registry.register(bare, meaning, metric);
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        self.rows.push(format!("| `{name}` | {kind} | {} | {meaning} |", names.join(", ")));
    }

    /// The text that a scraper reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let written = prometheus_text::encode(&mut text, &self.registry);
        written.expect("a string takes any text; anything else is a bug");
        text
    }

    /// What the table in docs/monitoring.md says of it, row by row. For the tests of the programs.
    pub fn rows(&self) -> &[String] {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_kind_is_shown_as_scrapers_read_it() {
        let mut exposition = Exposition::default();
        exposition.gauge("tempflow_run_iteration", "The iteration at work", 3.0);
        let states = [(["held".to_owned()], 2.0)];
        exposition.gauges("tempflow_tasks", "Tasks", ["state"], states);
        exposition.counter("tempflow_images_total", "Images", 7);
        let counts = Counts::new(["cause"], [["silent"]]);
        exposition.counts("tempflow_lost_total", "Members lost", &counts);
        let durations = Durations::new(["reward"]);
        durations.observe(["a \"quoted\"\nname"], Duration::from_millis(20));
        exposition.durations("tempflow_reward_seconds", "Scoring", &durations);
        let text = exposition.text();
        for line in [
            "# HELP tempflow_run_iteration The iteration at work.\n# TYPE tempflow_run_iteration gauge\ntempflow_run_iteration 3.0\n",
            "tempflow_tasks{state=\"held\"} 2.0\n",
            "# TYPE tempflow_images_total counter\ntempflow_images_total 7\n",
            "tempflow_lost_total{cause=\"silent\"} 0.0\n",
            "tempflow_reward_seconds_count{reward=\"a \\\"quoted\\\"\\nname\"} 1\n",
            "tempflow_reward_seconds_bucket{reward=\"a \\\"quoted\\\"\\nname\",le=\"0.01\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(exposition.rows()[1], "| `tempflow_tasks` | gauge | `state` | Tasks |");
    }
}
