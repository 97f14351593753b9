//! The learner's right to the run's files, and its half of them where it has one.

use super::RunState;
use crate::learner_half::{Halves, LearnerHalf};
use crate::log_questions::LoggingMember;
use crate::membership::{Applicant, Presence, Refusal};
use proto::{Caller, JoinRequest, Role, TellLogRequest};
use service::Holder;
use std::time::Instant;

impl RunState {
    /// Goes on with what directory and record of the run tell of the learner's half.
    pub fn inherit_halves(&mut self, halves: Halves) {
        self.halves = halves;
    }

    /// The learner's half of the run, if it has one of its own.
    pub fn learner_half(&self) -> Option<&LearnerHalf> {
        self.halves.learner()
    }

    /// What is known of the halves.
    pub(crate) fn halves(&self) -> &Halves {
        &self.halves
    }

    /// The same, to ask for something and to take answers.
    pub(crate) fn halves_mut(&mut self) -> &mut Halves {
        &mut self.halves
    }

    /// Refuses a learner that would begin anew what another one has begun.
    pub(super) fn check_half(&self, request: &JoinRequest) -> Result<(), Refusal> {
        if request.role() != Role::Learner {
            return Ok(());
        }
        let run = (self.members.run_id(), self.catalog.config().network.learner);
        self.halves.check(run, request.own_directory.as_ref()).map_err(Refusal::OtherHalf)
    }

    /// Whether the sender is the learner of this run, with a directory of its own.
    ///
    /// # Errors
    /// If it is not, or is fenced.
    pub(crate) fn check_elsewhere(&self, caller: Option<&Caller>) -> Result<(), Refusal> {
        let role = self.members.check(caller)?.applicant.role;
        match role == Role::Learner && self.halves.learner().is_some() {
            true => Ok(()),
            false => Err(Refusal::Malformed("only a learner with a directory of its own does this")),
        }
    }

    /// Whether the learner lives, and with a directory of its own.
    pub fn has_learner_elsewhere(&self) -> bool {
        self.members.learners().next().flatten().is_some() && self.halves.learner().is_some()
    }

    /// Living members whose logs are not in the coordinator's directory, as far as can be told.
    pub(crate) fn members_without_logs(
        &self,
        host: &str,
        has_log: impl Fn(&str) -> bool,
    ) -> Vec<LoggingMember> {
        let living = self.members.iter().filter(|member| member.presence == Presence::Living);
        let is_elsewhere =
            |applicant: &&Applicant| applicant.process.host != host || !has_log(&applicant.member_id);
        living.map(|member| &member.applicant).filter(is_elsewhere).map(logging).collect()
    }

    /// Takes what a member tells of its log.
    ///
    /// # Errors
    /// If it is fenced.
    pub(crate) fn log_told(&mut self, told: TellLogRequest, now: Instant) -> Result<(), Refusal> {
        let member = logging(&self.members.admit(told.caller.as_ref(), now)?.applicant);
        self.halves.logs_mut().told(&member, told);
        Ok(())
    }

    /// Lets a learner change the run until another joins: one that an earlier coordinator let, and that may live.
    pub fn inherit_learner(&mut self, learner: Option<Holder>) {
        self.writing_learner = learner;
    }

    /// The learner that may change the run directory: the one that joined last, until it is lost.
    pub fn writing_learner(&self) -> Option<&Holder> {
        self.writing_learner.as_ref()
    }
}

fn logging(applicant: &Applicant) -> LoggingMember {
    LoggingMember { member_id: applicant.member_id.clone(), nonce: applicant.process.nonce.to_vec() }
}
