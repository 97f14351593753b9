//! A run without faults, by measured times: how fast it gets on, what its workers wait for, how much its learner holds.
//!
//! Real are the coordinator's `ControlPlane`, the learner's `Intake` and the workers' `Errands`, and with them who gets which task,
//! when a task is granted a second time, who sends weights to whom, and for what there is room. What takes time is modelled by numbers
//! that are measured elsewhere. The learner's link takes one outcome after the other; a source of weights divides its link among as
//! many streams as it serves at most; training takes outcomes in order, and waits for no comparison beyond that.

mod learner;
mod worker;
mod world;

use protocol::HoldLimit;
use std::time::Duration;

/// What a run is and how long its parts take.
#[derive(Clone, Debug, clap::Args)]
pub struct Pace {
    /// Tasks of an iteration.
    #[arg(long, default_value_t = 256)]
    pub tasks: u32,
    /// Iterations. The first and the last are left out of what is measured: workers begin ahead of the one, and have nothing to go on
    /// with after the other.
    #[arg(long, default_value_t = 12)]
    pub iterations: u32,
    /// By how many iterations the weights of a task may be behind.
    #[arg(long, default_value_t = 0)]
    pub lag: u32,
    /// Seconds for which a worker draws a task, on average.
    #[arg(long, default_value_t = 10.0)]
    pub sampling: f64,
    /// Share of that by which tasks differ at most, either way.
    #[arg(long, default_value_t = 0.1)]
    pub spread: f64,
    /// Seconds for which a worker scores a task.
    #[arg(long, default_value_t = 1.0)]
    pub scoring: f64,
    /// MB of an outcome.
    #[arg(long, default_value_t = 50.0)]
    pub outcome_mb: f64,
    /// MB of a version of the weights.
    #[arg(long, default_value_t = 75.0)]
    pub weights_mb: f64,
    /// MB/s of the link of each host.
    #[arg(long, default_value_t = 1000.0)]
    pub link: f64,
    /// Seconds for which the learner trains on the outcome of a task.
    #[arg(long, default_value_t = 0.05)]
    pub gradient: f64,
    /// Seconds from the last gradient of an iteration until the next version is there.
    #[arg(long, default_value_t = 1.0)]
    pub update: f64,
}

/// Shares of the time of all workers, which come to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// They draw.
    pub drawing: f64,
    /// They fetch weights, or wait for a source of them.
    pub fetching: f64,
    /// What they drew waits for the one before it to be scored and delivered.
    pub delivering: f64,
    /// All that is wanted is with the learner, or it has no room for more.
    pub learner: f64,
    /// What is left is with other workers.
    pub others: f64,
}

impl Shares {
    /// What most of the time is lost by, in words.
    pub fn reason(&self) -> &'static str {
        let lost = [
            (self.fetching, "weights"),
            (self.delivering, "scoring and pushes"),
            (self.learner, "the learner"),
            (self.others, "the last tasks of an iteration"),
        ];
        lost.into_iter().max_by(|one, other| one.0.total_cmp(&other.0)).map_or("", |(_, reason)| reason)
    }
}

/// How things stand at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Since the beginning.
    pub at: Duration,
    /// What waits for training.
    pub holds: HoldLimit,
    /// Workers that draw.
    pub n_drawing: u32,
    /// Workers that wait for the learner.
    pub n_waiting: u32,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Paced {
    /// From the end of the first iteration to that of the last but one, divided by their number.
    pub seconds_per_iteration: f64,
    /// What workers did in that time.
    pub shares: Shares,
    /// Share of it in which the learner trained.
    pub learner_busy: f64,
    /// Most that waited for training.
    pub most_held: HoldLimit,
    /// Every second.
    pub moments: Vec<Moment>,
}

impl Pace {
    /// The run with so many workers and so much room at the learner.
    ///
    /// # Errors
    /// If a number is impossible.
    pub fn run(&self, n_workers: u32, limit: HoldLimit) -> Result<Paced, String> {
        self.check(n_workers)?;
        world::World::new(self, n_workers, limit)?.run()
    }

    /// What whole tasks alone let workers reach of their speed: where tasks are few, some workers have one more than others.
    pub fn bound_by_tasks(&self, n_workers: u32) -> f64 {
        let rounds = self.tasks.div_ceil(n_workers);
        f64::from(self.tasks) / (f64::from(rounds) * f64::from(n_workers))
    }

    fn check(&self, n_workers: u32) -> Result<(), String> {
        let times = [self.sampling, self.scoring, self.gradient, self.update];
        let sizes = [self.outcome_mb, self.weights_mb];
        if times.iter().chain(&sizes).any(|number| !(0.0..1e6).contains(number)) {
            return Err("seconds and MB lie between 0 and a million".to_owned());
        }
        if !(0.0..=1.0).contains(&self.spread) {
            return Err(format!(
                "tasks cannot differ by {} of their time; say a share from 0 to 1",
                self.spread
            ));
        }
        if self.link.is_nan() || self.link < 1e-3 {
            return Err(format!("nothing gets through a link of {} MB/s", self.link));
        }
        if self.iterations < 3 || self.tasks == 0 || n_workers == 0 || self.lag > 1 {
            return Err(
                "there are three iterations at least, a task, a worker, and a lag of 0 or 1".to_owned()
            );
        }
        Ok(())
    }

    /// Time that so many MB take.
    fn over_link(&self, megabytes: f64) -> Duration {
        Duration::from_secs_f64(megabytes / self.link)
    }

    /// Bytes of an outcome, by which room is reckoned.
    fn outcome_bytes(&self) -> u64 {
        (self.outcome_mb * 1e6) as u64
    }
}
