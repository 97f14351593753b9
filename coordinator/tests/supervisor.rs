//! Keeping processes alive, with small programs in place of the real ones.

use coordinator::catalog::Catalog;
use coordinator::error::CoordinatorError;
use coordinator::launch::{LocalLauncher, Supervisor};
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::ControlPlane;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use service::RunDirectory;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn install(home: &Path, name: &str, script: &str) {
    let path = home.join(name);
    // Written beside and renamed: a program that is open for writing cannot be started.
    std::fs::write(home.join("new"), format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(home.join("new"), std::fs::Permissions::from_mode(0o755)).expect("executable");
    std::fs::rename(home.join("new"), path).expect("renamed");
}

fn plane(home: &Path, workers: usize) -> ControlPlane {
    std::fs::write(home.join("prompts.txt"), "a scene\n").expect("written");
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    config.data.train = home.join("prompts.txt");
    config.data.test = home.join("prompts.txt");
    config.resources.workers = workers;
    let patience = Patience { lease: SECOND * 5, task_deadline: SECOND * 60 };
    let members = Members::new("run-a".to_owned(), 1, patience);
    let catalog = Catalog::open(config).expect("prompts");
    ControlPlane::new(RunState::new(members, catalog, home.display().to_string()))
}

/// A supervisor whose members all run `script`; it kills them when dropped.
struct Supervised {
    supervisor: Supervisor,
    plane: ControlPlane,
    home: tempfile::TempDir,
}

impl Supervised {
    fn new(script: &str, workers: usize) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        install(home.path(), "learner", script);
        install(home.path(), "rollout-worker", script);
        let directory = RunDirectory::new(home.path());
        directory.create().expect("created");
        let plane = plane(home.path(), workers);
        let launcher = LocalLauncher::with_programs(home.path().to_owned(), 1, directory).expect("programs");
        Self { supervisor: Supervisor::new(launcher, plane.clone()), plane, home }
    }

    /// Ticks at `now` until the processes are as wished; the clock of the decisions stands still meanwhile.
    fn tick_until(
        &mut self,
        now: Instant,
        wish: impl Fn(&BTreeMap<String, u32>) -> bool,
    ) -> BTreeMap<String, u32> {
        loop {
            self.supervisor.keep_alive(now).expect("kept alive");
            let processes = self.supervisor.processes();
            if wish(&processes) {
                return processes;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.supervisor.signal_all(Signal::SIGKILL);
        while !self.supervisor.processes().is_empty() {
            self.supervisor.bury(Instant::now());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn kill_process(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("killed");
}

#[test]
fn what_is_wanted_is_started_and_started_again_after_a_pause() {
    let mut run = Supervised::new("sleep 60", 2);
    let now = Instant::now();
    let processes = run.tick_until(now, |processes| processes.len() == 3);
    assert_eq!(processes.keys().collect::<Vec<_>>(), ["learner", "worker-0", "worker-1"]);
    kill_process(processes["worker-1"]);
    run.tick_until(now, |processes| !processes.contains_key("worker-1"));
    let again = run.tick_until(now + SECOND, |processes| processes.contains_key("worker-1"));
    assert_ne!(again["worker-1"], processes["worker-1"]);
    assert_eq!(again["learner"], processes["learner"]);
}

#[test]
fn scaling_starts_and_ends_workers() {
    let mut run = Supervised::new("sleep 60", 1);
    let now = Instant::now();
    run.tick_until(now, |processes| processes.len() == 2);
    run.plane.update(|state, _| state.scale(3));
    run.tick_until(now, |processes| processes.len() == 4);
    run.plane.update(|state, _| state.scale(0));
    run.tick_until(now, |processes| processes.len() == 4);
    // These know nothing of orders to leave; their time to do so passes.
    let processes = run.tick_until(now + SECOND * 125, |processes| processes.len() == 1);
    assert!(processes.contains_key("learner"));
}

#[test]
fn a_member_that_keeps_dying_is_given_up_with_the_end_of_its_log() {
    let mut run = Supervised::new("echo cannot find the device; exit 1", 0);
    let mut now = Instant::now();
    let error = loop {
        if let Err(error) = run.supervisor.keep_alive(now) {
            break error;
        }
        std::thread::sleep(Duration::from_millis(2));
        now += Duration::from_millis(50);
    };
    let message = error.to_string();
    assert!(message.contains("learner") && message.contains("  cannot find the device"), "{message}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn bad_input_is_given_up_at_once_with_its_exit_code() {
    let mut run = Supervised::new("echo no such model; exit 2", 0);
    let now = Instant::now();
    let error = loop {
        if let Err(error) = run.supervisor.keep_alive(now) {
            break error;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(matches!(error, CoordinatorError::MemberFailed(_)));
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn processes_of_an_earlier_coordinator_are_taken_over_but_not_their_namesakes() {
    let mut run = Supervised::new("sleep 60", 1);
    let now = Instant::now();
    let started = run.tick_until(now, |processes| processes.len() == 2);
    let directory = RunDirectory::new(run.home.path());
    let launcher = LocalLauncher::with_programs(run.home.path().to_owned(), 1, directory).expect("programs");
    let mut second = Supervisor::new(launcher, run.plane.clone());
    let strangers = BTreeMap::from([("learner".to_owned(), std::process::id())]);
    assert!(second.adopt(&strangers, now).is_empty());
    assert_eq!(second.adopt(&started, now), ["learner", "worker-0"]);
    second.keep_alive(now).expect("kept alive");
    assert_eq!(second.processes(), started, "nothing is started twice");
}

#[test]
fn an_adopted_process_that_does_not_join_is_replaced() {
    let mut run = Supervised::new("sleep 60", 0);
    let now = Instant::now();
    let started = run.tick_until(now, |processes| processes.len() == 1);
    let later = now + SECOND * 61;
    run.supervisor.keep_alive(later).expect("kept alive");
    let replaced = run.tick_until(later + SECOND, |processes| {
        processes.get("learner").is_some_and(|pid| *pid != started["learner"])
    });
    assert_eq!(replaced.len(), 1);
}
