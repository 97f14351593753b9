//! The learner's process around its training: joins, serves workers, reports, and leaves.
//!
//! Real: the line to the coordinator as in [`crate::line`], [`protocol::Intake`] with its answers to pushes. Modelled: what
//! `learner/src/{serve,exchange/server,exchange/embeddings}.rs` do with sockets and bytes.

use crate::bug::Bug;
use crate::disk::DiskFault;
use crate::disk::fence;
use crate::line::{Heard, Line, Purpose};
use crate::process::{address, process};
use crate::reference::Outcome;
use crate::stage::{Answer, CallId, Callee, Reply, Request, Stage, Wake};
use crate::training::{Standing, Training};
use config::{PromptLists, RunConfig};
use proto::push_reply::Status as PushStatus;
use proto::{JoinRequest, LeaveRequest, Progress, ReportRequest, Role, Summary, Work, order};
use protocol::{HoldLimit, MembershipLoss, TaskName, TaskStanding};
use service::exit_code;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

const LEAVE_DEADLINE: Duration = Duration::from_secs(2);
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const REPORT_PAUSE: Duration = Duration::from_millis(20);

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The run is done: that is reported, then goodbye is said.
    Done,
    /// Goodbye is said.
    Left(u8),
    /// Goodbye was said.
    Gone(CallId, u8),
}

/// A push whose bytes are arriving.
#[derive(Clone, Copy, Debug)]
struct Push {
    task: TaskName,
    outcome: Outcome,
    has_next_latents: bool,
    has_embedding: bool,
}

/// How a learner is.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Outcomes of a thousand whose next latents cannot be rebuilt here.
    pub strange_latents: u64,
    /// How long it waits for an absent coordinator.
    pub grace: Duration,
    /// What it has room for.
    pub limit: HoldLimit,
    /// Times as slow as the fastest.
    pub slowness: u32,
}

/// A learner's process.
#[derive(Debug)]
pub struct Learner {
    line: Line,
    config: Arc<RunConfig>,
    lists: Arc<PromptLists>,
    training: Option<Training>,
    limit: HoldLimit,
    /// Times as slow as the fastest.
    slowness: u32,
    is_busy: bool,
    /// Opening or computing: its number among the pieces of work.
    work: Option<u64>,
    /// Its training thread comes to no end of what it does next, and does not know it.
    is_stuck: bool,
    is_stopping: bool,
    pushes: BTreeMap<CallId, Push>,
    embeddings: BTreeSet<u64>,
    /// Outcomes of a thousand whose next latents cannot be rebuilt here.
    strange_latents: u64,
    is_reporting: bool,
    report_number: u64,
    ending: Option<Ending>,
    /// The membership is lost; the exit code that says so.
    lost: Option<u8>,
    n_held: u64,
}

impl Learner {
    /// A process that was started.
    pub fn start(
        config: Arc<RunConfig>,
        lists: Arc<PromptLists>,
        Nature { strange_latents, grace, limit, slowness }: Nature,
        stage: &mut Stage,
    ) -> Self {
        let join = JoinRequest {
            role: Role::Learner.into(),
            member_id: "learner".to_owned(),
            address: address(stage.own),
            process: Some(process(stage.own)),
            ..JoinRequest::default()
        };
        Self {
            line: Line::new(join, grace, stage),
            config,
            lists,
            training: None,
            limit,
            slowness,
            is_busy: false,
            work: None,
            is_stuck: false,
            is_stopping: false,
            pushes: BTreeMap::new(),
            embeddings: BTreeSet::new(),
            strange_latents,
            is_reporting: false,
            report_number: 0,
            ending: None,
            lost: None,
            n_held: 0,
        }
    }

    /// The process is asked to end.
    pub fn terminate(&mut self, stage: &mut Stage) {
        self.stop(stage);
    }

    fn stop(&mut self, stage: &mut Stage) {
        self.is_stopping = true;
        if let Some(training) = &mut self.training {
            training.intake.stop();
            self.train(stage);
        } else if self.ending.is_none() {
            // What is being opened is not waited for.
            self.say_goodbye(exit_code::RETRY, stage);
        }
    }

    /// The process is woken.
    pub fn wake(&mut self, wake: Wake, stage: &mut Stage) {
        match wake {
            Wake::CallAgain(number) => {
                let heard = self.line.call_again(number, stage);
                self.hear(heard, stage);
            }
            Wake::Heartbeat if self.is_superseded(stage) => stage.exit(exit_code::FENCED),
            Wake::Heartbeat => self.line.heartbeat(stage),
            Wake::Opened | Wake::Trained if self.is_stuck => {}
            Wake::Opened if self.ending.is_some() => {}
            Wake::Opened => {
                self.end_work();
                self.open(stage);
            }
            Wake::Trained => {
                self.end_work();
                self.is_busy = false;
                self.train(stage);
            }
            Wake::Received(call) => self.received(call, stage),
            Wake::ReportPauseOver => {
                self.is_reporting = false;
                self.report_number += 1;
                stage.after(REPORT_INTERVAL, Wake::ReportDue(self.report_number));
                self.report_news(stage);
            }
            Wake::ReportDue(number) if number == self.report_number && !self.is_reporting => {
                self.report(stage)
            }
            _ => {}
        }
    }

    /// As the loop beside the training that looks every second.
    fn is_superseded(&self, stage: &mut Stage) -> bool {
        let is_so = self.training.is_some() && fence::check(stage.disk) == Err(DiskFault::Superseded);
        if is_so {
            stage.laws.saw("fenced at the disk");
        }
        is_so
    }

    fn open(&mut self, stage: &mut Stage) {
        stage.laws.learner_begins();
        match Training::open(self.config.clone(), self.lists.clone(), self.limit, stage) {
            Ok(mut training) => {
                if self.is_stopping {
                    training.intake.stop();
                }
                self.training = Some(training);
                self.report(stage);
                self.train(stage);
            }
            // The world sees a death on the disk.
            Err(Standing::Died) => {}
            Err(Standing::Fenced(code)) => stage.exit(code),
            Err(_) => stage.exit(exit_code::FAILED),
        }
    }

    /// Lets the training thread go on, unless it is busy.
    fn train(&mut self, stage: &mut Stage) {
        let Some(training) = &mut self.training else { return };
        if self.is_busy || self.ending.is_some() {
            return;
        }
        match training.go_on(stage) {
            Standing::Busy(pause) => {
                self.is_busy = true;
                self.work = Some(self.line.in_hand.begin(Work::Computing, stage.now));
                stage.after(pause * self.slowness, Wake::Trained);
            }
            Standing::Waiting | Standing::Died => {}
            Standing::Done => {
                self.ending = Some(Ending::Done);
                stage.laws.done(stage.disk);
                match self.lost {
                    Some(code) => stage.exit(code),
                    None => self.report_done(stage),
                }
            }
            Standing::Left => match self.lost {
                Some(code) => stage.exit(code),
                None => self.say_goodbye(exit_code::RETRY, stage),
            },
            Standing::Failed => stage.exit(exit_code::FAILED),
            Standing::Fenced(code) => {
                stage.laws.saw("fenced at the disk");
                stage.exit(code);
            }
        }
        self.report_news(stage);
    }

    fn end_work(&mut self) {
        self.work.take().into_iter().for_each(|work| self.line.in_hand.end(work));
    }

    /// From now on its training thread comes to no end of what it does.
    pub fn stick(&mut self) {
        self.is_stuck = true;
    }

    fn report_news(&mut self, stage: &mut Stage) {
        let has_news = self.training.as_mut().is_some_and(|training| std::mem::take(&mut training.has_news));
        if has_news && !self.is_reporting {
            self.report(stage);
        } else if has_news && let Some(training) = &mut self.training {
            training.has_news = true;
        }
    }

    fn report(&mut self, stage: &mut Stage) {
        if stage.has(Bug::ReportsOnce) && self.report_number > 0 {
            return;
        }
        if let (Some(training), None) = (&mut self.training, self.ending) {
            self.is_reporting = true;
            training.has_news = false;
            let (wanted, progress) = (training.intake.wanted(), Some(progress(training.version)));
            let message = ReportRequest { wanted, progress, ..ReportRequest::default() };
            self.line.begin(Purpose::Report(Box::new(message)), stage);
        }
    }

    fn report_done(&mut self, stage: &mut Stage) {
        let progress = Some(progress(self.config.run.iterations));
        let message =
            ReportRequest { progress, summary: Some(Summary::default()), ..ReportRequest::default() };
        self.line.begin(Purpose::Report(Box::new(message)), stage);
    }

    fn say_goodbye(&mut self, code: u8, stage: &mut Stage) {
        self.ending = Some(Ending::Left(code));
        let message = LeaveRequest { caller: Some(self.line.caller().clone()) };
        let call = stage.call(Callee::Coordinator, Request::Leave(message), LEAVE_DEADLINE);
        self.ending = Some(Ending::Gone(call, code));
    }

    /// A call of this process ended.
    pub fn answered(&mut self, call: CallId, answer: &Answer, stage: &mut Stage) {
        if let Some(Ending::Gone(goodbye, code)) = self.ending
            && goodbye == call
        {
            return stage.exit(code);
        }
        let heard = self.line.answered(call, answer, stage);
        self.hear(heard, stage);
    }

    fn hear(&mut self, heard: Option<Heard>, stage: &mut Stage) {
        match heard {
            // Joining again, it is being opened already.
            Some(Heard::Joined(_)) if self.training.is_none() && self.work.is_none() => {
                self.work = Some(self.line.in_hand.begin(Work::Opening, stage.now));
                let pause = stage.dice.millis(300, 2000);
                stage.after(pause, Wake::Opened);
            }
            Some(Heard::Answered(Purpose::Heartbeat, Reply::Heartbeat(reply))) => {
                self.line.heartbeat_over(stage);
                let is_drain = |order: &proto::Order| matches!(order.order, Some(order::Order::Drain(_)));
                if reply.orders.iter().any(is_drain) {
                    self.stop(stage);
                }
            }
            Some(Heard::Answered(Purpose::Heartbeat, _) | Heard::Failed(Purpose::Heartbeat)) => {
                self.line.heartbeat_over(stage);
            }
            Some(Heard::Answered(Purpose::Report(message), reply)) => {
                if message.summary.is_some() {
                    return self.say_goodbye(exit_code::DONE, stage);
                }
                stage.after(REPORT_PAUSE, Wake::ReportPauseOver);
                if matches!(reply, Reply::Reported(true)) {
                    self.stop(stage);
                }
            }
            Some(Heard::Failed(Purpose::Report(message))) => match message.summary {
                Some(_) => stage.exit(exit_code::FAILED),
                None => stage.after(REPORT_PAUSE, Wake::ReportPauseOver),
            },
            Some(Heard::Lost(loss)) => self.lose(&loss, stage),
            Some(Heard::Joined(_) | Heard::Answered(..) | Heard::Failed(_)) | None => {}
        }
    }

    fn lose(&mut self, loss: &MembershipLoss, stage: &mut Stage) {
        let code = exit_code::of_loss(loss);
        stage.tell(|| format!("membership lost: {loss:?}"));
        match (&self.training, self.ending) {
            // Who is not taken any more, such as one that hangs, waits for nothing.
            (Some(_), None) if *loss == MembershipLoss::Gone => {
                self.lost = Some(code);
                self.stop(stage);
            }
            _ => stage.exit(code),
        }
    }

    /// A worker calls.
    pub fn asked(&mut self, call: CallId, request: Request, stage: &mut Stage) {
        if self.training.is_none() {
            return stage.answer(call, Err(Status::unavailable("not open yet")));
        }
        match request {
            Request::MissingConditioning(digest) => {
                let is_missing = !self.embeddings.contains(&digest);
                stage.answer(call, Ok(Reply::Missing(is_missing)));
            }
            Request::Weights(name) | Request::Manifest(name) => {
                let found = self.training.as_ref().and_then(|training| training.publications.get(&name));
                let reply =
                    if matches!(request, Request::Weights(_)) { Reply::Weights } else { Reply::Manifest };
                let answer = found.map(|digest| reply(*digest));
                stage.answer(
                    call,
                    answer.ok_or_else(|| Status::not_found("not made yet, or no longer wanted")),
                );
            }
            Request::Push { task, outcome, has_embedding, has_next_latents } => {
                self.pushed(call, Push { task, outcome, has_embedding, has_next_latents }, stage);
            }
            _ => stage.answer(call, Err(Status::unimplemented("the coordinator does that"))),
        }
    }

    /// The header of a push is here.
    fn pushed(&mut self, call: CallId, push: Push, stage: &mut Stage) {
        let Some(training) = &mut self.training else { return };
        match training.intake.standing(push.task) {
            TaskStanding::Wanted(spec, _) if spec.version != push.outcome.version => {
                stage.answer(call, Err(Status::invalid_argument("another version")));
            }
            TaskStanding::Wanted(..) => {
                self.pushes.insert(call, push);
                let pause = stage.dice.millis(5, 300);
                stage.after(pause, Wake::Received(call));
            }
            standing => {
                if standing == TaskStanding::Held && stage.has(Bug::CountsDuplicates) {
                    training.add_again(&push.outcome);
                }
                stage.laws.answers_unwanted(push.task, &standing);
                stage.answer(call, Ok(Reply::Pushed(status_of(&standing))));
            }
        }
    }

    /// All bytes of a push are here.
    fn received(&mut self, call: CallId, stage: &mut Stage) {
        let (Some(push), Some(training)) = (self.pushes.remove(&call), &mut self.training) else { return };
        let standing = training.intake.standing(push.task);
        if !matches!(standing, TaskStanding::Wanted(..)) {
            stage.laws.answers_unwanted(push.task, &standing);
            return stage.answer(call, Ok(Reply::Pushed(status_of(&standing))));
        }
        let is_training = push.task.kind == config::TaskKind::Train;
        if is_training && !push.has_embedding && !self.embeddings.contains(&push.outcome.embedding) {
            stage.laws.saw("embedding not here");
            return stage.answer(call, Err(Status::data_loss("the embedding is not here")));
        }
        if is_training && !push.has_next_latents && stage.dice.happens(self.strange_latents) {
            stage.laws.saw("next latents asked for");
            return stage.answer(call, Ok(Reply::Pushed(PushStatus::NextLatentsNeeded)));
        }
        self.embeddings.insert(push.outcome.embedding);
        self.n_held += 1;
        let drops = stage.has(Bug::AcknowledgesWithoutHolding) && self.n_held.is_multiple_of(3);
        let standing = if drops { TaskStanding::Held } else { training.intake.hold(push.task, push.outcome) };
        training.has_news = true;
        let status = status_of(&standing);
        let is_held = training.intake.standing(push.task) == TaskStanding::Held;
        stage.laws.answers_push(push.task, status, is_held);
        stage.laws.holds(training.intake.holds(), self.limit);
        stage.answer(call, Ok(Reply::Pushed(status)));
        if !stage.has(Bug::LosesWakeUps) {
            self.train(stage);
        }
        self.report_news(stage);
    }

    /// Whether what waits in this process is bounded.
    pub fn is_bounded(&self) -> bool {
        let n_tasks = self.config.n_train_tasks() + 16;
        let n_waiting = self.training.as_ref().map_or(0, Training::n_waiting);
        self.line.n_loops() <= 4 && n_waiting <= n_tasks && self.pushes.len() <= 128
    }

    /// In words, for the story.
    pub fn standing(&self) -> String {
        let version = self.training.as_ref().map(|training| training.version);
        format!("version {version:?}, busy {}, stopping {}", self.is_busy, self.is_stopping)
    }
}

fn progress(iteration: u32) -> Progress {
    Progress { iteration, ..Progress::default() }
}

/// As `learner/src/exchange/server.rs`.
fn status_of(standing: &TaskStanding) -> PushStatus {
    match standing {
        TaskStanding::Held => PushStatus::Held,
        TaskStanding::NotWanted | TaskStanding::Wanted(..) => PushStatus::NotWanted,
    }
}
