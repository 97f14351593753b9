//! What a worker counts, and shows to scrapers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use config::TaskKind;
use protocol::{Hand, Task, TaskName, WeightsName};
use service::metrics::{Counts, Durations, Exposition, Levels, Page, Raised};

use crate::sampling::task::Sampled;

/// Everything that a worker counts; clones count together.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    has_model: Arc<AtomicBool>,
    hands: Counts<2>,
    tasks: Counts<2>,
    images: Counts<0>,
    network_evaluations: Counts<0>,
    parts: Durations<1>,
    version: Levels<0>,
    version_lag: Levels<0>,
    /// What each push came to.
    pub pushes: Counts<1>,
    /// Bytes that were given to the network.
    pub pushed_bytes: Counts<0>,
    /// What each attempt to fetch weights came to, by who was to send them.
    pub fetches: Counts<2>,
    /// Bytes of versions that arrived whole, likewise.
    fetched_bytes: Counts<1>,
    /// Bytes of versions that other workers took from this one.
    pub relayed_bytes: Counts<0>,
    weight_sync: Durations<1>,
    /// Of the scorers.
    pub rewards: RewardMetrics,
}

/// What is counted of scorers, by their names.
#[derive(Clone, Debug)]
pub struct RewardMetrics {
    seconds: Durations<1>,
    failures: Counts<1>,
    batches: Levels<1>,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        let outcomes = [
            ["held"],
            ["not_wanted"],
            ["next_latents_needed"],
            ["away"],
            ["damaged"],
            ["fenced"],
            ["refused"],
        ];
        Self {
            has_model: Arc::default(),
            hands: Counts::new(["hand", "doing"], DOINGS),
            tasks: Counts::new(["kind", "outcome"], []),
            images: Counts::new([], [[]]),
            network_evaluations: Counts::new([], [[]]),
            parts: Durations::new(["part"]),
            version: Levels::new([]),
            version_lag: Levels::new([]),
            pushes: Counts::new(["outcome"], outcomes),
            pushed_bytes: Counts::new([], [[]]),
            fetches: Counts::new(["source", "outcome"], FETCHES),
            fetched_bytes: Counts::new(["source"], [["learner"], ["worker"]]),
            relayed_bytes: Counts::new([], [[]]),
            weight_sync: Durations::new(["phase"]),
            rewards: RewardMetrics::default(),
        }
    }
}

/// Who was to send weights, and what it came to.
const FETCHES: [[&str; 2]; 12] = [
    ["learner", "fetched"],
    ["learner", "unavailable"],
    ["learner", "away"],
    ["learner", "damaged"],
    ["learner", "fenced"],
    ["learner", "refused"],
    ["worker", "fetched"],
    ["worker", "unavailable"],
    ["worker", "away"],
    ["worker", "damaged"],
    ["worker", "fenced"],
    ["worker", "refused"],
];

/// What hands do, in words.
const DOINGS: [[&str; 2]; 7] = [
    ["sampling", "ask"],
    ["sampling", "fetch"],
    ["sampling", "draw"],
    ["sampling", "tell"],
    ["finishing", "score"],
    ["finishing", "push"],
    ["finishing", "tell"],
];

impl WorkerMetrics {
    /// The model is there: the worker can draw.
    pub fn has_model(&self) {
        self.has_model.store(true, Ordering::Relaxed);
    }

    /// A hand has done something since `start`.
    pub fn hand_did(&self, hand: Hand, doing: &str, start: Instant) {
        let hand = match hand {
            Hand::Sampling => "sampling",
            Hand::Finishing => "finishing",
        };
        self.hands.add([hand, doing], start.elapsed().as_secs_f64());
    }

    /// A task is drawn with weights.
    pub fn draws(&self, task: &Task, weights: WeightsName) {
        self.version.set([], weights.version.into());
        if task.name.kind == TaskKind::Train {
            self.version_lag.set([], f64::from(task.name.iteration) - f64::from(weights.version));
        }
    }

    /// A task was drawn.
    pub fn drew(&self, sampled: &Sampled) {
        self.images.add([], sampled.images.len() as f64);
        self.network_evaluations.add([], sampled.network_evaluations as f64);
        let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.parts.observe(["sampling"], seconds(sampled.seconds - sampled.decoding_seconds));
        self.parts.observe(["decoding"], seconds(sampled.decoding_seconds));
    }

    /// A task has ended so.
    pub fn task_ended(&self, task: TaskName, outcome: &str) {
        self.tasks.count([kind_in_a_word(task.kind), outcome]);
    }

    /// A version has been loaded since `start`.
    pub fn loaded(&self, start: Instant) {
        self.weight_sync.observe(["load"], start.elapsed());
    }

    /// Weights were got from the learner or a worker since `start`.
    pub fn fetched(&self, start: Instant, source: &str, n_bytes: usize) {
        self.fetches.count([source, "fetched"]);
        self.fetched_bytes.add([source], n_bytes as f64);
        self.weight_sync.observe(["fetch"], start.elapsed());
    }
}

impl Page for WorkerMetrics {
    fn role(&self) -> &'static str {
        "worker"
    }

    fn show(&self, to: &mut Exposition) {
        let hands = "Time that each of a worker's two hands spent on what; `ask` is waiting for a task";
        to.counts("tempflow_worker_hand_seconds_total", hands, &self.hands);
        to.counts("tempflow_worker_tasks_total", "Tasks that have ended, by how", &self.tasks);
        to.counts("tempflow_worker_images_total", "Images drawn", &self.images);
        let evaluations = "Guided network evaluations, rows counted one by one";
        to.counts("tempflow_worker_network_evaluations_total", evaluations, &self.network_evaluations);
        to.durations(
            "tempflow_worker_task_seconds",
            "How long parts of a task take on the device",
            &self.parts,
        );
        to.levels("tempflow_worker_version", "The version of the weights that is drawn with", &self.version);
        let lag = "Iterations by which that version is older than the training task it draws for";
        to.levels("tempflow_worker_version_lag", lag, &self.version_lag);
        to.counts("tempflow_worker_pushes_total", "Pushes of outcomes, by what they came to", &self.pushes);
        to.counts("tempflow_worker_pushed_bytes_total", "Bytes of outcomes sent", &self.pushed_bytes);
        to.counts(
            "tempflow_worker_fetches_total",
            "Attempts to fetch weights, by who was to send them and what they came to",
            &self.fetches,
        );
        to.counts(
            "tempflow_worker_fetched_bytes_total",
            "Bytes of weights that arrived, by who sent them",
            &self.fetched_bytes,
        );
        let relayed = "Bytes of weights that other workers took from this one";
        to.counts("tempflow_worker_relayed_bytes_total", relayed, &self.relayed_bytes);
        let sync = "How long a version takes: to `fetch` it, waiting included, and to `load` it";
        to.durations("tempflow_worker_weight_sync_seconds", sync, &self.weight_sync);
        self.rewards.show(to);
    }

    fn unready(&self) -> Option<String> {
        (!self.has_model.load(Ordering::Relaxed)).then(|| "the model is not open yet".to_owned())
    }
}

impl Default for RewardMetrics {
    fn default() -> Self {
        Self {
            seconds: Durations::new(["reward"]),
            failures: Counts::new(["reward"], []),
            batches: Levels::new(["reward"]),
        }
    }
}

impl RewardMetrics {
    /// A batch is given to a scorer; it counts as there until what is returned is dropped.
    pub fn begins(&self, reward: &str) -> Raised {
        self.failures.add([reward], 0.0);
        self.batches.raise([reward])
    }

    /// A scorer has scored a batch since `start`.
    pub fn scored(&self, reward: &str, start: Instant) {
        self.seconds.observe([reward], start.elapsed());
    }

    /// A scorer has failed at a batch, which is held.
    pub fn failed(&self, reward: &str) {
        self.failures.count([reward]);
    }

    fn show(&self, to: &mut Exposition) {
        let seconds = "How long a scorer takes for the images of a task, from when it gets them";
        to.durations("tempflow_worker_reward_seconds", seconds, &self.seconds);
        let failures = "Attempts at which a scorer failed and its batch was held";
        to.counts("tempflow_worker_reward_failures_total", failures, &self.failures);
        to.levels(
            "tempflow_worker_reward_batches",
            "Batches that a scorer has, at work or waiting",
            &self.batches,
        );
    }
}

/// A kind of task for people.
pub fn kind_in_a_word(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Train => "train",
        TaskKind::Evaluate => "evaluate",
        TaskKind::Test => "test",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_metrics_has_all_of_a_workers_and_no_other() {
        let table = include_str!("../../docs/monitoring.md");
        let mut exposition = Exposition::default();
        WorkerMetrics::default().show(&mut exposition);
        assert_eq!(service::metrics::table_of(table, "worker"), exposition.rows());
    }

    #[test]
    fn a_worker_is_ready_once_it_has_its_model() {
        let metrics = WorkerMetrics::default();
        assert!(metrics.unready().is_some_and(|reason| reason.contains("model")));
        metrics.clone().has_model();
        assert_eq!(metrics.unready(), None);
    }
}
