//! Keeping processes alive, with small programs in place of the real ones.

use coordinator::cards::{Inventory, Places};
use coordinator::catalog::Catalog;
use coordinator::error::CoordinatorError;
use coordinator::launch::{Contact, Handle, LocalLauncher, Supervisor, is_member_process};
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::ControlPlane;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::{JoinRequest, Role};
use service::RunDirectory;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// Small programs under the names of the real ones. They are files of the repository: a program that a test had just
/// written could still be open in another test's child, and then cannot be started.
fn programs(manner: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(manner)
}

/// These programs reach nobody.
fn contact() -> Contact {
    let arguments = vec!["--coordinator".to_owned(), "http://127.0.0.1:1".to_owned()];
    Contact { learner: arguments.clone(), worker: arguments }
}

/// Seats on the CPU.
fn places() -> Places {
    let config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    Places::look(&config).expect("no card is asked for")
}

fn plane(home: &Path, workers: usize) -> ControlPlane {
    std::fs::write(home.join("prompts.txt"), "a scene\n").expect("written");
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    config.data.train = home.join("prompts.txt");
    config.data.validation = home.join("prompts.txt");
    config.data.test = home.join("prompts.txt");
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config.resources.workers = workers;
    let patience = Patience {
        lease: SECOND * 5,
        task_deadline: SECOND * 60,
        opening_deadline: SECOND * 60,
        drain: SECOND * 60,
    };
    let members = Members::new("run-a".to_owned(), 1, patience);
    let catalog = Catalog::open(config).expect("prompts");
    ControlPlane::new(RunState::new(members, catalog, home.display().to_string(), Instant::now()))
}

/// A supervisor of such programs; it kills them when dropped.
struct Supervised {
    supervisor: Supervisor,
    plane: ControlPlane,
    home: tempfile::TempDir,
}

fn process(pid: u32) -> Option<proto::Process> {
    Some(protocol::process(u128::from(pid).to_le_bytes(), &service::host_name(), pid))
}

impl Supervised {
    fn new(manner: &str, workers: usize) -> Self {
        Self::with_places(manner, workers, places())
    }

    fn with_places(manner: &str, workers: usize, places: Places) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        directory.create().expect("created");
        let plane = plane(home.path(), workers);
        let launcher =
            LocalLauncher::with_programs(programs(manner), contact(), directory, places).expect("programs");
        Self { supervisor: Supervisor::new(Box::new(launcher), plane.clone()), plane, home }
    }

    /// Ticks at `now` until the processes are as wished; the clock of the decisions stands still meanwhile.
    fn tick_until(
        &mut self,
        now: Instant,
        wish: impl Fn(&BTreeMap<String, Handle>) -> bool,
    ) -> BTreeMap<String, Handle> {
        let start = Instant::now();
        loop {
            self.supervisor.keep_alive(now).expect("kept alive");
            let processes = self.supervisor.processes();
            if wish(&processes) {
                return processes;
            }
            wait_a_little(start);
        }
    }
}

impl Supervised {
    /// Makes members of all processes, which cannot do so themselves.
    fn join_all(&self) {
        for (member_id, handle) in self.supervisor.processes() {
            let pid = pid_of(&handle);
            let role = if member_id == "learner" { Role::Learner } else { Role::RolloutWorker };
            let request =
                JoinRequest { role: role.into(), member_id, process: process(pid), ..JoinRequest::default() };
            self.plane.update(|state, now| state.join(&request, now)).expect("joined");
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        while !self.supervisor.processes().is_empty() {
            self.supervisor.take_down(None, Instant::now());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Between two looks at what is waited for since `start`, which fails the test in the end.
fn wait_a_little(start: Instant) {
    assert!(start.elapsed() < SECOND * 120, "it was waited for two minutes");
    std::thread::sleep(Duration::from_millis(2));
}

fn pid_of(handle: &Handle) -> u32 {
    match handle {
        Handle::Process(pid) => *pid,
        Handle::Remote(start) => panic!("{start:?} is elsewhere"),
    }
}

fn kill_process(handle: &Handle) {
    kill(Pid::from_raw(pid_of(handle) as i32), Signal::SIGKILL).expect("killed");
}

#[test]
fn what_is_wanted_is_started_and_started_again_after_a_pause() {
    let mut run = Supervised::new("sleeps", 2);
    let now = Instant::now();
    let processes = run.tick_until(now, |processes| processes.len() == 3);
    assert_eq!(processes.keys().collect::<Vec<_>>(), ["learner", "worker-0", "worker-1"]);
    kill_process(&processes["worker-1"]);
    run.tick_until(now, |processes| !processes.contains_key("worker-1"));
    let again = run.tick_until(now + SECOND, |processes| processes.contains_key("worker-1"));
    assert_ne!(again["worker-1"], processes["worker-1"]);
    assert_eq!(again["learner"], processes["learner"]);
}

#[test]
fn scaling_starts_and_ends_workers() {
    let mut run = Supervised::new("sleeps", 1);
    let now = Instant::now();
    run.tick_until(now, |processes| processes.len() == 2);
    run.plane.update(|state, _| state.scale(3));
    run.tick_until(now, |processes| processes.len() == 4);
    run.join_all();
    run.plane.update(|state, _| state.scale(0));
    run.tick_until(now, |processes| processes.len() == 4);
    // These know nothing of orders to leave; their time to do so passes.
    let processes = run.tick_until(now + SECOND * 125, |processes| processes.len() == 1);
    assert!(processes.contains_key("learner"));
}

#[test]
fn a_member_is_started_on_its_own_card_whenever_it_is() {
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    config.resources.device = config::ComputeDevice::Cuda;
    let list = |name: &str| (name == "CUDA_VISIBLE_DEVICES").then(|| "GPU-a,5".to_owned());
    let cards = Places::of(&config, list, Inventory::default()).expect("cards");
    let mut run = Supervised::with_places("tells", 1, cards);
    let now = Instant::now();
    let first = run.tick_until(now, |processes| processes.len() == 2);
    run.plane.update(|state, _| state.scale(3));
    run.tick_until(now, |processes| processes.len() == 4);
    let logs = RunDirectory::new(run.home.path());
    let said = |member_id: &str, n_lives: usize| {
        let start = Instant::now();
        loop {
            let lines = std::fs::read_to_string(logs.log_of(member_id)).unwrap_or_default();
            if lines.matches('\n').count() == n_lives {
                return lines;
            }
            wait_a_little(start);
        }
    };
    for (member_id, card) in
        [("learner", "GPU-a"), ("worker-0", "5"), ("worker-1", "GPU-a"), ("worker-2", "5")]
    {
        assert_eq!(said(member_id, 1), format!("card {card} of PCI_BUS_ID\n"), "{member_id}");
    }
    kill_process(&first["worker-0"]);
    run.tick_until(now, |processes| !processes.contains_key("worker-0"));
    run.tick_until(now + SECOND, |processes| processes.contains_key("worker-0"));
    assert_eq!(said("worker-0", 2), "card 5 of PCI_BUS_ID\n".repeat(2));
}

#[test]
fn a_member_that_keeps_dying_is_given_up_with_the_end_of_its_log() {
    let mut run = Supervised::new("fails", 0);
    let mut now = Instant::now();
    let start = Instant::now();
    let error = loop {
        if let Err(error) = run.supervisor.keep_alive(now) {
            break error;
        }
        wait_a_little(start);
        // Its time to join passes for nobody who is only slow to fail.
        if run.supervisor.processes().is_empty() {
            now += Duration::from_millis(50);
        }
    };
    let message = error.to_string();
    assert!(message.contains("learner") && message.contains("  cannot find the device"), "{message}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn bad_input_is_given_up_at_once_with_its_exit_code() {
    let mut run = Supervised::new("refuses", 0);
    let now = Instant::now();
    let start = Instant::now();
    let error = loop {
        if let Err(error) = run.supervisor.keep_alive(now) {
            break error;
        }
        wait_a_little(start);
    };
    assert!(matches!(error, CoordinatorError::MemberFailed(_)));
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn processes_of_an_earlier_coordinator_are_taken_over_but_not_their_namesakes() {
    let mut run = Supervised::new("sleeps", 1);
    let now = Instant::now();
    // A process has its command line a moment after it was started.
    let started = run.tick_until(now, |processes| {
        processes.len() == 2
            && processes.iter().all(|(member_id, handle)| is_member_process(pid_of(handle), member_id))
    });
    let directory = RunDirectory::new(run.home.path());
    let launcher =
        LocalLauncher::with_programs(programs("sleeps"), contact(), directory, places()).expect("programs");
    let mut second = Supervisor::new(Box::new(launcher), run.plane.clone());
    for stranger in [0, 1, std::process::id(), u32::MAX, u32::MAX - 1] {
        let strangers = BTreeMap::from([("learner".to_owned(), Handle::Process(stranger))]);
        assert!(second.adopt(&strangers, now).is_empty(), "{stranger} is taken over");
    }
    assert_eq!(second.adopt(&started, now), ["learner", "worker-0"]);
    second.keep_alive(now).expect("kept alive");
    assert_eq!(second.processes(), started, "nothing is started twice");
}

#[test]
fn a_member_of_another_run_is_left_alone() {
    let mut run = Supervised::new("sleeps", 0);
    let mut other = Supervised::new("sleeps", 0);
    let now = Instant::now();
    let is_started = |processes: &BTreeMap<String, Handle>| {
        processes.get("learner").is_some_and(|learner| is_member_process(pid_of(learner), "learner"))
    };
    let theirs = other.tick_until(now, is_started);
    assert!(
        run.supervisor.adopt(&theirs, now).is_empty(),
        "ids are used again, after a restart of the host too"
    );
    run.supervisor.take_down(None, now);
    other.supervisor.keep_alive(now).expect("kept alive");
    assert_eq!(other.supervisor.processes(), theirs);
}

#[test]
fn a_process_that_never_joins_is_replaced() {
    let mut run = Supervised::new("sleeps", 0);
    let now = Instant::now();
    let first = run.tick_until(now, |processes| processes.len() == 1);
    let later = now + SECOND * 61;
    run.tick_until(later, BTreeMap::is_empty);
    let second = run.tick_until(later + SECOND, |processes| processes.len() == 1);
    assert_ne!(first, second);
}
