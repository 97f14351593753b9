//! What is known of a host and of the workers there, and what it is to be asked next: decisions only, without processes and
//! without a clock.
//!
//! Invariants:
//! 1. Nothing is waited for longer than [`Reach`] says: what cannot be begun, or cannot be killed, has ended then.
//! 2. A life that runs ends because its host says so, or because it was to be killed and its host is gone. That nobody
//!    reaches the host by `ssh` ends nothing: it may work on, and be heard of as a member.

use super::script::{Answer, FOLDER, Launch, Standing, member_of};
use super::session::Failure;
use crate::launch::{ExitReport, MemberName, Observed, RemoteStart, Signal};
use service::exit_code;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a host is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Between two looks at its members, and between two tries to reach it.
    pub pause: Duration,
    /// For an answer, the connection included.
    pub answer: Duration,
    /// Until a worker that was asked for has not begun.
    pub start: Duration,
    /// Until a worker that is to be killed is taken for ended.
    pub kill: Duration,
}

impl Default for Reach {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { pause: seconds(1), answer: seconds(20), start: seconds(60), kill: seconds(10) }
    }
}

/// A host and the workers there.
#[derive(Debug)]
pub(super) struct HostBook {
    /// As `ssh` takes it.
    address: String,
    run_id: String,
    reach: Reach,
    contact: Contact,
    /// Since when nobody is let in; the beginning counts.
    unreached_since: Option<Instant>,
    /// As its members call it, once it has said so.
    name: Option<String>,
    lives: BTreeMap<MemberName, Life>,
}

/// Whether the host answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Contact {
    Untried,
    Up,
    Down(Failure),
}

/// From the start of a worker to its end.
#[derive(Debug)]
struct Life {
    id: String,
    /// What begins it; `None` once it has begun.
    launch: Option<Launch>,
    since: Instant,
    pid: Option<u32>,
    /// What it is to be sent, since when.
    signal: Option<(Signal, Instant)>,
    log: Vec<String>,
    report: Option<ExitReport>,
}

/// What a host is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// To begin a life.
    Start(String, Box<Launch>),
    /// To send it a signal.
    Signal(String, Signal),
    /// How they stand.
    Look(Vec<String>),
}

impl HostBook {
    /// A host that nothing is known of.
    pub(super) fn new(address: &str, run_id: &str, reach: Reach, now: Instant) -> Self {
        Self {
            address: address.to_owned(),
            run_id: run_id.to_owned(),
            reach,
            contact: Contact::Untried,
            unreached_since: Some(now),
            name: None,
            lives: BTreeMap::new(),
        }
    }

    /// Takes note of a worker that is to begin.
    pub(super) fn start(&mut self, member: MemberName, id: String, launch: Launch, now: Instant) {
        self.lives.insert(member, Life::new(id, Some(launch), now));
    }

    /// Takes note of a worker that an earlier coordinator started, with the host's name and its process id there if it knew
    /// them: so it is known as a member before its host answers.
    pub(super) fn adopt(
        &mut self,
        member: MemberName,
        id: String,
        process: Option<(String, u32)>,
        now: Instant,
    ) {
        let (name, pid) = process.unzip();
        self.name = self.name.take().or(name);
        self.lives.insert(member, Life { pid, ..Life::new(id, None, now) });
    }

    /// Takes note of a signal; one that is to be killed is not asked to end any more.
    pub(super) fn signal(&mut self, member: MemberName, signal: Signal, now: Instant) {
        let Some(life) = self.lives.get_mut(&member).filter(|life| life.report.is_none()) else { return };
        if life.signal.is_none_or(|(earlier, _)| earlier != Signal::Kill && earlier != signal) {
            life.signal = Some((signal, now));
        }
    }

    /// Drops what is known of a worker.
    pub(super) fn forget(&mut self, member: MemberName) {
        self.lives.remove(&member);
    }

    /// What the host is to be asked now; nothing where nobody is to be heard of.
    pub(super) fn orders(&self) -> Vec<Order> {
        let (mut orders, mut looked_at) = (Vec::new(), Vec::new());
        for life in self.lives.values().filter(|life| life.report.is_none()) {
            match (life.signal, &life.launch) {
                (Some((signal, _)), _) => orders.push(Order::Signal(life.id.clone(), signal)),
                (None, Some(launch)) => orders.push(Order::Start(life.id.clone(), Box::new(launch.clone()))),
                (None, None) => looked_at.push(life.id.clone()),
            }
        }
        orders.extend((!looked_at.is_empty()).then_some(Order::Look(looked_at)));
        orders
    }

    /// Takes note that the host answers, under its own name.
    pub(super) fn reached(&mut self, name: String) {
        if let Contact::Down(failure) = &self.contact {
            tracing::info!("{} is reached again, after: {}", self.address, failure.reason());
        }
        (self.contact, self.unreached_since, self.name) = (Contact::Up, None, Some(name));
    }

    /// Takes note of what it answered to an order.
    pub(super) fn answered(&mut self, order: &Order, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Log(id, line) => {
                    self.life(&id).into_iter().for_each(|life| life.log.push(service::visible(&line)));
                }
                Answer::Life(id, standing) => self.stands(&id, standing),
                Answer::Host(_) | Answer::Done(_) => {}
            }
        }
        if let Order::Signal(id, sent) = order {
            let life = self.life(id).filter(|life| life.signal.is_some_and(|(signal, _)| signal == *sent));
            // Whoever is asked to end is asked once; who is killed, until it has ended.
            life.filter(|_| *sent == Signal::Terminate).into_iter().for_each(|life| life.signal = None);
        }
    }

    fn life(&mut self, id: &str) -> Option<&mut Life> {
        self.lives.values_mut().find(|life| life.id == id && life.report.is_none())
    }

    fn stands(&mut self, id: &str, standing: Standing) {
        let address = self.address.clone();
        let Some(life) = self.life(id) else { return };
        match standing {
            Standing::Beginning => life.launch = None,
            Standing::Running(pid) => {
                if life.pid.replace(pid) != Some(pid) {
                    tracing::info!(member = member_of(id), pid, "runs on {address}");
                }
                life.launch = None;
            }
            Standing::Ended(status) => {
                let (code, how) = manner_of(status, &address);
                self.end(id, code, how);
            }
            Standing::Absent => self.end(id, None, format!("ended, and its files on {address} are gone")),
            Standing::Missing(program) => {
                self.end(id, Some(exit_code::BAD_USAGE.into()), missing(&program, &address));
            }
            Standing::Refused(problem) => {
                let problem = service::shown(&problem, 300);
                self.end(id, None, format!("cannot start on {address}: {problem}"));
            }
        }
    }

    /// Takes note that the host does not answer.
    pub(super) fn failed(&mut self, failure: Failure, now: Instant) {
        if self.contact != Contact::Down(failure.clone()) {
            tracing::warn!("{} is not reached by ssh: {}", self.address, failure.reason());
        }
        self.contact = Contact::Down(failure);
        self.unreached_since.get_or_insert(now);
        self.expire(now);
    }

    /// Ends what has been waited for long enough while the host is not reached.
    pub(super) fn expire(&mut self, now: Instant) {
        let Some(unreached_since) = self.unreached_since else { return };
        let (reach, address) = (self.reach, self.address.clone());
        let reason = match &self.contact {
            Contact::Down(failure) => failure.reason().to_owned(),
            Contact::Untried | Contact::Up => "it does not answer".to_owned(),
        };
        let is_refused = matches!(self.contact, Contact::Down(Failure::Refused(_)));
        let waited = |since: Instant| now.saturating_duration_since(since.max(unreached_since));
        let mut ends = Vec::new();
        for life in self.lives.values().filter(|life| life.report.is_none()) {
            let is_to_begin = life.launch.is_some();
            let is_to_be_killed =
                |wish: (Signal, Instant)| wish.0 == Signal::Kill && waited(wish.1) >= reach.kill;
            let (code, how) = if is_to_begin && is_refused {
                (Some(exit_code::BAD_USAGE.into()), refused(&address, &reason))
            } else if life.signal.is_some_and(is_to_be_killed) {
                (None, not_killed(&address, &reason))
            } else if is_to_begin && waited(life.since) >= reach.start {
                (None, not_reached(&address, &reason, reach.start))
            } else {
                continue;
            };
            ends.push((life.id.clone(), code, how));
        }
        ends.into_iter().for_each(|(id, code, how)| self.end(&id, code, how));
    }

    fn end(&mut self, id: &str, code: Option<i32>, how: String) {
        let log = self.log_of(id);
        let Some((&member, life)) = self.lives.iter_mut().find(|(_, life)| life.id == id) else { return };
        tracing::info!(member = member.to_string(), "{how}");
        let last_lines = std::mem::take(&mut life.log);
        life.report = Some(ExitReport { member, code, how, log, last_lines });
    }

    /// As `scp` takes it.
    fn log_of(&self, id: &str) -> PathBuf {
        let host = self.name.as_deref().unwrap_or("HOST");
        format!("{}:{FOLDER}/{}/{host}/{}.log", self.address, self.run_id, member_of(id)).into()
    }

    /// What is seen of the workers.
    pub(super) fn observed(&self) -> impl Iterator<Item = (MemberName, Observed)> {
        let observed = |life: &Life| match (&life.report, &life.launch) {
            (Some(report), _) => Observed::Exited(report.clone()),
            (None, Some(_)) => Observed::Pending(self.pending()),
            (None, None) => Observed::Running,
        };
        self.lives.iter().map(move |(&member, life)| (member, observed(life)))
    }

    fn pending(&self) -> String {
        match &self.contact {
            Contact::Untried => format!("{} is being reached", self.address),
            Contact::Up => format!("{} is starting it", self.address),
            Contact::Down(failure) => format!("{} is not reached by ssh: {}", self.address, failure.reason()),
        }
    }

    /// By what the next coordinator finds the workers that are not forgotten.
    pub(super) fn starts(&self) -> Vec<(MemberName, RemoteStart)> {
        let start = |life: &Life| RemoteStart {
            host: self.address.clone(),
            life: life.id.clone(),
            process: self.name.clone().zip(life.pid),
        };
        self.lives.iter().map(|(&member, life)| (member, start(life))).collect()
    }

    /// Whether a process of a host is what is known as that worker.
    pub(super) fn is_own(&self, member: MemberName, host: &str, pid: u32) -> bool {
        let life = self.lives.get(&member);
        life.is_some_and(|life| life.pid == Some(pid)) && self.name.as_deref() == Some(host)
    }
}

impl Life {
    fn new(id: String, launch: Option<Launch>, since: Instant) -> Self {
        Self { id, launch, since, pid: None, signal: None, log: Vec::new(), report: None }
    }
}

fn missing(program: &str, address: &str) -> String {
    if program == "setsid" {
        return format!("cannot start: {address} has no `setsid`; install util-linux there");
    }
    format!(
        "cannot start: {} is no program on {address}; install the programs there, or say by `programs` of this host in \
         `[[hosts]]` where they are",
        service::shown(program, 300)
    )
}

fn refused(address: &str, reason: &str) -> String {
    format!(
        "cannot start: {address} does not let the coordinator in: {reason}; `ssh {address} true` must work where the coordinator \
         runs without a question, by a key that `authorized_keys` there lists"
    )
}

fn not_killed(address: &str, reason: &str) -> String {
    format!(
        "is given up: {address} has not been reached to end it: {reason}; if it still lives there, it leaves by itself once it \
         does not reach the coordinator for `network.grace`"
    )
}

fn not_reached(address: &str, reason: &str, waited: Duration) -> String {
    format!(
        "cannot start: {address} was not reached for {waited:?}: {reason}; is it up, and does `ssh {address} true` work where the \
         coordinator runs"
    )
}

/// The exit code behind what a shell tells, and the manner of the end in words.
fn manner_of(status: Option<i32>, address: &str) -> (Option<i32>, String) {
    match status {
        Some(status) if status > 128 => (None, format!("ended on {address} by signal {}", status - 128)),
        Some(status) => (Some(status), format!("ended on {address} with exit status {status}")),
        None => (None, format!("ended on {address}, killed or with the host")),
    }
}

#[cfg(test)]
mod tests;
