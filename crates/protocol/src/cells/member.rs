//! What a member does between the coordinator's words and the thread that owns its communicator.

use super::CellLimits;
use std::time::{Duration, Instant};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// The coordinator: prepare for this epoch.
    Prepare(u64),
    /// The coordinator: all are ready, form the communicator.
    Form(u64),
    /// The coordinator: this epoch is over.
    End(u64),
    /// The thread: what the epoch needs is open.
    Opened(u64),
    /// The thread: the communicator works.
    Formed(u64),
    /// The thread: it does not, or not any more.
    Broke {
        /// Which epoch's.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// The thread: nothing is left of the epoch.
    Gone(u64),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberAction {
    /// The thread: open what the epoch needs.
    Open(u64),
    /// The thread: form the communicator.
    Form(u64),
    /// The thread: abort and clear away whatever there is of the epoch.
    Abort(u64),
    /// Tell the coordinator that this member is prepared.
    SayReady(u64),
    /// Tell the coordinator that the communicator works.
    SayFormed(u64),
    /// Tell the coordinator that this member cannot go on with the epoch.
    SayFailed {
        /// Which.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// Tell the coordinator that nothing is left of the epoch.
    SayEnded(u64),
    /// The thread is wedged: end the process, to be started again.
    EndProcess {
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Out,
    Opening { epoch: u64, deadline: Instant },
    Ready { epoch: u64, deadline: Instant },
    Forming { epoch: u64, deadline: Instant },
    Formed { epoch: u64 },
    Ending { epoch: u64, deadline: Instant, next: Option<u64> },
}

/// A member's side of a cell: it is in one epoch at most.
#[derive(Clone, Debug)]
pub struct CellMember {
    limits: CellLimits,
    newest_epoch: u64,
    state: State,
}

impl CellMember {
    /// Outside any cell.
    pub fn new(limits: CellLimits) -> Self {
        Self { limits, newest_epoch: 0, state: State::Out }
    }

    /// The newest epoch that was heard of, for joining again.
    pub fn newest_epoch(&self) -> u64 {
        self.newest_epoch
    }

    /// The epoch whose communicator works.
    pub fn formed(&self) -> Option<u64> {
        match self.state {
            State::Formed { epoch } => Some(epoch),
            _ => None,
        }
    }

    /// When to call again with [`MemberEvent::Tick`], if nothing happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Out | State::Formed { .. } => None,
            State::Opening { deadline, .. }
            | State::Ready { deadline, .. }
            | State::Forming { deadline, .. }
            | State::Ending { deadline, .. } => Some(deadline),
        }
    }

    /// Decides what follows from an event. What is said of an older epoch than the newest changes nothing.
    pub fn on(&mut self, event: MemberEvent, now: Instant) -> Vec<MemberAction> {
        match event {
            MemberEvent::Prepare(epoch) => self.prepare(epoch, now),
            MemberEvent::Form(epoch) => self.form(epoch, now),
            MemberEvent::End(epoch) => self.end(epoch, now),
            MemberEvent::Opened(opened) => match self.state {
                State::Opening { epoch, .. } if epoch == opened => {
                    // The coordinator forms or ends the epoch when its own deadline is over, unless it is gone.
                    let deadline = now + self.limits.prepare + self.limits.end;
                    self.state = State::Ready { epoch, deadline };
                    vec![MemberAction::SayReady(epoch)]
                }
                _ => Vec::new(),
            },
            MemberEvent::Formed(formed) => match self.state {
                State::Forming { epoch, .. } if epoch == formed => {
                    self.state = State::Formed { epoch };
                    vec![MemberAction::SayFormed(epoch)]
                }
                _ => Vec::new(),
            },
            MemberEvent::Broke { epoch, reason } if self.epoch() == Some(epoch) => {
                self.fail(epoch, reason, now)
            }
            MemberEvent::Gone(gone) => match self.state {
                State::Ending { epoch, next, .. } if epoch == gone => self.ended(epoch, next, now),
                _ => Vec::new(),
            },
            MemberEvent::Broke { .. } => Vec::new(),
            MemberEvent::Tick => self.expire(now),
        }
    }

    /// The epoch that this member is in, unless it is ending.
    fn epoch(&self) -> Option<u64> {
        match self.state {
            State::Opening { epoch, .. }
            | State::Ready { epoch, .. }
            | State::Forming { epoch, .. }
            | State::Formed { epoch } => Some(epoch),
            State::Out | State::Ending { .. } => None,
        }
    }

    fn prepare(&mut self, epoch: u64, now: Instant) -> Vec<MemberAction> {
        if epoch <= self.newest_epoch {
            return Vec::new();
        }
        self.newest_epoch = epoch;
        if let State::Ending { next, .. } = &mut self.state {
            *next = Some(epoch);
            return Vec::new();
        }
        match self.epoch() {
            // The coordinator started again and does not know of the old one: that goes first.
            Some(old) => self.abort(old, Some(epoch), now),
            None => self.open(epoch, now),
        }
    }

    fn open(&mut self, epoch: u64, now: Instant) -> Vec<MemberAction> {
        self.state = State::Opening { epoch, deadline: now + self.limits.prepare };
        vec![MemberAction::Open(epoch)]
    }

    fn form(&mut self, epoch: u64, now: Instant) -> Vec<MemberAction> {
        match self.state {
            State::Ready { epoch: ready, .. } if ready == epoch => {
                self.state = State::Forming { epoch, deadline: now + self.limits.form };
                vec![MemberAction::Form(epoch)]
            }
            // This member has given the epoch up, and its word of that may be lost.
            State::Out if epoch == self.newest_epoch => {
                let reason = "it is not prepared any more".to_owned();
                vec![MemberAction::SayFailed { epoch, reason }]
            }
            _ => Vec::new(),
        }
    }

    fn end(&mut self, over: u64, now: Instant) -> Vec<MemberAction> {
        // A call to prepare for it may still be on its way.
        self.newest_epoch = self.newest_epoch.max(over);
        if self.epoch() == Some(over) {
            return self.abort(over, None, now);
        }
        match &mut self.state {
            // It will be said when it is true.
            State::Ending { epoch, .. } if *epoch == over => return Vec::new(),
            State::Ending { next, .. } => drop(next.take_if(|next| *next == over)),
            _ => {}
        }
        vec![MemberAction::SayEnded(over)]
    }

    fn abort(&mut self, epoch: u64, next: Option<u64>, now: Instant) -> Vec<MemberAction> {
        self.state = State::Ending { epoch, deadline: now + self.limits.end, next };
        vec![MemberAction::Abort(epoch)]
    }

    fn fail(&mut self, epoch: u64, reason: String, now: Instant) -> Vec<MemberAction> {
        let mut actions = vec![MemberAction::SayFailed { epoch, reason }];
        actions.extend(self.abort(epoch, None, now));
        actions
    }

    fn ended(&mut self, epoch: u64, next: Option<u64>, now: Instant) -> Vec<MemberAction> {
        self.state = State::Out;
        let mut actions = vec![MemberAction::SayEnded(epoch)];
        actions.extend(next.into_iter().flat_map(|next| self.open(next, now)));
        actions
    }

    fn expire(&mut self, now: Instant) -> Vec<MemberAction> {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let within = |limit: Duration| format!("within {} s", limit.as_secs_f64());
        match self.state {
            State::Out | State::Formed { .. } => Vec::new(),
            State::Opening { epoch, .. } => {
                let reason = format!("it could not prepare {}", within(self.limits.prepare));
                self.fail(epoch, reason, now)
            }
            State::Ready { epoch, .. } => {
                let limit = within(self.limits.prepare + self.limits.end);
                self.fail(
                    epoch,
                    format!("it heard nothing of the coordinator {limit} when it was ready"),
                    now,
                )
            }
            State::Forming { epoch, .. } => {
                let reason = format!("its communicator did not form {}", within(self.limits.form));
                self.fail(epoch, reason, now)
            }
            State::Ending { epoch, .. } => {
                let limit = within(self.limits.end);
                let reason = format!("the communicator of epoch {epoch} could not be aborted {limit}");
                vec![MemberAction::EndProcess { reason }]
            }
        }
    }
}
