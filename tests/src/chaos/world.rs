//! A run over three hosts with TLS on: coordinator, learner and reward server on the first, a worker on each of the
//! others, and a run directory on a small disk of its own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use service::{PeerRole, exit_code};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::disk::Disk;
use super::liar::Liar;
use super::link::Link;
use super::schedule::Schedule;
use crate::hosts::{Host, Hosts};
use crate::{Run, binary, coordinator, repository};

/// What the run's folder is called.
pub(super) const LAW: &str = "law";
const COORDINATOR: &str = "https://10.77.0.1:7100";
const METRICS: &str = "127.0.0.1:9400";
const REWARDS: &str = "10.77.0.1:7300";
/// How long processes get until they are there.
const STARTING: Duration = Duration::from_secs(120);
/// How long a host waits before it starts a worker again that has just been started.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// What Rust's runtime ends a process with that panics.
const PANICKED: i32 = 101;

/// All of it; gone when dropped.
pub struct World {
    pub(super) run: Run,
    pub(super) links: Vec<Link>,
    pub(super) disk: Disk,
    workers: Vec<Worker>,
    /// Ends of workers that no fault explains.
    strange: Vec<String>,
    coordinator: Child,
    reward: Option<Child>,
    certificates: Certificates,
    hosts: Hosts,
    home: TempDir,
}

/// A worker's place on its host.
#[derive(Default)]
struct Worker {
    child: Option<Child>,
    started: Option<Instant>,
    /// Whether a fault ended it.
    is_killed: bool,
}

/// What a worker is called.
pub(super) fn member_id(worker: usize) -> String {
    format!("far-{worker}")
}

/// The config of a schedule's run, below `folder`.
pub(super) fn run_of(schedule: &Schedule, folder: &Path) -> Run {
    let (lag, iterations) = (schedule.lag.to_string(), schedule.iterations().to_string());
    let (group, folder) = (format!("{:?}", schedule.group), format!("{:?}", folder.display().to_string()));
    Run::new(&[
        ("run.lag", &lag),
        ("run.iterations", &iterations),
        ("evaluation.every", "50"),
        ("run.directory", &folder),
        ("training.advantage_group", &group),
    ])
}

impl World {
    /// Brings the run up.
    ///
    /// # Errors
    /// What this machine lacks for it, in words.
    pub fn start(schedule: &Schedule) -> Result<Self, String> {
        let hosts = Hosts::make(3)?;
        let home = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = Disk::mount(home.path(), schedule.is_fuse)?;
        let links = [1, 2].map(|idx| Link::between(&hosts, &hosts.get(idx)));
        let links = links.into_iter().collect::<Result<Vec<_>, _>>()?;
        let run = run_of(schedule, disk.folder());
        let certificates = Certificates::make(home.path())?;
        score_elsewhere(&run.config(), &certificates);
        let reward = Some(start_reward(&hosts.get(0), home.path(), &certificates));
        wait_for_reward(home.path());
        let arguments = up(&run, false);
        let coordinator = spawn(&hosts.get(0), coordinator(), arguments, &home.path().join("up.log"));
        let workers = vec![Worker::default(), Worker::default()];
        let strange = Vec::new();
        let world =
            Self { run, links, disk, workers, strange, coordinator, reward, certificates, hosts, home };
        world.copy_token();
        Ok(world)
    }

    /// The run's directory.
    pub fn directory(&self) -> PathBuf {
        self.disk.folder().join(LAW)
    }

    /// A copy of the token as workers elsewhere have it.
    fn copy_token(&self) {
        let deadline = Instant::now() + STARTING;
        let token = self.directory().join("tls/worker.token");
        while std::fs::copy(&token, self.home.path().join("worker.token")).is_err() {
            assert!(Instant::now() < deadline, "the run makes no token:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts workers that have ended, unless they have nothing more to do.
    pub(super) fn tend(&mut self) {
        for idx in 0..self.workers.len() {
            let Worker { child, started, is_killed } = &mut self.workers[idx];
            if let Some(living) = child {
                let Some(status) = living.try_wait().expect("a worker can be waited for") else { continue };
                *child = None;
                if is_strange(status, *is_killed) {
                    self.strange.push(format!("{} ended by itself with {status}", member_id(idx)));
                }
            }
            if self.strange.iter().any(|told| told.starts_with(&member_id(idx)))
                || started.is_some_and(|started| started.elapsed() < RESTART_PAUSE)
            {
                continue;
            }
            let token = self.home.path().join("worker.token").display().to_string();
            let member = member_id(idx);
            let words =
                ["serve", "--coordinator", COORDINATOR, "--token-file", &token, "--member-id", &member];
            let arguments = words.map(str::to_owned).to_vec();
            let log = self.home.path().join(format!("{member}.log"));
            let host = self.hosts.get(idx + 1);
            let child = Some(spawn(&host, binary("rollout-worker"), arguments, &log));
            self.workers[idx] = Worker { child, started: Some(Instant::now()), is_killed: false };
        }
    }

    /// Workers that ended where none of the faults has them end. They are not started again.
    pub(super) fn strange(&self) -> &[String] {
        &self.strange
    }

    pub(super) fn signal_worker(&mut self, idx: usize, signal: Signal) {
        let Worker { child, is_killed, .. } = &mut self.workers[idx];
        if let Some(child) = child {
            *is_killed |= signal == Signal::SIGKILL;
            send(child.id(), signal);
        }
    }

    pub(super) fn signal_learner(&self, signal: Signal) {
        // Between two lives there is nobody whom the signal could meet.
        if let Some(pid) = self.learner() {
            send(pid, signal);
        }
    }

    /// The learner's process, where one lives.
    pub(super) fn learner(&self) -> Option<u32> {
        let record = std::fs::read_to_string(self.directory().join("run.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
        let pid = record["members"]["learner"].as_u64()? as u32;
        // The number may be another process's by now.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "learner").then_some(pid)
    }

    pub(super) fn restart_coordinator(&mut self) {
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
        let log = self.home.path().join("up.log");
        self.coordinator = spawn(&self.hosts.get(0), coordinator(), up(&self.run, true), &log);
    }

    pub(super) fn stop_reward_server(&mut self) {
        if let Some(mut server) = self.reward.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub(super) fn start_reward_server(&mut self) {
        self.reward = Some(start_reward(&self.hosts.get(0), self.home.path(), &self.certificates));
    }

    pub(super) fn signal_reward_server(&self, signal: Signal) {
        if let Some(server) = &self.reward {
            send(server.id(), signal);
        }
    }

    /// Has a server that lies in the place of the honest one, which is stopped.
    ///
    /// # Errors
    /// If it does not serve.
    pub(super) fn start_liar(&mut self) -> Result<Liar, String> {
        self.stop_reward_server();
        let address = REWARDS.parse().map_err(|error| format!("{REWARDS}: {error}"))?;
        Liar::start(&self.hosts.get(0), address, self.certificates.source(PeerRole::Reward))
    }

    /// How the run ended, once it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.coordinator.try_wait().ok().flatten()
    }

    /// All that coordinator and workers wrote.
    pub fn said(&self) -> String {
        let names = ["up.log", "far-0.log", "far-1.log", "reward.log"];
        let texts = names.map(|name| std::fs::read(self.home.path().join(name)).unwrap_or_default());
        let logs = std::fs::read(self.directory().join("logs/learner.log")).unwrap_or_default();
        texts.iter().chain([&logs]).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    /// The coordinator's page of metrics; empty while it is away.
    pub(super) fn metrics(&self) -> String {
        use std::io::{Read as _, Write as _};
        let asked = self.hosts.get(0).run(|| {
            let mut stream = std::net::TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok::<_, std::io::Error>(page)
        });
        asked.join().ok().and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.signal_learner(Signal::SIGKILL);
        let workers = self.workers.iter_mut().filter_map(|worker| worker.child.as_mut());
        for child in workers.chain(&mut self.reward).chain([&mut self.coordinator]) {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        // The coordinator may have started a learner before it ended.
        self.signal_learner(Signal::SIGKILL);
    }
}

fn send(pid: u32, signal: Signal) {
    // Whoever has ended already needs no signal.
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

fn up(run: &Run, resume: bool) -> Vec<String> {
    let config = run.config().display().to_string();
    let metrics = format!("network.metrics={METRICS}");
    let words =
        ["up", &config, "--workers", "0", "--set", "network.bind=eth0", "--set", "network.port=7100-7101"];
    let rest = ["--set", &metrics, "--task-deadline", "30", "--opening-deadline", "60"];
    let resumed = resume.then_some("--resume");
    words.into_iter().chain(rest).chain(resumed).map(str::to_owned).collect()
}

fn start_reward(host: &Host, home: &Path, certificates: &Certificates) -> Child {
    let words = ["serve-reward", "--reward", "shapes", "--listen", REWARDS].map(str::to_owned);
    let role = PeerRole::Reward;
    let files = [
        ("--tls-ca", certificates.authority()),
        ("--tls-certificate", certificates.certificate(role)),
        ("--tls-key", certificates.key(role)),
    ];
    let files = files.into_iter().flat_map(|(flag, file)| [flag.to_owned(), file.display().to_string()]);
    let arguments = words.into_iter().chain(files).collect();
    spawn(host, binary("rollout-worker"), arguments, &home.join("reward.log"))
}

/// Waits until the reward server says where it listens: `up` looks for it.
fn wait_for_reward(home: &Path) {
    let deadline = Instant::now() + STARTING;
    loop {
        let said = std::fs::read_to_string(home.join("reward.log")).unwrap_or_default();
        if said.contains(&format!("serving shapes at https://{REWARDS}")) {
            return;
        }
        assert!(Instant::now() < deadline, "no reward server:\n{said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn spawn(host: &Host, program: PathBuf, arguments: Vec<String>, log: &Path) -> Child {
    let log = log.to_owned();
    let started = host.run(move || {
        let open = || File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(repository());
        command.stdin(Stdio::null()).stdout(open()).stderr(open()).spawn().expect("it starts")
    });
    started.join().expect("the host is there")
}

fn score_elsewhere(config: &Path, certificates: &Certificates) {
    let text = std::fs::read_to_string(config).expect("readable");
    let (rest, _) = text.split_once("[[rewards]]").expect("it has rewards");
    let role = PeerRole::Worker;
    let options = [
        ("name", "shapes".to_owned()),
        ("scorer", "grpc".to_owned()),
        ("reward", "shapes".to_owned()),
        ("url", format!("grpcs://{REWARDS}")),
        ("tls_ca", certificates.authority().display().to_string()),
        ("tls_certificate", certificates.certificate(role).display().to_string()),
        ("tls_key", certificates.key(role).display().to_string()),
    ];
    let options: String = options.iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
    std::fs::write(config, format!("{rest}[[rewards]]\n{options}timeout_seconds = 2\n")).expect("written");
}

/// Whether no fault explains that a worker ends so in the middle of a run: in good order, by a panic, as one that the run does
/// not take, or by a signal that was not sent.
fn is_strange(status: ExitStatus, is_killed: bool) -> bool {
    let known = [i32::from(exit_code::DONE), i32::from(exit_code::BAD_USAGE), PANICKED];
    match status.code() {
        Some(code) => known.contains(&code),
        None => !(is_killed && status.signal() == Some(Signal::SIGKILL as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_ends_as_no_fault_has_it_is_noticed() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        for (status, is_killed, expected) in [
            (code(0), false, true),
            (code(2), false, true),
            (code(101), false, true),
            (code(75), false, false),
            (code(1), false, false),
            (ExitStatus::from_raw(9), true, false),
            (ExitStatus::from_raw(9), false, true),
            (ExitStatus::from_raw(6), true, true),
        ] {
            assert_eq!(is_strange(status, is_killed), expected, "{status}");
        }
    }
}
