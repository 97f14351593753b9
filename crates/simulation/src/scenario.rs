//! What a seed makes of a world: the run, the weather of its network, and what goes wrong when.

use crate::dice::Dice;
use crate::disk::{Condition, Death, Moment};
use crate::sizes::MOST_WORKERS;
use crate::worker::{Giving, Habits};
use config::{AdvantageGroup, PromptLists, PromptRecord, PromptSplit, RunConfig};
use coordinator::membership::Patience;
use protocol::HoldLimit;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Machines of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// Of the coordinator.
    Coordinator,
    /// Of the learner and of the disk.
    Learner,
    /// Of a worker, by its position.
    Worker(u32),
}

/// Something that goes wrong, or that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The process on a host is killed.
    Kill(Host),
    /// The process on a host is asked to end.
    Terminate(Host),
    /// The process on a host stands still for a while; then its clock has moved on.
    Pause(Host, Duration),
    /// The clock of a process jumps forward.
    ClockJump(Host, Duration),
    /// The power of the learner's machine is cut.
    PowerCut,
    /// The learner dies before an operation on the disk, by its number from a moment on.
    DiskDeath(Moment, u64, Death),
    /// Writing meets this for a while.
    DiskCondition(Condition, Duration),
    /// Every operation on the disk takes so long, for a while.
    SlowDisk(Duration, Duration),
    /// The newest of several checkpoints is damaged.
    Damage,
    /// Nothing gets from the first to the second host for a while.
    Cut(Host, Host, Duration),
    /// All connections between two hosts break.
    Break(Host, Host),
    /// A worker, or the learner's training thread, gets on with nothing any more.
    Stick(Host),
    /// A worker is asked to end, and killed after a notice.
    Preempt(u32, Duration),
    /// Another number of workers is wanted.
    Scale(u32),
    /// The run is to stop in good order.
    Down,
    /// The coordinator is killed, and the next one knows nothing of the living learner: because it was killed before it could
    /// write down what it had just started, or because the next one is on another host.
    Orphan {
        /// Whether it is on another host.
        is_elsewhere: bool,
    },
}

/// How messages fare.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Slowest usual message, in milliseconds.
    pub delay: u64,
    /// Of a thousand calls, those whose connection breaks on the way there or back.
    pub losses: u64,
    /// Those that arrive twice.
    pub duplicates: u64,
    /// Those that take up to half a minute.
    pub stragglers: u64,
    /// Pushes and weights that arrive damaged.
    pub damages: u64,
}

/// A world before it begins.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The run.
    pub config: Arc<RunConfig>,
    /// Its prompts.
    pub lists: Arc<PromptLists>,
    /// The coordinator's.
    pub patience: Patience,
    /// How long members wait for an absent coordinator.
    pub grace: Duration,
    /// As long as there are faults.
    pub weather: Weather,
    /// What goes wrong when, by time.
    pub faults: Vec<(Duration, Fault)>,
    /// From then on nothing goes wrong any more.
    pub calm: Duration,
    /// How each worker is.
    pub habits: Vec<Habits>,
    /// What the learner has room for.
    pub limit: HoldLimit,
    /// Times as slow as the fastest learner.
    pub learner_slowness: u32,
}

fn preset() -> &'static RunConfig {
    static PRESET: OnceLock<RunConfig> = OnceLock::new();
    PRESET.get_or_init(|| config::preset("tempflow-tiny-cpu").expect("a preset; else this is a bug").config)
}

fn run_config(dice: &mut Dice) -> RunConfig {
    let mut config = preset().clone();
    config.run.name = "simulated".to_owned();
    config.run.seed = dice.below(1000);
    config.run.iterations = dice.between(2, 5) as u32;
    config.run.lag = dice.below(2) as u32;
    config.sampling.prompts_per_iteration = dice.between(1, 3) as usize;
    config.sampling.seeds_per_prompt = dice.between(1, 4) as usize;
    config.sampling.seeds_per_task = dice.between(1, 2) as usize;
    config.training.updates_per_iteration = dice.between(1, 2) as usize;
    config.training.advantage_group =
        dice.one_of(&[AdvantageGroup::Seed, AdvantageGroup::Prompt, AdvantageGroup::Batch]);
    config.evaluation.every = dice.between(1, 3) as u32;
    config.evaluation.prompts = dice.between(1, 3) as usize;
    config.evaluation.prompts_per_task = dice.between(1, 2) as usize;
    config.checkpoints.every = dice.between(1, 2) as u32;
    config.checkpoints.keep_last = dice.between(1, 3) as usize;
    config.resources.workers = dice.between(1, 3) as usize;
    config.resources.max_workers = MOST_WORKERS as usize;
    config
}

fn prompts() -> PromptLists {
    let record = |index: u32| PromptRecord {
        index,
        text: format!("scene {index}"),
        metadata: serde_json::Value::Null,
    };
    PromptLists::new(PromptSplit::ALL.map(|split| (split, (0..4).map(record).collect())))
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(dice: &mut Dice) -> Self {
        let config = run_config(dice);
        let is_rough = dice.happens(800);
        let roughness = if is_rough { dice.between(1, 4) } else { 0 };
        let weather = Weather {
            delay: dice.one_of(&[3, 20, 200]),
            losses: roughness * dice.below(12),
            duplicates: roughness * dice.below(12),
            stragglers: roughness * dice.below(4),
            damages: roughness * dice.below(6),
        };
        let calm = dice.millis(5_000, 60_000);
        let faults = if is_rough { faults(dice, calm) } else { Vec::new() };
        let habits = |_| Habits {
            slowness: dice.one_of(&[1, 1, 2, 6]),
            failures: roughness * dice.below(6),
            strange_latents: roughness * dice.below(10),
            is_doomed: false,
            shares_weights: false,
            giving: Giving::Truly,
        };
        let mut habits: Vec<Habits> = (0..MOST_WORKERS).map(habits).collect();
        let (generous, usual) = (dice.happens(500), dice.between(40, 120));
        let patience = Patience {
            lease: Duration::from_secs(5),
            task_deadline: Duration::from_secs(if generous { 120 } else { usual }),
            opening_deadline: Duration::from_secs(dice.between(30, 120)),
            drain: Duration::from_secs(dice.between(5, 60)),
        };
        let grace = Duration::from_secs(dice.between(20, 120));
        let faults = if is_rough { with_orphans(faults, &mut dice.apart(), calm) } else { faults };
        // Never the first, so that somebody is left whatever number is wanted.
        if is_rough && dice.happens(80) {
            habits[dice.between(1, 2) as usize].is_doomed = true;
        }
        let limit = HoldLimit {
            outcomes: dice.one_of(&[u64::MAX, u64::MAX, 4, 2, 1]),
            bytes: dice.one_of(&[u64::MAX, u64::MAX, 350, 150]),
        };
        let learner_slowness = dice.one_of(&[1, 1, 1, 10]);
        // In half of the worlds; never spoilt by the first, so that somebody gives what is true.
        if dice.happens(500) {
            habits.iter_mut().for_each(|habits| habits.shares_weights = true);
            if is_rough {
                habits[dice.between(1, 2) as usize].giving =
                    dice.one_of(&[Giving::Truly, Giving::Truly, Giving::Spoilt, Giving::Never]);
            }
        }
        Self {
            config: Arc::new(config),
            lists: Arc::new(prompts()),
            patience,
            grace,
            weather,
            faults,
            calm,
            habits,
            limit,
            learner_slowness,
        }
    }
}

/// What goes wrong before the calm, by time.
fn faults(dice: &mut Dice, calm: Duration) -> Vec<(Duration, Fault)> {
    // A tenth of the rough worlds has faults upon faults, and a third of faults comes at the beginning.
    let most_faults = if dice.happens(100) { 40 } else { 9 };
    let one = |dice: &mut Dice| {
        let latest =
            if dice.happens(300) { 8_000.min(calm.as_millis() as u64) } else { calm.as_millis() as u64 };
        (dice.millis(100, latest), fault(dice))
    };
    let mut faults: Vec<_> = (0..dice.below(most_faults)).map(|_| one(dice)).collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// In a fifth of the worlds a learner that another has to be kept from, most often stopped in the middle of something.
fn with_orphans(
    mut faults: Vec<(Duration, Fault)>,
    dice: &mut Dice,
    calm: Duration,
) -> Vec<(Duration, Fault)> {
    if dice.happens(800) {
        return faults;
    }
    for _ in 0..dice.between(1, 3) {
        let at = dice.millis(500, calm.as_millis() as u64);
        let stall = match dice.below(4) {
            0 => Some(Fault::DiskDeath(Moment::Append, dice.below(3), Death::Stall)),
            1 => Some(Fault::DiskDeath(Moment::Naming, 0, Death::Stall)),
            2 => Some(Fault::DiskDeath(Moment::Now, dice.below(40), Death::Stall)),
            _ => None,
        };
        faults.extend(stall.map(|stall| (at, stall)));
        let later = at + dice.millis(100, 5_000);
        faults.push((later, Fault::Orphan { is_elsewhere: dice.below(2) == 0 }));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn host(dice: &mut Dice) -> Host {
    match dice.below(5) {
        0 => Host::Coordinator,
        1 | 2 => Host::Learner,
        _ => Host::Worker(dice.below(3) as u32),
    }
}

fn disk_death(dice: &mut Dice) -> Fault {
    let death = dice.one_of(&[Death::Kill, Death::PowerCut]);
    match dice.below(4) {
        0 => Fault::DiskDeath(Moment::Append, dice.below(4), death),
        1 => Fault::DiskDeath(Moment::Naming, dice.below(3), death),
        _ => Fault::DiskDeath(Moment::Now, dice.below(80), death),
    }
}

fn fault(dice: &mut Dice) -> Fault {
    let (while_, pause) = (dice.millis(200, 20_000), dice.millis(100, 15_000));
    let one = host(dice);
    let other = match one {
        Host::Coordinator => dice.one_of(&[Host::Learner, Host::Worker(0), Host::Worker(1)]),
        Host::Learner => {
            dice.one_of(&[Host::Coordinator, Host::Coordinator, Host::Worker(0), Host::Worker(1)])
        }
        Host::Worker(_) => dice.one_of(&[Host::Coordinator, Host::Learner]),
    };
    match dice.below(28) {
        0..4 => Fault::Kill(one),
        4 => Fault::Terminate(one),
        5 => Fault::Pause(one, pause),
        6 => Fault::ClockJump(one, pause),
        7 | 8 => Fault::PowerCut,
        9..15 => disk_death(dice),
        15 | 24 => Fault::DiskCondition(dice.one_of(&[Condition::Full, Condition::Failing]), while_),
        16 => Fault::SlowDisk(dice.millis(20, 300), while_),
        17 => Fault::Damage,
        18 | 19 => Fault::Cut(one, other, while_),
        20 => Fault::Break(one, other),
        21 | 25 => Fault::Stick(Host::Worker(dice.below(3) as u32)),
        26 => Fault::Stick(Host::Learner),
        27 => Fault::Preempt(dice.below(3) as u32, dice.millis(6_000, 30_000)),
        22 => Fault::Scale(dice.between(1, MOST_WORKERS.into()) as u32),
        _ => Fault::Down,
    }
}
