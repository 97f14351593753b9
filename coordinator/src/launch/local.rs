//! Processes on this machine: each in a group of its own, its output appended to `logs/<member>.log`.

use super::LEARNER;
use crate::error::CoordinatorError;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use service::RunDirectory;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Last bytes of a log that are looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;
const TAIL_LINES: usize = 15;

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// What it is given.
    pub arguments: Vec<String>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.arguments.join(" "))
    }
}

/// How a member's process ended.
#[derive(Clone, Debug)]
pub struct ExitReport {
    /// Whose process.
    pub member_id: String,
    /// Its process id.
    pub pid: u32,
    /// Its exit code; `None` if a signal ended it or it was nobody's child.
    pub code: Option<i32>,
    /// How long it lived under this coordinator.
    pub lived: Duration,
    /// How it ended, in words.
    pub how: String,
    /// Its log.
    pub log: PathBuf,
    /// The last lines of its log.
    pub last_lines: Vec<String>,
}

impl ExitReport {
    /// Whether the exit code says that the process was given bad input.
    pub fn is_bad_input(&self) -> bool {
        self.code == Some(service::exit_code::BAD_USAGE.into())
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; the end of its log, {}:", self.member_id, self.how, self.log.display())?;
        self.last_lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Starts, signals and buries the processes of one run.
pub struct LocalLauncher {
    programs: PathBuf,
    coordinator: String,
    directory: RunDirectory,
    processes: BTreeMap<String, Process>,
}

struct Process {
    pid: u32,
    since: Instant,
    /// `None` for one that an earlier coordinator started.
    child: Option<Child>,
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
    pub fn new(port: u16, directory: RunDirectory) -> Result<Self, CoordinatorError> {
        Self::with_programs(programs()?, port, directory)
    }

    /// A launcher of the programs in a folder.
    ///
    /// # Errors
    /// A usage error if one of them is missing.
    pub fn with_programs(
        programs: PathBuf,
        port: u16,
        directory: RunDirectory,
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
        let coordinator = format!("http://127.0.0.1:{port}");
        Ok(Self { programs, coordinator, directory, processes: BTreeMap::new() })
    }

    /// What is started for a member.
    pub fn program(&self, member_id: &str) -> Program {
        let name = if member_id == LEARNER { "learner" } else { "rollout-worker" };
        let arguments = ["serve", "--coordinator", &self.coordinator, "--member-id", member_id];
        Program { path: self.programs.join(name), arguments: arguments.map(str::to_owned).into() }
    }

    /// Starts a member and returns its process id.
    ///
    /// # Errors
    /// If its log cannot be opened or the process not be started.
    pub fn spawn(&mut self, member_id: &str, now: Instant) -> Result<u32, CoordinatorError> {
        use std::os::unix::process::CommandExt;
        let log = self.directory.log_of(member_id);
        let failed = |source| CoordinatorError::File { action: "open", path: log.clone(), source };
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let program = self.program(member_id);
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // A group of its own: Ctrl-C on the terminal reaches the coordinator alone, which then drains.
            .process_group(0)
            .spawn()
            .map_err(|source| CoordinatorError::Spawn { program: program.path.clone(), source })?;
        let pid = child.id();
        tracing::info!(member = member_id, pid, "started");
        self.processes.insert(member_id.to_owned(), Process { pid, since: now, child: Some(child) });
        Ok(pid)
    }

    /// Takes over a process that an earlier coordinator started; whether it still lives.
    pub fn adopt(&mut self, member_id: &str, pid: u32, now: Instant) -> bool {
        let living = is_member_process(pid, member_id);
        if living {
            self.processes.insert(member_id.to_owned(), Process { pid, since: now, child: None });
        }
        living
    }

    /// Process ids of all members that live, as far as known.
    pub fn processes(&self) -> BTreeMap<String, u32> {
        self.processes.iter().map(|(member_id, process)| (member_id.clone(), process.pid)).collect()
    }

    /// Sends a signal to all processes of a member's group.
    pub fn signal(&self, member_id: &str, signal: Signal) {
        if let Some(process) = self.processes.get(member_id) {
            // It may have ended a moment ago; `poll` sees that.
            let _ = killpg(Pid::from_raw(process.pid as i32), signal);
        }
    }

    /// Reports the processes that have ended since the last call.
    pub fn poll(&mut self, now: Instant) -> Vec<ExitReport> {
        let mut reports = Vec::new();
        let directory = &self.directory;
        self.processes.retain(|member_id, process| match process.ended(member_id) {
            Some((code, how)) => {
                let log = directory.log_of(member_id);
                let lived = now.saturating_duration_since(process.since);
                let last_lines = last_lines(&log);
                let (member_id, pid) = (member_id.clone(), process.pid);
                reports.push(ExitReport { member_id, pid, code, lived, how, log, last_lines });
                false
            }
            None => true,
        });
        reports
    }
}

impl Process {
    /// The exit code and the manner of its end, if it has ended.
    fn ended(&mut self, member_id: &str) -> Option<(Option<i32>, String)> {
        match &mut self.child {
            Some(child) => {
                let status = child.try_wait().ok().flatten()?;
                Some((status.code(), format!("ended with {status}")))
            }
            None if is_member_process(self.pid, member_id) => None,
            None => Some((None, "ended".to_owned())),
        }
    }
}

/// Whether a process is what its id stood for when it was noted; ids are used again.
pub fn is_member_process(pid: u32, member_id: &str) -> bool {
    let Ok(command_line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let words: Vec<&[u8]> = command_line.split(|&byte| byte == 0).collect();
    words.windows(2).any(|pair| pair == [b"--member-id".as_slice(), member_id.as_bytes()])
}

/// Members of a run whose processes write to its logs, and their process ids: for when nothing else tells of them.
pub fn living_processes(directory: &RunDirectory) -> Vec<(String, u32)> {
    let Ok(logs) = directory.logs().canonicalize() else { return Vec::new() };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let member = |pid: u32| {
        let log = std::fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
        let member_id = log.file_stem()?.to_str()?.to_owned();
        let is_member = log.parent() == Some(&logs) && is_member_process(pid, &member_id);
        is_member.then_some((member_id, pid))
    };
    processes.filter_map(|entry| member(entry.file_name().to_str()?.parse().ok()?)).collect()
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
