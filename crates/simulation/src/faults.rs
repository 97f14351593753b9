//! What goes wrong in a world, and how processes begin and end.

use crate::bug::Bug;
use crate::checkpoints;
use crate::disk::fence;
use crate::disk::{Condition, Late};
use crate::hub::Hub;
use crate::learner::{Learner, Nature};
use crate::messages::broken;
use crate::process::ProcessId;
use crate::scenario::{Fault, Host};
use crate::stage::CallId;
use crate::worker::Worker;
use crate::world::{Actor, Event, Process, World};
use coordinator::launch::{Handle, MemberName};
use std::time::Duration;

/// What an operation takes on a sound disk.
const DISK_PACE: Duration = Duration::from_micros(500);

/// What the rest takes, once a hang has lasted for longer than the deadline: the next heartbeat, and the next tick.
const FOUND_AFTER: Duration = Duration::from_secs(30);

impl World {
    pub(crate) fn apply(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(host) => self.kill(host),
            Fault::Terminate(host) => {
                self.on(host).into_iter().for_each(|process| self.terminate(process, None));
            }
            Fault::Pause(host, pause) => {
                let until = self.agenda.now() + pause;
                if let Some(process) = self.on(host).and_then(|process| self.processes.get_mut(&process)) {
                    (process.paused_until, process.was_paused) = (until, true);
                }
            }
            Fault::ClockJump(host, by) => self.jump(host, by),
            Fault::PowerCut => {
                if let Some(process) = self.on(Host::Learner) {
                    self.end(process, None);
                }
                self.disk.cut_power();
            }
            Fault::DiskDeath(moment, n_operations, death) => self.disk.die_after(moment, n_operations, death),
            Fault::DiskCondition(condition, pause) => {
                self.disk.condition = condition;
                self.agenda.after(pause, Event::DiskHeals);
            }
            Fault::SlowDisk(pace, pause) => {
                self.disk.pace = pace;
                self.agenda.after(pause, Event::DiskHeals);
            }
            Fault::Damage => self.damage(),
            Fault::Cut(from, to, pause) => self.network.cut(from, to, self.agenda.now() + pause),
            Fault::Break(one, other) => self.break_connections(one, other),
            Fault::Stick(host) => self.stick(host),
            Fault::Preempt(position, notice) => self.preempt(Host::Worker(position), notice),
            Fault::Scale(workers) => self.with_coordinator(|hub| hub.scale(workers)),
            Fault::Down => self.with_coordinator(|hub| hub.down()),
            Fault::Orphan { is_elsewhere } => self.orphan(is_elsewhere),
        }
    }

    fn stick(&mut self, host: Host) {
        let Some(process) = self.on(host) else { return };
        match self.processes.get_mut(&process).map(|process| &mut process.actor) {
            Some(Actor::Worker(worker)) => worker.stick(),
            Some(Actor::Learner(learner)) => return learner.stick(),
            Some(Actor::Hub(_)) | None => return,
        }
        let Host::Worker(position) = host else { return };
        self.note_hang(process, MemberName::Worker(position));
    }

    /// Has a worker that hangs while it draws, and whose tasks' times the coordinator knows, be found in time.
    fn note_hang(&mut self, process: ProcessId, member: MemberName) {
        let Some(Process { actor: Actor::Worker(worker), .. }) = self.processes.get(&process) else { return };
        let hub = self.coordinator.and_then(|coordinator| self.processes.get(&coordinator));
        if let (true, Some(Process { actor: Actor::Hub(hub), .. })) = (worker.hangs_in_drawing(), hub)
            && let Some(deadline) = hub.learnt_deadline(member)
            && let Some(coordinator) = self.coordinator
        {
            let until = self.agenda.now().max(self.scenario.calm) + deadline + FOUND_AFTER;
            self.agenda.at(until, Event::HangIsFound(process, coordinator));
        }
    }

    /// A worker whose hang the coordinator could have found is to be no more, unless it was forgotten with that coordinator.
    pub(crate) fn demand_found(&mut self, process: ProcessId, coordinator: ProcessId) {
        let lives = self.processes.contains_key(&process);
        self.laws.demand(!lives || self.coordinator != Some(coordinator), || {
            format!("process {} hangs, and the times of its tasks are known: it should be gone", process.0)
        });
    }

    fn preempt(&mut self, host: Host, notice: Duration) {
        let Some(process) = self.on(host) else { return };
        self.terminate(process, Some(notice));
        self.agenda.after(notice, Event::NoticeOver(process));
    }

    /// A worker that was told when it is killed is to be gone by then, unless it stood still meanwhile.
    pub(crate) fn kill_after_notice(&mut self, own: ProcessId) {
        if let Some(Process { actor: Actor::Worker(worker), was_paused, .. }) = self.processes.get(&own) {
            let (is_excused, standing) = (*was_paused, worker.standing());
            self.laws.demand(is_excused, || {
                format!("process {} was told when it is killed and is still there: {standing}", own.0)
            });
        }
        self.end(own, None);
    }

    /// The process that lives on a host.
    fn on(&self, host: Host) -> Option<ProcessId> {
        self.processes.iter().find(|(_, process)| process.host == host).map(|(process, _)| *process)
    }

    fn with_coordinator(&mut self, change: impl FnOnce(&mut Hub)) {
        if let Some(process) = self.coordinator {
            self.act(process, |actor, _| {
                if let Actor::Hub(hub) = actor {
                    change(hub);
                }
            });
        }
    }

    fn kill(&mut self, host: Host) {
        let Some(process) = self.on(host) else { return };
        if self.bug == Some(Bug::ReportsEndsEarly) && host != Host::Coordinator {
            self.launcher.stand().report_early(process.0);
            return self.agenda.after(Duration::from_secs(5), Event::LateEnd(process));
        }
        self.end(process, None);
    }

    pub(crate) fn terminate(&mut self, process: ProcessId, notice: Option<Duration>) {
        self.act(process, |actor, stage| match actor {
            Actor::Hub(hub) => hub.down(),
            Actor::Learner(learner) => learner.terminate(stage),
            Actor::Worker(worker) => worker.terminate(notice, stage),
        });
    }

    fn orphan(&mut self, is_elsewhere: bool) {
        self.kill(Host::Coordinator);
        self.record.members.remove(&MemberName::Learner(0).to_string());
        self.record.is_elsewhere = is_elsewhere;
        for process in self.processes.values_mut().filter(|process| process.host == Host::Learner) {
            if !std::mem::replace(&mut process.is_orphan, true) {
                self.laws.ends(MemberName::Learner(0));
                self.laws.saw("learner orphaned");
            }
        }
    }

    /// A learner is stopped before an operation on the disk. It does that one when it goes on, and is killed before the next.
    pub(crate) fn stall(&mut self, own: ProcessId) {
        let late = self.disk.take_late();
        self.laws.story.tell(|| format!("process {} is stopped before {late:?}", own.0));
        self.stalled.insert(own);
        let pause = self.dice.millis(1_000, 40_000);
        self.agenda.after(pause, Event::GoesOnLate(own, late));
    }

    pub(crate) fn go_on_late(&mut self, own: ProcessId, late: Option<Late>) {
        if !self.stalled.contains(&own) {
            return;
        }
        self.laws.story.tell(|| format!("process {} goes on with {late:?}", own.0));
        self.disk.at_work = Some(own);
        if fence::check(&self.disk).is_err() && late.is_some() {
            self.laws.saw("change too late");
        }
        late.into_iter().for_each(|late| self.disk.do_late(late));
        self.end(own, None);
    }

    fn jump(&mut self, host: Host, by: Duration) {
        let Some(own) = self.on(host) else { return };
        if let Some(process) = self.processes.get_mut(&own) {
            process.ahead += by;
        }
        self.agenda.hasten(by, |event| matches!(event, Event::Wake(process, _) if *process == own));
    }

    fn damage(&mut self) {
        let versions = checkpoints::versions(&self.disk);
        let [.., earlier, newest] = versions[..] else { return };
        // With less kept there may be no other by the time that it is needed.
        let has_spare = self.scenario.config.checkpoints.keep_last > 1 && !self.laws.has_damage();
        if has_spare && [earlier, newest].iter().all(|version| checkpoints::is_intact(&self.disk, *version)) {
            checkpoints::spoil(&mut self.disk, newest);
            self.laws.damages(newest);
            // Nobody looks before the next opening.
            if self.dice.happens(500) {
                self.kill(Host::Learner);
            }
        }
    }

    fn break_connections(&mut self, one: Host, other: Host) {
        let is_between = |from: Host, to: Host| (from, to) == (one, other) || (from, to) == (other, one);
        let found = self.calls.iter().filter(|(_, pending)| is_between(pending.from, pending.to));
        let found: Vec<CallId> = found.map(|(call, _)| *call).collect();
        for call in found {
            self.agenda.after(Duration::from_millis(1), Event::Answer(call, Err(broken())));
            self.agenda.after(Duration::from_millis(2), Event::HangUp(call));
        }
    }

    pub(crate) fn heal_disk(&mut self) {
        self.disk.condition = Condition::Sound;
        self.disk.pace = DISK_PACE;
    }

    pub(crate) fn calm_down(&mut self) {
        self.laws.story.tell(|| "from now on nothing goes wrong".to_owned());
        self.is_calm = true;
        self.laws.calm_down();
        self.network.calm_down();
        self.heal_disk();
        self.disk.live_on();
        for habits in &mut self.scenario.habits {
            (habits.failures, habits.strange_latents) = (0, 0);
        }
        for process in self.processes.values_mut() {
            process.paused_until = Duration::ZERO;
            if let Actor::Worker(worker) = &mut process.actor {
                worker.calm_down();
            }
        }
    }

    pub(crate) fn start_coordinator(&mut self) {
        let own = self.next_process();
        let (record, launcher, epoch) = (self.record.clone(), self.launcher.clone(), self.epoch());
        launcher.stand().forget_all();
        let (hub, acts) =
            self.beginning(own, |scenario, stage| Hub::start(scenario, launcher, &record, epoch, stage));
        self.record = hub.record.clone();
        self.coordinator = Some(own);
        let actor = Actor::Hub(Box::new(hub));
        self.enter(own, Process::new(actor, Host::Coordinator, None), acts);
    }

    pub(crate) fn begin(&mut self, member: MemberName, asker: ProcessId) {
        if self.coordinator != Some(asker) {
            return;
        }
        let own = self.next_process();
        self.launcher.stand().begun(member, own.0);
        // Written with the start; that a coordinator dies in between is a fault of its own.
        self.record.members.insert(member.to_string(), Handle::Process(own.0));
        if let Some(Process { actor: Actor::Hub(hub), .. }) = self.processes.get_mut(&asker) {
            hub.record = self.record.clone();
        }
        self.laws.story.tell(|| format!("{member} begins as process {}", own.0));
        self.laws.begins(member);
        let (actor, acts) = self.beginning(own, |scenario, stage| match member {
            MemberName::Learner(_) => {
                let (config, lists) = (scenario.config.clone(), scenario.lists.clone());
                let nature = Nature {
                    strange_latents: scenario.habits[0].strange_latents,
                    grace: scenario.grace,
                    limit: scenario.limit,
                    slowness: scenario.learner_slowness,
                };
                Actor::Learner(Box::new(Learner::start(config, lists, nature, stage)))
            }
            MemberName::Worker(position) => {
                let habits = scenario.habits[position as usize % scenario.habits.len()];
                Actor::Worker(Box::new(Worker::start(member, habits, scenario.grace, stage)))
            }
        });
        let host = match member {
            MemberName::Learner(_) => Host::Learner,
            MemberName::Worker(position) => Host::Worker(position),
        };
        self.enter(own, Process::new(actor, host, Some(member)), acts);
    }

    /// Ends a process: its connections break, and its launcher sees it.
    pub(crate) fn end(&mut self, own: ProcessId, code: Option<u8>) {
        let Some(process) = self.processes.remove(&own) else { return };
        self.stalled.remove(&own);
        if let Some(member) = process.member {
            self.laws.saw(match code {
                None => "member killed",
                Some(0) => "member left",
                Some(_) => "member gave up",
            });
            self.laws.story.tell(|| format!("{member}, process {}, ends with {code:?}", own.0));
            if !process.is_orphan {
                self.laws.ends(member);
            }
            self.launcher.stand().ended(own.0, code);
        }
        self.agenda.retain(|event| !matches!(event, Event::Wake(process, _) if *process == own));
        let now = self.agenda.now();
        let made: Vec<CallId> =
            self.calls.iter().filter(|(_, pending)| pending.caller == own).map(|(call, _)| *call).collect();
        for call in made {
            if let Some(pending) = self.calls.remove(&call)
                && !self.network.is_cut(pending.from, pending.to, now)
            {
                self.agenda.after(Duration::from_millis(2), Event::HangUp(call));
            }
        }
        let open = self.calls.iter().filter(|(_, pending)| pending.callee == Some(own));
        let open: Vec<CallId> = open.map(|(call, _)| *call).collect();
        open.into_iter().for_each(|call| self.send_back(call, Err(broken())));
        if self.coordinator == Some(own) {
            self.laws.saw("coordinator ended");
            self.coordinator = None;
            let pause = self.dice.millis(100, 20_000);
            self.agenda.after(pause, Event::StartCoordinator);
        }
    }
}

impl Process {
    pub(crate) fn new(actor: Actor, host: Host, member: Option<MemberName>) -> Self {
        let (ahead, paused_until) = (Duration::ZERO, Duration::ZERO);
        Self { actor, host, member, is_orphan: false, ahead, paused_until, was_paused: false }
    }
}
