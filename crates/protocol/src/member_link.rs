//! A member's line to the coordinator: when it waits, when it joins again, and when its membership is lost.
//!
//! 1. One identity at a time: who was refused with an older one goes on with the newest.
//! 2. Only a coordinator that refuses the identity makes a member join again; an absent one is waited for.
//! 3. After the grace without a word of the coordinator the membership is lost, and stays lost.
//! 4. Who is new waits for a place that another process has, until that one has shown that it lives: a process that took the
//!    place of a dead one gets in with the end of its lease, and of two living ones the second is told.

use proto::{Caller, JoinReply};
use std::time::{Duration, Instant};

/// Until the coordinator says how long a lease is.
const FIRST_LEASE: Duration = Duration::from_secs(5);
/// Heartbeats that fit into one lease.
const HEARTBEATS_PER_LEASE: f64 = 5.0;
/// Leases after which the process that has the place must live: a dead one's ends within the first.
const LEASES_OF_THE_DEAD: u32 = 2;

/// Why a membership ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipLoss {
    /// Nobody answered for longer than the grace.
    Gone,
    /// The coordinator does not take the member.
    Refused(JoinRefusal),
}

/// Why the coordinator does not take a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRefusal {
    /// In its words.
    pub reason: String,
    /// Whether it would not take a process that is started again either.
    pub is_final: bool,
}

/// How a call to the coordinator ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// With a reply.
    Answered,
    /// The identity that it carried is refused.
    Fenced(Caller),
    /// Nobody answered, or nobody who is ready to.
    Outage,
    /// The call itself is at fault.
    Failed,
}

/// What follows from the end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCall {
    /// The caller has its reply, or its failure.
    Return,
    /// Call again after a pause.
    CallLater,
    /// Join, then call again after a pause.
    JoinFirst,
}

/// How an attempt to join ended.
#[derive(Clone, Debug, PartialEq)]
pub enum JoinEnd<'a> {
    /// The member is one.
    Joined(&'a JoinReply),
    /// Nobody answered, or nobody who is ready to.
    Outage,
    /// Another process has the place, in the coordinator's words.
    Taken(String),
    /// The coordinator does not take the member.
    Refused(JoinRefusal),
}

/// What a member knows of its membership.
#[derive(Clone, Debug)]
pub struct MemberLink {
    caller: Caller,
    lease: Duration,
    grace: Duration,
    last_contact: Instant,
    /// Since when another process has been known to have the place.
    taken_since: Option<Instant>,
    loss: Option<MembershipLoss>,
}

impl MemberLink {
    /// Before the first attempt to join; an absent coordinator is waited for from `now` on.
    pub fn new(member_id: &str, grace: Duration, now: Instant) -> Self {
        let caller = Caller { member_id: member_id.to_owned(), ..Caller::default() };
        Self { caller, lease: FIRST_LEASE, grace, last_contact: now, taken_since: None, loss: None }
    }

    /// The newest identity.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// From one heartbeat to the next.
    pub fn heartbeat_pause(&self) -> Duration {
        self.lease.div_f64(HEARTBEATS_PER_LEASE)
    }

    /// Decides what follows from the end of a call.
    ///
    /// # Errors
    /// If the membership is lost.
    pub fn on_call(&mut self, end: CallEnd, now: Instant) -> Result<AfterCall, MembershipLoss> {
        match end {
            CallEnd::Answered => {
                self.last_contact = now;
                Ok(AfterCall::Return)
            }
            CallEnd::Failed => Ok(AfterCall::Return),
            CallEnd::Fenced(refused) => {
                self.last_contact = now;
                self.check_lost()?;
                // Somebody who was refused together with this caller may have joined already.
                Ok(if self.caller == refused { AfterCall::JoinFirst } else { AfterCall::CallLater })
            }
            CallEnd::Outage => self.outlive_outage(now).map(|()| AfterCall::CallLater),
        }
    }

    /// Takes the end of an attempt to join; `false` is to try again after a pause.
    ///
    /// # Errors
    /// If the membership is lost.
    pub fn on_join(&mut self, end: JoinEnd<'_>, now: Instant) -> Result<bool, MembershipLoss> {
        match end {
            JoinEnd::Joined(reply) => {
                if let Some(identity) = &reply.identity {
                    self.caller = identity.clone();
                }
                self.lease = Duration::try_from_secs_f64(reply.lease_seconds).unwrap_or(self.lease);
                (self.last_contact, self.taken_since) = (now, None);
                Ok(true)
            }
            JoinEnd::Outage => {
                self.taken_since = None;
                self.outlive_outage(now).map(|()| false)
            }
            JoinEnd::Taken(reason) => self.outlive_rival(reason, now).map(|()| false),
            JoinEnd::Refused(refusal) => Err(self.lose(MembershipLoss::Refused(refusal))),
        }
    }

    /// Whether the membership still stands.
    ///
    /// # Errors
    /// If the membership is lost.
    pub fn check_lost(&self) -> Result<(), MembershipLoss> {
        self.loss.clone().map_or(Ok(()), Err)
    }

    fn outlive_outage(&mut self, now: Instant) -> Result<(), MembershipLoss> {
        self.check_lost()?;
        match now.saturating_duration_since(self.last_contact) > self.grace {
            true => Err(self.lose(MembershipLoss::Gone)),
            false => Ok(()),
        }
    }

    /// Waits for the end of a dead process's lease. Who was replaced meanwhile leaves at once: where it is started again, it is
    /// new.
    fn outlive_rival(&mut self, reason: String, now: Instant) -> Result<(), MembershipLoss> {
        self.check_lost()?;
        self.last_contact = now;
        let is_new = self.caller.run_id.is_empty();
        let since = *self.taken_since.get_or_insert(now);
        match is_new && now.saturating_duration_since(since) <= self.lease * LEASES_OF_THE_DEAD {
            true => Ok(()),
            false => Err(self.lose(MembershipLoss::Refused(JoinRefusal { reason, is_final: is_new }))),
        }
    }

    fn lose(&mut self, loss: MembershipLoss) -> MembershipLoss {
        self.loss = Some(loss.clone());
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn reply(incarnation: u64) -> JoinReply {
        let identity = Caller { run_id: "run".to_owned(), member_id: "worker-0".to_owned(), incarnation };
        JoinReply { identity: Some(identity), lease_seconds: 10.0, ..JoinReply::default() }
    }

    /// A member that joined at the returned time.
    fn joined() -> (MemberLink, Instant) {
        let start = Instant::now();
        let mut link = MemberLink::new("worker-0", GRACE, start);
        assert_eq!(link.on_join(JoinEnd::Outage, start + GRACE), Ok(false));
        let now = start + GRACE + GRACE;
        assert_eq!(link.on_join(JoinEnd::Joined(&reply(1)), now), Ok(true));
        (link, now)
    }

    #[test]
    fn the_coordinator_says_identity_and_lease() {
        let (link, _) = joined();
        assert_eq!(Some(link.caller()), reply(1).identity.as_ref());
        assert_eq!(link.heartbeat_pause(), Duration::from_secs(2));
    }

    #[test]
    fn an_absent_coordinator_is_waited_for_during_the_grace_only() {
        let (mut link, now) = joined();
        assert_eq!(link.on_call(CallEnd::Outage, now + GRACE), Ok(AfterCall::CallLater));
        assert_eq!(link.on_call(CallEnd::Answered, now + GRACE), Ok(AfterCall::Return));
        let late = now + GRACE + GRACE;
        assert_eq!(
            link.on_call(CallEnd::Outage, late),
            Ok(AfterCall::CallLater),
            "any word begins the grace anew"
        );
        let too_late = late + Duration::from_millis(1);
        assert_eq!(link.on_call(CallEnd::Outage, too_late), Err(MembershipLoss::Gone));
        assert_eq!(link.check_lost(), Err(MembershipLoss::Gone));
        assert_eq!(link.on_call(CallEnd::Outage, now), Err(MembershipLoss::Gone), "lost is lost");
    }

    #[test]
    fn callers_that_are_fenced_together_join_once() {
        let (mut link, now) = joined();
        let old = link.caller().clone();
        assert_eq!(link.on_call(CallEnd::Fenced(old.clone()), now), Ok(AfterCall::JoinFirst));
        assert_eq!(link.on_join(JoinEnd::Joined(&reply(2)), now), Ok(true));
        assert_eq!(link.on_call(CallEnd::Fenced(old), now), Ok(AfterCall::CallLater));
        assert_eq!(link.caller().incarnation, 2);
    }

    #[test]
    fn a_refused_member_does_not_come_back() {
        let (mut link, now) = joined();
        let fenced = CallEnd::Fenced(link.caller().clone());
        let refusal = JoinRefusal { reason: "another run".to_owned(), is_final: true };
        let refused = MembershipLoss::Refused(refusal.clone());
        assert_eq!(link.on_join(JoinEnd::Refused(refusal), now), Err(refused.clone()));
        assert_eq!(link.on_call(fenced, now), Err(refused));
        assert_eq!(
            link.on_call(CallEnd::Failed, now),
            Ok(AfterCall::Return),
            "a fault of the call is the caller's"
        );
    }

    fn taken() -> JoinEnd<'static> {
        JoinEnd::Taken("another process lives".to_owned())
    }

    fn refused(is_final: bool) -> Result<bool, MembershipLoss> {
        let reason = "another process lives".to_owned();
        Err(MembershipLoss::Refused(JoinRefusal { reason, is_final }))
    }

    #[test]
    fn a_new_process_waits_for_the_lease_of_a_dead_one_to_end() {
        let start = Instant::now();
        let mut link = MemberLink::new("worker-0", GRACE, start);
        assert_eq!(link.on_join(taken(), start), Ok(false));
        assert_eq!(link.on_join(taken(), start + FIRST_LEASE), Ok(false));
        let later = start + FIRST_LEASE + Duration::from_secs(1);
        assert_eq!(link.on_join(JoinEnd::Joined(&reply(1)), later), Ok(true));
    }

    #[test]
    fn a_process_whose_place_a_living_one_has_is_refused_for_good() {
        let start = Instant::now();
        let mut link = MemberLink::new("worker-0", GRACE, start);
        assert_eq!(link.on_join(taken(), start), Ok(false));
        assert_eq!(link.on_join(taken(), start + FIRST_LEASE * LEASES_OF_THE_DEAD), Ok(false));
        let late = start + FIRST_LEASE * LEASES_OF_THE_DEAD + Duration::from_millis(1);
        assert_eq!(link.on_join(taken(), late), refused(true));
        assert_eq!(link.on_join(taken(), late), refused(true), "lost is lost");
    }

    #[test]
    fn an_outage_begins_the_wait_for_a_place_anew() {
        let start = Instant::now();
        let mut link = MemberLink::new("worker-0", GRACE, start);
        assert_eq!(link.on_join(taken(), start), Ok(false));
        let late = start + FIRST_LEASE * LEASES_OF_THE_DEAD * 2;
        assert_eq!(link.on_join(JoinEnd::Outage, late), Ok(false));
        assert_eq!(link.on_join(taken(), late), Ok(false));
    }

    #[test]
    fn who_was_replaced_leaves_at_once_and_may_come_back_as_another_process() {
        let (mut link, now) = joined();
        assert_eq!(link.on_join(taken(), now), refused(false));
    }
}
