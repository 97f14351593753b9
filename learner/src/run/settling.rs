//! What follows from checkpoints and evaluations: the mark of the best version, the exports, which checkpoints may go.
//!
//! 1. All of it is a function of what is on disk. It is made again at every opening of a run, after every checkpoint and
//!    evaluation, and before the run is done, whoever wrote what it follows from and however far they got.
//! 2. Checkpoints go last, and never the one that an export is still to be made of.
//! 3. A run of which something could not be made is not done.

use std::path::Path;

use config::AdapterMethod;
use protocol::with_causes;
use service::{Provenance, ServiceError};
use tch::Tensor;

use crate::error::LearnerError;
use crate::records::evaluation;
use crate::run::Run;
use crate::run::checkpoint::{CheckpointError, Rejected};
use crate::run::export::{self, Place};
use crate::training::policy::{self, AVERAGE_FILE, NamedTensors};
use crate::training::trainer::Trainer;

impl Run {
    /// Makes all that follows from what is on disk. A failure is told, and made good the next time.
    pub(crate) fn settle(&mut self) {
        let before = self.unsettled.as_ref().map(|error| with_causes(error));
        self.unsettled = self.try_to_settle().err();
        let Some(reason) = self.unsettled.as_ref().map(|error| with_causes(error)) else { return };
        if before.as_ref() != Some(&reason) {
            let notice = format!("not all that follows from the newest checkpoint could be made: {reason}");
            self.trainer.progress.notice(notice);
        }
    }

    /// Tries every part, whatever becomes of the others; the first that fails is told.
    fn try_to_settle(&mut self) -> Result<(), LearnerError> {
        let best = self.find_best()?;
        let newest = self.checkpoints.versions()?.pop();
        let [adapter, best_adapter] = [self.directory.adapter(), self.directory.best_adapter()];
        let parts = [
            self.clear_leftovers().map_err(LearnerError::from),
            self.records.flush().map_err(LearnerError::from),
            best.map_or(Ok(()), |version| Ok(self.mark_best(version)?)),
            newest.map_or(Ok(()), |version| self.export_version(version, &adapter)),
            best.map_or(Ok(()), |version| self.export_version(version, &best_adapter)),
        ];
        // What exports are still to be made of stays: it is the newest and the best.
        self.checkpoints.prune(best)?;
        parts.into_iter().collect()
    }

    fn clear_leftovers(&self) -> Result<(), ServiceError> {
        let run = &self.directory;
        let directories = [run.adapter(), run.best_adapter(), run.samples(), run.tensorboard()];
        directories.iter().try_for_each(|directory| run.clear_leftovers(directory))
    }

    /// The best version that has a checkpoint; a damaged one is set aside, and the next best is the best.
    fn find_best(&mut self) -> Result<Option<u32>, LearnerError> {
        loop {
            let versions = self.checkpoints.versions()?;
            let is_there = |version: u32| versions.contains(&version);
            let best = evaluation::best_among(self.records.evaluations(), is_there);
            let Some(version) = best.map(|row| row.version) else {
                return Ok(self.checkpoints.best().filter(|version| is_there(*version)));
            };
            if self.is_at_hand(version) {
                return Ok(Some(version));
            }
            match self.checkpoints.check(version) {
                Ok(()) => return Ok(Some(version)),
                Err(CheckpointError::Damaged(rejected)) => self.set_aside(&rejected)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The best version whose checkpoint is whole, or that is the one reached.
    pub(crate) fn readable_best(&mut self) -> Result<Option<u32>, LearnerError> {
        loop {
            let versions = self.checkpoints.versions()?;
            let best = self.checkpoints.best().filter(|best| versions.contains(best));
            let Some(version) = best.filter(|best| *best != self.state.version) else { return Ok(best) };
            match self.checkpoints.check(version) {
                Ok(()) => return Ok(best),
                Err(CheckpointError::Damaged(rejected)) => self.set_aside(&rejected)?,
                Err(error) => return Err(error.into()),
            }
            self.settle();
        }
    }

    fn mark_best(&self, version: u32) -> Result<(), CheckpointError> {
        if self.checkpoints.best() == Some(version) { Ok(()) } else { self.checkpoints.mark_best(version) }
    }

    /// Whether the checkpoint of the best version need not be read to export it.
    fn is_at_hand(&self, version: u32) -> bool {
        let is_exported = |provenance: Provenance| {
            let method = self.config().adapter.method;
            export::is_current(method, &provenance, &self.directory.best_adapter())
        };
        self.is_in_memory(version) || self.provenance(version).is_ok_and(is_exported)
    }

    /// Whether the policy is that of a checkpoint.
    fn is_in_memory(&self, version: u32) -> bool {
        self.saved == Some(version) && self.state.version == version && self.is_at_boundary()
    }

    fn provenance(&self, version: u32) -> Result<Provenance, CheckpointError> {
        Ok(Provenance { version, average: self.checkpoints.digest(version, AVERAGE_FILE)? })
    }

    /// Exports the average of the checkpoint of `version`, unless what is there was made of it.
    fn export_version(&mut self, version: u32, directory: &Path) -> Result<(), LearnerError> {
        let provenance = self.provenance(version)?;
        let method = self.config().adapter.method;
        if export::is_current(method, &provenance, directory) {
            return Ok(());
        }
        let average = match self.is_in_memory(version) {
            true => shallow_clones(self.trainer.policy.average()),
            false => policy::read_average(&self.checkpoints.path(version))?,
        };
        let place = Place::OfRun(&self.directory, directory.to_owned());
        let Trainer { config, policy, .. } = &mut self.trainer;
        match method {
            AdapterMethod::Lora => export::write_adapter(config, &average, &provenance, &place),
            AdapterMethod::Full => {
                let base = policy.folder().to_owned();
                policy.with_average(&average, |tensors| {
                    export::write_transformer(&base, tensors, &provenance, &place)
                })?
            }
        }
    }

    fn set_aside(&self, rejected: &Rejected) -> Result<(), LearnerError> {
        let kept = self.checkpoints.set_aside(rejected)?;
        let notice = format!("damaged checkpoint passed over and kept as {}: {rejected}", kept.display());
        self.trainer.progress.notice(notice);
        Ok(())
    }
}

fn shallow_clones(tensors: &[(String, Tensor)]) -> NamedTensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
