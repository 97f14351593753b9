//! A worker pushes an outcome: as `rollout-worker/src/errands/push.rs`.

use super::{Event, Worker, patience};
use crate::bug::Bug;
use crate::hands::{Finishing, failure, push_failure};
use crate::process::ProcessId;
use crate::reference::Outcome;
use crate::stage::{Answer, Callee, Reply, Request, Stage, Wake};
use config::TaskKind;
use proto::Work;
use proto::push_reply::Status as PushStatus;
use protocol::{Delivered, PushAction, PushEvent, Pushing, TaskName};
use std::time::Duration;

const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
const PUSH_DEADLINE: Duration = Duration::from_secs(300);

impl Worker {
    pub(super) fn begin_pushing(&mut self, task: TaskName, outcome: Outcome, stage: &mut Stage) {
        let work = self.line.in_hand.begin(Work::Waiting, stage.now);
        let (number, pushing) = (self.number(), Pushing::default());
        let call = None;
        self.finishing = Finishing::Pushing {
            task,
            outcome,
            pushing,
            has_next_latents: false,
            is_asking: false,
            work,
            number,
            call,
        };
        self.push(stage);
    }

    /// Asks which embeddings are missing, if there are any, else pushes.
    pub(super) fn push(&mut self, stage: &mut Stage) {
        let learner = self.learner;
        let Finishing::Pushing { outcome, task, work, number, call, is_asking, .. } = &mut self.finishing
        else {
            return;
        };
        let Some(learner) = learner else {
            self.line.in_hand.progressed(*work, stage.now);
            return stage.after(self.pauses[1].next_pause(), Wake::PushAgain(*number));
        };
        if task.kind == TaskKind::Train {
            *is_asking = true;
            let question = Request::MissingConditioning(outcome.embedding);
            *call = Some(stage.call(Callee::Learner(learner), question, QUESTION_DEADLINE));
        } else {
            self.send(learner, false, stage);
        }
    }

    pub(super) fn send(&mut self, learner: ProcessId, has_embedding: bool, stage: &mut Stage) {
        let Finishing::Pushing { outcome, task, call, is_asking, has_next_latents, .. } = &mut self.finishing
        else {
            return;
        };
        *is_asking = false;
        let (task, outcome, has_next_latents) = (*task, *outcome, *has_next_latents);
        let request = Request::Push { task, outcome, has_embedding, has_next_latents };
        *call = Some(stage.call(Callee::Learner(learner), request, PUSH_DEADLINE));
    }

    pub(super) fn push_answered(&mut self, answer: &Answer, stage: &mut Stage) {
        let learner = self.learner;
        let Finishing::Pushing { pushing, work, call, is_asking, has_next_latents, .. } = &mut self.finishing
        else {
            return;
        };
        *call = None;
        if let (true, Ok(Reply::Missing(is_missing)), Some(learner)) = (*is_asking, answer, learner) {
            return self.send(learner, *is_missing, stage);
        }
        self.line.in_hand.progressed(*work, stage.now);
        let event = match answer {
            Ok(Reply::Pushed(PushStatus::Held)) => PushEvent::Answered(Delivered::Held),
            Ok(Reply::Pushed(PushStatus::NotWanted)) => PushEvent::Answered(Delivered::NotWanted),
            Ok(Reply::Pushed(PushStatus::NextLatentsNeeded)) => PushEvent::NextLatentsNeeded,
            Ok(_) => PushEvent::Failed(protocol::Failure::Passing("the learner moved".to_owned())),
            Err(status) if *is_asking => PushEvent::Failed(failure(status)),
            Err(status) => PushEvent::Failed(push_failure(status)),
        };
        if answer.is_ok() {
            self.pauses[1] = patience(stage);
        }
        let lies = stage.has(Bug::TellsHeldUnheard) && matches!(event, PushEvent::Failed(_));
        let action = if lies { PushAction::End(Ok(Delivered::Held)) } else { pushing.on(event) };
        match action {
            PushAction::PushNextLatents => {
                *has_next_latents = true;
                self.push(stage);
            }
            PushAction::PushLater { .. } => {
                let Finishing::Pushing { number, .. } = self.finishing else { return };
                stage.after(self.pauses[1].next_pause(), Wake::PushAgain(number));
            }
            PushAction::End(outcome) => {
                self.line.in_hand.end(*work);
                self.feed(Event::Pushed(outcome), stage);
            }
        }
    }
}
