//! Opening the directory of a run, new or to go on with: lock, ownership, resolved config, record, port.

use crate::advice;
use crate::checkpoint_list::checkpoints;
use crate::cli::UpArgs;
use crate::entrance::NetworkPlan;
use crate::error::CoordinatorError;
use crate::launch::Handle;
use crate::launch::ssh::SshCommand;
use crate::learner_half::LearnerHalf;
use crate::living_members::LivingMembers;
use crate::lost_files::{stored_config, stored_record};
use crate::placement;
use crate::resume::{Differences, compare};
use crate::run_place::run_directory;
use crate::run_record::{RunRecord, StopWish, is_run, loopback};
use crate::tenancy::{RunLock, Vacancy, wait_for_vacancy};
use config::{LearnerPlace, RunConfig};
use service::{Holder, OwnedDirectory, Ownership, RunDirectory};
use std::sync::Arc;
use tokio::net::TcpListener;

/// A run that this process may bring to life.
pub struct OpenRun {
    /// Its directory, absolute, which this process may change.
    pub directory: OwnedDirectory,
    /// What says so on every host.
    pub ownership: Arc<Ownership>,
    /// A learner that an earlier coordinator on this host let change the run, and that may live.
    pub learner: Option<Holder>,
    /// What is known of its earlier life.
    pub record: RunRecord,
    /// Keeps other coordinators on this host away while it is held.
    pub lock: RunLock,
    /// What had to be put back.
    pub notices: Vec<String>,
    /// How it is reached.
    pub plan: NetworkPlan,
    /// Where it listens for scrapers and what they are told, if it does.
    pub scraped_at: Option<(TcpListener, String)>,
}

/// What a start of a run comes to, by what there is of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It begins.
    Anew,
    /// It goes on.
    GoesOn,
    /// It rests, as somebody wished; why, and what to do about it.
    Rests(String),
}

/// Opens the run of a config and the socket at which its members reach this process. Nothing of an existing run is touched
/// before it is clear that it may go on.
///
/// # Errors
/// A usage error if the run is there already or, when resuming, is not; if it lives, here or elsewhere; if its config is
/// another one; if the port is taken.
pub async fn open_run(args: &UpArgs, config: &RunConfig) -> Result<(OpenRun, TcpListener), CoordinatorError> {
    let directory = run_directory(config)?;
    let (goes_on, plan) = (goes_on(args, &directory)?, NetworkPlan::of(config, &args.options)?);
    // Before anything is made, so that a refusal leaves nothing behind.
    let bound = match goes_on {
        true => None,
        false => Some((plan.listen(None, &args.options).await?, plan.listen_for_scrapers().await?)),
    };
    directory.create()?;
    let lock = RunLock::take(&directory)?;
    let Vacancy { learner, was_elsewhere } = wait_for_vacancy(&directory).await?;
    let (mut record, mut notices) = match goes_on {
        true => reopen(args, config, &directory)?,
        false => (RunRecord::new(&config.run.name), Vec::new()),
    };
    if was_elsewhere {
        // Numbers are processes of the host that it was on; hosts of `ssh` are found again from anywhere.
        record.members.retain(|_, handle| matches!(handle, Handle::Remote(_)));
    }
    record.working_directory = std::env::current_dir().ok();
    record.place = placement::place(args, Some(&record));
    placement::check_move(record.place, &record, &args.options.ssh)?;
    let (listener, scraped_at) = match bound {
        Some(bound) => bound,
        None => {
            let before = Some(record.port).filter(|port| *port > 0);
            (plan.listen(before, &args.options).await?, plan.listen_for_scrapers().await?)
        }
    };
    let address = listener.local_addr();
    let port = address.map_err(|error| CoordinatorError::Usage(format!("cannot listen: {error}")))?.port();
    let before = std::mem::replace(&mut record.port, port);
    notices.extend((before > 0).then(|| new_port(before, port)).flatten());
    record.address =
        Some(plan.local_address(record.port)).filter(|address| *address != loopback(record.port));
    let ownership = Arc::new(Ownership::claim(&directory, record.generation, learner.clone())?);
    record.generation = ownership.epoch();
    let directory = ownership.directory().clone();
    let leftovers = [directory.path().to_owned(), directory.prompt_folder()];
    leftovers.iter().try_for_each(|path| directory.clear_leftovers(path))?;
    directory.write_file(&directory.config(), config.to_toml().as_bytes())?;
    let opened = OpenRun { directory, ownership, learner, record, lock, notices, plan, scraped_at };
    opened.keep_told()?;
    Ok((opened, listener))
}

impl OpenRun {
    /// Writes what tells others of this run, where the files do not hold it: nobody ever put them right again otherwise that
    /// were lost, or that an earlier owner wrote too late.
    ///
    /// # Errors
    /// If they cannot be written, or the run is another coordinator's.
    pub fn keep_told(&self) -> Result<(), CoordinatorError> {
        let (path, address) = (self.directory.address_file(), self.plan.advertised_address(self.record.port));
        let address = format!("{address}\n");
        let is_told = config::read_whole(&path, config::MOST_SETTINGS_BYTES);
        if !is_told.is_ok_and(|told| told == address.as_bytes()) {
            self.directory.write_file(&path, address.as_bytes())?;
        }
        if self.record.stands_in(&self.directory) { Ok(()) } else { self.record.write(&self.directory) }
    }
}

/// What it comes to that somebody or something starts a run.
pub fn start_of(args: &UpArgs, directory: &RunDirectory) -> Start {
    if args.resume {
        return Start::GoesOn;
    }
    match RunRecord::read(directory) {
        Ok(record) if record.is_done() || record.stop_wish.is_some() => {
            Start::Rests(resting(&record, directory))
        }
        Ok(record) if record.has_begun_elsewhere() => Start::GoesOn,
        _ if !is_run(directory) || is_stillborn(directory, &args.options.ssh) => Start::Anew,
        _ => Start::GoesOn,
    }
}

fn resting(record: &RunRecord, directory: &RunDirectory) -> String {
    let run = directory.path();
    let (state, command) = match (record.is_done(), record.stop_wish) {
        (false, Some(StopWish::MaxHours)) => {
            ("was stopped after its `run.max_hours` and is left so; go on with it", advice::resume(run))
        }
        (false, _) => {
            ("was stopped by `coordinator down` and is left so; go on with it", advice::resume(run))
        }
        (true, _) => ("is done and is left so; go on beyond its end", advice::lengthen(run)),
    };
    format!(
        "the run in {} {state} by `{command}`, or start another one under another name by `--set run.name=NAME`",
        run.display()
    )
}

/// What members that know the earlier port are to be told.
fn new_port(before: u16, now: u16) -> Option<String> {
    (before != now).then(|| {
        format!(
            "the run is reached at port {now} and no more at {before}: members elsewhere that were given an address, and not \
             `file:` with the run's, have to be given the new one"
        )
    })
}

/// Whether the arguments go with what there is of the run, without touching anything.
///
/// # Errors
/// As [`open_run`], but for the port and for coordinators that live.
pub fn check_run(args: &UpArgs, config: &RunConfig) -> Result<(), CoordinatorError> {
    let directory = run_directory(config)?;
    if goes_on(args, &directory)? { reopen(args, config, &directory).map(drop) } else { Ok(()) }
}

/// Whether the ports that were asked for are free, for who leaves it to another process to open the run.
///
/// # Errors
/// A usage error if one is not.
pub async fn check_port(args: &UpArgs, config: &RunConfig) -> Result<(), CoordinatorError> {
    let plan = NetworkPlan::of(config, &args.options)?;
    plan.listen(None, &args.options).await?;
    plan.listen_for_scrapers().await.map(drop)
}

/// Whether an earlier run goes on.
fn goes_on(args: &UpArgs, directory: &RunDirectory) -> Result<bool, CoordinatorError> {
    match start_of(args, directory) {
        Start::GoesOn if !is_run(directory) => Err(CoordinatorError::Usage(format!(
            "there is no run to resume in {}; leave out `--resume` to start it",
            directory.path().display()
        ))),
        Start::GoesOn => Ok(true),
        Start::Anew => Ok(false),
        Start::Rests(why) => Err(CoordinatorError::Usage(why)),
    }
}

/// Whether a run was started but has no checkpoint, never had one, and no process. It has nothing to lose, and its first
/// config may have been at fault.
fn is_stillborn(directory: &RunDirectory, ssh: &SshCommand) -> bool {
    let is_empty = checkpoints(directory).is_empty() && !directory.has_records();
    is_empty && LivingMembers::everywhere(directory, ssh).is_empty()
}

/// The record of a run that is to go on, if the config allows it, and what is to be said.
fn reopen(
    args: &UpArgs,
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
    let living = || LivingMembers::everywhere(directory, &args.options.ssh);
    let living = if differences.allowed.is_empty() { LivingMembers::default() } else { living() };
    if !living.is_empty() {
        return Err(CoordinatorError::Usage(format!(
            "{living} still live and know the config of before; resume without changes, or end them first by `{}`:\n  {}",
            living.end_command(),
            differences.allowed.join("\n  ")
        )));
    }
    let learner_half = half_to_go_on_with(&record, config, directory)?;
    let coordinator_pid = std::process::id();
    let record = RunRecord { coordinator_pid, learner_half, stop_wish: None, ended: None, ..record };
    Ok((record, stored.notice.into_iter().chain(found.notice).collect()))
}

/// The learner's half as the run goes on: none where its files are in this directory, as after they were copied here.
fn half_to_go_on_with(
    record: &RunRecord,
    config: &RunConfig,
    directory: &RunDirectory,
) -> Result<Option<LearnerHalf>, CoordinatorError> {
    match &record.learner_half {
        Some(half) if config.network.learner == LearnerPlace::Here => {
            if half.has_begun && checkpoints(directory).is_empty() {
                return Err(CoordinatorError::Usage(format!(
                    "`network.learner` is `here`, and what the run has trained is in {half}: copy `checkpoints`, `*.jsonl`, \
                     `adapter`, `samples` and `tensorboard` from there to {} first, or leave it at `by-hand`",
                    directory.path().display()
                )));
            }
            Ok(None)
        }
        half => Ok(half.clone()),
    }
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
         file and its settings out by `{}`, branch off by `{}`, or start another run by `--set run.name=NAME`; what may \
         change is {}, and {} of a reward",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::stand_ins::StandIn;
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

    #[test]
    fn a_run_goes_on_beside_its_coordinator_only_with_the_learners_checkpoints() {
        let home = tempfile::tempdir().expect("a directory");
        let mut config = config(&home);
        let directory = run_directory(&config).expect("a path");
        directory.create().expect("made");
        let half = |has_begun| LearnerHalf {
            host: "gpu1".to_owned(),
            directory: "/data/half".to_owned(),
            has_begun,
        };
        let go_on = |config: &RunConfig, half: LearnerHalf| {
            let record = RunRecord { learner_half: Some(half), ..RunRecord::new("tiny") };
            half_to_go_on_with(&record, config, &directory).map_err(|error| error.to_string())
        };
        assert_eq!(go_on(&config, half(false)), Ok(None), "nothing is lost");
        let told = go_on(&config, half(true)).expect_err("it would begin anew");
        assert!(told.contains("/data/half on gpu1: copy `checkpoints`"), "{told}");
        config.network.learner = LearnerPlace::ByHand;
        assert_eq!(go_on(&config, half(true)), Ok(Some(half(true))));
        config.network.learner = LearnerPlace::Here;
        std::fs::create_dir(directory.checkpoints().join("iteration-000001")).expect("copied");
        assert_eq!(go_on(&config, half(true)), Ok(None));
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

    fn start(flags: &[&str], config: &RunConfig) -> Start {
        start_of(&args(flags), &run_directory(config).expect("a path"))
    }

    #[tokio::test]
    async fn an_existing_run_goes_on_and_none_is_invented() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        assert!(refusal(&["--resume"], &config).await.contains("no run to resume"));
        assert_eq!(start(&[], &config), Start::Anew);
        drop(open_run(&args(&[]), &config).await.expect("new"));
        let directory = run_directory(&config).expect("a path");
        assert_eq!(start(&[], &config), Start::Anew, "nothing to lose yet");
        let first = open_run(&args(&[]), &config).await.expect("new again").0.record;
        std::fs::create_dir(directory.checkpoints().join("iteration-000000")).expect("created");
        assert_eq!(start(&[], &config), Start::GoesOn);
        let second = open_run(&args(&[]), &config).await.expect("goes on").0.record;
        assert_eq!(second.run_id, first.run_id);
        let mut other = config.clone();
        other.run.seed += 1;
        let told = refusal(&[], &other).await;
        assert!(told.contains("run.seed: ") && told.contains("--set run.name=NAME"), "{told}");
    }

    #[tokio::test]
    async fn a_run_that_is_wished_to_rest_rests_until_it_is_resumed() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        let mut opened = open_run(&args(&[]), &config).await.expect("new").0;
        std::fs::create_dir(opened.directory.checkpoints().join("iteration-000001")).expect("created");
        let done = crate::run_record::RunEnding::Done { summary: Box::default() };
        let resume = advice::resume(opened.directory.path());
        for (wish, ended, words) in [
            (Some(StopWish::Down), None, ["was stopped by `coordinator down`", &resume]),
            (Some(StopWish::MaxHours), None, ["was stopped after its `run.max_hours`", &resume]),
            (None, Some(done), ["is done", "--set run.iterations=N`"]),
        ] {
            (opened.record.stop_wish, opened.record.ended) = (wish, ended);
            opened.keep_told().expect("written");
            let Start::Rests(told) = start(&[], &config) else { panic!("{words:?}: it goes on") };
            assert!(words.iter().all(|words| told.contains(words)), "{told}");
            assert_eq!(start(&["--resume"], &config), Start::GoesOn);
        }
        opened.record.stop_wish = Some(StopWish::Down);
        opened.keep_told().expect("written");
        drop(opened);
        let resumed = open_run(&args(&["--resume"]), &config).await.expect("resumed").0.record;
        assert_eq!((resumed.stop_wish, resumed.ended), (None, None));
        assert_eq!(start(&[], &config), Start::GoesOn, "whoever starts it next");
    }

    #[tokio::test]
    async fn what_an_earlier_owner_writes_too_late_is_put_right() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        let opened = open_run(&args(&[]), &config).await.expect("new").0;
        for path in [opened.directory.run_file(), opened.directory.address_file()] {
            let right = std::fs::read(&path).expect("readable");
            std::fs::write(&path, "late").expect("written");
            opened.keep_told().expect("put right");
            assert_eq!(std::fs::read(&path).expect("readable"), right);
        }
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
    async fn a_resumed_run_whose_port_is_taken_says_where_it_is_now() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(&home);
        let (first, listener) = open_run(&args(&[]), &config).await.expect("new");
        let before = first.record.port;
        // The listener goes on: what has the port now.
        drop(first);
        let (second, _) = open_run(&args(&["--resume"]), &config).await.expect("at another port");
        drop(listener);
        assert_ne!(second.record.port, before);
        let notice = second.notices.join("\n");
        assert!(notice.contains(&format!("and no more at {before}")) && notice.contains("file:"), "{notice}");
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
        assert_eq!(start(&[], &config), Start::GoesOn, "checkpoints make it a run");
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
        assert_eq!(start(&[], &config), Start::GoesOn, "its learner says what is lost");
    }

    #[tokio::test]
    async fn members_that_live_without_a_coordinator_are_named_where_they_know_other_settings() {
        let home = tempfile::tempdir().expect("a directory");
        let mut config = config(&home);
        drop(open_run(&args(&[]), &config).await.expect("new"));
        let directory = run_directory(&config).expect("a path");
        let member = StandIn::start("learner");
        member.record(&directory, "learner");
        config.evaluation.every += 1;
        let told = refusal(&["--resume"], &config).await;
        let pid = member.pid();
        assert!(told.contains(&format!("learner (process {pid}) still live")), "{told}");
        assert!(told.contains(&format!("end them first by `kill {pid}`")), "{told}");
        drop(member);
        drop(open_run(&args(&["--resume"]), &config).await.expect("nobody lives"));
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
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = taken.local_addr().expect("bound").port().to_string();
        let message = refusal(&["--port", &port], &config(&home)).await;
        assert_eq!(std::fs::read_dir(home.path()).expect("there").count(), 0, "nothing is left behind");
        assert!(check_port(&args(&["--port", &port]), &config(&home)).await.is_err());
        assert!(
            message.contains(&format!("port {port} is taken")) && message.contains("--port"),
            "{message}"
        );
    }
}
