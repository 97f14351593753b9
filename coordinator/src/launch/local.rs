//! Processes on this machine: each in a group of its own, its output appended to `logs/<member>.log`. Their handles are
//! process ids.

use super::{ExitReport, Handle, Launcher, MemberName, Observed, Signal};
use crate::advice::quoted;
use crate::cards::Places;
use crate::error::CoordinatorError;
use crate::membership::Applicant;
use nix::sys::signal::{Signal as SystemSignal, killpg};
use nix::unistd::Pid;
use protocol::with_causes;
use service::RunDirectory;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Last bytes of a log that are looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;
const TAIL_LINES: usize = 15;

/// Starts, signals and buries the processes of one run.
pub struct LocalLauncher {
    programs: PathBuf,
    contact: Contact,
    /// As members that run here call it.
    host: String,
    directory: RunDirectory,
    places: Places,
    processes: BTreeMap<MemberName, Process>,
    /// What could not be started, until it is forgotten.
    not_started: BTreeMap<MemberName, ExitReport>,
}

/// What members are told of how they reach and trust the coordinator, by their kind.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Arguments of a learner.
    pub learner: Vec<String>,
    /// Arguments of a worker.
    pub worker: Vec<String>,
}

struct Process {
    pid: u32,
    /// `None` for one that an earlier coordinator started.
    child: Option<Child>,
    /// Once it has ended.
    report: Option<ExitReport>,
}

/// The folder of this program, where the others of the project are too.
///
/// # Errors
/// If the system does not tell.
pub fn programs() -> Result<PathBuf, CoordinatorError> {
    let own = std::env::current_exe().map_err(|source| CoordinatorError::File {
        action: "find",
        path: PathBuf::from("this program"),
        source,
    })?;
    Ok(own.parent().unwrap_or(Path::new(".")).to_owned())
}

impl LocalLauncher {
    /// A launcher of the programs that stand beside this one.
    ///
    /// # Errors
    /// A usage error if one of them is missing.
    pub fn new(contact: Contact, directory: RunDirectory, places: Places) -> Result<Self, CoordinatorError> {
        Self::with_programs(programs()?, contact, directory, places)
    }

    /// A launcher of the programs in a folder.
    ///
    /// # Errors
    /// A usage error if one of them is missing.
    pub fn with_programs(
        programs: PathBuf,
        contact: Contact,
        directory: RunDirectory,
        places: Places,
    ) -> Result<Self, CoordinatorError> {
        for name in ["learner", "rollout-worker"] {
            let path = programs.join(name);
            if !path.is_file() {
                return Err(CoordinatorError::Usage(format!(
                    "{} is missing; build it with `cargo build --release --workspace --bins`",
                    path.display()
                )));
            }
        }
        let host = service::host_name();
        Ok(Self {
            programs,
            contact,
            host,
            directory,
            places,
            processes: BTreeMap::new(),
            not_started: BTreeMap::new(),
        })
    }

    fn program(&self, member: MemberName) -> PathBuf {
        self.programs.join(match member {
            MemberName::Learner(_) => "learner",
            MemberName::Worker(_) => "rollout-worker",
        })
    }

    fn arguments(&self, member: MemberName) -> Vec<String> {
        let contact = match member {
            MemberName::Learner(_) => &self.contact.learner,
            MemberName::Worker(_) => &self.contact.worker,
        };
        let rank = match member {
            MemberName::Learner(rank) if rank > 0 => vec!["--rank".to_owned(), rank.to_string()],
            MemberName::Learner(_) | MemberName::Worker(_) => Vec::new(),
        };
        let own = ["--member-id".to_owned(), member.to_string()];
        let arguments = std::iter::once("serve".to_owned()).chain(contact.iter().cloned());
        arguments.chain(own).chain(rank).collect()
    }

    fn log(&self, member: MemberName) -> PathBuf {
        self.directory.log_of(&member.to_string())
    }

    fn spawn(&self, member: MemberName) -> Result<Child, CoordinatorError> {
        use std::os::unix::process::CommandExt;
        let log = self.log(member);
        let failed = |source| CoordinatorError::File { action: "open", path: log.clone(), source };
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let program = self.program(member);
        let seat = self.places.seat(member);
        let mut command = Command::new(&program);
        command
            .args(self.arguments(member))
            .envs(seat.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // A group of its own: Ctrl-C on the terminal reaches the coordinator alone, which then drains.
            .process_group(0);
        service::MEMBER_VARIABLES.into_iter().for_each(|name| {
            command.env_remove(name);
        });
        seat.on_its_cpus(|| command.spawn()).map_err(|source| CoordinatorError::Spawn { program, source })
    }

    /// Takes note of a member that ended before it began: a full table of processes or files, or a disk that is read-only for a
    /// while, ends no run.
    pub(super) fn not_started(&mut self, member: MemberName, code: Option<i32>, how: String) {
        tracing::warn!(member = member.to_string(), "not started: {how}");
        let log = self.log(member);
        let how = format!("was not started: {how}");
        self.not_started.insert(member, ExitReport { member, code, how, log, last_lines: Vec::new() });
    }
}

/// The exit code of a program that was not started: one that is missing will be the next time.
fn code_of(error: &CoordinatorError) -> Option<i32> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    match error {
        CoordinatorError::Spawn { source, .. } if matches!(source.kind(), NotFound | PermissionDenied) => {
            Some(service::exit_code::BAD_USAGE.into())
        }
        _ => None,
    }
}

impl Launcher for LocalLauncher {
    fn describe(&self, member: MemberName) -> String {
        let (program, arguments) = (
            self.program(member),
            self.arguments(member).iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        );
        let seat = self.places.seat(member);
        let variables: String =
            seat.environment.iter().map(|(name, value)| format!(" {name}={}", quoted(value))).collect();
        let log = self.log(member);
        format!(
            "{} {arguments}\n  {seat}\n  environment:{variables}\n  log: {}",
            program.display(),
            log.display()
        )
    }

    fn start(&mut self, member: MemberName) {
        match self.spawn(member) {
            Ok(child) => {
                let (pid, card) = (child.id(), self.places.seat(member).card);
                tracing::info!(member = member.to_string(), pid, card, "started");
                self.processes.insert(member, Process { pid, child: Some(child), report: None });
            }
            Err(error) => self.not_started(member, code_of(&error), with_causes(&error)),
        }
    }

    fn adopt(&mut self, member: MemberName, handle: Handle) -> bool {
        let Handle::Process(pid) = handle else { return false };
        let process = Process { pid, child: None, report: None };
        let living = process.is_there(member, &self.directory);
        if living {
            self.processes.insert(member, process);
        }
        living
    }

    /// Reaches all processes of the member's group.
    fn signal(&mut self, member: MemberName, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => SystemSignal::SIGTERM,
            Signal::Kill => SystemSignal::SIGKILL,
        };
        let process = self.processes.get(&member);
        if let Some(process) = process.filter(|process| process.is_there(member, &self.directory)) {
            // It may have ended a moment ago; `observe` sees that.
            let _ = killpg(Pid::from_raw(process.pid as i32), signal);
        }
    }

    fn observe(&mut self) -> BTreeMap<MemberName, Observed> {
        for (&member, process) in &mut self.processes {
            if let Some((code, how)) = process.ended(member, &self.directory) {
                let member_id = member.to_string();
                tracing::info!(member = member_id, pid = process.pid, "{how}");
                let log = self.directory.log_of(&member_id);
                let last_lines = last_lines(&log);
                process.report = Some(ExitReport { member, code, how, log, last_lines });
            }
        }
        let observed = |process: &Process| process.report.clone().map_or(Observed::Running, Observed::Exited);
        let processes = self.processes.iter().map(|(&member, process)| (member, observed(process)));
        let not_started =
            self.not_started.iter().map(|(&member, report)| (member, Observed::Exited(report.clone())));
        processes.chain(not_started).collect()
    }

    fn forget(&mut self, member: MemberName) {
        self.processes.remove(&member);
        self.not_started.remove(&member);
    }

    fn handles(&self) -> BTreeMap<MemberName, Handle> {
        self.processes.iter().map(|(&member, process)| (member, Handle::Process(process.pid))).collect()
    }

    fn is_own(&self, member: MemberName, applicant: &Applicant) -> bool {
        applicant.process.host == self.host
            && self.processes.get(&member).is_some_and(|process| process.pid == applicant.process.pid)
    }
}

impl Process {
    /// Whether its id is still its own, and not that of a stranger: a child keeps it until it is buried.
    fn is_there(&self, member: MemberName, directory: &RunDirectory) -> bool {
        match self.child {
            Some(_) => self.report.is_none(),
            None => match directory.logs().canonicalize() {
                Ok(logs) => member_of_process(self.pid, &logs).is_some_and(|id| id == member.to_string()),
                // Its log says nothing then, and a process that may live is not started a second time.
                Err(_) => is_member_process(self.pid, &member.to_string()),
            },
        }
    }

    /// The exit code and the manner of its end, if it has ended just now.
    fn ended(&mut self, member: MemberName, directory: &RunDirectory) -> Option<(Option<i32>, String)> {
        if self.report.is_some() {
            return None;
        }
        match &mut self.child {
            Some(child) => {
                let status = child.try_wait().ok().flatten()?;
                Some((status.code(), format!("ended with {status}")))
            }
            None => (!self.is_there(member, directory)).then(|| (None, "ended".to_owned())),
        }
    }
}

/// Whether the process of that id was started as that member, of this run or another; ids are used again.
pub fn is_member_process(pid: u32, member_id: &str) -> bool {
    let Ok(command_line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let words: Vec<&[u8]> = command_line.split(|&byte| byte == 0).collect();
    words.windows(2).any(|pair| pair == [b"--member-id".as_slice(), member_id.as_bytes()])
}

/// As which member of a run a process writes to one of these logs, if it was started as that.
fn member_of_process(pid: u32, logs: &Path) -> Option<String> {
    // A group of number 0 is one's own, and 1 or a negative one would be everybody.
    i32::try_from(pid).ok().filter(|&group| group > 1)?;
    let log = std::fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
    // The end of the name may say that the file was deleted.
    let member_id = log.file_stem()?.to_str()?.to_owned();
    let is_member = log.parent() == Some(logs) && is_member_process(pid, &member_id);
    is_member.then_some(member_id)
}

/// Members of a run whose processes write to its logs, and their process ids: for when nothing else tells of them.
pub fn living_processes(directory: &RunDirectory) -> Vec<(String, u32)> {
    let Ok(logs) = directory.logs().canonicalize() else { return Vec::new() };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((member_of_process(pid, &logs)?, pid))).collect()
}

fn last_lines(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|&line| line.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: MemberName = MemberName::Worker(0);

    /// A launcher of programs that end at once, in a run's directory without a folder for logs.
    fn launcher(home: &Path) -> LocalLauncher {
        let programs = home.join("bin");
        std::fs::create_dir(&programs).expect("a folder");
        // Files of the repository: one that was just written may still be open in another test's child.
        let those_that_fail = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/fails");
        for name in ["learner", "rollout-worker"] {
            std::os::unix::fs::symlink(those_that_fail.join(name), programs.join(name)).expect("linked");
        }
        let contact = Contact { learner: Vec::new(), worker: Vec::new() };
        let directory = RunDirectory::new(home.join("run"));
        let config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        let places = Places::look(&config).expect("no card is asked for");
        LocalLauncher::with_programs(programs, contact, directory, places).expect("they are there")
    }

    fn report(launcher: &mut LocalLauncher) -> ExitReport {
        for _ in 0..12_000 {
            if let Some(Observed::Exited(report)) = launcher.observe().remove(&WORKER) {
                return report;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("nothing has ended in two minutes")
    }

    #[test]
    fn what_cannot_be_started_for_a_while_has_ended_and_is_started_again() {
        let home = tempfile::tempdir().expect("a folder");
        let mut launcher = launcher(home.path());
        launcher.start(WORKER);
        let ended = report(&mut launcher);
        assert!(ended.code.is_none() && ended.how.contains("was not started: cannot open"), "{ended}");
        assert!(launcher.handles().is_empty(), "nothing to adopt");
        launcher.signal(WORKER, Signal::Kill);
        launcher.forget(WORKER);
        std::fs::create_dir_all(launcher.directory.logs()).expect("a folder");
        launcher.start(WORKER);
        assert_eq!(report(&mut launcher).code, Some(1));
    }

    #[test]
    fn a_program_that_is_gone_is_not_tried_again() {
        let home = tempfile::tempdir().expect("a folder");
        let mut launcher = launcher(home.path());
        std::fs::create_dir_all(launcher.directory.logs()).expect("a folder");
        std::fs::remove_file(home.path().join("bin/rollout-worker")).expect("it was there");
        launcher.start(WORKER);
        let ended = report(&mut launcher);
        assert!(ended.is_bad_input() && ended.how.contains("rollout-worker"), "{ended}");
    }
}
