//! `coordinator up`: brings a run to life, follows it, and takes it down again.

use crate::cards::Places;
use crate::catalog::{Catalog, PromptSource};
use crate::cli::{Place, UpArgs};
use crate::config_file;
use crate::display::Display;
use crate::error::CoordinatorError;
use crate::examination;
use crate::inputs::Inputs;
use crate::inspection::{self, Servers};
use crate::launch;
use crate::launch::capacity::{self, Machine};
use crate::launch::{Launcher, LocalLauncher, Roster, Supervisor};
use crate::membership::{Members, Patience};
use crate::opening::{OpenRun, check_port, check_run, open_run};
use crate::run_place::run_directory;
use crate::run_record::RunEnding;
use crate::run_state::{Ending, RunState};
use crate::server::ControlPlane;
use crate::{advice, detach};
use config::RunConfig;
use service::output::print_line;
use service::{Hub, exit_code, shutdown};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Silence after which a member is lost; it sends a heartbeat every fifth of that.
const LEASE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);
/// Time for processes to end by themselves once the run is done: nothing of value is in flight then.
const DONE_GRACE: Duration = Duration::from_secs(10);
/// Time for processes to say why they fail, once the run has.
const FAILED_GRACE: Duration = Duration::from_secs(2);

/// Why processes are being stopped.
enum Stop {
    Ended(Ending),
    Drained,
    Broken(CoordinatorError),
}

/// Runs the command; the outcome is the process's exit code.
///
/// # Errors
/// Usage errors before anything is started; else whatever made the run fail.
pub async fn up(args: UpArgs, hub: &Hub, display: Display) -> Result<u8, CoordinatorError> {
    if args.options.on != Place::Local {
        let place = if args.options.on == Place::Slurm { "slurm" } else { "kubernetes" };
        return Err(CoordinatorError::Usage(format!(
            "`--on {place}` is not available yet; leave it out to run on this machine"
        )));
    }
    if args.options.detached {
        detach::leave_terminal()?;
    }
    // Found now, what is wrong costs a second; found by a worker, the start of a run. Servers may come up meanwhile.
    let config_args = with_workers(&args).config;
    let prompts = if args.resume { PromptSource::Run } else { PromptSource::Config };
    let (catalog, notes) = match args.options.dry_run || args.options.detached {
        true => (config_file::open(&config_args, hub, prompts)?, Vec::new()),
        false => examination::everything(&config_args, hub, &launch::programs()?, Servers::Later, prompts)?,
    };
    if args.options.dry_run {
        catalog.notes().iter().for_each(|note| display.say(note));
        return dry_run(&args, &catalog, hub);
    }
    if let Some(refusal) =
        capacity::of_machine(catalog.config().resources.workers as u32, &Machine::look(&[]))
    {
        return Err(CoordinatorError::Usage(refusal));
    }
    let inputs = check_inputs(&args, &catalog, hub)?;
    if args.options.detach {
        if !args.resume {
            check_port(&args).await?;
        }
        // The process that is detached finds and says the catalog's own.
        notes.iter().for_each(|note| display.say(note));
        return detach::start(&run_directory(catalog.config())?, args.typed_in.as_deref()).await;
    }
    notes.iter().chain(catalog.notes()).for_each(|note| display.say(note));
    let (mut opened, listener) = open_run(&args, catalog.config()).await?;
    for change in inputs.settle(&args, &mut opened)? {
        display.say(&format!("accepted: {change}"));
    }
    Run::start(&args, catalog, opened, listener, display)?.follow().await
}

/// `--workers N` is a setting like any other.
fn with_workers(args: &UpArgs) -> UpArgs {
    let mut args = args.clone();
    args.config.settings.extend(args.options.workers.map(|workers| format!("resources.workers={workers}")));
    args
}

/// What the run would read, if it may go on with that.
fn check_inputs<'a>(args: &UpArgs, catalog: &'a Catalog, hub: &Hub) -> Result<Inputs<'a>, CoordinatorError> {
    check_run(args, catalog.config())?;
    let inputs = Inputs::of(catalog, hub)?;
    inputs.check(args, &run_directory(catalog.config())?)?;
    Ok(inputs)
}

fn dry_run(args: &UpArgs, catalog: &Catalog, hub: &Hub) -> Result<u8, CoordinatorError> {
    check_inputs(args, catalog, hub)?;
    let config = catalog.config();
    let directory = run_directory(config)?;
    print_line(format_args!("run directory: {}", directory.path().display()));
    let places = Places::look(&config.resources)?;
    places.notes().iter().for_each(print_line);
    // What is shown is right, whatever this machine has; that it would not start here should be known all the same.
    if let Err(error) = inspection::device(config, &launch::programs()?) {
        print_line(format_args!("`up` would be refused here: {error}"));
    }
    let launcher = LocalLauncher::new(args.options.port.unwrap_or(0), directory, places)?;
    let wanted = Roster::Run { workers: config.resources.workers as u32 };
    wanted.members().for_each(|member| print_line(launcher.describe(member)));
    Ok(exit_code::DONE)
}

/// A run that is being followed.
struct Run {
    opened: OpenRun,
    plane: ControlPlane,
    supervisor: Supervisor,
    display: Display,
    signals: watch::Receiver<u32>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    drain_grace: Duration,
    resume_command: String,
    /// When `run.max_hours` have passed.
    time_is_up: Option<tokio::time::Instant>,
}

impl Run {
    fn start(
        args: &UpArgs,
        catalog: Catalog,
        opened: OpenRun,
        listener: TcpListener,
        display: Display,
    ) -> Result<Self, CoordinatorError> {
        let signals = shutdown::signal_count()?;
        display.log_to(&opened.directory.log_of("coordinator"))?;
        let (record, directory) = (&opened.record, opened.directory.clone());
        let patience = Patience {
            lease: LEASE,
            task_deadline: Duration::from_secs(args.options.task_deadline),
            drain: Duration::from_secs(args.options.drain_grace),
        };
        let members = Members::new(record.run_id.clone(), record.generation, patience);
        let launcher =
            LocalLauncher::new(record.port, directory.clone(), Places::look(&catalog.config().resources)?)?;
        display.say(&format!("run {} in {}", catalog.config().run.name, directory.path().display()));
        opened.notices.iter().for_each(|notice| display.say(notice));
        display.say(&format!("curves: {}", advice::tensorboard(&directory)));
        if catalog.config().resources.workers == 0 {
            display.say(&advice::without_workers(&directory, record.port));
        }
        let time_is_up = time_limit(catalog.config()).map(|limit| tokio::time::Instant::now() + limit);
        let plane = ControlPlane::new(RunState::new(
            members,
            catalog,
            directory.path().display().to_string(),
            Instant::now(),
        ));
        let mut supervisor = Supervisor::new(launcher, plane.clone());
        let adopted = supervisor.adopt(&record.members, Instant::now());
        if !adopted.is_empty() {
            display.say(&format!("still living: {}", adopted.join(", ")));
        }
        let serving = tokio::spawn(plane.clone().serve(listener, std::future::pending()));
        Ok(Self {
            opened,
            plane,
            supervisor,
            display,
            signals,
            serving,
            drain_grace: Duration::from_secs(args.options.drain_grace),
            resume_command: advice::resume_with(directory.path(), &args.options),
            time_is_up,
        })
    }

    async fn follow(mut self) -> Result<u8, CoordinatorError> {
        let stop = self.watch().await;
        self.stop_processes(&stop).await;
        self.serving.abort();
        self.display.close();
        // What the last reports said counts more than why processes were asked to stop.
        let ending = self.plane.read(|state| state.ending().cloned());
        let stop = ending.map_or(stop, Stop::Ended);
        self.record_ending(&stop);
        match stop {
            Stop::Ended(Ending::Done(summary)) => {
                self.display.summary(&summary);
                Ok(exit_code::DONE)
            }
            Stop::Ended(Ending::Failed { reason, bad_input, summary }) => {
                summary.iter().for_each(|summary| self.display.summary(summary));
                Err(CoordinatorError::RunFailed { reason, bad_input })
            }
            Stop::Drained => {
                self.display.say(&format!("stopped; go on with `{}`", self.resume_command));
                Ok(exit_code::RETRY)
            }
            Stop::Broken(error) => Err(error),
        }
    }

    /// Notes for `coordinator status` how the run ended.
    fn record_ending(&mut self, stop: &Stop) {
        self.opened.record.ended = Some(match stop {
            Stop::Ended(Ending::Done(summary)) => RunEnding::Done { summary: summary.clone() },
            Stop::Ended(Ending::Failed { reason, summary, .. }) => {
                RunEnding::Failed { reason: reason.clone(), summary: summary.clone() }
            }
            Stop::Drained => RunEnding::Stopped { resume: self.resume_command.clone() },
            Stop::Broken(error) => RunEnding::Failed { reason: error.to_string(), summary: None },
        });
        self.write_record();
    }

    /// Keeps the run going until it ends, is asked to stop, or breaks.
    async fn watch(&mut self) -> Stop {
        let plane = self.plane.clone();
        let ending = plane.ending();
        tokio::pin!(ending);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                ending = &mut ending => return ending.map_or(Stop::Drained, Stop::Ended),
                () = passed(self.time_is_up) => {
                    self.time_is_up = None;
                    self.display.say("stopping after `run.max_hours`: what is in flight is finished first");
                    self.plane.update(|state, _| state.drain());
                }
                Ok(()) = self.signals.changed() => {
                    self.display.say("stopping: what is in flight is finished first; once more to stop at once");
                    self.plane.update(|state, _| state.drain());
                }
                outcome = &mut self.serving => {
                    return match outcome {
                        Ok(Err(error)) => Stop::Broken(error.into()),
                        _ => Stop::Drained,
                    };
                }
                _ = ticks.tick() => if let Err(error) = self.tick(Instant::now()) {
                    return Stop::Broken(error);
                }
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), CoordinatorError> {
        let outcome = self.supervisor.keep_alive(now);
        self.record_processes();
        self.show(now);
        outcome
    }

    fn show(&mut self, now: Instant) {
        self.display.update(&self.plane.observe(now), now);
    }

    /// Keeps `run.json` true; without it a killed coordinator would start processes twice.
    fn record_processes(&mut self) {
        let members = self.supervisor.processes();
        let run_file = self.opened.directory.run_file();
        let is_there = std::fs::metadata(run_file).is_ok_and(|metadata| metadata.len() > 0);
        if !is_there || members != self.opened.record.members {
            self.opened.record.members = members;
            self.write_record();
        }
    }

    fn write_record(&self) {
        if let Err(error) = self.opened.record.write(&self.opened.directory) {
            tracing::error!("{error}");
        }
    }

    /// Waits until no process is left.
    async fn stop_processes(&mut self, stop: &Stop) {
        let grace = match stop {
            Stop::Ended(Ending::Done(_)) => DONE_GRACE,
            Stop::Drained => self.drain_grace,
            Stop::Ended(Ending::Failed { .. }) | Stop::Broken(_) => FAILED_GRACE,
        };
        self.plane.update(|state, _| state.drain());
        loop {
            let now = Instant::now();
            let is_hurried = *self.signals.borrow() > 1;
            self.supervisor.take_down((!is_hurried).then_some(grace), now);
            self.record_processes();
            if self.supervisor.processes().is_empty() {
                return;
            }
            self.show(now);
            tokio::time::sleep(TICK).await;
        }
    }
}

/// How long this start of the run may last.
fn time_limit(config: &RunConfig) -> Option<Duration> {
    let hours = config.run.max_hours;
    (hours > 0.0).then(|| Duration::from_secs_f64(3600.0 * hours))
}

/// Waits until then; for ever where there is no end.
async fn passed(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
