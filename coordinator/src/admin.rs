//! Commands against a run: status, scale, down, logs, export.

use crate::error::CoordinatorError;
use crate::exported;
use crate::run_record::{RunLock, RunRecord, find_run};
use crate::server::connect_admin;
use crate::status;
use proto::admin_client::AdminClient;
use proto::{DownRequest, ScaleRequest, StatusRequest};
use service::logging::LogFormat;
use service::{RunDirectory, ServiceError, durable};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(5);
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows how a run is doing, or how it ended.
///
/// # Errors
/// If the run is unknown, or does not live and was killed before it could note how it ended.
pub async fn status(run: &str, format: LogFormat) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let text = match client_of(run).await {
        Ok(mut client) => {
            let reply = client.status(service::request(StatusRequest {}, DEADLINE)).await?.into_inner();
            match format {
                LogFormat::Text => status::living_text(&reply),
                LogFormat::Json => status::living_json(&reply).to_string(),
            }
        }
        Err(CoordinatorError::NotLiving(path)) => {
            let record = RunRecord::read(&directory)?;
            let ending = record.ended.as_ref().ok_or(CoordinatorError::Killed(path))?;
            match format {
                LogFormat::Text => status::ended_text(&record, ending, age(&directory.run_file())),
                LogFormat::Json => status::ended_json(&record, ending).to_string(),
            }
        }
        Err(error) => return Err(error),
    };
    println!("{text}");
    Ok(())
}

/// Time since a file was written.
fn age(path: &Path) -> Duration {
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    written.and_then(|written| written.elapsed().ok()).unwrap_or_default()
}

/// Sets the number of rollout workers of a living run.
///
/// # Errors
/// If the run is unknown or does not live.
pub async fn scale(run: &str, workers: u32) -> Result<(), CoordinatorError> {
    let mut client = client_of(run).await?;
    client.scale(service::request(ScaleRequest { workers }, DEADLINE)).await?;
    println!("{workers} workers wanted");
    Ok(())
}

/// Stops a living run after what is in flight, and waits for its coordinator to end.
///
/// # Errors
/// If the run is unknown or does not live.
pub async fn down(run: &str) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let mut client = client_of(run).await?;
    client.down(service::request(DownRequest {}, DEADLINE)).await?;
    println!("stopping {run}: what is in flight is finished first");
    while RunLock::is_taken(&directory) {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
    println!("stopped");
    Ok(())
}

async fn client_of(run: &str) -> Result<AdminClient<Channel>, CoordinatorError> {
    let directory = find_run(run)?;
    let record = RunRecord::read(&directory)?;
    connect_admin(record.port).await.map_err(|error| match error {
        ServiceError::Unreachable { .. } => CoordinatorError::NotLiving(directory.path().to_owned()),
        other => other.into(),
    })
}

/// Prints the logs of a run, each line with the name of its process; with `follow`, until interrupted.
///
/// # Errors
/// If the run is unknown or a log cannot be read.
pub async fn logs(run: &str, follow: bool) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let mut offsets = BTreeMap::new();
    loop {
        for path in log_files(&directory)? {
            let offset = offsets.entry(path.clone()).or_insert(0);
            let text = read_whole_lines(&path, offset)?;
            if print_log(&path, &text).is_err() {
                // The reader of a pipe has seen enough.
                return Ok(());
            }
        }
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

fn log_files(directory: &RunDirectory) -> Result<Vec<PathBuf>, CoordinatorError> {
    let path = directory.logs();
    let failed = |source| CoordinatorError::File { action: "list", path: path.clone(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.sort();
    Ok(files)
}

/// What was written beyond `offset`, up to the last end of a line.
fn read_whole_lines(path: &Path, offset: &mut u64) -> Result<String, CoordinatorError> {
    let mut read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(*offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        bytes.truncate(whole);
        *offset += whole as u64;
        Ok(bytes)
    };
    let bytes =
        read().map_err(|source| CoordinatorError::File { action: "read", path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn print_log(path: &Path, text: &str) -> std::io::Result<()> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut output = std::io::stdout().lock();
    text.lines().try_for_each(|line| writeln!(output, "{name:<12} {line}"))
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
    exported::check(&directory, RunLock::is_taken(&directory))?;
    let before = exported::provenances(&directory);
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
    println!("{}", to.display());
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

    #[test]
    fn half_a_line_waits_for_its_end() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("learner.log");
        std::fs::write(&path, "one\ntw").expect("written");
        let mut offset = 0;
        assert_eq!(read_whole_lines(&path, &mut offset).expect("readable"), "one\n");
        std::fs::write(&path, "one\ntwo\n").expect("written");
        assert_eq!(read_whole_lines(&path, &mut offset).expect("readable"), "two\n");
    }
}
