//! A rollout worker.
//!
//! Real: [`Errands`] decides what each hand does next, [`Pushing`] and [`Fetching`] what is tried again, the line to the
//! coordinator as in [`crate::line`]. Modelled: what `rollout-worker/src/errands/{hands,push,weights,learner_link}.rs` do with
//! sockets and tensors.

mod fetching;
mod pushing;

pub use fetching::Giving;

use crate::bug::Bug;
use crate::hands::{Finishing, Sampling};
use crate::line::{Heard, Line, Purpose};
use crate::process::{ProcessId, process, process_at};
use crate::reference::{self, Outcome};
use crate::stage::{Answer, CallId, Callee, Reply, Request, Stage, Wake};
use coordinator::launch::MemberName;
use proto::{Blame, FinishTaskRequest, HeartbeatReply, JoinRequest, LeaveRequest, Role, TaskId, Work, order};
use protocol::{
    Backoff, DELIVERY_PATIENCE, ErrandAction, ErrandEvent, Errands, Hand, Leaving, Task, TaskEnd,
    TaskFailure, TaskName, WeightsName,
};
use service::exit_code;
use std::collections::VecDeque;
use std::time::Duration;

/// As the worker's cache of weights.
const KEPT_VERSIONS: usize = 3;
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);
/// How long scorers may be silent before a task gets nowhere any more: an hour in the product, which no world lasts.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

type Weights = (WeightsName, u64);
type Event = ErrandEvent<Weights, Outcome, Outcome>;
type Action = ErrandAction<Weights, Outcome, Outcome>;

/// How a worker is.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Times as slow as the fastest.
    pub slowness: u32,
    /// Tasks of a thousand that fail by its fault.
    pub failures: u64,
    /// Outcomes of a thousand whose next latents the learner cannot rebuild.
    pub strange_latents: u64,
    /// Whether its processes end as soon as they are to work, for ever.
    pub is_doomed: bool,
    /// Whether weights may come from other workers, as the run config says for all.
    pub shares_weights: bool,
    /// What it gives to others, for ever.
    pub giving: Giving,
}

/// A worker's process.
#[derive(Debug)]
pub struct Worker {
    line: Line,
    habits: Habits,
    errands: Errands<Outcome>,
    sampling: Sampling,
    finishing: Finishing,
    /// Least recently used first.
    kept: VecDeque<Weights>,
    learner: Option<ProcessId>,
    drain: Option<Duration>,
    pauses: [Backoff; 2],
    n_begun: u64,
    /// Its number among the pieces of work, from the first join until it is open.
    opening: Option<u64>,
    /// Whether its process was asked to end.
    is_asked: bool,
    is_open: bool,
    /// It gets on with nothing any more, and does not know it.
    is_stuck: bool,
    leaving: Option<(CallId, u8)>,
    code: u8,
}

impl Worker {
    /// A process that was started as a member.
    pub fn start(member: MemberName, habits: Habits, grace: Duration, stage: &mut Stage) -> Self {
        let join = JoinRequest {
            role: Role::RolloutWorker.into(),
            member_id: member.to_string(),
            process: Some(process(stage.own)),
            ..JoinRequest::default()
        };
        let pauses = [(); 2].map(|()| patience(stage));
        Self {
            line: Line::new(join, grace, stage),
            habits,
            errands: Errands::default(),
            sampling: Sampling::Idle,
            finishing: Finishing::Idle,
            kept: VecDeque::new(),
            learner: None,
            drain: None,
            pauses,
            n_begun: 0,
            opening: None,
            is_asked: false,
            is_open: false,
            is_stuck: false,
            leaving: None,
            code: exit_code::DONE,
        }
    }

    /// The process is asked to end, and is killed after a notice if there is one.
    pub fn terminate(&mut self, notice: Option<Duration>, stage: &mut Stage) {
        if std::mem::replace(&mut self.is_asked, true) {
            // A second signal means at once.
            return stage.exit(exit_code::RETRY);
        }
        let is_known = !stage.has(Bug::IgnoresNotice);
        self.leave(notice.filter(|_| is_known), stage);
    }

    fn leave(&mut self, notice: Option<Duration>, stage: &mut Stage) {
        let patience = self.drain.unwrap_or(DELIVERY_PATIENCE);
        if !self.is_open {
            self.say_goodbye(stage);
        } else if (!self.errands.is_leaving() || notice.is_some()) && self.leaving.is_none() {
            self.feed(Event::Leave(Leaving { patience, notice }), stage);
        }
    }

    fn say_goodbye(&mut self, stage: &mut Stage) {
        if self.leaving.is_none() {
            let message = LeaveRequest { caller: Some(self.line.caller().clone()) };
            let call = stage.call(Callee::Coordinator, Request::Leave(message), LEAVE_DEADLINE);
            self.leaving = Some((call, self.code));
        }
    }

    /// The process is woken.
    pub fn wake(&mut self, wake: Wake, stage: &mut Stage) {
        match wake {
            Wake::CallAgain(number) => {
                let heard = self.line.call_again(number, stage);
                self.hear(heard, stage);
            }
            Wake::Heartbeat => {
                self.line.weights = self.weights_standing(stage.own);
                self.line.heartbeat(stage);
            }
            _ if self.leaving.is_some() => {}
            // What hangs is a thread; the process does not.
            Wake::PatienceOver => self.end_if_over(stage),
            _ if self.is_stuck => {}
            Wake::Opened if self.habits.is_doomed => stage.exit(exit_code::FAILED),
            Wake::Opened => {
                self.is_open = true;
                self.opening.take().into_iter().for_each(|work| self.line.in_hand.end(work));
                let actions = self.errands.begin();
                self.perform(actions, stage);
            }
            Wake::Drew(number) => self.drew(number, stage),
            Wake::Scored(number) => self.scored(number, stage),
            Wake::FetchAgain(number) if self.sampling.is(number) => self.fetch(stage),
            Wake::PushAgain(number) if self.finishing.is(number) => self.push(stage),
            _ => {}
        }
    }

    /// A call of this process ended.
    pub fn answered(&mut self, call: CallId, answer: &Answer, stage: &mut Stage) {
        if let Some((goodbye, code)) = self.leaving {
            if goodbye == call {
                return stage.exit(code);
            }
        } else if !self.is_stuck && self.sampling.calls(call) {
            return self.fetch_answered(answer, stage);
        } else if !self.is_stuck && self.finishing.calls(call) {
            return self.push_answered(answer, stage);
        }
        let heard = self.line.answered(call, answer, stage);
        self.hear(heard, stage);
    }

    fn hear(&mut self, heard: Option<Heard>, stage: &mut Stage) {
        match heard {
            None => {}
            Some(Heard::Joined(reply)) => self.joined(&reply.learner_addresses, stage),
            Some(Heard::Answered(Purpose::Heartbeat, Reply::Heartbeat(reply))) => {
                self.line.heartbeat_over(stage);
                self.take_orders(reply, stage);
            }
            Some(Heard::Answered(Purpose::Heartbeat, _) | Heard::Failed(Purpose::Heartbeat)) => {
                self.line.heartbeat_over(stage);
            }
            Some(Heard::Answered(Purpose::NextTask(_), Reply::Task(task))) if self.leaving.is_none() => {
                self.feed(Event::Granted(task.map(|task| *task)), stage);
            }
            Some(Heard::Answered(Purpose::Finish(message), _)) if self.leaving.is_none() => {
                let hand = self.telling(message.task);
                self.feed(Event::Told(hand), stage);
            }
            Some(Heard::Failed(Purpose::Finish(message))) if self.leaving.is_none() => {
                self.code = exit_code::FAILED;
                let hand = self.telling(message.task);
                self.feed(Event::Broken(hand), stage);
            }
            Some(Heard::Failed(Purpose::NextTask(_))) if self.leaving.is_none() => {
                self.code = exit_code::FAILED;
                self.feed(Event::Broken(Hand::Sampling), stage);
            }
            Some(Heard::Lost(loss)) => {
                let code = exit_code::of_loss(&loss);
                stage.tell(|| format!("membership lost: {loss:?}"));
                stage.exit(code);
            }
            Some(Heard::Answered(..) | Heard::Failed(_)) => {}
        }
    }

    fn joined(&mut self, addresses: &[String], stage: &mut Stage) {
        let is_first = self.learner.is_none() && !self.is_open && self.n_begun == 0;
        self.stand(addresses, None, stage);
        if is_first {
            self.n_begun = 1;
            self.opening = Some(self.line.in_hand.begin(Work::Opening, stage.now));
            let pause = stage.dice.millis(300, 2000);
            stage.after(pause, Wake::Opened);
        }
    }

    fn take_orders(&mut self, reply: HeartbeatReply, stage: &mut Stage) {
        let (mut drain, mut not_needed) = (None, Vec::new());
        for order in reply.orders.into_iter().filter_map(|order| order.order) {
            match order {
                order::Order::Drain(order) => {
                    drain = Some(Duration::try_from_secs_f64(order.seconds).unwrap_or_default());
                }
                order::Order::GiveBack(order) => {
                    not_needed.extend(order.tasks.iter().flat_map(TaskName::try_from));
                }
                // There are no logs and no files here.
                order::Order::AskLog(_) | order::Order::AskResults(_) => {}
            }
        }
        self.stand(&reply.learner_addresses, drain, stage);
        for task in not_needed {
            if self.is_open && !self.is_stuck && self.leaving.is_none() {
                self.feed(Event::NotNeeded(task), stage);
            }
        }
    }

    /// Which hand tells of a task: the finishing one, if it is what that has.
    fn telling(&mut self, task: Option<TaskId>) -> Hand {
        match (&self.finishing, task) {
            (Finishing::Telling(own), Some(task)) if *own == task => {
                self.finishing = Finishing::Idle;
                Hand::Finishing
            }
            _ => {
                self.sampling = Sampling::Idle;
                Hand::Sampling
            }
        }
    }

    fn stand(&mut self, addresses: &[String], drain: Option<Duration>, stage: &mut Stage) {
        self.learner = addresses.first().and_then(|address| process_at(address));
        self.drain = drain;
        if drain.is_some() {
            self.leave(None, stage);
        }
    }

    fn feed(&mut self, event: Event, stage: &mut Stage) {
        let actions = self.errands.on(event, stage.now);
        self.perform(actions, stage);
        self.end_if_over(stage);
    }

    fn end_if_over(&mut self, stage: &mut Stage) {
        if self.errands.is_over(stage.now) {
            self.say_goodbye(stage);
        } else if let Some(end) = self.errands.ends_by() {
            stage.after(end.saturating_duration_since(stage.now), Wake::PatienceOver);
        }
    }

    fn perform(&mut self, actions: Vec<Action>, stage: &mut Stage) {
        for action in actions {
            match action {
                Action::Ask(finishing) => {
                    let finishing = finishing.into_iter().map(TaskId::from).collect();
                    self.line.begin(Purpose::NextTask(finishing), stage);
                }
                Action::Fetch(_, name) => self.begin_fetching(name, stage),
                Action::Draw(task, weights) => self.begin_drawing(task, weights, stage),
                Action::Score(_, outcome) => self.begin_scoring(outcome, stage),
                Action::Push(task, outcome) => self.begin_pushing(task, outcome, stage),
                Action::Tell(hand, task, outcome) => self.tell(hand, task, outcome, stage),
                Action::Abandon => {
                    if let Sampling::Fetching { work, .. } | Sampling::Drawing { work, .. } = self.sampling {
                        self.line.in_hand.end(work);
                    }
                    self.sampling = Sampling::Idle;
                    self.line.abandon_task(stage);
                }
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.n_begun += 1;
        self.n_begun
    }

    fn begin_drawing(&mut self, task: Task, weights: Weights, stage: &mut Stage) {
        let work = self.line.in_hand.begin(Work::Computing, stage.now);
        let number = self.number();
        let n_calls = stage.dice.between(1, 4) as u32;
        self.sampling = Sampling::Drawing { task: Box::new(task), weights, n_calls, work, number };
        self.draw_on(number, stage);
    }

    fn draw_on(&self, number: u64, stage: &mut Stage) {
        let pause = stage.dice.millis(50, 500) * self.habits.slowness;
        stage.after(pause, Wake::Drew(number));
    }

    fn drew(&mut self, drawn: u64, stage: &mut Stage) {
        let Sampling::Drawing { n_calls, work, number, .. } = &mut self.sampling else { return };
        if *number != drawn {
            return;
        }
        self.line.in_hand.progressed(*work, stage.now);
        *n_calls -= 1;
        if *n_calls > 0 {
            return self.draw_on(drawn, stage);
        }
        let Sampling::Drawing { task, weights, work, .. } =
            std::mem::replace(&mut self.sampling, Sampling::Idle)
        else {
            return;
        };
        self.line.in_hand.end(work);
        let outcome = match stage.dice.happens(self.habits.failures) {
            true => Err(TaskFailure { reason: "a device hiccup".to_owned(), blame: Blame::Worker }),
            false => Ok(outcome_of(&task, weights)),
        };
        self.feed(Event::Drawn(outcome), stage);
    }

    fn begin_scoring(&mut self, outcome: Outcome, stage: &mut Stage) {
        let number = self.number();
        let work = self.line.in_hand.begin(Work::Waiting, stage.now);
        self.line.in_hand.progressed(work, stage.now + LONGEST_SILENCE);
        self.finishing = Finishing::Scoring { outcome, work, number };
        let pause = stage.dice.millis(20, 1500) * self.habits.slowness;
        stage.after(pause, Wake::Scored(number));
    }

    fn scored(&mut self, scored: u64, stage: &mut Stage) {
        if let Finishing::Scoring { outcome, work, number, .. } = self.finishing
            && number == scored
        {
            self.line.in_hand.end(work);
            self.feed(Event::Scored(Ok(outcome)), stage);
        }
    }

    fn tell(&mut self, hand: Hand, task: TaskId, end: TaskEnd, stage: &mut Stage) {
        match hand {
            Hand::Sampling => self.sampling = Sampling::Telling,
            Hand::Finishing => self.finishing = Finishing::Telling(task),
        }
        let message = match end {
            TaskEnd::Held => {
                stage.laws.tells_held(TaskName::try_from(&task).ok());
                FinishTaskRequest { task: Some(task), ..FinishTaskRequest::default() }
            }
            TaskEnd::GivenBack => {
                stage.laws.saw("task given back");
                stage.tell(|| format!("{task:?} is given back"));
                FinishTaskRequest { task: Some(task), given_back: true, ..FinishTaskRequest::default() }
            }
            TaskEnd::Failed(TaskFailure { reason: failure, blame }) => {
                stage.tell(|| format!("{task:?} failed: {failure}"));
                FinishTaskRequest {
                    task: Some(task),
                    failure,
                    blame: blame.into(),
                    ..FinishTaskRequest::default()
                }
            }
        };
        self.line.begin(Purpose::Finish(message), stage);
    }

    /// From now on it gets on with nothing, and does not know it.
    pub fn stick(&mut self) {
        self.is_stuck = true;
    }

    /// Whether it draws a task and will not get on with it.
    pub fn hangs_in_drawing(&self) -> bool {
        self.is_stuck && matches!(self.sampling, Sampling::Drawing { .. })
    }

    /// From now on no task fails by its fault.
    pub fn calm_down(&mut self) {
        (self.habits.failures, self.habits.strange_latents) = (0, 0);
    }

    /// Whether what waits in this process is bounded.
    pub fn is_bounded(&self) -> bool {
        self.line.n_loops() <= 4 && self.kept.len() <= KEPT_VERSIONS && self.line.in_hand.tasks().len() <= 3
    }

    /// In words, for the story.
    pub fn standing(&self) -> String {
        format!("{:?}, {:?}, leaving {}", self.sampling, self.finishing, self.errands.is_leaving())
    }
}

fn outcome_of(task: &Task, (_, weights): Weights) -> Outcome {
    let embedding = task.prompts.first().map_or(0, |prompt| crate::dice::digest_of_text(&prompt.text));
    Outcome { version: task.version, digest: reference::outcome_digest(task, weights), embedding }
}

fn patience(stage: &mut Stage) -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2), stage.dice.below(u64::MAX))
}
