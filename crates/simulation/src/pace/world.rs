//! The events of a paced run, one after the other, by a clock of their own.

use super::learner::Learner;
use super::worker::{Doing, Worker};
use super::{Moment, Pace, Paced, Shares};
use crate::agenda::Agenda;
use crate::dice::digest;
use config::{PromptLists, PromptRecord, PromptSplit, RunConfig};
use coordinator::catalog::Catalog;
use coordinator::membership::{Members, Patience, Refusal};
use coordinator::run_state::RunState;
use coordinator::server::{Asked, ControlPlane};
use proto::{
    FinishTaskRequest, JoinRequest, NextTaskRequest, ReportRequest, Role, SeekWeightsRequest, order,
};
use protocol::{
    Delivered, ErrandAction, ErrandEvent, FAN_OUT, Hand, HoldLimit, NONCE_BYTES, TaskEnd, TaskName,
    WeightsName, process,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Of a message and its answer.
const LATENCY: Duration = Duration::from_millis(1);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between looks for late tasks; as in the product a tenth of the lease.
const LOOK: Duration = Duration::from_millis(500);
/// As the learner's process reports: changes closer together share a report.
const REPORT_PAUSE: Duration = Duration::from_millis(20);
const MOMENT: Duration = Duration::from_secs(1);
/// Nobody is lost here, and nobody hangs.
const FOR_EVER: Duration = Duration::from_secs(1_000_000_000);
/// A worker waits until there is a task.
const LONGEST_WAIT: f64 = 60.0;
const N_PROMPTS: usize = 4;

type Action = ErrandAction<(), (), ()>;
type Event = ErrandEvent<(), (), ()>;

#[derive(Debug)]
enum Happening {
    Look,
    Heartbeat(usize),
    Report,
    Moment,
    /// The learner has done what it began.
    Trained,
    /// The sampling hand of a worker has come to something, unless it has dropped that.
    Sampled(usize, u64, Sampled),
    Scored(usize),
    /// An outcome is at the learner.
    Pushed(usize, TaskName),
    Told(usize, Hand),
}

#[derive(Debug)]
enum Sampled {
    Granted(Box<proto::Task>),
    Fetched(WeightsName),
    Drawn,
}

pub(super) struct World<'a> {
    pace: &'a Pace,
    agenda: Agenda<Happening>,
    epoch: Instant,
    /// Microseconds since the epoch, for the coordinator.
    clock: Arc<AtomicU64>,
    plane: ControlPlane,
    learner: Learner,
    learner_caller: Option<proto::Caller>,
    workers: Vec<Worker>,
    /// When the learner's link has taken what is on its way.
    link_free: Duration,
    is_report_due: bool,
    /// Seconds of all workers, and of the learner, between the end of the first iteration and that of the last but one.
    spent: Shares,
    learner_busy: f64,
    moments: Vec<Moment>,
}

impl<'a> World<'a> {
    pub(super) fn new(pace: &'a Pace, n_workers: u32, limit: HoldLimit) -> Result<Self, String> {
        let (config, epoch, clock) = (config(pace)?, Instant::now(), Arc::new(AtomicU64::new(0)));
        let told = clock.clone();
        let tell = move || epoch + Duration::from_micros(told.load(Ordering::Relaxed));
        let patience = Patience {
            lease: FOR_EVER,
            task_deadline: FOR_EVER,
            opening_deadline: FOR_EVER,
            drain: FOR_EVER,
        };
        let members = Members::new("run".to_owned(), 1, patience);
        let catalog = Catalog::new(config.clone(), prompts(), Vec::new());
        let plane = ControlPlane::with_clock(
            RunState::new(members, catalog, "run".to_owned(), epoch),
            Arc::new(tell),
        );
        let join = |role: Role, member_id: String| {
            let process = Some(process([1; NONCE_BYTES], "here", 1));
            let request = JoinRequest { role: role.into(), member_id, process, ..JoinRequest::default() };
            plane.admit(&request).map(|reply| reply.identity).map_err(in_words)
        };
        let learner_caller = join(Role::Learner, "learner".to_owned())?;
        let worker = |number| join(Role::RolloutWorker, format!("worker-{number}")).map(Worker::new);
        let workers = (0..n_workers).map(worker).collect::<Result<Vec<_>, String>>()?;
        Ok(Self {
            pace,
            agenda: Agenda::default(),
            epoch,
            clock,
            plane,
            learner: Learner::new(pace, (config, N_PROMPTS), limit),
            learner_caller,
            workers,
            link_free: Duration::ZERO,
            is_report_due: false,
            spent: Shares::default(),
            learner_busy: 0.0,
            moments: Vec::new(),
        })
    }

    pub(super) fn run(mut self) -> Result<Paced, String> {
        self.report_soon();
        for happening in [Happening::Look, Happening::Moment] {
            self.agenda.after(Duration::ZERO, happening);
        }
        for position in 0..self.workers.len() {
            let actions = self.workers[position].errands.begin();
            self.perform(position, actions)?;
            // Not all in the same moment.
            let pause = HEARTBEAT.mul_f64((position + 1) as f64 / self.workers.len() as f64);
            self.agenda.after(pause, Happening::Heartbeat(position));
        }
        while !self.learner.is_done() {
            let before = self.agenda.now();
            let happening = self.agenda.take().ok_or("nothing happens any more; this is a bug")?;
            self.account(self.agenda.now() - before);
            self.clock.store(self.agenda.now().as_micros() as u64, Ordering::Relaxed);
            self.happen(happening)?;
            self.settle()?;
        }
        Ok(self.paced())
    }

    fn paced(self) -> Paced {
        let n_measured = self.pace.iterations as usize - 2;
        let ends = &self.learner.ends;
        let (first, last) = (ends.first().copied(), ends.get(n_measured).copied());
        let measured = last.zip(first).map_or(0.0, |(last, first)| (last - first).as_secs_f64());
        let of_workers = 1.0 / (measured * self.workers.len() as f64);
        let Shares { drawing, fetching, delivering, learner, others } = self.spent;
        let [drawing, fetching, delivering, learner, others] =
            [drawing, fetching, delivering, learner, others].map(|seconds| seconds * of_workers);
        Paced {
            seconds_per_iteration: measured / n_measured as f64,
            shares: Shares { drawing, fetching, delivering, learner, others },
            learner_busy: self.learner_busy / measured,
            most_held: self.learner.most_held,
            moments: self.moments,
        }
    }

    /// Takes down what everybody did for a while.
    fn account(&mut self, passed: Duration) {
        let is_measured = (1..self.pace.iterations as usize - 1).contains(&self.learner.ends.len());
        if !is_measured || passed.is_zero() {
            return;
        }
        let seconds = passed.as_secs_f64();
        for worker in &self.workers {
            *match worker.doing {
                Doing::Asking if self.learner.keeps_waiting() => &mut self.spent.learner,
                Doing::Asking => &mut self.spent.others,
                Doing::Fetching => &mut self.spent.fetching,
                Doing::Drawing => &mut self.spent.drawing,
                Doing::Delivering => &mut self.spent.delivering,
            } += seconds;
        }
        self.learner_busy += if self.learner.is_busy() { seconds } else { 0.0 };
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Look => {
                self.plane.update(RunState::expire);
                self.agenda.after(LOOK, Happening::Look);
            }
            Happening::Heartbeat(position) => {
                self.heartbeat(position)?;
                self.agenda.after(HEARTBEAT, Happening::Heartbeat(position));
            }
            Happening::Report => {
                self.is_report_due = false;
                let (caller, wanted) = (self.learner_caller.clone(), self.learner.wanted());
                let request = ReportRequest { caller, wanted, ..ReportRequest::default() };
                self.plane.update(|state, now| state.report(request, now)).map_err(in_words)?;
            }
            Happening::Moment => {
                self.moments.push(self.moment());
                self.agenda.after(MOMENT, Happening::Moment);
            }
            Happening::Trained => {
                if let Some(takes) = self.learner.done(self.agenda.now()) {
                    self.agenda.after(takes, Happening::Trained);
                }
                self.report_soon();
            }
            Happening::Sampled(position, number, sampled) => {
                if self.workers[position].number == number {
                    self.sampled(position, sampled)?;
                }
            }
            Happening::Scored(position) => self.feed(position, Event::Scored(Ok(())))?,
            Happening::Pushed(position, task) => {
                let delivered: Delivered = self.learner.hold(task);
                self.report_soon();
                self.feed(position, Event::Pushed(Ok(delivered)))?;
            }
            Happening::Told(position, hand) => self.feed(position, Event::Told(hand))?,
        }
        Ok(())
    }

    fn moment(&self) -> Moment {
        let does = |doing| self.workers.iter().filter(|worker| worker.doing == doing).count() as u32;
        let n_waiting = if self.learner.keeps_waiting() { does(Doing::Asking) } else { 0 };
        let holds = self.learner.holds();
        Moment { at: self.agenda.now(), holds, n_drawing: does(Doing::Drawing), n_waiting }
    }

    fn sampled(&mut self, position: usize, sampled: Sampled) -> Result<(), String> {
        let event = match sampled {
            Sampled::Granted(task) => Event::Granted(Some(*task)),
            Sampled::Fetched(name) => {
                if !self.workers[position].holds(name) {
                    self.workers[position].keep(name);
                    self.heartbeat(position)?;
                }
                Event::Fetched(Ok(()))
            }
            Sampled::Drawn => Event::Drawn(Ok(())),
        };
        self.feed(position, event)
    }

    fn heartbeat(&mut self, position: usize) -> Result<(), String> {
        let request = self.workers[position].heartbeat(None);
        let reply = self.plane.update(|state, now| state.heartbeat(request, now)).map_err(in_words)?;
        for order in reply.orders {
            let Some(order::Order::GiveBack(given_back)) = order.order else { continue };
            for task in given_back.tasks.iter().flat_map(TaskName::try_from) {
                self.feed(position, Event::NotNeeded(task))?;
            }
        }
        Ok(())
    }

    fn feed(&mut self, position: usize, event: Event) -> Result<(), String> {
        let now = self.epoch + self.agenda.now();
        let worker = &mut self.workers[position];
        if matches!(event, Event::Drawn(_)) {
            worker.doing = Doing::Delivering;
        }
        let actions = worker.errands.on(event, now);
        self.perform(position, actions)
    }

    fn perform(&mut self, position: usize, actions: Vec<Action>) -> Result<(), String> {
        for action in actions {
            match action {
                Action::Ask(finishing) => self.ask(position, &finishing)?,
                Action::Fetch(task, name) => {
                    let worker = &mut self.workers[position];
                    worker.in_hand.push(task);
                    worker.doing = Doing::Fetching;
                    match worker.holds(name) {
                        true => self.sample(position, Duration::ZERO, Sampled::Fetched(name)),
                        false => worker.seeking = Some(name),
                    }
                }
                Action::Draw(task, ()) => {
                    self.workers[position].doing = Doing::Drawing;
                    self.sample(position, self.drawing_time(position, task.name), Sampled::Drawn);
                }
                Action::Score(_, ()) => {
                    let takes = Duration::from_secs_f64(self.pace.scoring);
                    self.agenda.after(takes, Happening::Scored(position));
                }
                Action::Push(task, ()) => {
                    let takes = self.pace.over_link(self.pace.outcome_mb);
                    self.link_free = self.link_free.max(self.agenda.now()) + takes;
                    self.agenda.at(self.link_free, Happening::Pushed(position, task));
                }
                Action::Tell(hand, task, end) => self.tell(position, hand, (task, end))?,
                Action::Abandon => {
                    let worker = &mut self.workers[position];
                    worker.number += 1;
                    (worker.granted, worker.seeking) = (None, None);
                }
            }
        }
        Ok(())
    }

    fn sample(&mut self, position: usize, takes: Duration, sampled: Sampled) {
        let number = self.workers[position].number;
        self.agenda.after(takes, Happening::Sampled(position, number, sampled));
    }

    fn ask(&mut self, position: usize, finishing: &[TaskName]) -> Result<(), String> {
        let worker = &mut self.workers[position];
        worker.doing = Doing::Asking;
        let request = NextTaskRequest {
            caller: worker.caller.clone(),
            wait_seconds: LONGEST_WAIT,
            finishing: finishing.iter().map(|task| (*task).into()).collect(),
        };
        match self.plane.ask(&request).map_err(in_words)? {
            Asked::Granted(task) => self.sample(position, LATENCY, Sampled::Granted(task)),
            Asked::Waits(granted) => worker.granted = Some(granted),
            Asked::Nothing => return Err("a worker that waits was sent away; this is a bug".to_owned()),
        }
        Ok(())
    }

    fn tell(
        &mut self,
        position: usize,
        hand: Hand,
        (task, end): (proto::TaskId, TaskEnd),
    ) -> Result<(), String> {
        if let TaskEnd::Failed(failure) = &end {
            return Err(format!("a task failed: {}", failure.reason));
        }
        let worker = &mut self.workers[position];
        worker.in_hand.retain(|other| proto::TaskId::from(*other) != task);
        let request = FinishTaskRequest {
            caller: worker.caller.clone(),
            task: Some(task),
            given_back: end == TaskEnd::GivenBack,
            ..FinishTaskRequest::default()
        };
        self.plane.update(|state, now| state.finish_task(&request, now)).map_err(in_words)?;
        self.agenda.after(LATENCY, Happening::Told(position, hand));
        Ok(())
    }

    /// Goes on with what others waited for.
    fn settle(&mut self) -> Result<(), String> {
        if let Some(takes) = self.learner.begin() {
            self.agenda.after(takes, Happening::Trained);
            self.report_soon();
        }
        for position in 0..self.workers.len() {
            let granted = self.workers[position].granted.as_mut().and_then(|granted| granted.try_recv().ok());
            if let Some(task) = granted {
                self.workers[position].granted = None;
                self.sample(position, LATENCY, Sampled::Granted(Box::new(task)));
            }
            if let Some(name) = self.workers[position].seeking {
                self.seek(position, name)?;
            }
        }
        Ok(())
    }

    fn seek(&mut self, position: usize, name: WeightsName) -> Result<(), String> {
        let caller = self.workers[position].caller.clone();
        let request =
            SeekWeightsRequest { caller, weights: Some(name.into()), ..SeekWeightsRequest::default() };
        let source = self.plane.update(|state, now| state.seek_weights(&request, now)).map_err(in_words)?;
        if source.is_some() {
            self.workers[position].seeking = None;
            let takes = self.pace.over_link(self.pace.weights_mb * FAN_OUT as f64);
            self.sample(position, takes + LATENCY, Sampled::Fetched(name));
        }
        Ok(())
    }

    fn report_soon(&mut self) {
        if !std::mem::replace(&mut self.is_report_due, true) {
            self.agenda.after(REPORT_PAUSE, Happening::Report);
        }
    }

    fn drawing_time(&self, position: usize, task: TaskName) -> Duration {
        let dice = digest(&[position as u64, task.iteration.into(), task.index.into()]);
        let share = (dice >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_secs_f64(self.pace.sampling * (1.0 + self.pace.spread * (2.0 * share - 1.0)))
    }
}

fn in_words(refusal: Refusal) -> String {
    refusal.to_string()
}

fn config(pace: &Pace) -> Result<RunConfig, String> {
    let mut config = config::preset("tempflow-tiny-cpu").ok_or("the preset is gone; this is a bug")?.config;
    (config.run.iterations, config.run.lag) = (pace.iterations, pace.lag);
    config.sampling.prompts_per_iteration = pace.tasks as usize;
    (config.sampling.seeds_per_prompt, config.sampling.seeds_per_task) = (1, 1);
    Ok(config)
}

fn prompts() -> PromptLists {
    let record = |index: u32| PromptRecord {
        index,
        text: format!("scene {index}"),
        metadata: serde_json::Value::Null,
    };
    PromptLists::new(PromptSplit::ALL.map(|split| (split, (0..N_PROMPTS as u32).map(record).collect())))
}
