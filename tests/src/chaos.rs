//! A run of real processes on several hosts, met by faults at moments that a seed names, which has to end as if nothing had
//! happened: `make chaos`.

mod certificates;
mod command;
mod disk;
pub mod enclosure;
mod evidence;
mod liar;
mod lies;
pub mod link;
pub mod recovery;
pub mod report;
pub mod schedule;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use self::evidence::{NO_SCORES, Told};
use self::link::{Treated, Weather};
pub use self::report::Outcome;
use self::schedule::{Fault, Planned, Schedule};
pub use self::world::World;
use crate::{Run, adapter_digests_below};

/// How long the coordinator lets a process run that is no member any more, before it ends it.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a run may go without another iteration trained.
const NO_PROGRESS: Duration = Duration::from_secs(300);
/// How long after a fault what was noticed of it has to be told; and how long a fault that has to be noticed waits for that.
const TOLD_WITHIN: Duration = Duration::from_secs(120);
/// Longer than a lease of 5 s, so that whoever is away for that long is lost.
const LONG: Duration = Duration::from_secs(8);
/// How long what may not cost anybody a lease goes on.
const SHORT: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(20);
/// How often everything that was said is read.
const READ: Duration = Duration::from_millis(200);

/// What an undisturbed run ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Of the files of the adapter.
    digests: BTreeMap<String, String>,
    /// The iterations of `metrics.jsonl`, in its order.
    iterations: Vec<Value>,
}

/// What the run of a schedule ends with where nothing disturbs it.
///
/// # Panics
/// If it fails, or stands still.
pub fn undisturbed(schedule: &Schedule) -> Expected {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut run: Run = world::run_of(schedule, home.path());
    let directory = home.path().join(world::LAW);
    run.complete_at_its_pace(&["--workers", "1"], &directory, NO_PROGRESS);
    let expected = Expected {
        digests: adapter_digests_below(&directory),
        iterations: iterations_of(&recovery::rows(&directory.join("metrics.jsonl"))),
    };
    assert!(!expected.digests.is_empty(), "there is nothing to compare");
    assert_eq!(expected.iterations.len(), schedule.iterations(), "an iteration has a row");
    expected
}

fn iterations_of(rows: &[Value]) -> Vec<Value> {
    rows.iter().map(|row| row["iteration"].clone()).collect()
}

/// Runs a schedule, and holds it against what the undisturbed run ends with.
///
/// # Errors
/// What this machine lacks for it, in words.
///
/// # Panics
/// If the run hangs, fails, ends with other bits, or does not tell of a fault.
pub fn disturb(schedule: &Schedule, expected: &Expected) -> Result<Outcome, String> {
    let began = Instant::now();
    let mut chaos = Chaos::start(schedule)?;
    let mut struck = Vec::new();
    for planned in &schedule.faults {
        chaos.wait_for(&format!("iteration {}", planned.iterations), |chaos| {
            chaos.trained >= planned.iterations
        });
        chaos.go_on_for(planned.pause);
        chaos.wait_for(&format!("somebody to meet {:?}", planned.fault), |chaos| chaos.can_meet(planned));
        eprintln!("{:6.1} s  {:?}", began.elapsed().as_secs_f64(), planned.fault);
        let before = chaos.told();
        let at = unix_seconds();
        struck.push((planned, at));
        chaos.strike(planned, &before);
        chaos.expect_told(planned.fault, &before);
    }
    chaos.end();
    let directory = chaos.world.directory();
    let iterations = iterations_of(&recovery::rows(&directory.join("metrics.jsonl")));
    let found = Expected { digests: adapter_digests_below(&directory), iterations };
    assert_eq!(&found, expected, "another outcome:\n{}", chaos.world.said());
    let rows = recovery::rows(&directory.join("events.jsonl"));
    let strikes = |fault| struck.iter().filter(move |(planned, _)| planned.fault == fault);
    let elsewhere = strikes(Fault::KillWorker)
        .filter_map(|(planned, at)| recovery::task_elsewhere(&rows, &world::member_id(planned.worker), *at));
    let flowing = strikes(Fault::KillCoordinator).filter_map(|(_, at)| recovery::tickets_flow(&rows, *at));
    Ok(Outcome {
        events: recovery::counts(&rows),
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
    n_iterations: usize,
    /// The most rows that `metrics.jsonl` had: a run that trains the same iterations again and again gets nowhere.
    trained: usize,
    moved: Instant,
    /// How long the file was when its rows were counted.
    counted_bytes: u64,
    /// When the coordinator that lives was started, in seconds since 1970.
    coordinator_since: f64,
}

impl Chaos {
    fn start(schedule: &Schedule) -> Result<Self, String> {
        let (coordinator_since, world) = (unix_seconds(), World::start(schedule)?);
        let (n_iterations, moved) = (schedule.iterations(), Instant::now());
        Ok(Self { world, n_iterations, trained: 0, moved, counted_bytes: 0, coordinator_since })
    }

    fn told(&self) -> Told {
        let events = self.world.directory().join("events.jsonl");
        let text = std::fs::read(&events).unwrap_or_default();
        let words = self.world.said() + &String::from_utf8_lossy(&text);
        Told { events: recovery::counts(&recovery::rows(&events)), page: self.world.metrics(), words }
    }

    /// One look at everything, as often as anything is waited for.
    fn look(&mut self) {
        self.world.tend();
        let metrics = self.world.directory().join("metrics.jsonl");
        let n_bytes = std::fs::metadata(&metrics).map_or(0, |metadata| metadata.len());
        if n_bytes != self.counted_bytes {
            self.counted_bytes = n_bytes;
            let trained = recovery::n_rows(&metrics);
            if trained > self.trained {
                (self.trained, self.moved) = (trained, Instant::now());
            }
        }
        let (idle, trained) = (self.moved.elapsed(), self.trained);
        assert!(idle < NO_PROGRESS, "no iteration after {trained} for {idle:?}:\n{}", self.world.said());
        // Once all is trained, workers are told to leave.
        let strange = self.world.strange();
        assert!(
            trained >= self.n_iterations || strange.is_empty(),
            "{strange:?} after iteration {trained}:\n{}",
            self.world.said()
        );
        std::thread::sleep(POLL);
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            self.expect_living(what);
            self.look();
        }
    }

    fn expect_living(&mut self, before: &str) {
        let ended = self.world.ended();
        assert!(ended.is_none(), "{ended:?} before {before}:\n{}", self.world.said());
    }

    fn go_on_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look();
        }
    }

    /// Goes on for as long as a fault lasts that has to be noticed: for `time`, and until `is_noticed`, `more` time at most.
    fn go_on_until(&mut self, time: Duration, more: Duration, is_noticed: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        self.go_on_for(time);
        while !is_noticed(self) && began.elapsed() < time + more {
            self.go_on_for(READ);
        }
    }

    /// Whether there is whom a fault is to meet. Else a signal would go nowhere, and nobody tell of it.
    fn can_meet(&self, planned: &Planned) -> bool {
        let is_member = |member: &str| {
            let rows = recovery::rows(&self.world.directory().join("events.jsonl"));
            recovery::is_member(&rows, member, self.coordinator_since)
        };
        match planned.fault {
            Fault::KillWorker
            | Fault::StopWorker
            | Fault::Cut
            | Fault::CutTowardsHost
            | Fault::CutFromHost
            | Fault::SlowNetwork
            | Fault::DamagedPackets
            | Fault::DamagedStream => is_member(&world::member_id(planned.worker)),
            Fault::KillLearner | Fault::StopLearner => self.world.learner().is_some() && is_member("learner"),
            Fault::DamagedCheckpoint => {
                self.world.learner().is_some() && is_member("learner") && self.newest_tensors().is_some()
            }
            _ => true,
        }
    }

    /// Has packets of a worker's host treated like that for a time, and until some were: `treated` says how many.
    fn weather(&mut self, worker: usize, (weather, time): (Weather, Duration), treated: fn(Treated) -> u64) {
        let mut n_treated = 0;
        let began = Instant::now();
        self.world.links[worker].set(weather).expect("the relay lives");
        while began.elapsed() < time || (n_treated == 0 && began.elapsed() < time + TOLD_WITHIN) {
            self.go_on_for(READ);
            n_treated += treated(self.world.links[worker].set(weather).expect("the relay lives"));
        }
        self.world.links[worker].set(Weather::default()).expect("the relay lives");
        assert!(n_treated > 0, "{weather:?} met no packet of {}", world::member_id(worker));
    }

    fn strike(&mut self, planned: &Planned, before: &Told) {
        let (worker, fault) = (planned.worker, planned.fault);
        let cut = |cut_to, cut_from| Weather { cut_to, cut_from, ..Weather::default() };
        let is_told = |chaos: &Self| chaos.told().missing(fault, before).is_empty();
        match fault {
            Fault::KillWorker => self.world.signal_worker(worker, Signal::SIGKILL),
            Fault::StopWorker => {
                self.world.signal_worker(worker, Signal::SIGSTOP);
                self.go_on_for(LONG);
                self.world.signal_worker(worker, Signal::SIGCONT);
            }
            Fault::KillLearner => self.world.signal_learner(Signal::SIGKILL),
            // The coordinator ends it, so that there is nobody to wake.
            Fault::StopLearner => {
                self.world.signal_learner(Signal::SIGSTOP);
                self.go_on_until(SHORT, SILENCE + TOLD_WITHIN, is_told);
            }
            Fault::KillCoordinator => {
                self.coordinator_since = unix_seconds();
                self.world.restart_coordinator();
            }
            Fault::Cut => self.weather(worker, (cut(true, true), LONG), |treated| treated.lost),
            Fault::CutTowardsHost => self.weather(worker, (cut(true, false), LONG), |treated| treated.lost),
            Fault::CutFromHost => self.weather(worker, (cut(false, true), LONG), |treated| treated.lost),
            Fault::SlowNetwork => {
                let slow = Weather { delay_ms: 200, loss: 0.01, ..Weather::default() };
                self.weather(worker, (slow, LONG), |treated| treated.delayed);
            }
            Fault::DamagedPackets => {
                let damaged = Weather { damage: 0.02, ..Weather::default() };
                self.weather(worker, (damaged, SHORT), |treated| treated.damaged);
            }
            Fault::DamagedStream => {
                let damaged = Weather { hidden_damage: 0.002, ..Weather::default() };
                self.weather(worker, (damaged, SHORT), |treated| treated.damaged);
            }
            Fault::ReadOnlyDisk => {
                let covered = self.world.disk.make_read_only(world::LAW).expect("the disk can be covered");
                self.go_on_until(SHORT, TOLD_WITHIN, is_told);
                covered.end().expect("the disk can be made as it was");
            }
            Fault::FullDisk => {
                let filled = self.world.disk.fill().expect("the disk can be filled");
                self.go_on_until(SHORT, TOLD_WITHIN, is_told);
                filled.end().expect("the disk can be made as it was");
            }
            Fault::FrozenDisk => {
                let frozen = self.world.disk.freeze().expect("the disk can be frozen");
                // Not even looked at: reading may wait for what is written.
                std::thread::sleep(SHORT);
                frozen.end().expect("the disk stood still, and does no longer");
            }
            Fault::DamagedCheckpoint => self.damage_checkpoint(),
            Fault::RewardServerDown | Fault::RewardServerHung | Fault::RewardServerLies => {
                self.strike_rewards(fault, before);
            }
        }
    }

    fn strike_rewards(&mut self, fault: Fault, before: &Told) {
        let held = |told: &Told| told.words.matches(NO_SCORES).count();
        let n_before = held(before);
        let is_noticed = |chaos: &Self| held(&chaos.told()) > n_before;
        match fault {
            Fault::RewardServerDown => {
                self.world.stop_reward_server();
                self.go_on_until(SHORT, TOLD_WITHIN, is_noticed);
                self.world.start_reward_server();
            }
            Fault::RewardServerHung => {
                self.world.signal_reward_server(Signal::SIGSTOP);
                self.go_on_until(LONG, TOLD_WITHIN, is_noticed);
                self.world.signal_reward_server(Signal::SIGCONT);
            }
            _ => {
                let liar = self.world.start_liar().expect("a server that lies");
                self.go_on_until(LONG, TOLD_WITHIN, |chaos| liar.has_told_all() && is_noticed(chaos));
                drop(liar);
                self.world.start_reward_server();
            }
        }
    }

    /// A file with tensors of the newest checkpoint.
    fn newest_tensors(&self) -> Option<std::path::PathBuf> {
        let below = |folder: &std::path::Path| {
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
        };
        let checkpoints = below(&self.world.directory().join("checkpoints"));
        // Damaged ones are set aside with an ending to their names; what is being written is hidden.
        let is_hidden = |path: &std::path::Path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
        };
        let newest =
            checkpoints.filter(|path| path.is_dir() && path.extension().is_none() && !is_hidden(path));
        below(&newest.max()?).find(|path| path.extension().is_some_and(|end| end == "safetensors"))
    }

    /// Turns a bit of the newest checkpoint while the learner stands still, and kills it.
    fn damage_checkpoint(&mut self) {
        self.world.signal_learner(Signal::SIGSTOP);
        let file = self.newest_tensors().expect("a checkpoint has tensors");
        let mut bytes = std::fs::read(&file).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).expect("writable");
        self.world.signal_learner(Signal::SIGKILL);
    }

    /// Waits until a fault is told where it has to be, beyond what was told `before`.
    fn expect_told(&mut self, fault: Fault, before: &Told) {
        let deadline = Instant::now() + TOLD_WITHIN;
        loop {
            let missing = self.told().missing(fault, before);
            if missing.is_empty() {
                break;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "{fault:?} is not told, {missing:?}:\n{}", self.world.said());
            self.go_on_for(READ);
        }
        self.expect_living("the end of its faults");
    }

    fn end(&mut self) {
        let status = loop {
            if let Some(status) = self.world.ended() {
                break status;
            }
            self.look();
        };
        let said = self.world.said();
        assert!(status.success(), "{status}:\n{said}");
        assert!(!said.contains("panicked at"), "a process panicked:\n{said}");
    }
}
