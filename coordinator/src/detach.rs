//! `up --detach` and `resume --detach`: a run that outlives its terminal.
//!
//! The command starts itself again, in a session of its own, with its output in the run's directory; it stays until the
//! learner of the new run is at work, and shows meanwhile what that says.

use crate::advice;
use crate::entrance::operator_trust;
use crate::error::CoordinatorError;
use crate::run_record::RunRecord;
use crate::server::connect_admin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use proto::StatusRequest;
use service::output::{print_error_line, print_line};
use service::{RunDirectory, Trust, exit_code, shutdown};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

const POLL: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(5);
/// What a run is in before its learner has said anything.
const STARTING: [&str; 2] = ["", "starting"];

/// Leaves the session of the terminal, whose end then says nothing to this process.
///
/// # Errors
/// If the process leads a group.
pub fn leave_terminal() -> Result<(), CoordinatorError> {
    setsid().map(drop).map_err(|errno| CoordinatorError::Detach(errno.into()))
}

/// Starts this very command again without `--detach` where it was typed, and waits until its run has started or failed to. A signal is passed
/// on, and then waited for.
///
/// # Errors
/// If it cannot be started.
pub async fn start(run: &RunDirectory, typed_in: Option<&Path>) -> Result<u8, CoordinatorError> {
    run.create()?;
    let path = run.console();
    let failed = |action| move |source| CoordinatorError::File { action, path: run.console(), source };
    let output = File::options().create(true).append(true).open(&path).map_err(failed("open"))?;
    let mut shown = output.metadata().map_err(failed("read"))?.len();
    let mut signals = shutdown::signal_count()?;
    let mut child = spawn(output, typed_in).map_err(failed("start a process that writes to"))?;
    let pid = child.id().unwrap_or_default();
    let mut started = Started { run: run.clone(), pid, trust: None };
    loop {
        tokio::select! {
            ended = child.wait() => {
                show_new(&path, &mut shown);
                return Ok(code_of(ended.map_err(failed("wait for the process that writes to"))?));
            }
            Ok(()) = signals.changed() => {
                // It may have ended just now, which is noticed next.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
            }
            () = tokio::time::sleep(POLL) => {
                show_new(&path, &mut shown);
                if started.is_at_work().await {
                    break;
                }
            }
        }
    }
    print_line(format_args!("started (process {pid}); {}", advice::follow(run)));
    Ok(exit_code::DONE)
}

fn spawn(output: File, typed_in: Option<&Path>) -> std::io::Result<Child> {
    let arguments = std::env::args_os().skip(1);
    let arguments = arguments.map(|word| if word == "--detach" { "--detached".into() } else { word });
    let errors = output.try_clone()?;
    let mut command = Command::new(std::env::current_exe()?);
    // The arguments may name a run or a file from there.
    if let Some(directory) = typed_in {
        command.current_dir(directory);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors).spawn()
}

fn code_of(ended: std::process::ExitStatus) -> u8 {
    match ended.code() {
        Some(code) => u8::try_from(code).unwrap_or(exit_code::FAILED),
        None => {
            print_error_line(format_args!(
                "error: the coordinator ended with {ended} before the run had started"
            ));
            exit_code::FAILED
        }
    }
}

/// A coordinator that was started, and is asked how far it is.
struct Started {
    run: RunDirectory,
    pid: u32,
    /// How it is spoken to, once it listens: one certificate does for all questions.
    trust: Option<Trust>,
}

impl Started {
    /// Whether the coordinator of that process id leads the run and its learner has said what it does.
    async fn is_at_work(&mut self) -> bool {
        let phase = self.phase().await;
        phase.is_some_and(|phase| !STARTING.contains(&phase.as_str()))
    }

    /// What the run is in; nothing where nobody tells.
    async fn phase(&mut self) -> Option<String> {
        let record = RunRecord::read(&self.run).ok().filter(|record| record.coordinator_pid == self.pid)?;
        let trust = match &self.trust {
            Some(trust) => trust,
            None => self.trust.insert(operator_trust(&record, &self.run).await.ok()?),
        };
        let mut client = connect_admin(&record.coordinator_address(), trust).await.ok()?;
        let reply = client.status(service::request(StatusRequest::default(), DEADLINE)).await.ok()?;
        Some(reply.into_inner().progress?.phase)
    }
}

/// Shows on standard error what has been written beyond `shown`; to read it is a courtesy, and not being able to no error.
fn show_new(path: &Path, shown: &mut u64) {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(*shown))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    *shown += bytes.len() as u64;
    String::from_utf8_lossy(&bytes).lines().for_each(print_error_line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::catalog;
    use crate::cli::{Cli, Command};
    use crate::entrance::{Entrance, NetworkPlan};
    use crate::membership::{Members, Patience};
    use crate::run_state::RunState;
    use crate::server::ControlPlane;
    use crate::stand_ins::write_record;
    use clap::Parser;
    use service::PeerRole;
    use service::trust::Tokens;
    use std::time::Instant;

    #[tokio::test]
    async fn one_certificate_does_for_all_questions_of_a_start() {
        let home = tempfile::tempdir().expect("a folder");
        let run = RunDirectory::new(home.path());
        let options = match Cli::try_parse_from(["coordinator", "up", "run.toml"]).expect("valid").command {
            Command::Up(args) => args.options,
            other => panic!("not `up`: {other:?}"),
        };
        let text = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        let config = config::RunConfig::from_toml_with(&text, &["network.tls.mode=always".to_owned()]);
        let plan = NetworkPlan::of(&config.expect("valid"), &options).expect("the loopback");
        let listener = plan.listen(None, &options).await.expect("a free port");
        let mut record = RunRecord::new("a");
        record.port = listener.local_addr().expect("bound").port();
        record.address = Some(plan.local_address(record.port));
        write_record(&record, &run);
        let entrance = Entrance::open(&plan, &record.run_id, &run).await.expect("made");
        let patience = Patience { lease: POLL, opening_deadline: POLL, task_deadline: POLL, drain: POLL };
        let members = Members::new(record.run_id.clone(), 1, patience);
        let state = RunState::new(members, catalog(), String::new(), Instant::now());
        let serving = ControlPlane::new(state).serve(listener, entrance, std::future::pending());
        let serving = tokio::spawn(serving);
        let mut started = Started { run: run.clone(), pid: record.coordinator_pid, trust: None };
        assert_eq!(started.phase().await.as_deref(), Some("starting"));
        std::fs::remove_file(Tokens::path(&run.secrets(), PeerRole::Admin)).expect("removed");
        assert_eq!(started.phase().await.as_deref(), Some("starting"), "no other certificate is needed");
        assert!(!started.is_at_work().await, "its learner has said nothing");
        started.pid += 1;
        assert_eq!(started.phase().await, None, "another coordinator leads the run");
        serving.abort();
    }
}
