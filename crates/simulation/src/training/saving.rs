//! When the learner saves, and what follows from checkpoints: as `learner/src/run/{saving,settling}.rs`.

use super::{Standing, Step, Training, died};
use crate::bug::Bug;
use crate::checkpoints::{self, Journal, Row, Saved};
use crate::disk::DiskFault;
use crate::durable;
use crate::stage::Stage;
use std::time::Duration;

impl Training {
    pub(super) fn save(&mut self, stage: &mut Stage) -> Option<Standing> {
        if stage.has(Bug::PrunesBeforeWriting) && remove_the_last(stage).is_err() {
            return Some(Standing::Died);
        }
        let earlier = self.earlier.iter().filter(|(version, _)| **version < self.version);
        let saved = Saved {
            version: self.version,
            updates: self.updates,
            policy: self.policy,
            earlier: earlier.map(|(version, policy)| (*version, *policy)).collect(),
            evaluations: self.copy_of(&self.evaluations, stage),
            tests: self.copy_of(&self.tests, stage),
        };
        match checkpoints::write(stage.disk, &saved, stage.bug) {
            Ok(()) => {
                (self.saved, self.has_failed_to_save) = (Some(self.version), false);
                stage.laws.saves(self.version);
                self.settled(stage)
            }
            Err(fault @ (DiskFault::Died | DiskFault::Superseded)) => Some(died(fault)),
            Err(_) if stage.has(Bug::AcknowledgesFailedWrites) => {
                self.saved = Some(self.version);
                stage.laws.saves(self.version);
                None
            }
            Err(fault) => {
                stage.laws.saw("checkpoint not written");
                stage.tell(|| format!("checkpoint {} not written: {fault:?}", self.version));
                let is_first = self.saved.is_none();
                self.has_failed_to_save = true;
                is_first.then_some(died(fault))
            }
        }
    }

    pub(super) fn copy_of(&self, journal: &Journal, stage: &Stage) -> Vec<Row> {
        if stage.has(Bug::OmitsCopies) { Vec::new() } else { journal.rows.clone() }
    }

    pub(super) fn save_at_last(&mut self, stage: &mut Stage) -> Option<Standing> {
        let standing = match self.saved == Some(self.version) {
            true => self.settle(stage).err().map(|fault| match fault {
                DiskFault::Died | DiskFault::Superseded => died(fault),
                _ => Standing::Waiting,
            }),
            false => self.save(stage),
        };
        if let Some(standing @ (Standing::Died | Standing::Failed | Standing::Fenced(_))) = standing {
            return Some(standing);
        }
        if self.saved == Some(self.version) && standing.is_none() {
            return None;
        }
        if self.intake.is_stopping() {
            return Some(self.leave(stage));
        }
        self.steps.push_front(Step::SaveAtLast);
        Some(Standing::Busy(Duration::from_secs(5)))
    }

    /// Told to leave: saves the version reached, unless an unfinished iteration has moved the policy already.
    pub(super) fn leave(&mut self, stage: &mut Stage) -> Standing {
        let is_at_boundary = self.updates == self.updates_at_boundary;
        let is_to_save = is_at_boundary && self.saved != Some(self.version);
        match is_to_save.then(|| self.save(stage)).flatten() {
            Some(standing @ (Standing::Died | Standing::Fenced(_))) => standing,
            _ => Standing::Left,
        }
    }

    /// What follows from checkpoints and evaluations: rows, the mark of the best version, which checkpoints may go.
    pub(super) fn settle(&mut self, stage: &mut Stage) -> Result<(), DiskFault> {
        let parts = [
            self.metrics.flush(stage.disk, stage.bug),
            self.evaluations.flush(stage.disk, stage.bug),
            self.tests.flush(stage.disk, stage.bug),
        ];
        let versions = checkpoints::versions(stage.disk);
        let is_there = |row: &&Row| versions.contains(&row.0);
        let best = self.evaluations.rows.iter().filter(is_there).max_by_key(|row| row.1).map(|row| row.0);
        let marked = best.map_or(Ok(()), |best| checkpoints::mark_best(stage.disk, best));
        checkpoints::prune(stage.disk, self.config.checkpoints.keep_last, best)?;
        parts.into_iter().chain([marked]).collect()
    }
}

/// Only a deliberate bug does.
fn remove_the_last(stage: &mut Stage) -> Result<(), DiskFault> {
    for version in checkpoints::versions(stage.disk) {
        durable::discard_directory(stage.disk, &format!("run/checkpoints/iteration-{version:06}"))?;
    }
    Ok(())
}
