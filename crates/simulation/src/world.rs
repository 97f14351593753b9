//! A world of simulated processes: events in the order of time, messages on a network, one disk.

use crate::agenda::Agenda;
use crate::bug::Bug;
use crate::dice::Dice;
use crate::disk::{Death, Disk, Late};
use crate::hub::{Hub, Record, Stop};
use crate::launcher::{Order, SimulatedLauncher};
use crate::laws::Laws;
use crate::learner::Learner;
use crate::network::Network;
use crate::process::ProcessId;
use crate::scenario::{Fault, Host, Scenario};
use crate::stage::{Act, Answer, CallId, Callee, Request, Stage, Wake};
use crate::story::Story;
use crate::worker::Worker;
use coordinator::launch::{MemberName, Signal};
use protocol::HoldLimit;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use tonic::Status;

/// Longest time without progress once nothing goes wrong any more. The longest chain of the product's own patience: a push
/// that hangs for five minutes, a process that is not heard of for one, workers that have two to leave, and what is trained
/// again.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(600);
/// Runs that may fail by what went wrong before.
const MOST_FAILURES_IN_CALM: u32 = 2;
/// Events of one world; the longest honest one has a tenth.
const MOST_EVENTS: u64 = 3_000_000;

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process is woken.
    Wake(ProcessId, Wake),
    /// A request arrives.
    Request(CallId, Callee, Box<Request>),
    /// An answer arrives.
    Answer(CallId, Answer),
    /// A caller's hanging up is noticed.
    HangUp(CallId),
    /// Something goes wrong, by its number.
    Fault(usize),
    /// The disk is sound and fast again.
    DiskHeals,
    /// Nothing goes wrong any more.
    Calm,
    /// An operator starts the coordinator.
    StartCoordinator,
    /// A process begins that the launcher of that coordinator asked for.
    Begin(MemberName, ProcessId),
    /// A process ends that was reported to have.
    LateEnd(ProcessId),
    /// A process that was stopped before an operation on the disk goes on with it.
    GoesOnLate(ProcessId, Option<Late>),
    /// The notice that a process was given is over.
    NoticeOver(ProcessId),
    /// By then a process that hangs is to be gone, if that coordinator still lives.
    HangIsFound(ProcessId, ProcessId),
}

/// What a process is.
#[derive(Debug)]
pub(crate) enum Actor {
    /// The coordinator.
    Hub(Box<Hub>),
    /// The learner.
    Learner(Box<Learner>),
    /// A worker.
    Worker(Box<Worker>),
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) actor: Actor,
    pub(crate) host: Host,
    pub(crate) member: Option<MemberName>,
    /// Whether no coordinator knows of it.
    pub(crate) is_orphan: bool,
    /// How far its clock is ahead.
    pub(crate) ahead: Duration,
    pub(crate) paused_until: Duration,
    /// Whether it ever stood still.
    pub(crate) was_paused: bool,
}

/// A call that has no answer yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) caller: ProcessId,
    pub(crate) from: Host,
    pub(crate) to: Host,
    /// Where it has arrived.
    pub(crate) callee: Option<ProcessId>,
}

/// The world of one seed.
#[derive(Debug)]
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) agenda: Agenda<Event>,
    pub(crate) network: Network,
    pub(crate) disk: Disk,
    pub(crate) laws: Laws,
    pub(crate) dice: Dice,
    pub(crate) processes: BTreeMap<ProcessId, Process>,
    pub(crate) calls: BTreeMap<CallId, Pending>,
    pub(crate) coordinator: Option<ProcessId>,
    pub(crate) launcher: SimulatedLauncher,
    pub(crate) record: Record,
    pub(crate) bug: Option<Bug>,
    pub(crate) is_calm: bool,
    /// Processes that are stopped before an operation on the disk.
    pub(crate) stalled: BTreeSet<ProcessId>,
    epoch: Instant,
    n_processes: u32,
    n_calls: u64,
    n_events: u64,
    failures: Vec<String>,
    n_failures_in_calm: u32,
    is_over: bool,
}

/// What a world came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What should not have been.
    pub violation: Option<String>,
    /// What happened, where it was asked for.
    pub story: Vec<String>,
    /// Events.
    pub events: u64,
    /// How long it took by the world's time.
    pub took: Duration,
    /// Why runs failed, and had to be resumed by an operator.
    pub failures: Vec<String>,
    /// What was seen how often.
    pub seen: BTreeMap<&'static str, u32>,
    /// Longest time without progress after the last fault.
    pub longest_standstill: Duration,
    /// The most that waited for training, where there is not room for everything.
    pub most_held: HoldLimit,
}

/// Runs the world of a seed to its end.
pub fn run(seed: u64, bug: Option<Bug>, is_told: bool) -> Outcome {
    let mut dice = Dice::new(seed);
    let scenario = Scenario::of(&mut dice.apart());
    let mut world = World::new(scenario, dice, (bug, is_told));
    // What a machine takes for a bug of its caller is one.
    let panicked = catch_unwind(AssertUnwindSafe(|| world.go_on())).err();
    if let Some(panic) = panicked {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        world.laws.demand(false, || format!("panic: {}", said.unwrap_or_default()));
    }
    Outcome {
        violation: world.laws.violation().map(str::to_owned),
        seen: world.laws.seen().clone(),
        longest_standstill: world.laws.longest_standstill(),
        most_held: world.laws.most_held(),
        story: world.laws.story.lines().to_vec(),
        events: world.n_events,
        took: world.agenda.now(),
        failures: world.failures,
    }
}

impl World {
    fn new(scenario: Scenario, mut dice: Dice, (bug, is_told): (Option<Bug>, bool)) -> Self {
        let laws = Laws::new(scenario.config.clone(), scenario.lists.clone(), Story::new(is_told));
        let mut agenda = Agenda::default();
        for (number, (at, _)) in scenario.faults.iter().enumerate() {
            agenda.at(*at, Event::Fault(number));
        }
        agenda.at(scenario.calm, Event::Calm);
        agenda.at(Duration::ZERO, Event::StartCoordinator);
        let mut disk = Disk::new(dice.apart());
        disk.pace = Duration::from_micros(500);
        let network = Network::new(scenario.weather, dice.apart());
        Self {
            scenario,
            agenda,
            network,
            disk,
            laws,
            dice,
            processes: BTreeMap::new(),
            calls: BTreeMap::new(),
            coordinator: None,
            launcher: SimulatedLauncher::default(),
            record: Record::default(),
            bug,
            is_calm: false,
            stalled: BTreeSet::new(),
            epoch: Instant::now(),
            n_processes: 0,
            n_calls: 0,
            n_events: 0,
            failures: Vec::new(),
            n_failures_in_calm: 0,
            is_over: false,
        }
    }

    fn go_on(&mut self) {
        while !self.is_over && self.laws.violation().is_none() {
            let Some(event) = self.agenda.take() else { break };
            self.n_events += 1;
            self.laws.story.now = self.agenda.now();
            self.happen(event);
            self.check_standstill();
        }
        if self.laws.violation().is_none() {
            self.laws.demand(self.is_over, || "nothing more happens, and the run is not over".to_owned());
        }
    }

    fn check_standstill(&mut self) {
        let (now, events) = (self.agenda.now(), self.n_events);
        let since = self.laws.progressed().max(self.scenario.calm);
        let stands = self.is_calm && now.saturating_sub(since) > LONGEST_STANDSTILL;
        if stands || events > MOST_EVENTS {
            let processes: Vec<String> = self.processes.values().map(standing).collect();
            self.laws.demand(false, || {
                format!("nothing got on for {LONGEST_STANDSTILL:?} without a fault: {}", processes.join("; "))
            });
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(process, Wake::Deadline(call)) => {
                if self.defer(process, || Event::Wake(process, Wake::Deadline(call))) {
                    return;
                }
                self.arrive(call, Err(Status::deadline_exceeded("no answer in time")));
            }
            Event::Wake(process, wake) => {
                if self.defer(process, || Event::Wake(process, wake.clone())) {
                    return;
                }
                self.act(process, |actor, stage| match actor {
                    Actor::Hub(hub) => hub.wake(wake, stage),
                    Actor::Learner(learner) => learner.wake(wake, stage),
                    Actor::Worker(worker) => worker.wake(wake, stage),
                });
            }
            Event::Request(call, callee, request) => self.request_arrives(call, callee, request),
            Event::Answer(call, answer) => {
                let caller = self.calls.get(&call).map(|pending| pending.caller);
                if caller.is_some_and(|caller| self.defer(caller, || Event::Answer(call, answer.clone()))) {
                    return;
                }
                self.arrive(call, answer);
            }
            Event::HangUp(call) => self.hang_up(call),
            Event::Fault(number) => self.strike(self.scenario.faults[number].1),
            Event::DiskHeals => self.heal_disk(),
            Event::Calm => self.calm_down(),
            Event::StartCoordinator => self.start_coordinator(),
            Event::Begin(member, asker) => self.begin(member, asker),
            Event::LateEnd(process) => self.end(process, None),
            Event::GoesOnLate(process, late) => self.go_on_late(process, late),
            Event::NoticeOver(process) => self.kill_after_notice(process),
            Event::HangIsFound(process, coordinator) => self.demand_found(process, coordinator),
        }
    }

    fn hang_up(&mut self, call: CallId) {
        if let Some(Process { actor: Actor::Hub(hub), .. }) =
            self.coordinator.and_then(|process| self.processes.get_mut(&process))
        {
            hub.hung_up(call);
        }
    }

    /// Whether an event has to wait because its process stands still.
    pub(crate) fn defer(&mut self, process: ProcessId, event: impl FnOnce() -> Event) -> bool {
        let paused = self.processes.get(&process).map_or(Duration::ZERO, |process| process.paused_until);
        let is_deferred = paused > self.agenda.now();
        if is_deferred {
            self.agenda.at(paused, event());
        }
        is_deferred
    }

    fn arrive(&mut self, call: CallId, answer: Answer) {
        if let Some(Pending { caller, .. }) = self.calls.remove(&call) {
            self.act(caller, |actor, stage| match actor {
                Actor::Hub(_) => {}
                Actor::Learner(learner) => learner.answered(call, &answer, stage),
                Actor::Worker(worker) => worker.answered(call, &answer, stage),
            });
        }
    }

    /// Lets a process handle an event, and does what it asks for.
    pub(crate) fn act(&mut self, own: ProcessId, handle: impl FnOnce(&mut Actor, &mut Stage)) {
        if self.stalled.contains(&own) {
            return;
        }
        let Some(mut process) = self.processes.remove(&own) else { return };
        self.laws.own = own;
        self.disk.at_work = matches!(process.actor, Actor::Learner(_)).then_some(own);
        let since_epoch = self.agenda.now() + process.ahead;
        let mut stage = Stage {
            own,
            now: self.epoch + since_epoch,
            dice: &mut self.dice,
            disk: &mut self.disk,
            laws: &mut self.laws,
            bug: self.bug,
            n_calls: &mut self.n_calls,
            acts: Vec::new(),
        };
        if let Actor::Hub(hub) = &process.actor {
            hub.set_clock(since_epoch);
        }
        handle(&mut process.actor, &mut stage);
        let acts = stage.acts;
        self.check_bounds(&process.actor);
        let host = process.host;
        self.processes.insert(own, process);
        let forbidden = self.disk.take_forbidden();
        self.laws.keeps_to_its_right(forbidden);
        if let Some(death) = self.disk.take_death() {
            if death == Death::Stall {
                return self.stall(own);
            }
            self.laws.story.tell(|| format!("the learner dies at the disk: {death:?}"));
            self.end(own, None);
            if death == Death::PowerCut {
                self.disk.cut_power();
            }
            return;
        }
        acts.into_iter().for_each(|act| self.carry_out(own, host, act));
        self.follow_coordinator(own);
    }

    fn check_bounds(&mut self, actor: &Actor) {
        let is_bounded = match actor {
            Actor::Hub(hub) => hub.is_bounded(),
            Actor::Learner(learner) => learner.is_bounded(),
            Actor::Worker(worker) => worker.is_bounded(),
        };
        self.laws
            .demand(is_bounded, || format!("what waits is more than there may be: {}", standing_of(actor)));
    }

    /// Does what the launcher was asked for, and sees whether the coordinator has ended.
    fn follow_coordinator(&mut self, own: ProcessId) {
        if self.coordinator != Some(own) {
            return;
        }
        let Some(Process { actor: Actor::Hub(hub), .. }) = self.processes.get_mut(&own) else { return };
        self.record = hub.record.clone();
        hub.settle();
        let stop = hub.outcome().cloned();
        let orders = std::mem::take(&mut self.launcher.stand().orders);
        for order in orders {
            match order {
                Order::Start(member) => {
                    let pause = self.dice.millis(10, 400);
                    self.agenda.after(pause, Event::Begin(member, own));
                }
                Order::Signal(process, Signal::Kill) => self.end(ProcessId(process), None),
                Order::Signal(process, Signal::Terminate) => self.terminate(ProcessId(process), None),
            }
        }
        if let Some(stop) = stop {
            self.coordinator_stopped(own, stop);
        }
    }

    fn coordinator_stopped(&mut self, own: ProcessId, stop: Stop) {
        self.laws.story.tell(|| format!("the coordinator has ended: {stop:?}"));
        self.end(own, None);
        match stop {
            Stop::Done => {
                self.is_over = true;
                let is_done = self.laws.is_done();
                self.laws.demand(is_done, || "the run is done before the learner is".to_owned());
                // What a user was told is there must be there after a power cut, too.
                self.disk.cut_power();
                self.laws.check_outcome(&self.disk);
            }
            Stop::Drained => {}
            Stop::Failed(reason) => {
                self.n_failures_in_calm += u32::from(self.is_calm);
                let failures = self.n_failures_in_calm;
                self.laws.demand(failures <= MOST_FAILURES_IN_CALM, || {
                    format!("the run failed {failures} times without a fault, last: {reason}")
                });
                self.failures.push(reason);
            }
        }
    }

    pub(crate) fn next_process(&mut self) -> ProcessId {
        self.n_processes += 1;
        ProcessId(self.n_processes)
    }

    /// A stage for a process that has yet to begin.
    pub(crate) fn beginning<T>(
        &mut self,
        own: ProcessId,
        begin: impl FnOnce(&Scenario, &mut Stage) -> T,
    ) -> (T, Vec<Act>) {
        let mut stage = Stage {
            own,
            now: self.epoch + self.agenda.now(),
            dice: &mut self.dice,
            disk: &mut self.disk,
            laws: &mut self.laws,
            bug: self.bug,
            n_calls: &mut self.n_calls,
            acts: Vec::new(),
        };
        let actor = begin(&self.scenario, &mut stage);
        (actor, stage.acts)
    }

    /// Puts a process that begins into the world.
    pub(crate) fn enter(&mut self, own: ProcessId, process: Process, acts: Vec<Act>) {
        let host = process.host;
        self.processes.insert(own, process);
        acts.into_iter().for_each(|act| self.carry_out(own, host, act));
    }

    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Something goes wrong, or is wanted.
    fn strike(&mut self, fault: Fault) {
        self.laws.story.tell(|| format!("fault: {fault:?}"));
        self.apply(fault);
    }
}

fn standing(process: &Process) -> String {
    standing_of(&process.actor)
}

fn standing_of(actor: &Actor) -> String {
    match actor {
        Actor::Hub(hub) => hub.standing(),
        Actor::Learner(learner) => format!("learner: {}", learner.standing()),
        Actor::Worker(worker) => format!("worker: {}", worker.standing()),
    }
}
