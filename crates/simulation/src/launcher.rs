//! A launcher of simulated processes, which the coordinator's own supervisor uses.

use coordinator::launch::{ExitReport, Handle, Launcher, MemberName, Observed, Signal};
use coordinator::membership::Applicant;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the supervisor asked for and the world has yet to do, and what the launcher sees.
#[derive(Debug, Default)]
pub struct Stand {
    /// To be done, in order.
    pub orders: Vec<Order>,
    seen: BTreeMap<MemberName, Seen>,
    /// Processes that live, by the number that tells them apart.
    pub living: BTreeMap<u32, MemberName>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin a process.
    Start(MemberName),
    /// End it.
    Signal(u32, Signal),
}

#[derive(Clone, Debug)]
struct Seen {
    process: Option<u32>,
    observed: Observed,
}

impl Stand {
    /// A process was begun for a member that was asked for.
    pub fn begun(&mut self, member: MemberName, process: u32) {
        self.living.insert(process, member);
        self.seen.insert(member, Seen { process: Some(process), observed: Observed::Running });
    }

    /// Another coordinator begins: what the one before asked for and saw is gone with it.
    pub fn forget_all(&mut self) {
        self.orders.clear();
        self.seen.clear();
    }

    /// A process has ended; only who launched or adopted it cares.
    pub fn ended(&mut self, process: u32, code: Option<u8>) {
        let Some(member) = self.living.remove(&process) else { return };
        if let Some(seen) = self.seen.get_mut(&member).filter(|seen| seen.process == Some(process)) {
            let how = format!("ended with {code:?}");
            let (code, log) = (code.map(i32::from), "simulated.log".into());
            seen.observed = Observed::Exited(ExitReport { member, code, how, log, last_lines: Vec::new() });
        }
    }

    /// A deliberate bug: the end is reported before it comes.
    pub fn report_early(&mut self, process: u32) {
        if let Some(member) = self.living.get(&process).copied() {
            self.ended(process, None);
            self.living.insert(process, member);
        }
    }
}

/// The launcher of one coordinator.
#[derive(Clone, Debug, Default)]
pub struct SimulatedLauncher(Arc<Mutex<Stand>>);

impl SimulatedLauncher {
    /// What it was asked for and sees.
    pub fn stand(&self) -> MutexGuard<'_, Stand> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launcher for SimulatedLauncher {
    fn describe(&self, member: MemberName) -> String {
        member.to_string()
    }

    fn start(&mut self, member: MemberName) {
        let mut stand = self.stand();
        stand.orders.push(Order::Start(member));
        let observed = Observed::Pending("it was just asked for".to_owned());
        stand.seen.insert(member, Seen { process: None, observed });
    }

    fn adopt(&mut self, member: MemberName, handle: Handle) -> bool {
        let mut stand = self.stand();
        let Handle::Process(process) = handle else { return false };
        let lives = stand.living.get(&process) == Some(&member);
        if lives {
            stand.seen.insert(member, Seen { process: Some(process), observed: Observed::Running });
        }
        lives
    }

    fn signal(&mut self, member: MemberName, signal: Signal) {
        let mut stand = self.stand();
        let process = stand.seen.get(&member).and_then(|seen| seen.process);
        if let Some(process) = process.filter(|process| stand.living.contains_key(process)) {
            stand.orders.push(Order::Signal(process, signal));
        }
    }

    fn observe(&mut self) -> BTreeMap<MemberName, Observed> {
        self.stand().seen.iter().map(|(member, seen)| (*member, seen.observed.clone())).collect()
    }

    fn forget(&mut self, member: MemberName) {
        self.stand().seen.remove(&member);
    }

    fn handles(&self) -> BTreeMap<MemberName, Handle> {
        let stand = self.stand();
        let handles =
            stand.seen.iter().filter_map(|(member, seen)| Some((*member, Handle::Process(seen.process?))));
        handles.collect()
    }

    fn is_own(&self, member: MemberName, applicant: &Applicant) -> bool {
        let process = self.stand().seen.get(&member).and_then(|seen| seen.process);
        process == Some(applicant.process.pid)
    }
}
