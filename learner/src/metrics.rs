//! What a learner counts, and shows to scrapers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use config::RunConfig;
use proto::push_reply::Status as PushStatus;
use service::metrics::{Counts, Exposition, Page};
use tonic::{Code, Status};

use crate::exchange::inbox::Inbox;
use crate::exchange::publications::Publications;
use crate::exchange::push_gate::PushGate;
use crate::progress::ProgressBoard;

/// What is counted of what workers bring and fetch; clones count together.
#[derive(Clone, Debug)]
pub struct ExchangeMetrics {
    pushes: Counts<1>,
    /// Bytes of outcomes that arrived whole.
    pub received_bytes: Counts<0>,
    /// Bytes of weights that were given to the network.
    pub sent_bytes: Counts<0>,
}

impl Default for ExchangeMetrics {
    fn default() -> Self {
        let outcomes = [
            ["held"],
            ["not_wanted"],
            ["next_latents_needed"],
            ["damaged"],
            ["refused"],
            ["fenced"],
            ["full"],
            ["broken"],
        ];
        Self {
            pushes: Counts::new(["outcome"], outcomes),
            received_bytes: Counts::new([], [[]]),
            sent_bytes: Counts::new([], [[]]),
        }
    }
}

impl ExchangeMetrics {
    /// A push came to this.
    pub fn pushed(&self, outcome: &Result<PushStatus, Status>) {
        self.pushes.count([match outcome {
            Ok(PushStatus::Held) => "held",
            Ok(PushStatus::NotWanted | PushStatus::Unspecified) => "not_wanted",
            Ok(PushStatus::NextLatentsNeeded) => "next_latents_needed",
            Err(status) => match status.code() {
                Code::DataLoss => "damaged",
                Code::InvalidArgument => "refused",
                Code::FailedPrecondition => "fenced",
                Code::ResourceExhausted => "full",
                _ => "broken",
            },
        }]);
    }
}

/// The page of a learner.
#[derive(Default)]
pub struct LearnerPage {
    /// What workers bring and fetch.
    pub exchange: ExchangeMetrics,
    /// Wanted tasks and their outcomes.
    pub inbox: Arc<Inbox>,
    /// Weights that can be fetched.
    pub publications: Arc<Publications>,
    /// How far the run is.
    pub progress: Arc<ProgressBoard>,
    /// Pushes at a time.
    pub pushes: Arc<PushGate>,
    config: OnceLock<RunConfig>,
    is_member: AtomicBool,
}

impl LearnerPage {
    /// A page about what the process shares with its training thread.
    pub fn new(inbox: Arc<Inbox>, publications: Arc<Publications>, progress: Arc<ProgressBoard>) -> Self {
        Self { inbox, publications, progress, ..Self::default() }
    }

    /// The process has joined the run of that config.
    pub fn joined(&self, config: RunConfig) {
        self.config.get_or_init(|| config);
        self.is_member.store(true, Ordering::Relaxed);
    }

    fn show_training(&self, to: &mut Exposition) {
        let iteration = self.progress.get().iteration;
        to.gauge("tempflow_learner_version", "The version of the policy that is trained", iteration.into());
        let version = self.config.get().map_or(iteration, |config| config.policy_version(iteration));
        let lag = f64::from(iteration) - f64::from(version);
        let meaning = "Iterations by which the version that its tasks are sampled with is older";
        to.gauge("tempflow_learner_version_lag", meaning, lag);
        let phases = "Time that training spent on what; `sampling` and `evaluating` are waiting for workers";
        to.counts("tempflow_learner_phase_seconds_total", phases, &self.progress.phase_seconds());
        let failed = "Checkpoints that could not be written";
        to.counts("tempflow_learner_checkpoint_failures_total", failed, &self.progress.failed_checkpoints);
    }

    fn show_exchange(&self, to: &mut Exposition) {
        let counts = self.inbox.counts();
        let tasks = [("missing", counts.missing), ("waiting", counts.waiting), ("taken", counts.taken)];
        to.gauges(
            "tempflow_learner_tasks",
            "Wanted tasks: that are not here, that are here and wait for training, that training took",
            ["state"],
            tasks.map(|(state, count)| ([state.to_owned()], count as f64)),
        );
        let (admitted, received) = self.pushes.n_in_progress();
        let states = [("admitted", admitted), ("received", received)];
        to.gauges(
            "tempflow_learner_pushes_in_progress",
            "Pushes that were let in, and those of them whose bytes are received",
            ["state"],
            states.map(|(state, count)| ([state.to_owned()], count as f64)),
        );
        to.counts(
            "tempflow_learner_pushes_total",
            "Pushes of outcomes, by what they came to",
            &self.exchange.pushes,
        );
        let received = "Bytes of outcomes that arrived whole";
        to.counts("tempflow_learner_received_bytes_total", received, &self.exchange.received_bytes);
        let sent = "Bytes of weights that workers took";
        to.counts("tempflow_learner_sent_bytes_total", sent, &self.exchange.sent_bytes);
        let publishing = "How long it takes to make a version ready for workers";
        to.durations("tempflow_learner_weight_sync_seconds", publishing, &self.publications.seconds);
    }
}

impl Page for LearnerPage {
    fn role(&self) -> &'static str {
        "learner"
    }

    fn show(&self, to: &mut Exposition) {
        self.show_training(to);
        self.show_exchange(to);
    }

    fn unready(&self) -> Option<String> {
        (!self.is_member.load(Ordering::Relaxed)).then(|| "it is no member of the run yet".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_metrics_has_all_of_a_learners_and_no_other() {
        let table = include_str!("../../docs/monitoring.md");
        let mut exposition = Exposition::default();
        LearnerPage::default().show(&mut exposition);
        assert_eq!(service::metrics::table_of(table, "learner"), exposition.rows());
    }

    #[test]
    fn a_learner_is_ready_once_it_is_a_member_and_says_how_old_what_it_trains_on_is() {
        let page = LearnerPage::default();
        assert!(page.unready().is_some());
        let mut config = config::preset("tempflow-tiny-cpu").unwrap().config;
        config.run.lag = 1;
        page.joined(config);
        page.progress.update(|progress| progress.iteration = 3);
        let mut exposition = Exposition::default();
        page.show(&mut exposition);
        assert_eq!(page.unready(), None);
        assert!(exposition.text().contains("tempflow_learner_version_lag 1.0"), "{}", exposition.text());
    }
}
