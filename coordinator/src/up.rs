//! `coordinator up`: brings a run to life, follows it, and takes it down again.

use crate::cards::Places;
use crate::catalog::{Catalog, PromptSource};
use crate::checkpoint_list::checkpoints;
use crate::cli::UpArgs;
use crate::config_file;
use crate::device_kinds::DeviceKinds;
use crate::display::Display;
use crate::entrance::{Entrance, NetworkPlan};
use crate::error::CoordinatorError;
use crate::events::EventLog;
use crate::examination;
use crate::inputs::Inputs;
use crate::inspection::{self, Servers};
use crate::launch;
use crate::launch::{Roster, Supervisor};
use crate::learner_half::Halves;
use crate::membership::{Members, Patience};
use crate::opening::{OpenRun, Start, check_port, check_run, open_run, start_of};
use crate::placement::{self, Launching, MembersHere};
use crate::run_place::run_directory;
use crate::run_record::{RunEnding, RunRecord, StopWish};
use crate::run_state::RunState;
use crate::server::ControlPlane;
use crate::{advice, detach, shown_metrics};
use config::{LearnerPlace, RunConfig};
use protocol::with_causes;
use service::output::print_line;
use service::{Hub, ServiceError, exit_code, shutdown};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Silence after which a member is lost; it sends a heartbeat every fifth of that.
const LEASE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);
/// Between two signs of life for other hosts.
const BEAT: Duration = Duration::from_secs(1);
/// Time for processes to end by themselves once the run is done: nothing of value is in flight then.
const DONE_GRACE: Duration = Duration::from_secs(10);
/// Time for processes to say why they fail, once the run has.
const FAILED_GRACE: Duration = Duration::from_secs(2);

/// Why processes are being stopped.
enum StopReason {
    Ended(RunEnding),
    Drained,
    Broken(CoordinatorError),
}

/// Runs the command; the outcome is the process's exit code.
///
/// # Errors
/// Usage errors before anything is started; else whatever made the run fail.
pub async fn up(args: UpArgs, hub: &Hub, display: Display) -> Result<u8, CoordinatorError> {
    placement::check_kind(&args.options)?;
    let args = match start(&args)? {
        Start::Rests(why) => {
            display.say(&why);
            return Ok(exit_code::DONE);
        }
        start => UpArgs { resume: start == Start::GoesOn, ..args },
    };
    if args.options.detached {
        detach::leave_terminal()?;
    }
    let servers = Servers { are_knocked_at: false, insecure: args.options.insecure };
    // Found now, what is wrong costs a second; found by a worker, the start of a run. Servers may come up meanwhile.
    let config_args = with_workers(&args).config;
    let prompts = if args.resume { PromptSource::Run } else { PromptSource::Config };
    let members_here = |config: &RunConfig| MembersHere::of(placement::place_of_run(&args, config), config);
    let has_members_here = |config: &RunConfig| members_here(config).any();
    let (catalog, notes) = match args.options.dry_run || args.options.detached {
        true => (config_file::open(&config_args, hub, (prompts, &has_members_here))?, Vec::new()),
        false => {
            let source = (prompts, &members_here as &dyn Fn(&RunConfig) -> MembersHere);
            examination::everything(&config_args, hub, &launch::programs()?, servers, source)?
        }
    };
    let place = placement::place_of_run(&args, catalog.config());
    placement::check(place, catalog.config(), &args.options)?;
    if args.options.dry_run {
        catalog.notes().iter().for_each(|note| display.say(note));
        return dry_run(&args, &catalog, hub);
    }
    placement::check_machine(place, catalog.config())?;
    let inputs = check_inputs(&args, &catalog, hub)?;
    if args.options.detach {
        if !args.resume {
            check_port(&args, catalog.config()).await?;
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
    let entrance = Entrance::open(&opened.plan, &opened.record.run_id, &opened.directory).await?;
    Run::start(&args, catalog, opened, (listener, entrance), display)?.follow().await
}

/// What it comes to that this run is started. A config that cannot be read is the business of whoever reads it next.
fn start(args: &UpArgs) -> Result<Start, CoordinatorError> {
    match config_file::read_to_plan(&with_workers(args).config) {
        Ok((config, _)) => Ok(start_of(args, &run_directory(&config)?)),
        Err(_) if args.resume => Ok(Start::GoesOn),
        Err(_) => Ok(Start::Anew),
    }
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
    let config = catalog.config();
    let inputs = Inputs::of(catalog, hub, MembersHere::of(placement::place_of_run(args, config), config))?;
    inputs.check(args, &run_directory(catalog.config())?)?;
    Ok(inputs)
}

fn dry_run(args: &UpArgs, catalog: &Catalog, hub: &Hub) -> Result<u8, CoordinatorError> {
    check_inputs(args, catalog, hub)?;
    let config = catalog.config();
    let directory = run_directory(config)?;
    print_line(format_args!("run directory: {}", directory.path().display()));
    let here = MembersHere::of(placement::place_of_run(args, config), config);
    if here.any() {
        Places::look(config)?.notes().iter().for_each(print_line);
        // What is shown is right, whatever this machine has; that it would not start here should be known all the same.
        let servers = Servers { are_knocked_at: false, insecure: args.options.insecure };
        let refusals = inspection::refusals(config, &launch::programs()?, servers, here);
        refusals.iter().for_each(|why| print_line(format_args!("`up` would be refused here: {why}")));
    }
    inspection::plain_text_note(config).iter().for_each(print_line);
    let plan = NetworkPlan::of(config, &args.options)?;
    let record = RunRecord { port: args.options.port.unwrap_or(0), ..RunRecord::new(&config.run.name) };
    let launching =
        Launching { config, plan: &plan, directory: &directory, ssh: &args.options.ssh, record: &record };
    let launcher = placement::launcher(placement::place_of_run(args, config), &launching)?;
    Roster::of(config).members().for_each(|member| print_line(launcher.describe(member)));
    Ok(exit_code::DONE)
}

/// A run that is being followed.
struct Run {
    opened: OpenRun,
    plane: ControlPlane,
    supervisor: Supervisor,
    display: Display,
    signals: watch::Receiver<u32>,
    serving: JoinHandle<Result<(), ServiceError>>,
    drain_grace: Duration,
    resume_command: String,
    /// When `run.max_hours` have passed.
    time_is_up: Option<tokio::time::Instant>,
    next_beat: Instant,
    /// Set once another coordinator owns the run: nothing of it is touched then.
    superseded: Option<ServiceError>,
}

impl Run {
    fn start(
        args: &UpArgs,
        catalog: Catalog,
        mut opened: OpenRun,
        (listener, entrance): (TcpListener, Entrance),
        display: Display,
    ) -> Result<Self, CoordinatorError> {
        let signals = shutdown::signal_count()?;
        display.log_to(&opened.directory.log_of("coordinator"))?;
        let scraped_at = opened.scraped_at.take();
        let (record, directory) = (&opened.record, opened.directory.clone());
        let patience = Patience {
            lease: LEASE,
            task_deadline: Duration::from_secs(args.options.task_deadline),
            opening_deadline: Duration::from_secs(args.options.opening_deadline),
            drain: Duration::from_secs(args.options.drain_grace),
        };
        let members = Members::new(record.run_id.clone(), record.generation, patience);
        let (plan, ssh) = (&opened.plan, &args.options.ssh);
        let launching = Launching { config: catalog.config(), plan, directory: &directory, ssh, record };
        let launcher = placement::launcher(record.place, &launching)?;
        display.say(&format!("run {} in {}", catalog.config().run.name, directory.path().display()));
        opened.notices.iter().for_each(|notice| display.say(notice));
        let join = opened.plan.join_command(record.port, &directory.secrets());
        match catalog.config().network.learner {
            LearnerPlace::Here => display.say(&format!("curves: {}", advice::tensorboard(&directory))),
            LearnerPlace::ByHand => {
                let command = opened.plan.learner_command(record.port, &directory.secrets());
                display.say(&advice::learner_by_hand(&command, record.learner_half.as_ref()));
            }
        }
        placement::note(record.place, catalog.config()).iter().for_each(|note| display.say(note));
        if !opened.plan.is_local() {
            display.say(&format!("workers on other hosts join by `{join}`"));
        }
        if catalog.config().resources.workers == 0 {
            display.say(&advice::without_workers(&directory, &join));
        }
        let time_is_up = time_limit(catalog.config()).map(|limit| tokio::time::Instant::now() + limit);
        let room = placement::room(record.place, catalog.config());
        let place = directory.path().display().to_string();
        let mut state = RunState::new(members, catalog, place, Instant::now());
        state.room = room;
        state.inherit_learner(opened.learner.clone());
        state.inherit_halves(Halves::new(record.learner_half.clone(), !checkpoints(&directory).is_empty()));
        state.inherit_kinds(DeviceKinds::read(&directory)?);
        let plane = ControlPlane::new(state).of_run(opened.ownership.clone());
        plane.write_events(EventLog::start(directory.clone()));
        if let Some(scraped_at) = scraped_at {
            shown_metrics::show(scraped_at, &plane, &display);
        }
        let mut supervisor = Supervisor::new(launcher, plane.clone());
        let adopted = supervisor.adopt(&record.members, Instant::now());
        if !adopted.is_empty() {
            display.say(&format!("still living: {}", adopted.join(", ")));
        }
        let serving = tokio::spawn(plane.clone().serve(listener, entrance, std::future::pending()));
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
            next_beat: Instant::now(),
            superseded: None,
        })
    }

    async fn follow(mut self) -> Result<u8, CoordinatorError> {
        let stop = self.watch().await;
        self.stop_processes(&stop).await;
        self.plane.finish_reading().await;
        self.serving.abort();
        self.display.close();
        if let Some(error) = self.superseded {
            return Err(error.into());
        }
        // What the last reports said counts more than why processes were asked to stop.
        let ending = self.plane.read(|state| state.ending().cloned());
        let stop = ending.map_or(stop, StopReason::Ended);
        let ending = self.ending_of(&stop);
        self.plane.update(|state, _| state.end(ending.clone()));
        self.plane.finish_events();
        self.opened.record.ended = Some(ending.clone());
        self.write_record();
        if let Err(error) = self.opened.ownership.release() {
            tracing::warn!("the run may go on elsewhere only after a while: {}", with_causes(&error));
        }
        match (stop, ending) {
            (StopReason::Broken(error), _) => {
                self.say_how_to_go_on();
                Err(error)
            }
            (_, RunEnding::Done { summary }) => {
                self.display.summary(&summary);
                Ok(exit_code::DONE)
            }
            (_, RunEnding::Failed { reason, bad_input, summary }) => {
                summary.iter().for_each(|summary| self.display.summary(summary));
                self.say_how_to_go_on();
                Err(CoordinatorError::RunFailed { reason, bad_input })
            }
            (_, RunEnding::Stopped { resume }) => {
                self.display.say(&format!("stopped; go on with `{resume}`"));
                Ok(exit_code::RETRY)
            }
        }
    }

    fn say_how_to_go_on(&self) {
        self.display.say(&advice::once_mended(&self.resume_command));
    }

    /// What `coordinator status` will tell of the run.
    fn ending_of(&self, stop: &StopReason) -> RunEnding {
        match stop {
            StopReason::Ended(ending) => ending.clone(),
            StopReason::Drained => RunEnding::Stopped { resume: self.resume_command.clone() },
            StopReason::Broken(error) => {
                RunEnding::Failed { reason: with_causes(error), bad_input: false, summary: None }
            }
        }
    }

    /// Keeps the run going until it ends, is asked to stop, or breaks.
    async fn watch(&mut self) -> StopReason {
        let plane = self.plane.clone();
        let ending = plane.ending();
        tokio::pin!(ending);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                ending = &mut ending => {
                    self.record_stop_wish();
                    return ending.map_or(StopReason::Drained, StopReason::Ended);
                }
                () = passed(self.time_is_up) => {
                    self.time_is_up = None;
                    self.display.say("stopping after `run.max_hours`: what is in flight is finished first");
                    self.plane.update(|state, _| state.stop(StopWish::MaxHours));
                }
                Ok(()) = self.signals.changed() => {
                    self.display.say("stopping: what is in flight is finished first; once more to stop at once");
                    self.plane.update(|state, _| state.drain());
                }
                outcome = &mut self.serving => {
                    return match outcome {
                        Ok(Err(error)) => StopReason::Broken(error.into()),
                        _ => StopReason::Drained,
                    };
                }
                _ = ticks.tick() => if let Err(error) = self.tick(Instant::now()) {
                    return StopReason::Broken(error);
                }
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), CoordinatorError> {
        self.beat(now);
        if self.superseded.is_some() {
            // The error is told once what was started here has ended.
            self.plane.update(|state, _| state.drain());
            return Ok(());
        }
        let outcome = self.supervisor.keep_alive(now);
        self.record_processes();
        self.show(now);
        outcome
    }

    fn show(&mut self, now: Instant) {
        self.display.update(&self.plane.observe(now), now);
    }

    /// Gives a sign of life where it is time, and notices that the run is another coordinator's.
    fn beat(&mut self, now: Instant) {
        if now < self.next_beat || self.superseded.is_some() {
            return;
        }
        self.next_beat = now + BEAT;
        let told = self.opened.ownership.beat().map_err(CoordinatorError::from);
        match told.and_then(|()| self.opened.keep_told()) {
            Ok(()) => {}
            Err(CoordinatorError::Service(error)) if error.is_superseded() => {
                tracing::error!("{error}");
                self.superseded = Some(error);
            }
            Err(error) => tracing::warn!("the run directory is not kept up to date: {}", with_causes(&error)),
        }
    }

    /// What somebody wishes stands before anything is done about it, so that it is kept whatever happens on the way.
    fn record_stop_wish(&mut self) {
        self.opened.record.stop_wish = self.plane.read(RunState::stop_wish);
        if self.opened.record.stop_wish.is_some() {
            self.write_record();
        }
    }

    /// Keeps `run.json` true; without it a killed coordinator would start processes twice.
    fn record_processes(&mut self) {
        let members = self.supervisor.processes();
        let half = self.plane.read(|state| state.learner_half().cloned());
        let run_file = self.opened.directory.run_file();
        let is_there = std::fs::metadata(run_file).is_ok_and(|metadata| metadata.len() > 0);
        let record = &mut self.opened.record;
        if !is_there || members != record.members || half != record.learner_half {
            (record.members, record.learner_half) = (members, half);
            self.write_record();
        }
    }

    fn write_record(&self) {
        if self.superseded.is_some() {
            return;
        }
        if let Err(error) = self.opened.record.write(&self.opened.directory) {
            tracing::error!("{error}");
        }
    }

    /// Waits until no process is left.
    async fn stop_processes(&mut self, stop: &StopReason) {
        let grace = match stop {
            StopReason::Ended(RunEnding::Done { .. }) => DONE_GRACE,
            StopReason::Drained | StopReason::Ended(RunEnding::Stopped { .. }) => self.drain_grace,
            StopReason::Ended(RunEnding::Failed { .. }) | StopReason::Broken(_) => FAILED_GRACE,
        };
        self.plane.update(|state, _| state.drain());
        let until = Instant::now() + grace;
        loop {
            let now = Instant::now();
            self.beat(now);
            // What members of a run that is another coordinator's have in hand is of no use to anybody.
            let is_hurried = *self.signals.borrow() > 1 || self.superseded.is_some();
            self.supervisor.take_down((!is_hurried).then_some(grace), now);
            self.record_processes();
            // A learner that somebody else has started is told to leave and sends what it has to show first.
            let is_left = self.plane.read(RunState::has_learner_elsewhere) && !is_hurried && now < until;
            if self.supervisor.processes().is_empty() && !is_left {
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
