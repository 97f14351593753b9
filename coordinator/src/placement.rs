//! Where the workers of a run are started: on this machine, or on the hosts of its config.

use crate::cards::Places;
use crate::cli::{Place, UpArgs, UpOptions};
use crate::entrance::NetworkPlan;
use crate::error::CoordinatorError;
use crate::launch::capacity::{Machine, Room};
use crate::launch::ssh::{Reach, RemoteContact, RemoteRun, SshCommand};
use crate::launch::{self, Contact, Launcher, LocalLauncher, SshLauncher};
use crate::living_members::LivingMembers;
use crate::run_place::run_directory;
use crate::run_record::RunRecord;
use config::{ComputeDevice, LearnerPlace, RunConfig};
use service::trust::Tokens;
use service::{PeerRole, RunDirectory};
use std::path::PathBuf;

/// Refuses what there is no launcher for.
///
/// # Errors
/// A usage error that says so.
pub fn check_kind(options: &UpOptions) -> Result<(), CoordinatorError> {
    let place = match options.on {
        Some(Place::Slurm) => "slurm",
        Some(Place::Kubernetes) => "kubernetes",
        Some(Place::Local | Place::Ssh) | None => return Ok(()),
    };
    Err(CoordinatorError::Usage(format!(
        "`--on {place}` is not available yet; leave it out to run on this machine, or list hosts and say `--on ssh`"
    )))
}

/// Where it was asked for; else where the run was before, if it goes on.
pub fn place(args: &UpArgs, record: Option<&RunRecord>) -> Place {
    let before = record.filter(|_| args.resume).map(|record| record.place);
    args.options.on.or(before).unwrap_or_default()
}

/// The same, of a run that is not opened yet.
pub fn place_of_run(args: &UpArgs, config: &RunConfig) -> Place {
    let record = run_directory(config).ok().and_then(|directory| RunRecord::read(&directory).ok());
    place(args, record.as_ref())
}

/// Whether workers can be started there at all, before any is.
///
/// # Errors
/// A usage error that names what is missing, and the remedy.
pub fn check(place: Place, config: &RunConfig, options: &UpOptions) -> Result<(), CoordinatorError> {
    if place.is_local() {
        return Ok(());
    }
    let usage = |problem: String| Err(CoordinatorError::Usage(problem));
    if config.hosts.is_empty() {
        return usage(
            "`--on ssh` starts workers on the hosts that the config lists, and it lists none; write `[[hosts]]` with an \
             `address` and `slots` for each"
                .to_owned(),
        );
    }
    options.ssh.check().map_err(CoordinatorError::Usage)?;
    if NetworkPlan::of(config, options)?.is_local() {
        return usage(format!(
            "`network.bind` is {}, which only this host reaches, and workers on {} could not join; set it to an address, \
             interface or subnet of this host that they reach",
            config.network.bind, config.hosts[0].address
        ));
    }
    room(place, config).refusal(0, config.resources.workers as u32, &[]).map_or(Ok(()), usage)
}

/// Who of a run computes on this machine. What others need is looked at where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembersHere {
    /// Who needs model and device.
    pub learner: bool,
    /// Who need these and what rewards are made of.
    pub workers: bool,
}

impl MembersHere {
    /// Those of a run whose workers are started there.
    pub fn of(place: Place, config: &RunConfig) -> Self {
        Self {
            learner: config.network.learner == LearnerPlace::Here,
            workers: place.is_local() && config.resources.workers > 0,
        }
    }

    /// Whether there are any.
    pub fn any(self) -> bool {
        self.learner || self.workers
    }
}

/// The cards of this machine, which a run without members here needs none of.
fn places(place: Place, config: &RunConfig) -> Result<Places, CoordinatorError> {
    match Places::look(config) {
        Err(_) if !MembersHere::of(place, config).any() => {
            let mut without_cards = config.clone();
            without_cards.resources.device = ComputeDevice::Cpu;
            Ok(Places::look(&without_cards)?)
        }
        places => Ok(places?),
    }
}

/// What bounds the number of workers there.
pub fn room(place: Place, config: &RunConfig) -> Room {
    match place {
        Place::Ssh => Room::Slots(config.hosts.iter().map(|host| host.slots.count() as u32).sum()),
        Place::Local | Place::Slurm | Place::Kubernetes => Room::ThisMachine,
    }
}

/// Whether this machine has room for the workers that are to be started on it.
///
/// # Errors
/// A usage error that says what is scarce.
pub fn check_machine(place: Place, config: &RunConfig) -> Result<(), CoordinatorError> {
    let workers = if place.is_local() { config.resources.workers as u32 } else { 0 };
    let refusal = launch::capacity::of_machine(workers, &Machine::look(&[]));
    refusal.map_or(Ok(()), |refusal| Err(CoordinatorError::Usage(refusal)))
}

/// Refuses to lose sight of workers on other hosts, by going on without the launcher that finds them.
///
/// # Errors
/// A usage error that names them.
pub fn check_move(place: Place, record: &RunRecord, ssh: &SshCommand) -> Result<(), CoordinatorError> {
    if !place.is_local() || !record.has_members_elsewhere() {
        return Ok(());
    }
    let living = LivingMembers::elsewhere(record, ssh);
    match living.is_empty() {
        true => Ok(()),
        false => Err(CoordinatorError::Usage(format!(
            "{living} may still live and would not be found again without `--on ssh`; resume with that, or end them first by \
             `{}`",
            living.end_command()
        ))),
    }
}

/// What a launcher is made of.
pub struct Launching<'a> {
    /// The run's config.
    pub config: &'a RunConfig,
    /// How members reach the coordinator.
    pub plan: &'a NetworkPlan,
    /// Of the run.
    pub directory: &'a RunDirectory,
    /// How hosts are reached.
    pub ssh: &'a SshCommand,
    /// Of the run, or what it would be like.
    pub record: &'a RunRecord,
}

/// The launcher of a place.
///
/// # Errors
/// A usage error if this machine lacks programs or cards.
pub fn launcher(place: Place, launching: &Launching<'_>) -> Result<Box<dyn Launcher>, CoordinatorError> {
    let Launching { config, plan, directory, ssh, record } = *launching;
    let (port, secrets) = (record.port, directory.secrets());
    let arguments = |role| plan.member_arguments(role, port, &secrets);
    let contact = Contact { learner: arguments(PeerRole::Learner), worker: arguments(PeerRole::Worker) };
    let here = LocalLauncher::new(contact, directory.clone(), places(place, config)?)?;
    if place.is_local() {
        return Ok(Box::new(here));
    }
    let run = RemoteRun {
        ssh: ssh.clone(),
        run_id: record.run_id.clone(),
        generation: record.generation,
        reach: Reach::default(),
    };
    let contact = RemoteContact {
        arguments: plan.remote_worker_arguments(port),
        token_file: plan.has_tokens().then(|| Tokens::path(&secrets, PeerRole::Worker)),
        programs: launch::programs()?,
        working_directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
    };
    Ok(Box::new(SshLauncher::new(here, run, contact, config)))
}

/// What is to be said of hosts that have room for more.
pub fn note(place: Place, config: &RunConfig) -> Option<String> {
    let Room::Slots(slots) = room(place, config) else { return None };
    let (workers, hosts) = (config.resources.workers, config.hosts.len());
    let learner = match config.network.learner {
        LearnerPlace::Here => "the learner is on this one",
        LearnerPlace::ByHand => "the learner is started by hand",
    };
    Some(format!("{workers} worker(s) on the {slots} slot(s) of {hosts} host(s); {learner}"))
}
