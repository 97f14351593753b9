//! A shell on a host, kept open over one `ssh`: orders go in, answers come back, each within a deadline.

use super::script::{self, Answer};
use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What `ssh` is told besides the user's own configuration: it asks nobody anything, and notices a host that is gone.
const OPTIONS: [&str; 5] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
];
/// Lines of errors that are kept, and bytes of a line.
const ERROR_LINES: usize = 3;
const LONGEST_LINE: u64 = 64 * 1024;
/// Time to read what an `ssh` that has ended said last.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Answers that wait to be read.
const ANSWERS: usize = 64;
/// What `ssh` says where it was let in by nobody, which trying again does not mend.
const REFUSALS: [&str; 4] = [
    "Permission denied (",
    "Host key verification failed",
    "Too many authentication failures",
    "No supported authentication methods",
];

/// How `ssh` is called, with words of the user's before all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshCommand(Vec<String>);

/// Words parted by blanks, as in `ssh -F FILE`.
impl FromStr for SshCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        match words.is_empty() {
            true => Err("is empty; write how `ssh` is called, as in `ssh -F FILE`".to_owned()),
            false => Ok(Self(words)),
        }
    }
}

impl fmt::Display for SshCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl SshCommand {
    /// Whether there is such a program on this machine.
    ///
    /// # Errors
    /// What to do where there is none.
    pub fn check(&self) -> Result<(), String> {
        let mut command = Command::new(&self.0[0]);
        command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().map(drop).map_err(|error| {
            format!(
                "`{}` does not start on this machine ({error}), and hosts are reached by it: install OpenSSH's client, or say by \
                 `--ssh` (FLOW_RL_SSH) how it is called",
                self.0[0]
            )
        })
    }

    fn to(&self, host: &str) -> Command {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]);
        OPTIONS.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        // The shell of the user may be any; this one is everywhere.
        command.args(["-T", "--", host, "exec sh -s"]);
        command
    }
}

/// Why a host does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may later.
    Unreachable(String),
    /// It lets nobody in, and will not until somebody mends that.
    Refused(String),
}

impl Failure {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Unreachable(reason) | Self::Refused(reason) => reason,
        }
    }

    /// What the errors of `ssh` say.
    fn of(errors: &[String]) -> Self {
        let told = service::shown(&errors.join("; "), 500);
        match REFUSALS.iter().any(|refusal| errors.iter().any(|line| line.contains(refusal))) {
            true => Self::Refused(told),
            false if told.is_empty() => Self::Unreachable("the connection ended".to_owned()),
            false => Self::Unreachable(told),
        }
    }
}

/// An open shell; it is left when this is dropped.
pub(super) struct Session {
    ssh: Child,
    orders: ChildStdin,
    answers: Receiver<Answer>,
    errors: Errors,
    /// Begins the lines that are meant for the coordinator.
    mark: String,
    n_orders: u64,
}

impl Session {
    /// Opens a shell on a host for the members of a run, and returns the host's own name besides.
    ///
    /// # Errors
    /// If nobody answers within the deadline.
    pub(super) fn open(
        ssh: &SshCommand,
        host: &str,
        run_id: &str,
        deadline: Duration,
    ) -> Result<(Self, String), Failure> {
        let mark = format!("@{:016x}", RandomState::new().build_hasher().finish());
        let mut command = ssh.to(host);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut ssh =
            command.spawn().map_err(|error| Failure::Refused(format!("`{ssh}` does not start: {error}")))?;
        let pipes = (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take());
        let (Some(orders), Some(output), Some(errors)) = pipes else {
            unreachable!("all three were asked for; anything else is a bug")
        };
        let (sender, answers) = sync_channel(ANSWERS);
        let own_mark = mark.clone();
        std::thread::spawn(move || {
            let told = lines(output).filter_map(|line| Answer::read(&line, &own_mark));
            // Nobody listens any more once the session is closed.
            told.map(|answer| sender.send(answer)).take_while(Result::is_ok).for_each(drop);
        });
        let errors = Errors::read(errors);
        let mut session = Self { ssh, orders, answers, errors, mark, n_orders: 0 };
        let greeting = script::greeting(&session.mark, run_id);
        let name = session.exchange(&greeting, deadline)?.into_iter().find_map(|answer| match answer {
            Answer::Host(name) => Some(service::shown(&name, 100)),
            _ => None,
        });
        let name = name.ok_or_else(|| Failure::Unreachable("it did not tell its name".to_owned()))?;
        Ok((session, name))
    }

    /// Begins the lines that are meant for the coordinator, and nobody can guess it.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// Gives an order and waits for all that it brings.
    ///
    /// # Errors
    /// If the host does not answer within the deadline; the session is of no use then.
    pub(super) fn ask(&mut self, order: &str, deadline: Duration) -> Result<Vec<Answer>, Failure> {
        self.n_orders += 1;
        let closing = script::closing(self.n_orders);
        self.exchange(&format!("{order}{closing}"), deadline)
    }

    fn exchange(&mut self, text: &str, deadline: Duration) -> Result<Vec<Answer>, Failure> {
        let until = Instant::now() + deadline;
        // One order at a time fits in the pipe, so that this does not wait for a host that does not read.
        if self.orders.write_all(text.as_bytes()).and_then(|()| self.orders.flush()).is_err() {
            return Err(self.ended());
        }
        let mut told = Vec::new();
        loop {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Answer::Done(number)) if number == self.n_orders => return Ok(told),
                Ok(answer) => told.push(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failure::Unreachable(format!("it did not answer within {deadline:?}")));
                }
            }
        }
    }

    /// Why the connection is over.
    fn ended(&mut self) -> Failure {
        Failure::of(&self.errors.last())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its members have sessions of their own.
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

/// Lines of whatever length, as far as they are kept.
fn lines(output: impl Read) -> impl Iterator<Item = String> {
    let mut output = BufReader::new(output);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        read.ok().filter(|&n_bytes| n_bytes > 0)?;
        Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())
    })
}

/// The last lines that `ssh` has written to its standard error.
struct Errors {
    lines: Arc<Mutex<VecDeque<String>>>,
    /// Closed once there are no more.
    end: Receiver<()>,
}

impl Errors {
    fn read(output: impl Read + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, end) = sync_channel(1);
        let own = kept.clone();
        std::thread::spawn(move || {
            let _open = sender;
            for line in lines(output).filter(|line| !line.trim().is_empty()) {
                let mut kept = own.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == ERROR_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Self { lines: kept, end }
    }

    /// What there is once all has been read, or after a moment: a process that `ssh` left behind may keep it open for ever.
    fn last(&self) -> Vec<String> {
        let _ = self.end.recv_timeout(LAST_WORDS);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
