//! What the coordinator decides about a cell.

use super::CellLimits;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Instant;

/// Failures without a synchronization between them, after which the cell falls back to gRPC.
const MOST_FAILURES: u32 = 2;

/// What happened. A member `M` is one incarnation: a process that comes back is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellEvent<M> {
    /// A member came that can be in the cell; one of them is the root, which sends.
    Joined {
        /// Who.
        member: M,
        /// Whether it sends.
        is_root: bool,
        /// The newest epoch that it has heard of, 0 if none: a coordinator that starts again goes on after it.
        newest_epoch: u64,
    },
    /// It left, died or was fenced.
    Left(M),
    /// It is prepared.
    Ready {
        /// Who.
        member: M,
        /// For which epoch.
        epoch: u64,
    },
    /// Its communicator works.
    Formed {
        /// Who.
        member: M,
        /// Of which epoch.
        epoch: u64,
    },
    /// The root sends weights through this epoch.
    SyncBegun(u64),
    /// All have them.
    Synced(u64),
    /// A member cannot go on with the epoch.
    Failed {
        /// Who says so.
        member: M,
        /// Which epoch.
        epoch: u64,
        /// Why, with the name of the one to blame where it is known.
        reason: String,
    },
    /// A member's communicator of that epoch is gone.
    Ended {
        /// Whose.
        member: M,
        /// Which epoch.
        epoch: u64,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellAction<M> {
    /// Tell all of these to prepare; their places are their ranks, the root's is 0.
    Prepare {
        /// The new epoch.
        epoch: u64,
        /// Its members by rank.
        ranks: Vec<M>,
    },
    /// Tell all of these to form the communicator.
    Form {
        /// The epoch that all are ready for.
        epoch: u64,
        /// Its members by rank.
        ranks: Vec<M>,
    },
    /// Tell all of these that the epoch is over.
    End {
        /// Which.
        epoch: u64,
        /// Those who are still here.
        ranks: Vec<M>,
        /// Why.
        reason: String,
    },
    /// This member did not do its part in time and may be wedged in a communicator: it is in no cell any more, and is to be
    /// fenced.
    SetAside {
        /// Who.
        member: M,
        /// What it did not do.
        reason: String,
    },
    /// Tell the user.
    Announce(CellNotice),
}

/// What a user is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellNotice {
    /// A cell works.
    Formed {
        /// Its epoch.
        epoch: u64,
        /// How many are in it.
        n_ranks: usize,
    },
    /// A cell is given up, and another one is tried.
    Ended {
        /// Its epoch.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// There will be no cell any more; weights go by gRPC.
    FallenBack {
        /// What failed last.
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Preparing,
    Forming,
    Formed,
    Syncing,
    Ending,
}

/// An attempt at a cell, and what is waited for.
#[derive(Clone, Debug)]
struct Epoch<M> {
    number: u64,
    ranks: Vec<M>,
    stage: Stage,
    missing: BTreeSet<M>,
    /// Every stage but [`Stage::Formed`] has one.
    deadline: Option<Instant>,
}

/// The coordinator's side of a cell.
#[derive(Clone, Debug)]
pub struct CellLeader<M> {
    limits: CellLimits,
    root: Option<M>,
    /// Whether each member may be in a cell: not one that was set aside.
    members: BTreeMap<M, bool>,
    changed: Option<Instant>,
    newest_epoch: u64,
    n_failures: u32,
    fallen_back: Option<String>,
    epoch: Option<Epoch<M>>,
}

impl<M: Clone + Ord + Display> CellLeader<M> {
    /// Before anybody has joined.
    pub fn new(limits: CellLimits) -> Self {
        Self {
            limits,
            root: None,
            members: BTreeMap::new(),
            changed: None,
            newest_epoch: 0,
            n_failures: 0,
            fallen_back: None,
            epoch: None,
        }
    }

    /// Decides what follows from an event.
    pub fn on(&mut self, event: CellEvent<M>, now: Instant) -> Vec<CellAction<M>> {
        let mut actions = Vec::new();
        match event {
            CellEvent::Joined { member, is_root, newest_epoch } => {
                self.join(member, is_root, newest_epoch, now, &mut actions);
            }
            CellEvent::Left(member) => self.leave(&member, now, &mut actions),
            CellEvent::Ready { member, epoch } => self.heard(&member, epoch, Stage::Preparing),
            CellEvent::Formed { member, epoch } => self.heard(&member, epoch, Stage::Forming),
            CellEvent::Ended { member, epoch } => self.heard(&member, epoch, Stage::Ending),
            CellEvent::SyncBegun(epoch) => {
                let deadline = Some(now + self.limits.sync);
                if let Some(current) = self.at(epoch, Stage::Formed) {
                    (current.stage, current.deadline) = (Stage::Syncing, deadline);
                }
            }
            CellEvent::Synced(epoch) => {
                if let Some(current) = self.at(epoch, Stage::Syncing) {
                    (current.stage, current.deadline) = (Stage::Formed, None);
                    self.n_failures = 0;
                }
            }
            CellEvent::Failed { member, epoch, reason } => {
                if self.is_alive(epoch) {
                    self.fail(&format!("{member}: {reason}"), now, &mut actions);
                }
            }
            CellEvent::Tick => {}
        }
        self.go_on(now, &mut actions);
        actions
    }

    /// When to call again with [`CellEvent::Tick`], if nothing happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_members = || self.changed.filter(|_| self.wants_change()).map(|at| at + self.limits.gather);
        match &self.epoch {
            Some(Epoch { deadline: Some(deadline), .. }) => Some(*deadline),
            _ => of_members(),
        }
    }

    /// The epoch by which a member can be reached now; others get weights by gRPC.
    pub fn epoch_of(&self, member: &M) -> Option<u64> {
        let is_formed = |epoch: &&Epoch<M>| matches!(epoch.stage, Stage::Formed | Stage::Syncing);
        let epoch = self.epoch.as_ref().filter(is_formed)?;
        epoch.ranks.contains(member).then_some(epoch.number)
    }

    /// Why there will be no cell any more.
    pub fn fallen_back(&self) -> Option<&str> {
        self.fallen_back.as_deref()
    }

    fn at(&mut self, number: u64, stage: Stage) -> Option<&mut Epoch<M>> {
        self.epoch.as_mut().filter(|epoch| epoch.number == number && epoch.stage == stage)
    }

    fn is_alive(&self, number: u64) -> bool {
        self.epoch.as_ref().is_some_and(|epoch| epoch.number == number && epoch.stage != Stage::Ending)
    }

    fn heard(&mut self, member: &M, number: u64, stage: Stage) {
        if let Some(epoch) = self.at(number, stage) {
            epoch.missing.remove(member);
        }
    }

    fn join(
        &mut self,
        member: M,
        is_root: bool,
        newest_epoch: u64,
        now: Instant,
        actions: &mut Vec<CellAction<M>>,
    ) {
        self.newest_epoch = self.newest_epoch.max(newest_epoch);
        if self.members.contains_key(&member) {
            return;
        }
        if is_root {
            // The root before it is of no use to the cell, even if nobody has noticed yet that it is gone.
            if let Some(old) = self.root.replace(member.clone()) {
                self.leave(&old, now, actions);
                self.root = Some(member.clone());
            }
        }
        self.members.insert(member, true);
        self.changed = Some(now);
    }

    fn leave(&mut self, member: &M, now: Instant, actions: &mut Vec<CellAction<M>>) {
        if self.members.remove(member).is_none() {
            return;
        }
        self.root.take_if(|root| root == member);
        let Some(epoch) = self.epoch.as_mut().filter(|epoch| epoch.ranks.contains(member)) else { return };
        epoch.ranks.retain(|other| other != member);
        epoch.missing.remove(member);
        if epoch.stage != Stage::Ending {
            self.end(&format!("{member} left"), now, actions);
        }
    }

    /// Ends the epoch for all who are in it.
    fn end(&mut self, reason: &str, now: Instant, actions: &mut Vec<CellAction<M>>) {
        let Some(epoch) = &mut self.epoch else { return };
        epoch.stage = Stage::Ending;
        epoch.missing = epoch.ranks.iter().cloned().collect();
        epoch.deadline = Some(now + self.limits.end);
        let (number, reason) = (epoch.number, reason.to_owned());
        actions.push(CellAction::End { epoch: number, ranks: epoch.ranks.clone(), reason: reason.clone() });
        actions.push(CellAction::Announce(CellNotice::Ended { epoch: number, reason }));
    }

    /// Ends the epoch because it does not work.
    fn fail(&mut self, reason: &str, now: Instant, actions: &mut Vec<CellAction<M>>) {
        self.n_failures += 1;
        self.end(reason, now, actions);
        if self.n_failures >= MOST_FAILURES {
            self.fallen_back = Some(reason.to_owned());
            actions.push(CellAction::Announce(CellNotice::FallenBack { reason: reason.to_owned() }));
        }
    }

    /// Goes as far as it can without another event.
    fn go_on(&mut self, now: Instant, actions: &mut Vec<CellAction<M>>) {
        if self.epoch.as_ref().is_some_and(|epoch| epoch.deadline.is_some_and(|deadline| deadline <= now)) {
            self.expire(now, actions);
        }
        if let Some(epoch) = self.epoch.as_mut().filter(|epoch| epoch.missing.is_empty()) {
            let (number, ranks) = (epoch.number, epoch.ranks.clone());
            match epoch.stage {
                Stage::Preparing => {
                    (epoch.stage, epoch.deadline) = (Stage::Forming, Some(now + self.limits.form));
                    epoch.missing = ranks.iter().cloned().collect();
                    actions.push(CellAction::Form { epoch: number, ranks });
                }
                Stage::Forming => {
                    (epoch.stage, epoch.deadline) = (Stage::Formed, None);
                    let notice = CellNotice::Formed { epoch: number, n_ranks: ranks.len() };
                    actions.push(CellAction::Announce(notice));
                }
                Stage::Ending => self.epoch = None,
                Stage::Formed | Stage::Syncing => {}
            }
        }
        let is_gathered = self.changed.is_none_or(|changed| changed + self.limits.gather <= now);
        if !is_gathered || !self.wants_change() {
            return;
        }
        match self.epoch.as_ref().map(|epoch| epoch.stage) {
            None => self.begin(now, actions),
            Some(Stage::Formed) => self.end("members joined", now, actions),
            Some(_) => {}
        }
    }

    /// Whether the cell is not what it would be if it were made now.
    fn wants_change(&self) -> bool {
        let ranks = self.next_ranks();
        let is_new = |member: &M| self.epoch.as_ref().is_none_or(|epoch| !epoch.ranks.contains(member));
        self.fallen_back.is_none() && ranks.len() > 1 && ranks.iter().any(is_new)
    }

    /// Who would be in a cell now: the root first, and nobody without it.
    fn next_ranks(&self) -> Vec<M> {
        let is_fit = |member: &&M| self.members.get(member) == Some(&true);
        let Some(root) = self.root.as_ref().filter(is_fit) else { return Vec::new() };
        let others = self.members.iter().filter(|(member, is_fit)| **is_fit && *member != root);
        std::iter::once(root).chain(others.map(|(member, _)| member)).cloned().collect()
    }

    fn begin(&mut self, now: Instant, actions: &mut Vec<CellAction<M>>) {
        self.newest_epoch += 1;
        let (number, ranks) = (self.newest_epoch, self.next_ranks());
        let deadline = Some(now + self.limits.prepare);
        let missing = ranks.iter().cloned().collect();
        self.epoch = Some(Epoch { number, ranks: ranks.clone(), stage: Stage::Preparing, missing, deadline });
        actions.push(CellAction::Prepare { epoch: number, ranks });
    }

    /// Takes the consequences of a deadline that has passed.
    fn expire(&mut self, now: Instant, actions: &mut Vec<CellAction<M>>) {
        let Some(epoch) = &mut self.epoch else { return };
        let (part, limit) = match epoch.stage {
            Stage::Preparing => ("prepare", self.limits.prepare),
            Stage::Forming => ("form the communicator", self.limits.form),
            Stage::Syncing => ("bring the weights to all", self.limits.sync),
            Stage::Ending => ("end its communicator", self.limits.end),
            Stage::Formed => return,
        };
        let stage = epoch.stage;
        let silent = std::mem::take(&mut epoch.missing);
        epoch.ranks.retain(|member| !silent.contains(member));
        let within = format!("within {} s in epoch {}", limit.as_secs_f64(), epoch.number);
        let names: Vec<String> = silent.iter().map(ToString::to_string).collect();
        for member in silent {
            self.members.insert(member.clone(), false);
            let reason = format!("it did not {part} {within}");
            actions.push(CellAction::SetAside { member, reason });
        }
        match stage {
            Stage::Ending => {}
            Stage::Syncing => self.fail(&format!("the cell did not {part} {within}"), now, actions),
            _ => self.fail(&format!("{} did not {part} {within}", names.join(", ")), now, actions),
        }
    }
}
