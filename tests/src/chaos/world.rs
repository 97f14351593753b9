//! A run over three hosts with TLS on: coordinator, learner and reward server on the first, a worker on each of the
//! others, and a run directory on a small disk of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::link::Link;
use super::schedule::Schedule;
use crate::hosts::{Host, Hosts};
use crate::{Run, binary, coordinator, repository};

const COORDINATOR: &str = "https://10.77.0.1:7100";
const METRICS: &str = "127.0.0.1:9400";
const REWARDS: &str = "10.77.0.1:7300";
const DISK_MIB: u64 = 64;
/// How long processes get to end once the run has.
const ENDING: Duration = Duration::from_secs(30);

/// All of it; gone when dropped.
pub struct World {
    pub(super) run: Run,
    pub(super) links: Vec<Link>,
    pub(super) workers: Vec<Option<Child>>,
    pub(super) coordinator: Child,
    pub(super) reward: Child,
    hosts: Hosts,
    disk: Disk,
    home: TempDir,
}

/// A file with a file system, mounted.
struct Disk {
    folder: PathBuf,
}

/// What the disk is like until this is dropped.
pub(super) struct Disturbed {
    undo: Vec<String>,
}

impl Disturbed {
    fn by(words: &[&[&str]], undo: &[&str]) -> Result<Self, String> {
        for words in words {
            done(Command::new(words[0]).args(&words[1..]))?;
        }
        Ok(Self { undo: undo.iter().map(|word| (*word).to_owned()).collect() })
    }
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        let undone = done(Command::new(&self.undo[0]).args(&self.undo[1..]));
        undone.expect("the disk can be made as it was");
    }
}

impl Disk {
    fn mount(home: &Path) -> Result<Self, String> {
        let (image, folder) = (home.join("image"), home.join("disk"));
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(DISK_MIB << 20).map_err(|error| error.to_string())?;
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        done(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&folder))?;
        Ok(Self { folder })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that was killed may not be gone yet.
        let _ = done(Command::new("umount").arg("--lazy").arg(&self.folder));
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?} does not start: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?} fails: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
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
        let disk = Disk::mount(home.path())?;
        let links = [1, 2].map(|idx| Link::between(&hosts, &hosts.get(idx)));
        let links = links.into_iter().collect::<Result<Vec<_>, _>>()?;
        let run = run_of(schedule, &disk.folder);
        score_elsewhere(&run.config());
        let reward = start_reward(&hosts.get(0), home.path());
        let arguments = up(&run, false);
        let coordinator = spawn(&hosts.get(0), coordinator(), arguments, &home.path().join("up.log"));
        let workers = vec![None, None];
        let world = Self { run, links, workers, coordinator, reward, hosts, disk, home };
        world.copy_token();
        Ok(world)
    }

    /// The run's directory.
    pub fn directory(&self) -> PathBuf {
        self.disk.folder.join("law")
    }

    /// A copy of the token as workers elsewhere have it.
    fn copy_token(&self) {
        let deadline = Instant::now() + ENDING;
        let token = self.directory().join("tls/worker.token");
        while std::fs::copy(&token, self.home.path().join("worker.token")).is_err() {
            assert!(Instant::now() < deadline, "the run makes no token:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts workers that have ended, unless they have nothing more to do.
    pub(super) fn tend(&mut self) {
        for idx in 0..self.workers.len() {
            let ended = self.workers[idx].as_mut().map(|child| child.try_wait().ok().flatten());
            if matches!(ended, Some(None)) || matches!(ended, Some(Some(status)) if status.success()) {
                continue;
            }
            let token = self.home.path().join("worker.token").display().to_string();
            let member = member_id(idx);
            let words =
                ["serve", "--coordinator", COORDINATOR, "--token-file", &token, "--member-id", &member];
            let arguments = words.map(str::to_owned).to_vec();
            let log = self.home.path().join(format!("{member}.log"));
            let host = self.hosts.get(idx + 1);
            self.workers[idx] = Some(spawn(&host, binary("rollout-worker"), arguments, &log));
        }
    }

    pub(super) fn signal_worker(&self, idx: usize, signal: Signal) {
        if let Some(worker) = &self.workers[idx] {
            send(worker.id(), signal);
        }
    }

    pub(super) fn signal_learner(&self, signal: Signal) {
        // Between two lives there is nobody whom the signal could meet.
        let record = std::fs::read_to_string(self.directory().join("run.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
        if let Some(pid) = record["members"]["learner"].as_u64() {
            send(pid as u32, signal);
        }
    }

    pub(super) fn restart_coordinator(&mut self) {
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
        let log = self.home.path().join("up.log");
        self.coordinator = spawn(&self.hosts.get(0), coordinator(), up(&self.run, true), &log);
    }

    pub(super) fn stop_reward_server(&mut self) {
        let _ = self.reward.kill();
        let _ = self.reward.wait();
    }

    pub(super) fn start_reward_server(&mut self) {
        self.reward = start_reward(&self.hosts.get(0), self.home.path());
    }

    /// Takes all space of the run's disk, until what is returned is removed.
    pub(super) fn fill_disk(&self) -> PathBuf {
        let ballast = self.disk.folder.join("ballast");
        let size = format!("of={}", ballast.display());
        // Ends with an error: the disk is full.
        let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k", &size]).stderr(Stdio::null()).status();
        ballast
    }

    /// Lets nobody write to the run's directory.
    pub(super) fn make_read_only(&self) -> Result<Disturbed, String> {
        let directory = self.directory().display().to_string();
        // A view of the directory over itself: what is open for writing would keep the disk from being remounted.
        let cover = ["mount", "--bind", &directory, &directory];
        Disturbed::by(
            &[&cover, &["mount", "-o", "remount,bind,ro", &directory]],
            &["umount", "--lazy", &directory],
        )
    }

    /// Lets every write to the run's disk stand still.
    pub(super) fn freeze_disk(&self) -> Result<Disturbed, String> {
        let folder = self.disk.folder.display().to_string();
        Disturbed::by(&[&["fsfreeze", "--freeze", &folder]], &["fsfreeze", "--unfreeze", &folder])
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
        for child in self.workers.iter_mut().flatten().chain([&mut self.coordinator, &mut self.reward]) {
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

fn start_reward(host: &Host, home: &Path) -> Child {
    let words = ["serve-reward", "--reward", "shapes", "--listen", REWARDS, "--insecure=i-know"];
    let arguments = words.map(str::to_owned).to_vec();
    spawn(host, binary("rollout-worker"), arguments, &home.join("reward.log"))
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

fn score_elsewhere(config: &Path) {
    let text = std::fs::read_to_string(config).expect("readable");
    let (rest, _) = text.split_once("[[rewards]]").expect("it has rewards");
    let section = format!("scorer = \"grpc\"\nurl = \"http://{REWARDS}\"\ntimeout_seconds = 2\n");
    std::fs::write(config, format!("{rest}[[rewards]]\nname = \"shapes\"\n{section}")).expect("written");
}
