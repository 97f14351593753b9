//! Commands against a run: status, scale, down, export.

use crate::cards::Inventory;
use crate::error::CoordinatorError;
use crate::exported;
use crate::run_record::{RunLock, RunRecord, find_run};
use crate::server::connect_admin;
use crate::status;
use crate::view::{EndedRun, LivingRun, RunView, Stage, to_json};
use proto::admin_client::AdminClient;
use proto::{DownRequest, ScaleRequest, StatusReply, StatusRequest};
use protocol::{PROGRAM_VERSION, PROTOCOL_VERSION};
use service::logging::LogFormat;
use service::output::print_line;
use service::{RunDirectory, ServiceError, durable};
use std::path::Path;
use std::time::Duration;
use tonic::Code;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(5);
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows how a run is doing, or how it ended.
///
/// # Errors
/// If the run is unknown, or does not live and was killed before it could note how it ended.
pub async fn status(run: &str, format: LogFormat) -> Result<(), CoordinatorError> {
    let directory = absolute(find_run(run)?);
    let stage = match client_of(run).await {
        Ok((_, reply)) => Stage::Living(Box::new(with_cards(reply.into()))),
        Err(CoordinatorError::NotLiving(path) | CoordinatorError::Finished(path)) => {
            let ended = EndedRun::of(RunRecord::read(&directory)?, &directory);
            Stage::Ended(ended.ok_or(CoordinatorError::Killed(path))?)
        }
        Err(error) => return Err(error),
    };
    let view = RunView::with_files(stage, directory);
    print_line(match format {
        LogFormat::Text => status::text(&view),
        LogFormat::Json => to_json(&view).to_string(),
    });
    Ok(())
}

/// Adds what this machine tells of its cards, if any member has one.
fn with_cards(run: LivingRun) -> LivingRun {
    let named: Vec<String> =
        run.members.iter().filter_map(|member| Some(member.card.as_ref()?.name.clone())).collect();
    let Ok(host) = nix::unistd::gethostname() else { return run };
    if named.is_empty() {
        return run;
    }
    let cards = Inventory::look(&named, std::env::var("CUDA_DEVICE_ORDER").ok().as_deref());
    run.with_cards(&host.to_string_lossy(), |name| cards.find(name))
}

/// What is shown of a run holds in any directory.
fn absolute(run: RunDirectory) -> RunDirectory {
    std::path::absolute(run.path()).map_or(run, RunDirectory::new)
}

/// Sets the number of rollout workers of a living run.
///
/// # Errors
/// If the run is unknown or does not live; a usage error if config or machine do not take so many.
pub async fn scale(run: &str, workers: u32) -> Result<(), CoordinatorError> {
    let (mut client, _) = client_of(run).await?;
    let scaled = client.scale(service::request(ScaleRequest { workers }, DEADLINE)).await;
    scaled.map_err(|status| match status.code() {
        Code::ResourceExhausted => CoordinatorError::Usage(status.message().to_owned()),
        _ => status.into(),
    })?;
    print_line(format_args!("{workers} workers wanted"));
    Ok(())
}

/// Stops a living run after what is in flight, and waits for its coordinator to end.
///
/// # Errors
/// If the run is unknown or does not live.
pub async fn down(run: &str) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let (mut client, _) = client_of(run).await?;
    client.down(service::request(DownRequest {}, DEADLINE)).await?;
    print_line(format_args!("stopping {run}: what is in flight is finished first"));
    while RunLock::is_taken(&directory) {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
    print_line("stopped");
    Ok(())
}

/// The coordinator of a run, and what it says of itself. Its port may have passed to that of another run, which must not hear
/// what is not meant for it.
async fn client_of(run: &str) -> Result<(AdminClient<Channel>, StatusReply), CoordinatorError> {
    let directory = find_run(run)?;
    let record = RunRecord::read(&directory)?;
    let not_living = || match record.is_done() {
        true => CoordinatorError::Finished(directory.path().to_owned()),
        false => CoordinatorError::NotLiving(directory.path().to_owned()),
    };
    if !RunLock::is_taken(&directory) {
        return Err(not_living());
    }
    let mut client = connect_admin(record.port).await.map_err(|error| match error {
        ServiceError::Unreachable { .. } => not_living(),
        other => other.into(),
    })?;
    let reply = client.status(service::request(StatusRequest {}, DEADLINE)).await?.into_inner();
    if reply.run_id != record.run_id {
        return Err(not_living());
    }
    if reply.protocol_version != PROTOCOL_VERSION {
        return Err(CoordinatorError::Usage(format!(
            "the coordinator of {run} is version {} and speaks protocol {}; this program is version {PROGRAM_VERSION} and speaks \
             {PROTOCOL_VERSION}: use the programs that the run was started with",
            reply.program_version, reply.protocol_version
        )));
    }
    Ok((client, reply))
}

/// Copies the adapter of a run.
///
/// # Errors
/// A usage error if the run has none yet or the destination exists; another if the run was interrupted at exporting.
pub fn export(run: &str, to: &Path) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let adapter = directory.adapter();
    if !adapter.is_dir() {
        return Err(CoordinatorError::Usage(format!(
            "{} does not exist yet; the learner writes it with its first checkpoint",
            adapter.display()
        )));
    }
    if to.exists() {
        return Err(CoordinatorError::Usage(format!(
            "{} exists; remove it or choose another name",
            to.display()
        )));
    }
    if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        durable::create_directory(parent)?;
    }
    // First, so that an export that begins between the two is noticed.
    let before = exported::provenances(&directory);
    exported::check(&directory, RunLock::is_taken(&directory))?;
    durable::write_directory(to, |partial| {
        copy_tree(&adapter, partial)?;
        match exported::provenances(&directory) == before {
            true => Ok(()),
            false => Err(CoordinatorError::NotExported(format!(
                "{} changed while it was copied; try again",
                adapter.display()
            ))),
        }
    })?;
    print_line(to.display());
    Ok(())
}

/// Copies files and folders into a folder that is there.
fn copy_tree(from: &Path, to: &Path) -> Result<(), CoordinatorError> {
    let failed = |source| CoordinatorError::File { action: "copy", path: from.to_owned(), source };
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // What is being written, or what an interrupted write left.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            std::fs::create_dir(&copy).map_err(failed)?;
            copy_tree(&path, &copy)?;
        } else {
            std::fs::copy(&path, &copy).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with_record() -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("a directory");
        RunRecord::new("demo").write(&RunDirectory::new(home.path())).expect("written");
        home
    }

    #[tokio::test]
    async fn a_run_that_is_done_is_not_told_to_go_on_as_if_it_had_stopped() {
        let home = run_with_record();
        let directory = RunDirectory::new(home.path());
        let run = home.path().to_str().expect("text");
        let told = down(run).await.expect_err("nobody lives").to_string();
        assert!(told.contains("does not live; go on with it by `coordinator resume"), "{told}");
        let mut record = RunRecord::read(&directory).expect("readable");
        record.ended = Some(crate::run_record::RunEnding::Done { summary: Box::default() });
        record.write(&directory).expect("written");
        for told in [down(run).await, scale(run, 2).await] {
            let told = told.expect_err("nobody lives").to_string();
            assert!(
                told.contains("is done; `coordinator status") && told.contains("run.iterations=N"),
                "{told}"
            );
        }
        status(run, LogFormat::Json).await.expect("it is shown how it ended");
    }

    #[test]
    fn export_copies_the_adapter_once_there_is_one() {
        let home = run_with_record();
        let run = home.path().to_str().expect("text");
        let to = home.path().join("out/adapter");
        assert_eq!(export(run, &to).expect_err("none yet").exit_code(), 2);
        for folder in ["peft", "diffusers", ".peft.partial"] {
            std::fs::create_dir_all(home.path().join("adapter").join(folder)).expect("created");
        }
        std::fs::write(home.path().join("adapter/peft/adapter_config.json"), "{}").expect("written");
        export(run, &to).expect("copied");
        assert_eq!(std::fs::read_to_string(to.join("peft/adapter_config.json")).expect("readable"), "{}");
        assert!(!to.join(".peft.partial").exists(), "what is not finished is not copied");
        assert_eq!(export(run, &to).expect_err("exists").exit_code(), 2);
    }
}
