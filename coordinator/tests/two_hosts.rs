//! One run directory and two hosts, which have names of their own by UTS namespaces: who owns the run, who is refused, and
//! what a learner does that was stopped for too long.
//!
//! The coordinators are the real program. This program is their learner as well, which `serve`s as the real one does and
//! writes a file over and over in place of training. Skipped where a namespace cannot be made, with why on standard error.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use service::{
    Insecure, JoinDetails, Membership, OwnedDirectory, OwnerRecord, RunDirectory, Trust, exit_code, incumbent,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(50);
/// Names the host and becomes the command.
const AS_HOST: &str = r#"printf %s "$1" > /proc/sys/kernel/hostname && shift && exec "$@""#;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == "serve") {
        return learn(&words).into();
    }
    let mut trial = on_host("trial", Path::new("true"));
    if !trial.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!(
            "skipped: hosts are UTS namespaces, which only root makes by `unshare`: run this test as root"
        );
        return ExitCode::SUCCESS;
    }
    a_run_has_one_owner_on_all_hosts();
    ExitCode::SUCCESS
}

/// The learner's process: writes its own file until it is told to leave or is superseded.
fn learn(words: &[String]) -> u8 {
    let argument = |flag: &str| {
        let place = words.iter().position(|word| word == flag).expect("the launcher says it");
        words[place + 1].clone()
    };
    let details = JoinDetails {
        role: proto::Role::Learner,
        member_id: argument("--member-id"),
        rank: 0,
        address: "127.0.0.1:1".to_owned(),
        metrics_address: String::new(),
        grace: Duration::from_secs(600),
        own_directory: None,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let joined =
            Membership::join(&argument("--coordinator"), &Trust::Plain(Insecure::Anywhere), details).await;
        let (membership, reply) = joined.expect("joined");
        let run = OwnedDirectory::of_learner(RunDirectory::new(&reply.run_directory)).expect("let in");
        run.clear_leftovers(&run.samples()).expect("cleared");
        let path = own_file(&run, std::process::id());
        for count in 1.. {
            if let Err(error) = run.write_file(&path, count.to_string().as_bytes())
                && error.is_superseded()
            {
                eprintln!("error: {error}");
                return error.exit_code();
            }
            if membership.standing().borrow().drain.is_some() {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        membership.leave().await;
        exit_code::RETRY
    })
}

fn own_file(run: &RunDirectory, pid: u32) -> PathBuf {
    run.samples().join(pid.to_string())
}

fn on_host(host: &str, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--uts", "--", "sh", "-c", AS_HOST, "sh", host]).arg(program);
    command
}

/// A coordinator, killed when it is dropped, as its members are.
struct Up {
    child: Child,
    said: PathBuf,
}

impl Up {
    /// Its exit code and what it said.
    fn end(&mut self) -> (Option<i32>, String) {
        let status = wait_for("the end of a coordinator", || self.child.try_wait().expect("waited for"));
        (status.code(), self.said())
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).expect("readable")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    /// The programs in one folder, as they are installed.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let own = std::env::current_exe().expect("a path");
        fs::copy(env!("CARGO_BIN_EXE_coordinator"), folder.path().join("coordinator")).expect("copied");
        for name in ["learner", "rollout-worker"] {
            fs::copy(&own, folder.path().join(name)).expect("copied");
        }
        let config = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        fs::write(folder.path().join("config.toml"), config).expect("written");
        Self { folder }
    }

    fn run(&self) -> RunDirectory {
        RunDirectory::new(self.folder.path().join("shared"))
    }

    fn on(&self, host: &str, words: &[&str]) -> Up {
        let said = self
            .folder
            .path()
            .join(format!("said-{}", fs::read_dir(self.folder.path()).expect("there").count()));
        let output = fs::File::create(&said).expect("made");
        let mut command = on_host(host, &self.folder.path().join("coordinator"));
        command.args(words).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let errors = output.try_clone().expect("a handle");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().expect("started");
        Up { child, said }
    }

    /// `coordinator up` without its questions to the rollout worker, which this program does not answer.
    fn up(&self, host: &str) -> Up {
        let place = format!("run.directory={}", self.folder.path().display());
        let config = self.folder.path().join("config.toml").display().to_string();
        // The hosts have one network, and a coordinator that is stopped keeps its port.
        let settings =
            ["--set", &place, "--set", "run.name=shared", "--workers", "0", "--port", "0", "--detached"];
        self.on(host, &[&["up", &config], &settings[..]].concat())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Learners whose coordinators were killed.
        for entry in fs::read_dir(self.run().samples()).into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            pid.into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} in time");
        std::thread::sleep(POLL);
    }
}

/// The record of a run that a coordinator on that host owns, once its learner has written something.
fn at_work(home: &Home, host: &str) -> (OwnerRecord, u32) {
    let run = home.run();
    wait_for(&format!("learner at work on {host}"), || {
        let record = incumbent(&run).ok().flatten().filter(|record| record.owner.host == host)?;
        let learner = record.learner.as_ref()?.pid;
        own_file(&run, learner).exists().then_some((record, learner))
    })
}

/// Whether a process has ended, though nobody has waited for it yet.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, state)| state.trim_start().starts_with('Z'))
}

fn a_run_has_one_owner_on_all_hosts() {
    let home = Home::new();
    let run = home.run();
    let mut first = home.up("host-a");
    let (owner, first_learner) = at_work(&home, "host-a");

    let (code, said) = home.up("host-b").end();
    assert_eq!(code, Some(2), "{said}");
    let whereabouts = format!("lives on another host: process {} on host-a owns it since ", owner.owner.pid);
    assert!(said.contains(&whereabouts) && said.contains("UTC"), "{said}");
    let run_of = run.path().display().to_string();
    let (code, said) = home.on("host-b", &["status", &run_of]).end();
    assert!(code == Some(2) && said.contains("lives on another host"), "{said}");

    [owner.owner.pid, first_learner].into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
    let mut second = home.up("host-b");
    let (taken_over, second_learner) = at_work(&home, "host-b");
    assert!(taken_over.epoch > owner.epoch && second_learner != first_learner, "{taken_over:?}");

    let (file, address) = (own_file(&run, first_learner), fs::read(run.address_file()).expect("readable"));
    let before = fs::read_to_string(&file).expect("readable");
    signal(first_learner, Signal::SIGCONT);
    wait_for("end of the first learner", || has_ended(first_learner).then_some(()));
    let log = fs::read_to_string(run.log_of("learner")).expect("readable");
    assert!(log.contains("has the place of this process now"), "{log}");

    signal(owner.owner.pid, Signal::SIGCONT);
    let (code, said) = first.end();
    assert_eq!(code, Some(i32::from(exit_code::FENCED)), "{said}");
    assert!(said.contains("on host-b has the place of this process now"), "{said}");
    let log = fs::read_to_string(run.log_of("coordinator")).expect("readable") + &said;
    assert!(log.contains(&format!("exit status: {}", exit_code::FENCED)), "its learner ended so: {log}");
    assert_eq!(fs::read_to_string(&file).expect("readable"), before, "the first learner changed nothing");
    assert_eq!(fs::read(run.address_file()).expect("readable"), address, "nor did the first coordinator");
    let count = || fs::read_to_string(own_file(&run, second_learner)).expect("readable");
    let counted = count();
    wait_for("work of the second learner", || (count() != counted).then_some(()));

    let (code, said) = home.on("host-b", &["down", &run_of]).end();
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = second.end();
    assert_eq!(code, Some(75), "{said}");
    let (code, said) = home.up("host-a").end();
    assert!(code == Some(0) && said.contains("was stopped by `coordinator down`"), "{code:?}: {said}");
    let resumed = home.on("host-a", &["resume", &run_of, "--detached"]);
    let (record, _) = at_work(&home, "host-a");
    assert!(record.epoch > taken_over.epoch, "at once, since the last owner ended in good order: {record:?}");
    assert!(!resumed.said().contains("waiting for up to"), "{}", resumed.said());
}
