//! The law of the project: for a given config the trained adapter is the same to the last bit, whatever happens to
//! workers, learner and coordinator on the way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::Run;

type Digests = BTreeMap<String, String>;

fn with_lag(lag: u32) -> [(&'static str, &'static str); 1] {
    [("run.lag", if lag == 0 { "0" } else { "1" })]
}

/// What an undisturbed run with one worker ends with.
fn undisturbed(lag: u32) -> &'static Digests {
    static REFERENCES: [OnceLock<Digests>; 2] = [OnceLock::new(), OnceLock::new()];
    REFERENCES[lag as usize].get_or_init(|| {
        let mut run = Run::new(&with_lag(lag));
        run.complete(&["--workers", "1"]);
        let digests = run.adapter_digests();
        assert!(digests.keys().any(|name| name.ends_with("adapter.safetensors")), "{digests:?}");
        digests
    })
}

/// Three iterations in which all parameters of the network are trained; `cache` is where embeddings are kept.
fn full_fine_tuning(cache: &str) -> Run {
    Run::new(&[
        ("model.embedding_cache", cache),
        ("adapter.method", "\"full\""),
        ("adapter.rank", "32"),
        ("adapter.alpha", "64"),
        ("training.learning_rate", "1e-4"),
        ("run.iterations", "3"),
        ("evaluation.every", "3"),
    ])
}

/// Disturbs a run after its second iteration and expects it to end as if nothing had happened.
fn survives(lag: u32, workers: &str, disturb: impl FnOnce(&mut Run)) {
    let mut run = Run::new(&with_lag(lag));
    run.start(&["--workers", workers]);
    run.wait_for_iterations(2);
    disturb(&mut run);
    assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
    assert_eq!(&run.adapter_digests(), undisturbed(lag), "{}", run.output());
    assert_eq!(run.rows("metrics.jsonl").len(), 6, "one row per iteration, none twice");
}

fn kill_member(run: &Run, member_id: &str) {
    kill(run.member_pid(member_id), Signal::SIGKILL).expect("the member lives");
}

fn kill_coordinator_and_resume(run: &mut Run) {
    kill(run.coordinator_pid(), Signal::SIGKILL).expect("the coordinator lives");
    assert_eq!(run.wait(), None, "a killed process has no exit code");
    run.start(&["--resume"]);
}

#[test]
fn the_same_config_trains_the_same_adapter() {
    let mut again = Run::new(&with_lag(0));
    again.complete(&["--workers", "1"]);
    assert_eq!(&again.adapter_digests(), undisturbed(0));
}

#[test]
fn another_seed_trains_another_adapter() {
    let mut other = Run::new(&[("run.seed", "43"), ("run.lag", "0")]);
    other.complete(&["--workers", "1"]);
    assert_ne!(&other.adapter_digests(), undisturbed(0));
}

#[test]
fn three_workers_train_the_same_adapter_as_one() {
    for lag in [0, 1] {
        let mut run = Run::new(&with_lag(lag));
        run.complete(&["--workers", "3"]);
        assert_eq!(&run.adapter_digests(), undisturbed(lag), "at lag {lag}");
    }
}

#[test]
fn a_lag_changes_what_is_trained() {
    assert_ne!(undisturbed(0), undisturbed(1));
}

#[test]
fn a_killed_worker_changes_nothing() {
    for lag in [0, 1] {
        survives(lag, "3", |run| kill_member(run, "worker-1"));
    }
}

#[test]
fn a_killed_learner_changes_nothing() {
    for lag in [0, 1] {
        survives(lag, "2", |run| kill_member(run, "learner"));
    }
}

#[test]
fn prompts_that_change_in_a_living_run_change_nothing() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let shipped = tests::repository().join("assets/prompts");
    let lines = |name: &str| std::fs::read_to_string(shipped.join(name)).expect("readable");
    let first = |name: &str| lines(name).lines().take(12).map(|line| format!("{line}\n")).collect::<String>();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("written");
        format!("{:?}", folder.path().join(name).display().to_string())
    };
    let train = write("train.jsonl", &lines("train.jsonl"));
    let [validation, test] = ["validation.jsonl", "test.jsonl"].map(|name| write(name, &first(name)));
    let prompts = [
        ("data.train", train.as_str()),
        ("data.validation", validation.as_str()),
        ("data.test", test.as_str()),
        ("evaluation.prompts", "0"),
    ];
    let mut run = Run::new(&[&with_lag(0)[..], &prompts].concat());
    run.start(&["--workers", "2"]);
    run.wait_for_iterations(2);
    for name in ["validation.jsonl", "test.jsonl"] {
        write(name, &lines(name));
    }
    write("train.jsonl", "not even JSON");
    kill_member(&run, "learner");
    kill_member(&run, "worker-0");
    assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
    assert_eq!(&run.adapter_digests(), undisturbed(0), "{}", run.output());
}

#[test]
fn a_killed_coordinator_changes_nothing() {
    for lag in [0, 1] {
        survives(lag, "2", kill_coordinator_and_resume);
    }
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let mut run = Run::new(&with_lag(0));
    run.start(&["--workers", "2"]);
    run.wait_for_iterations(2);
    kill(run.coordinator_pid(), Signal::SIGTERM).expect("the coordinator lives");
    assert_eq!(run.wait(), Some(75), "{}", run.output());
    run.complete(&["--resume", "--workers", "1"]);
    assert_eq!(&run.adapter_digests(), undisturbed(0));
}

#[test]
fn a_network_trained_as_a_whole_and_embeddings_from_disk_obey_the_same_law() {
    let mut straight = full_fine_tuning("\"\"");
    straight.complete(&["--workers", "1"]);
    let expected = straight.adapter_digests();
    assert!(
        expected.keys().any(|name| name.ends_with("diffusion_pytorch_model.safetensors")),
        "{expected:?}"
    );

    let mut disturbed = full_fine_tuning("\"embeddings\"");
    disturbed.start(&["--workers", "3"]);
    disturbed.wait_for_iterations(1);
    kill_member(&disturbed, "learner");
    assert_eq!(disturbed.wait(), Some(0), "the run failed:\n{}", disturbed.output());
    assert_eq!(disturbed.adapter_digests(), expected, "{}", disturbed.output());
}

/// A `serve-reward` of the shapes; dropping it kills it.
struct RewardServer {
    child: Child,
    address: String,
}

impl RewardServer {
    fn start(listen: &str) -> Self {
        let mut command = Command::new(tests::binary("rollout-worker"));
        command.args(["serve-reward", "--reward", "shapes", "--listen", listen]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("serving shapes at http://").expect("its address").to_owned();
        Self { child, address }
    }
}

impl Drop for RewardServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the shapes scored by the server at `address`.
fn score_elsewhere(run: &Run, address: &str) {
    let config = std::fs::read_to_string(run.config()).expect("readable");
    let (rest, _) = config.split_once("[[rewards]]").expect("it has rewards");
    let section = format!("[[rewards]]\nname = \"shapes\"\nscorer = \"grpc\"\nurl = \"http://{address}\"\n");
    std::fs::write(run.config(), rest.to_owned() + &section).expect("written");
}

#[test]
fn a_reward_served_elsewhere_and_killed_on_the_way_trains_the_same_adapter() {
    // An address of the loopback at which nobody else takes the port while the server is away.
    let server = RewardServer::start("127.0.77.1:0");
    let address = server.address.clone();
    let mut run = Run::new(&with_lag(0));
    score_elsewhere(&run, &address);
    run.start(&["--workers", "2"]);
    run.wait_for_iterations(2);
    drop(server);
    run.wait_until_said("unreachable");
    let _server = RewardServer::start(&address);
    assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
    assert!(run.said().contains("this is over"), "{}", run.said());
    assert_eq!(&run.adapter_digests(), undisturbed(0), "{}", run.output());
}

#[test]
fn a_reward_server_that_has_moved_is_found_by_a_resumed_run() {
    let server = RewardServer::start("127.0.0.1:0");
    let mut run = Run::new(&with_lag(0));
    score_elsewhere(&run, &server.address);
    run.start(&["--workers", "2"]);
    run.wait_for_iterations(2);
    kill(run.coordinator_pid(), Signal::SIGTERM).expect("the coordinator lives");
    assert_eq!(run.wait(), Some(75), "a run that was interrupted can be resumed:\n{}", run.output());
    assert!(run.rows("metrics.jsonl").len() < 6, "it had ended already");
    drop(server);
    let moved = RewardServer::start("127.0.0.1:0");
    score_elsewhere(&run, &moved.address);
    run.start(&["--resume"]);
    assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
    assert_eq!(&run.adapter_digests(), undisturbed(0), "{}", run.output());
}

/// Workers started by hand; dropping them kills them.
struct WorkersByHand(Vec<Child>);

impl WorkersByHand {
    /// Adds one; where `other_kernels`, its libtorch takes those of any processor.
    fn add(&mut self, run: &Run, other_kernels: bool) -> &mut Child {
        let address = format!("file:{}", run.directory().join("address").display());
        let name = format!("hand-{}", self.0.len());
        let mut command = Command::new(tests::binary("rollout-worker"));
        command.args(["serve", "--coordinator", &address, "--member-id", &name]);
        if other_kernels {
            command.env("ATEN_CPU_CAPABILITY", "default");
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        self.0.push(child.expect("the worker starts"));
        self.0.last_mut().expect("just added")
    }

    /// Has all workers stand still, without which the run does not end: one that is added takes its time to start.
    fn stand_still(&self) -> Vec<Pid> {
        let workers: Vec<Pid> = self.0.iter().map(|worker| Pid::from_raw(worker.id() as i32)).collect();
        signal_all(&workers, Signal::SIGSTOP);
        workers
    }
}

fn signal_all(workers: &[Pid], signal: Signal) {
    workers.iter().for_each(|worker| kill(*worker, signal).expect("the worker lives"));
}

impl Drop for WorkersByHand {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|worker| drop((worker.kill(), worker.wait())));
    }
}

/// Starts a run without workers.
fn without_workers(changes: &[(&str, &str)]) -> Run {
    let mut run = Run::new(changes);
    run.start(&["--workers", "0"]);
    run.wait_until_said("no worker is started here");
    run
}

#[test]
fn workers_of_another_kind_than_the_learner_obey_the_same_law_and_a_further_kind_is_refused() {
    let trained_by = |n_workers| {
        let (mut run, mut workers) = (without_workers(&with_lag(0)), WorkersByHand(Vec::new()));
        for _ in 0..n_workers {
            workers.add(&run, true);
        }
        run.wait_for_iterations(1);
        let standing_still = workers.stand_still();
        let further = workers.add(&run, false);
        let mut complaint = String::new();
        further.stderr.take().expect("piped").read_to_string(&mut complaint).expect("readable");
        assert_eq!(further.wait().expect("ended").code(), Some(2), "{complaint}");
        let words =
            ["`hand-", "and the workers of this run on `libtorch", "ATen DEFAULT", "mixed_devices = true"];
        words.iter().for_each(|word| assert!(complaint.contains(word), "`{word}` is not in:\n{complaint}"));
        signal_all(&standing_still, Signal::SIGCONT);
        assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
        run.adapter_digests()
    };
    let by_one = trained_by(1);
    assert_ne!(&by_one, undisturbed(0), "other kernels round otherwise");
    assert_eq!(by_one, trained_by(3));
}

#[test]
fn a_run_of_mixed_devices_says_that_bits_are_not_promised() {
    let (mut run, mut workers) =
        (without_workers(&[("resources.mixed_devices", "true")]), WorkersByHand(Vec::new()));
    workers.add(&run, true);
    run.wait_for_iterations(1);
    let standing_still = workers.stand_still();
    workers.add(&run, false);
    run.wait_until_said("hand-1 computes on a further kind of device");
    let shown = run.status(&[]);
    assert!(shown.contains("device_kind") || shown.contains("devices: libtorch"), "{shown}");
    signal_all(&standing_still, Signal::SIGCONT);
    // It is admitted once that is recorded, and trains to the end with the other.
    assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
    let recorded = std::fs::read_to_string(run.directory().join("devices.json")).expect("recorded");
    assert_eq!(recorded.matches("ATen").count(), 3, "one kind of learner, two of workers: {recorded}");
}
