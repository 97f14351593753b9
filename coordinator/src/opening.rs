//! Opening the directory of a run, new or to go on with: lock, resolved config, record, port.

use crate::advice;
use crate::checkpoint_list::checkpoints;
use crate::cli::UpArgs;
use crate::error::CoordinatorError;
use crate::launch::living_processes;
use crate::lost_files::{stored_config, stored_record};
use crate::resume::{Differences, compare};
use crate::run_place::run_directory;
use crate::run_record::{RunLock, RunRecord, is_run};
use crate::server::bind;
use config::RunConfig;
use service::{RunDirectory, durable};
use tokio::net::TcpListener;

/// A run that this process may bring to life.
pub struct OpenRun {
    /// Its directory, absolute.
    pub directory: RunDirectory,
    /// What is known of its earlier life.
    pub record: RunRecord,
    /// Keeps other coordinators away while it is held.
    pub lock: RunLock,
    /// What had to be put back.
    pub notices: Vec<String>,
}

/// Opens the run of a config and the socket at which its members reach this process. Nothing of an existing run is touched before it is clear that it may go on.
///
/// # Errors
/// A usage error if the run is there already or, when resuming, is not; if it lives; if its config is another one;
/// if the port is taken.
pub async fn open_run(args: &UpArgs, config: &RunConfig) -> Result<(OpenRun, TcpListener), CoordinatorError> {
    let directory = run_directory(config)?;
    let goes_on = goes_on(args, &directory)?;
    // Before anything is made, so that a refusal leaves nothing behind.
    let bound = if goes_on { None } else { Some(listen(args.options.port.unwrap_or(0)).await?) };
    directory.create()?;
    let lock = RunLock::take(&directory)?;
    let (mut record, notices) = match goes_on {
        true => reopen(config, &directory)?,
        false => (RunRecord::new(&config.run.name), Vec::new()),
    };
    record.working_directory = std::env::current_dir().ok();
    let listener = match bound {
        Some(listener) => listener,
        None => listen(args.options.port.unwrap_or(record.port)).await?,
    };
    record.port = listener.local_addr().map_err(|error| port_error(record.port, &error))?.port();
    durable::write_file(&directory.config(), config.to_toml().as_bytes())?;
    record.write(&directory)?;
    Ok((OpenRun { directory, record, lock, notices }, listener))
}

/// Whether the arguments go with what there is of the run, without touching anything.
///
/// # Errors
/// As [`open_run`], but for the port and for what lives.
pub fn check_run(args: &UpArgs, config: &RunConfig) -> Result<(), CoordinatorError> {
    let directory = run_directory(config)?;
    if goes_on(args, &directory)? { reopen(config, &directory).map(drop) } else { Ok(()) }
}

/// Whether the port that was asked for is free, for who leaves it to another process to open the run.
///
/// # Errors
/// A usage error if it is not.
pub async fn check_port(args: &UpArgs) -> Result<(), CoordinatorError> {
    listen(args.options.port.unwrap_or(0)).await.map(drop)
}

/// Whether an earlier run goes on.
fn goes_on(args: &UpArgs, directory: &RunDirectory) -> Result<bool, CoordinatorError> {
    let exists = is_run(directory);
    // A run that never got as far as a checkpoint has nothing to lose: its first config may have been at fault.
    let is_stillborn = exists && !args.resume && is_stillborn(directory);
    if exists != args.resume && !is_stillborn {
        return Err(CoordinatorError::Usage(match exists {
            true => already_there(directory),
            false => format!(
                "there is no run to resume in {}; leave out `--resume` to start it",
                directory.path().display()
            ),
        }));
    }
    Ok(exists && !is_stillborn)
}

/// Whether a run was started but has no checkpoint, never had one, and no process.
fn is_stillborn(directory: &RunDirectory) -> bool {
    let lives = match RunRecord::read(directory) {
        Ok(record) => !record.living_members().is_empty(),
        Err(_) => !living_processes(directory).is_empty(),
    };
    checkpoints(directory).is_empty() && !directory.has_records() && !lives
}

fn already_there(directory: &RunDirectory) -> String {
    let run = directory.path();
    let (state, command) = match RunRecord::read(directory) {
        Ok(record) if record.is_done() => {
            ("exists, and its run is done; go on beyond its end", advice::lengthen(run))
        }
        _ => ("exists; go on with it", advice::resume(run)),
    };
    format!(
        "the run directory {} {state} by `{command}` (or by `--resume`, with the settings of this file), choose another \
         name by `--set run.name=NAME`, or remove it",
        run.display()
    )
}

/// The record of a run that is to go on, if the config allows it, and what is to be said.
fn reopen(
    config: &RunConfig,
    directory: &RunDirectory,
) -> Result<(RunRecord, Vec<String>), CoordinatorError> {
    let stored = stored_config(directory)?;
    let differences = compare(stored.value.as_ref().unwrap_or(config), config);
    if !differences.forbidden.is_empty() {
        return Err(another_run(directory, &differences));
    }
    if let Some(problem) = too_few_iterations(config, directory) {
        return Err(CoordinatorError::Usage(problem));
    }
    let found = stored_record(directory, &config.run.name)?;
    let record = found.value;
    let living = record.living_members();
    if !differences.allowed.is_empty() && !living.is_empty() {
        return Err(CoordinatorError::Usage(format!(
            "{} still live and know the config of before; resume without changes, or end them first:\n  {}",
            living.join(", "),
            differences.allowed.join("\n  ")
        )));
    }
    let record = RunRecord {
        generation: record.generation + 1,
        coordinator_pid: std::process::id(),
        ended: None,
        ..record
    };
    Ok((record, stored.notice.into_iter().chain(found.notice).collect()))
}

fn another_run(directory: &RunDirectory, differences: &Differences) -> CoordinatorError {
    let Some((first, others)) = differences.forbidden.split_first() else {
        unreachable!("only forbidden differences make another run; anything else is a bug");
    };
    let others = match others {
        [] => String::new(),
        others => format!("so do\n  {}\n", others.join("\n  ")),
    };
    let run = directory.path();
    CoordinatorError::Usage(format!(
        "{first} differs from what {} was started with, and decides what it trains\n{others}put that back, leave the \
         file and its settings out by `{}`, or branch off by `{}`; what may change is {}, and {} of a reward",
        run.display(),
        advice::resume(run),
        advice::branch_off(run, ""),
        config::CHANGEABLE_KEYS.join(", "),
        config::CONNECTION_OPTIONS.join(", "),
    ))
}

/// A run cannot be shorter than it is.
fn too_few_iterations(config: &RunConfig, directory: &RunDirectory) -> Option<String> {
    let (wanted, done) = (config.run.iterations, checkpoints(directory).last()?.0);
    (wanted < done).then(|| {
        let run = directory.path();
        format!(
            "`run.iterations` is {wanted}, but {done} are done in {}: set it to {done} to end the run there, or branch off \
             an earlier checkpoint by `{}`",
            run.display(),
            advice::branch_off(run, " --checkpoint N")
        )
    })
}

async fn listen(port: u16) -> Result<TcpListener, CoordinatorError> {
    bind(port).await.map_err(|error| port_error(port, &error))
}

fn port_error(port: u16, error: &std::io::Error) -> CoordinatorError {
    let what = match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("port {port} is taken"),
        _ => format!("cannot listen on port {port}: {error}"),
    };
    CoordinatorError::Usage(format!("{what}; choose another with `--port`, 0 for any free one"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(flags: &[&str]) -> UpArgs {
        let line = ["coordinator", "up", "run.toml"].iter().chain(flags);
        match Cli::try_parse_from(line).expect("valid flags").command {
            Command::Up(args) => args,
            other => panic!("not `up`: {other:?}"),
        }
    }

    fn config(home: &tempfile::TempDir) -> RunConfig {
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        config.run.directory = home.path().to_owned();
        config
    }

    fn run_elsewhere(config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        config.run.name = "another".to_owned();
        config
    }

    async fn refusal(flags: &[&str], config: &RunConfig) -> String {
        let error = open_run(&args(flags), config).await.err().expect("refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[tokio::test]
    async fn an_existing_run_is_neither_overwritten_nor_invented() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        assert!(refusal(&["--resume"], &config).await.contains("no run to resume"));
        drop(open_run(&args(&[]), &config).await.expect("new"));
        let directory = run_directory(&config).expect("a path");
        drop(open_run(&args(&[]), &config).await.expect("nothing to lose yet"));
        std::fs::create_dir(directory.checkpoints().join("iteration-000000")).expect("created");
        let told = refusal(&[], &config).await;
        let advice = format!("coordinator resume {}", directory.path().display());
        assert!(told.contains(&advice) && told.contains("--resume"), "{told}");
    }

    #[tokio::test]
    async fn a_run_that_is_done_is_told_to_go_beyond_its_end() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        let mut opened = open_run(&args(&[]), &config).await.expect("new").0;
        opened.record.ended = Some(crate::run_record::RunEnding::Done { summary: Box::default() });
        opened.record.write(&opened.directory).expect("written");
        std::fs::create_dir(opened.directory.checkpoints().join("iteration-000001")).expect("created");
        drop(opened);
        let told = refusal(&[], &config).await;
        assert!(told.contains("its run is done") && told.contains("--set run.iterations=N`"), "{told}");
    }

    #[tokio::test]
    async fn a_resumed_run_keeps_its_id_and_port_and_counts_on() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        let first = open_run(&args(&[]), &config).await.expect("new").0.record;
        let second = open_run(&args(&["--resume"]), &config).await.expect("again").0.record;
        assert_eq!((second.run_id, second.port), (first.run_id, first.port));
        assert_eq!(second.generation, first.generation + 1);
    }

    #[tokio::test]
    async fn a_run_that_lost_its_small_files_goes_on() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        drop(open_run(&args(&[]), &config).await.expect("new"));
        let directory = run_directory(&config).expect("a path");
        let checkpoint = directory.checkpoints().join("iteration-000001");
        std::fs::create_dir(&checkpoint).expect("created");
        std::fs::rename(directory.config(), checkpoint.join("config.toml")).expect("renamed");
        std::fs::remove_file(directory.run_file()).expect("removed");
        assert!(refusal(&[], &config).await.contains("--resume"), "checkpoints make it a run");
        let mut other = config.clone();
        other.run.seed += 1;
        assert!(refusal(&["--resume"], &other).await.contains("run.seed: "), "the config is known");
        let opened = open_run(&args(&["--resume"]), &config).await.expect("goes on").0;
        assert_eq!(opened.notices.len(), 2, "{:?}", opened.notices);
        assert!(directory.config().exists() && directory.run_file().exists());
        drop(opened);
        assert!(open_run(&args(&["--resume"]), &config).await.expect("again").0.notices.is_empty());
    }

    #[tokio::test]
    async fn a_run_that_lost_its_checkpoints_is_not_begun_again() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        drop(open_run(&args(&[]), &config).await.expect("new"));
        let directory = run_directory(&config).expect("a path");
        std::fs::write(directory.metrics(), "{}\n").expect("written");
        assert!(refusal(&[], &config).await.contains("exists"));
    }

    #[tokio::test]
    async fn a_living_run_has_one_coordinator() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        let _living = open_run(&args(&[]), &config).await.expect("new");
        assert!(refusal(&["--resume"], &config).await.contains("living coordinator"));
    }

    #[tokio::test]
    async fn another_config_is_refused_with_the_keys_that_differ() {
        let home = tempfile::tempdir().expect("a directory");
        let mut config = config(&home);
        drop(open_run(&args(&[]), &config).await.expect("new"));
        config.run.iterations += 1;
        drop(open_run(&args(&["--resume"]), &config).await.expect("longer"));
        config.run.seed += 1;
        assert!(refusal(&["--resume"], &config).await.contains("run.seed: "));
        let told = check_run(&args(&["--resume"]), &config).expect_err("a dry run says so too").to_string();
        assert!(told.contains("run.seed: "), "{told}");
        config.run.seed -= 1;
        check_run(&args(&["--resume"]), &config).expect("the same run");
        (config.run.seed, config.sampling.steps) = (7, 5);
        let told = refusal(&["--resume"], &config).await;
        assert!(
            told.starts_with("run.seed: 42 → 7 differs") && told.contains("\n  sampling.steps: "),
            "{told}"
        );
        assert!(check_run(&args(&[]), &run_elsewhere(&config)).is_ok());
    }

    #[tokio::test]
    async fn a_run_is_not_made_shorter_than_it_is() {
        let home = tempfile::tempdir().expect("a directory");
        let mut config = config(&home);
        drop(open_run(&args(&[]), &config).await.expect("new"));
        let checkpoints = run_directory(&config).expect("a path").checkpoints();
        for name in ["iteration-000004", "iteration-000007.damaged", ".iteration-000009.partial"] {
            std::fs::create_dir(checkpoints.join(name)).expect("created");
        }
        config.run.iterations = 3;
        let told = refusal(&["--resume"], &config).await;
        assert!(
            told.starts_with("`run.iterations` is 3, but 4 are done") && told.contains("--checkpoint"),
            "{told}"
        );
        config.run.iterations = 4;
        drop(open_run(&args(&["--resume"]), &config).await.expect("it ends where it is"));
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_flag() {
        let home = tempfile::tempdir().expect("a directory");
        let taken = bind(0).await.expect("a free port");
        let port = taken.local_addr().expect("bound").port().to_string();
        let message = refusal(&["--port", &port], &config(&home)).await;
        assert_eq!(std::fs::read_dir(home.path()).expect("there").count(), 0, "nothing is left behind");
        assert!(check_port(&args(&["--port", &port])).await.is_err());
        assert!(
            message.contains(&format!("port {port} is taken")) && message.contains("--port"),
            "{message}"
        );
    }
}
