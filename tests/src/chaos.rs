//! A run of real processes on several hosts, met by faults at moments that a seed names, which has to end as if nothing had
//! happened: `make chaos`.

pub mod link;
pub mod recovery;
pub mod schedule;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use self::link::Weather;
use self::schedule::{Fault, Planned, Schedule};
pub use self::world::World;
use crate::adapter_digests_below;

/// How long a run may go without another iteration trained.
const NO_PROGRESS: Duration = Duration::from_secs(90);
/// How long after a fault what was noticed of it has to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// Longer than a lease of 5 s, so that whoever is away for that long is lost.
const LONG: Duration = Duration::from_secs(8);
/// How long what may not cost anybody a lease goes on.
const SHORT: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(20);

/// How often each event was told, by event and cause.
pub type EventCounts = BTreeMap<(String, String), usize>;

/// What a disturbed run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What was told.
    pub events: EventCounts,
    /// Seconds from each kill of a worker that had a task until that task was granted again.
    pub tasks_elsewhere: Vec<f64>,
    /// Seconds from each kill of the coordinator until a task was granted.
    pub tickets_flow: Vec<f64>,
    /// Seconds from each joining of a worker to its first task.
    pub first_tasks: Vec<f64>,
    /// How long the run took.
    pub took: Duration,
}

/// What has to be found of a fault.
enum Evidence {
    /// One of these events with one of these causes, in `events.jsonl` and among the coordinator's metrics.
    Event(&'static [(&'static str, &'static str)]),
    /// Words of a process.
    Words(&'static str),
    /// Nothing: who bears a fault without losing anything has nothing to tell.
    Nothing,
}

fn evidence(fault: Fault) -> Evidence {
    const LOST: &[(&str, &str)] = &[("member_lost", "silent")];
    match fault {
        Fault::KillWorker => Evidence::Event(&[("member_joined", "replaced"), ("member_lost", "silent")]),
        Fault::StopWorker | Fault::Cut | Fault::CutTowardsHost | Fault::CutFromHost => Evidence::Event(LOST),
        Fault::KillLearner | Fault::StopLearner => Evidence::Event(&[("process_ended", "restarted")]),
        Fault::KillCoordinator => Evidence::Event(&[("member_joined", "new")]),
        Fault::SlowNetwork | Fault::DamagedPackets | Fault::DamagedStream | Fault::FrozenDisk => {
            Evidence::Nothing
        }
        Fault::FullDisk => Evidence::Words("No space left"),
        Fault::ReadOnlyDisk => Evidence::Words("Read-only file system"),
        Fault::DamagedCheckpoint => Evidence::Words("damaged checkpoint passed over"),
        Fault::RewardServerDown | Fault::RewardServerHung => Evidence::Words("this is over"),
    }
}

/// What the run of a schedule ends with where nothing disturbs it.
///
/// # Panics
/// If it fails.
pub fn undisturbed(schedule: &Schedule) -> BTreeMap<String, String> {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut run = world::run_of(schedule, home.path());
    run.complete(&["--workers", "1"]);
    adapter_digests_below(&home.path().join("law"))
}

/// Runs a schedule, and holds it against what the undisturbed run ends with.
///
/// # Errors
/// What this machine lacks for it, in words.
///
/// # Panics
/// If the run hangs, fails, ends with other bits, or does not tell of a fault.
pub fn disturb(schedule: &Schedule, expected: &BTreeMap<String, String>) -> Result<Outcome, String> {
    let began = Instant::now();
    let mut chaos = Chaos { world: World::start(schedule)?, trained: 0, moved: Instant::now() };
    let mut struck = Vec::new();
    for planned in &schedule.faults {
        chaos.wait_for(&format!("iteration {}", planned.iterations), |chaos| {
            chaos.trained >= planned.iterations
        });
        chaos.go_on_for(planned.pause);
        eprintln!("{:6.1} s  {:?}", began.elapsed().as_secs_f64(), planned.fault);
        let before = (chaos.events(), chaos.world.said());
        struck.push((planned, unix_seconds()));
        chaos.strike(planned);
        chaos.expect_told(planned.fault, &before);
    }
    chaos.end();
    let found = adapter_digests_below(&chaos.world.directory());
    assert_eq!(&found, expected, "other bits:\n{}", chaos.world.said());
    let rows = chaos.rows("events.jsonl");
    let strikes = |fault| struck.iter().filter(move |(planned, _)| planned.fault == fault);
    let elsewhere = strikes(Fault::KillWorker)
        .filter_map(|(planned, at)| recovery::task_elsewhere(&rows, &world::member_id(planned.worker), *at));
    let flowing = strikes(Fault::KillCoordinator).filter_map(|(_, at)| recovery::tickets_flow(&rows, *at));
    Ok(Outcome {
        events: chaos.events(),
        tasks_elsewhere: elsewhere.collect(),
        tickets_flow: flowing.collect(),
        first_tasks: recovery::first_tasks(&rows),
        took: began.elapsed(),
    })
}

fn unix_seconds() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

struct Chaos {
    world: World,
    trained: usize,
    moved: Instant,
}

impl Chaos {
    fn rows(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.world.directory().join(file)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn events(&self) -> EventCounts {
        let mut counts = EventCounts::new();
        for row in self.rows("events.jsonl") {
            let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            *counts.entry((word("event"), word("cause"))).or_default() += 1;
        }
        counts
    }

    /// One look at everything, as often as anything is waited for.
    fn look(&mut self) {
        self.world.tend();
        let trained = self.rows("metrics.jsonl").len();
        if trained != self.trained {
            (self.trained, self.moved) = (trained, Instant::now());
        }
        let idle = self.moved.elapsed();
        assert!(idle < NO_PROGRESS, "no iteration after {trained} for {idle:?}:\n{}", self.world.said());
        std::thread::sleep(POLL);
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let ended = self.world.ended();
            assert!(ended.is_none(), "{ended:?} before {what}:\n{}", self.world.said());
            self.look();
        }
    }

    fn go_on_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look();
        }
    }

    fn weather(&mut self, worker: usize, weather: Weather, time: Duration) {
        self.world.links[worker].set(weather).expect("the relay lives");
        self.go_on_for(time);
        self.world.links[worker].set(Weather::default()).expect("the relay lives");
    }

    fn strike(&mut self, planned: &Planned) {
        let worker = planned.worker;
        let cut = |cut_to, cut_from| Weather { cut_to, cut_from, ..Weather::default() };
        match planned.fault {
            Fault::KillWorker => self.world.signal_worker(worker, Signal::SIGKILL),
            Fault::StopWorker => {
                self.world.signal_worker(worker, Signal::SIGSTOP);
                self.go_on_for(LONG);
                self.world.signal_worker(worker, Signal::SIGCONT);
            }
            Fault::KillLearner => self.world.signal_learner(Signal::SIGKILL),
            // The coordinator ends it, so that there is nobody to wake.
            Fault::StopLearner => self.world.signal_learner(Signal::SIGSTOP),
            Fault::KillCoordinator => self.world.restart_coordinator(),
            Fault::Cut => self.weather(worker, cut(true, true), LONG),
            Fault::CutTowardsHost => self.weather(worker, cut(true, false), LONG),
            Fault::CutFromHost => self.weather(worker, cut(false, true), LONG),
            Fault::SlowNetwork => {
                let slow = Weather { delay_ms: 200, loss: 0.01, ..Weather::default() };
                self.weather(worker, slow, LONG);
            }
            Fault::DamagedPackets => {
                self.weather(worker, Weather { damage: 0.02, ..Weather::default() }, SHORT);
            }
            Fault::DamagedStream => {
                self.weather(worker, Weather { hidden_damage: 0.002, ..Weather::default() }, SHORT);
            }
            Fault::ReadOnlyDisk => {
                let covered = self.world.make_read_only().expect("the disk can be covered");
                self.go_on_for(SHORT);
                drop(covered);
            }
            Fault::FrozenDisk => {
                let frozen = self.world.freeze_disk().expect("the disk can be frozen");
                // Not even looked at: reading may wait for what is written.
                std::thread::sleep(SHORT);
                drop(frozen);
            }
            Fault::FullDisk => {
                let ballast = self.world.fill_disk();
                self.go_on_for(SHORT);
                std::fs::remove_file(ballast).expect("the ballast is there");
            }
            Fault::DamagedCheckpoint => self.damage_checkpoint(),
            Fault::RewardServerDown => {
                self.world.stop_reward_server();
                self.go_on_for(SHORT);
                self.world.start_reward_server();
            }
            Fault::RewardServerHung => {
                let pid = nix::unistd::Pid::from_raw(self.world.reward.id() as i32);
                nix::sys::signal::kill(pid, Signal::SIGSTOP).expect("it lives");
                self.go_on_for(LONG);
                nix::sys::signal::kill(pid, Signal::SIGCONT).expect("it lives");
            }
        }
    }

    /// Turns a bit of the newest checkpoint while the learner stands still, and kills it.
    fn damage_checkpoint(&mut self) {
        self.world.signal_learner(Signal::SIGSTOP);
        let folder = self.world.directory().join("checkpoints");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let newest = entries.filter(|path| path.is_dir() && path.extension().is_none()).max();
        let files =
            newest.into_iter().flat_map(|path| std::fs::read_dir(path).into_iter().flatten().flatten());
        let tensors = files.map(|entry| entry.path());
        let mut tensors = tensors.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
        let file = tensors.next().expect("a checkpoint has tensors");
        let mut bytes = std::fs::read(&file).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).expect("writable");
        self.world.signal_learner(Signal::SIGKILL);
    }

    /// Waits until a fault is told where it has to be, beyond what was told `before` in events and words.
    fn expect_told(&mut self, fault: Fault, before: &(EventCounts, String)) {
        let deadline = Instant::now() + TOLD_WITHIN;
        while !self.is_told(fault, before) {
            let late = Instant::now() > deadline;
            assert!(!late, "{fault:?} is not told:\n{:?}\n{}", self.events(), self.world.said());
            self.look();
        }
    }

    fn is_told(&self, fault: Fault, (events, said): &(EventCounts, String)) -> bool {
        let known = match evidence(fault) {
            Evidence::Nothing => return true,
            Evidence::Words(words) => {
                return self.world.said().matches(words).count() > said.matches(words).count();
            }
            Evidence::Event(known) => known,
        };
        let (now, page) = (self.events(), self.world.metrics());
        known.iter().any(|(event, cause)| {
            let key = ((*event).to_owned(), (*cause).to_owned());
            let series = format!("tempflow_events_total{{event=\"{event}\",cause=\"{cause}\"}} ");
            let value = page.lines().find_map(|line| line.strip_prefix(series.as_str()));
            now.get(&key) > events.get(&key) && value.is_some_and(|value| value != "0")
        })
    }

    fn end(&mut self) {
        let status = loop {
            if let Some(status) = self.world.ended() {
                break status;
            }
            self.look();
        };
        assert!(status.success(), "{status}:\n{}", self.world.said());
    }
}
