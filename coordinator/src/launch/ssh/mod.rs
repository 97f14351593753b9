//! Workers on hosts that are reached by `ssh`; the learner stays on this one.
//!
//! On its host a worker has a session of its own, so that it outlives the connection, and a folder for each start below
//! `~/.tempflow/runs/RUN_ID/HOST`, by which this launcher and the next one find it again. `HostBook`
//! decides, a thread for each host speaks to it (`link`) in the words of `script` over a `session`.

mod book;
mod link;
mod script;
mod seats;
pub mod session;

use super::{Handle, Launcher, LocalLauncher, MemberName, Observed, RemoteStart, Signal};
use crate::advice::quoted;
use crate::error::CoordinatorError;
use crate::living_members::LivingElsewhere;
use crate::membership::Applicant;
use book::HostBook;
use config::RunConfig;
use link::{HostLink, Line};
use protocol::with_causes;
use script::Launch;
use seats::{HostSeat, HostSeats};
use service::exit_code::BAD_USAGE;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

pub use book::Reach;
pub use script::{Answer, Standing};
pub use session::SshCommand;

/// The run whose workers are started, and by what.
#[derive(Clone, Debug)]
pub struct RemoteRun {
    /// How `ssh` is called.
    pub ssh: SshCommand,
    /// Names the folder of the run on each host.
    pub run_id: String,
    /// Counts the starts of the coordinator, so that no two starts of a worker have the same name.
    pub generation: u64,
    /// How long hosts are waited for.
    pub reach: Reach,
}

/// What workers on other hosts are told.
#[derive(Clone, Debug)]
pub struct RemoteContact {
    /// Arguments by which they reach and trust the coordinator.
    pub arguments: Vec<String>,
    /// What they read on standard input, if they do: the file of their token.
    pub token_file: Option<PathBuf>,
    /// Folder of the programs, where a host names none.
    pub programs: PathBuf,
    /// Where they are started, if a host has that folder: what relative paths of the config are relative to.
    pub working_directory: PathBuf,
}

/// Starts, signals and buries the workers of one run on hosts, and its learner here.
pub struct SshLauncher {
    here: LocalLauncher,
    run: RemoteRun,
    contact: RemoteContact,
    seats: HostSeats,
    links: BTreeMap<String, HostLink>,
    /// Where each worker is that was started or adopted.
    places: BTreeMap<MemberName, String>,
    n_starts: u64,
}

impl SshLauncher {
    /// A launcher of workers on the hosts of a config; `here` starts the learner.
    pub fn new(here: LocalLauncher, run: RemoteRun, contact: RemoteContact, config: &RunConfig) -> Self {
        let seats = HostSeats::of(config);
        Self { here, run, contact, seats, links: BTreeMap::new(), places: BTreeMap::new(), n_starts: 0 }
    }

    fn seat(&self, member: MemberName) -> Option<HostSeat<'_>> {
        match member {
            MemberName::Learner(_) => None,
            MemberName::Worker(position) => self.seats.seat(position as usize),
        }
    }

    fn launch(&self, member: MemberName, seat: &HostSeat<'_>, input: String) -> Launch {
        let programs = match seat.host.programs.as_os_str().is_empty() {
            true => &self.contact.programs,
            false => &seat.host.programs,
        };
        let own = ["--member-id".to_owned(), member.to_string()];
        Launch {
            program: script::program(programs, "rollout-worker"),
            arguments: std::iter::once("serve".to_owned())
                .chain(self.contact.arguments.iter().cloned())
                .chain(own)
                .collect(),
            environment: self.seats.environment(seat),
            folder: self.contact.working_directory.display().to_string(),
            input,
        }
    }

    /// Read at every start, so that a rotated token is taken up.
    fn token(&self) -> Result<String, CoordinatorError> {
        let Some(path) = &self.contact.token_file else { return Ok(String::new()) };
        let failed = |source| CoordinatorError::File { action: "read", path: path.clone(), source };
        std::fs::read_to_string(path).map_err(failed)
    }

    /// The line to a host, opened where there is none yet.
    fn link(&mut self, address: &str) -> &HostLink {
        let run = &self.run;
        let line = || Line {
            ssh: run.ssh.clone(),
            address: address.to_owned(),
            run_id: run.run_id.clone(),
            reach: run.reach,
        };
        self.links.entry(address.to_owned()).or_insert_with(|| HostLink::new(line()))
    }

    fn link_of(&self, member: MemberName) -> Option<&HostLink> {
        self.links.get(self.places.get(&member)?)
    }
}

impl Launcher for SshLauncher {
    fn describe(&self, member: MemberName) -> String {
        let Some(seat) = self.seat(member) else { return self.here.describe(member) };
        let launch = self.launch(member, &seat, String::new());
        let words: Vec<String> = launch.arguments.iter().map(|word| quoted(word)).collect();
        let variables: String =
            launch.environment.iter().map(|(name, value)| format!(" {name}={}", quoted(value))).collect();
        let card = seat.card.map_or("no card".to_owned(), |card| format!("card {card}"));
        let address = &seat.host.address;
        format!(
            "{} {}\n  on {address} by `{}`, {card}\n  environment:{variables}\n  log: {address}:{}/RUN_ID/HOST/{member}.log",
            launch.program,
            words.join(" "),
            self.run.ssh,
            script::FOLDER
        )
    }

    fn start(&mut self, member: MemberName) {
        if member.is_learner() {
            return self.here.start(member);
        }
        let token = match self.token() {
            Ok(token) => token,
            Err(error) => return self.here.not_started(member, None, with_causes(&error)),
        };
        let Some(seat) = self.seat(member) else {
            let how = format!("no slot of `[[hosts]]` is left for {member}; add hosts or slots");
            return self.here.not_started(member, Some(BAD_USAGE.into()), how);
        };
        let (address, launch) = (seat.host.address.clone(), self.launch(member, &seat, token));
        self.n_starts += 1;
        let life = format!("{member}.{:06}-{:06}", self.run.generation, self.n_starts);
        tracing::info!(member = member.to_string(), life, "asked for on {address}");
        self.link(&address).change(|book| book.start(member, life, launch, Instant::now()));
        self.places.insert(member, address);
    }

    /// Whether it still lives elsewhere is seen later: what may live is not started a second time.
    fn adopt(&mut self, member: MemberName, handle: Handle) -> bool {
        let RemoteStart { host, life, process } = match handle {
            Handle::Process(_) => return self.here.adopt(member, handle),
            Handle::Remote(start) => start,
        };
        if !is_life_of(&life, member) {
            return false;
        }
        self.link(&host).change(|book| book.adopt(member, life, process, Instant::now()));
        self.places.insert(member, host);
        true
    }

    fn signal(&mut self, member: MemberName, signal: Signal) {
        match self.link_of(member) {
            Some(link) => link.change(|book| book.signal(member, signal, Instant::now())),
            None => self.here.signal(member, signal),
        }
    }

    fn observe(&mut self) -> BTreeMap<MemberName, Observed> {
        let mut observed = self.here.observe();
        observed.extend(self.links.values().flat_map(HostLink::observe));
        observed
    }

    fn forget(&mut self, member: MemberName) {
        match self.link_of(member) {
            Some(link) => link.change(|book| book.forget(member)),
            None => self.here.forget(member),
        }
        self.places.remove(&member);
    }

    fn handles(&self) -> BTreeMap<MemberName, Handle> {
        let mut handles = self.here.handles();
        for link in self.links.values() {
            let starts = link.read(HostBook::starts).into_iter();
            handles.extend(starts.map(|(member, start)| (member, Handle::Remote(start))));
        }
        handles
    }

    fn is_own(&self, member: MemberName, applicant: &Applicant) -> bool {
        match self.link_of(member) {
            Some(link) => {
                let process = &applicant.process;
                link.read(|book| book.is_own(member, &process.host, process.pid))
            }
            None => self.here.is_own(member, applicant),
        }
    }
}

/// Whether a word names a start of a member, and nothing else: it becomes a word of a host's shell.
pub fn is_life_of(life: &str, member: MemberName) -> bool {
    let number = life.strip_prefix(&format!("{member}."));
    number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
    })
}

/// Those of these members that still live on their hosts; also those whose host does not tell. Waits for the hosts, all at
/// once.
pub fn living(ssh: &SshCommand, run_id: &str, members: &BTreeMap<String, Handle>) -> Vec<LivingElsewhere> {
    let mut hosts: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (member_id, handle) in members {
        let Handle::Remote(RemoteStart { host, life, process: _ }) = handle else { continue };
        if MemberName::parse(member_id).is_some_and(|member| is_life_of(life, member)) {
            hosts.entry(host).or_default().push((member_id, life));
        }
    }
    let line = |host: &str| Line {
        ssh: ssh.clone(),
        address: host.to_owned(),
        run_id: run_id.to_owned(),
        reach: Reach::default(),
    };
    std::thread::scope(|scope| {
        let ask = |(host, lives): (&str, Vec<_>)| {
            let line = line(host);
            scope.spawn(move || living_on(&line, &lives))
        };
        let asked: Vec<_> = hosts.into_iter().map(ask).collect();
        asked
            .into_iter()
            .flat_map(|told| told.join().expect("asking does not panic; else this is a bug"))
            .collect()
    })
}

/// Those of these lives, each with its member, that a host does not say have ended.
fn living_on(line: &Line, lives: &[(&str, &str)]) -> Vec<LivingElsewhere> {
    let asked = || {
        let (mut session, _) = line.open()?;
        let order: String = lives.iter().map(|(_, life)| script::look(life)).collect();
        session.ask(&order, line.reach.answer)
    };
    let (answers, silence) = match asked() {
        Ok(answers) => (answers, String::new()),
        Err(failure) => (Vec::new(), failure.reason().to_owned()),
    };
    let standing = |wanted: &str| {
        answers.iter().find_map(|answer| match answer {
            Answer::Life(life, standing) if life == wanted => Some(standing),
            _ => None,
        })
    };
    let living = lives.iter().filter_map(|(member_id, life)| {
        let process = match standing(life) {
            Some(Standing::Ended(_) | Standing::Absent) => return None,
            Some(Standing::Running(pid)) => Ok(*pid),
            Some(Standing::Beginning | Standing::Missing(_) | Standing::Refused(_)) => {
                Err("it just begins".to_owned())
            }
            None => Err(silence.clone()),
        };
        Some(LivingElsewhere { member_id: (*member_id).to_owned(), host: line.address.clone(), process })
    });
    living.collect()
}

#[cfg(test)]
mod tests;
