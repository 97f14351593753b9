//! What the state takes down of its decisions.

use super::RunState;
use crate::events::{Event, EventBook, GivenAs};
use crate::membership::{Applicant, Loss, Member, Presence, role_in_words};
use proto::{Blame, Caller};
use protocol::TaskName;
use std::time::Instant;

impl RunState {
    /// What is decided, and how often it was.
    pub fn events(&self) -> &EventBook {
        &self.events
    }

    /// Takes down what others decide of the run.
    pub fn events_mut(&mut self) -> &mut EventBook {
        &mut self.events
    }

    pub(super) fn cause_of_join(&self, applicant: &Applicant) -> &'static str {
        let earlier = self.members.get(&applicant.member_id).map(|member| &member.applicant.process.nonce);
        match earlier {
            None => "new",
            Some(nonce) if *nonce == applicant.process.nonce => "again",
            Some(_) => "replaced",
        }
    }

    /// A worker that joins has these tasks in hand and no other.
    pub(super) fn claim(&mut self, member_id: &str, in_hand: &[TaskName], now: Instant) {
        let before = self.tasks.leases_of(member_id).to_vec();
        self.tasks.claim(member_id, in_hand, now);
        let change = (&before[..], self.tasks.leases_of(member_id));
        self.events.tasks_changed(member_id, change, GivenAs::Claimed, "not_in_hand");
    }

    pub(super) fn note_join(&mut self, identity: &Caller, cause: &'static str) {
        if let Some(Member { applicant, incarnation, .. }) = self.members.get(&identity.member_id) {
            self.events.joined(Event::MemberJoined {
                member: applicant.member_id.clone(),
                role: role_in_words(applicant.role),
                pid: applicant.process.pid,
                host: applicant.process.host.clone(),
                incarnation: *incarnation,
                cause,
            });
        }
    }

    pub(super) fn note_loss(&mut self, member_id: &str, loss: Loss, reason: String) {
        let cause = Presence::Lost(loss).as_str();
        self.events.note(Event::MemberLost { member: member_id.to_owned(), cause, reason });
    }
}

/// Whose fault a failure is, in a word.
pub(super) fn blame_in_a_word(blame: Blame) -> &'static str {
    match blame {
        Blame::Worker | Blame::Unspecified => "worker",
        Blame::Task => "task",
        Blame::Memory => "memory",
    }
}
