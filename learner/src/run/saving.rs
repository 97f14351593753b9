//! Writing checkpoints: when, what happens when one cannot be written, and what is told.

use std::path::Path;
use std::time::{Duration, Instant};

use models::weights;
use proto::{HeldOut, ScoreChange, Summary};
use protocol::with_causes;
use service::{ServiceError, durable};

use crate::error::LearnerError;
use crate::exchange::inbox::Stopped;
use crate::records::evaluation::{self, Evaluation};
use crate::records::journal;
use crate::run::checkpoint::CheckpointError;
use crate::run::saved_state::{
    CONFIG_FILE, EVALUATIONS_FILE, STATE_FILE, SavedState, TESTS_FILE, policy_file,
};
use crate::run::{Run, SaveFailure};

/// Between attempts to write the last checkpoint.
const LAST_SAVE_PAUSE: Duration = Duration::from_secs(5);

impl Run {
    /// Writes a checkpoint and makes what follows from it; a failure is told, and final only if it lasts.
    pub(crate) fn save(&mut self) -> Result<(), LearnerError> {
        self.trainer.progress.phase("checkpointing");
        let version = self.state.version;
        let state = SavedState {
            seconds: self.seconds(),
            earlier_versions: self
                .trainer
                .earlier
                .keys()
                .copied()
                .filter(|earlier| *earlier < version)
                .collect(),
            ..self.state.clone()
        };
        match self.checkpoints.write(version, |directory| self.write_files(directory, &state)) {
            Ok(path) => {
                tracing::info!(version, "checkpoint {}", path.display());
                (self.saved, self.save_failure) = (Some(version), None);
                self.settle();
                Ok(())
            }
            // Another learner has this one's place: it would be refused for ever.
            Err(source) if source.not_owner().is_some_and(ServiceError::is_superseded) => Err(source.into()),
            // Nothing is recorded before the first checkpoint, so that records without one tell that one was lost.
            Err(source) if self.saved.is_none() => Err(LearnerError::FirstCheckpointFails { source }),
            Err(source) => self.note_failure(version, source),
        }
    }

    fn note_failure(&mut self, version: u32, source: CheckpointError) -> Result<(), LearnerError> {
        self.trainer.progress.failed_checkpoints.count([]);
        let reason = with_causes(&source);
        let before = self.save_failure.take();
        if before.as_ref().is_none_or(|failure| failure.reason != reason) {
            let notice = format!("checkpoint {version} not written, earlier ones are kept: {reason}");
            self.trainer.progress.notice(notice);
        } else {
            tracing::warn!("checkpoint {version} not written: {reason}");
        }
        let since = before.map_or_else(Instant::now, |failure| failure.since);
        self.save_failure = Some(SaveFailure { since, reason });
        match since.elapsed() >= self.patience() {
            true => Err(LearnerError::CheckpointsFail { failing: since.elapsed(), source }),
            false => Ok(()),
        }
    }

    /// Saves the version reached and makes all that follows, however often it takes, unless the learner is told to leave.
    pub(crate) fn save_at_last(&mut self) -> Result<(), LearnerError> {
        let start = Instant::now();
        loop {
            // What fails may do so for longer than what hangs.
            self.trainer.progress.gets_on();
            match self.saved == Some(self.state.version) {
                true => self.settle(),
                false => self.save()?,
            }
            if self.saved != Some(self.state.version) {
                if self.trainer.inbox.is_stopping() {
                    return Err(Stopped.into());
                }
                std::thread::sleep(LAST_SAVE_PAUSE.min(self.patience()));
                continue;
            }
            let Some(source) = self.unsettled.take() else { return Ok(()) };
            if self.trainer.inbox.is_stopping() {
                // A resumed run makes it.
                return Err(Stopped.into());
            }
            if start.elapsed() >= self.patience() {
                let summary = Box::new(self.summary());
                return Err(LearnerError::NotExported { source: Box::new(source), summary });
            }
            self.unsettled = Some(source);
            std::thread::sleep(LAST_SAVE_PAUSE.min(self.patience()));
        }
    }

    /// Told to leave: saves the version reached, unless an unfinished iteration has moved the policy already.
    pub(crate) fn save_before_leaving(&mut self) -> Result<(), LearnerError> {
        if self.is_at_boundary() && self.saved != Some(self.state.version) { self.save() } else { Ok(()) }
    }

    /// Whether the policy is that of the version reached, not on its way to the next.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.trainer.updates == self.state.updates
    }

    /// How long saving may keep failing.
    fn patience(&self) -> Duration {
        Duration::from_secs_f64(60.0 * self.config().checkpoints.retry_minutes)
    }

    /// Seconds since the start of the run, its earlier lives included.
    pub(crate) fn seconds(&self) -> f64 {
        self.state.seconds + self.opened.elapsed().as_secs_f64()
    }

    /// The share of the run's seconds in which the learner did not wait for workers.
    fn busy_share(&self, seconds: f64) -> f64 {
        self.state.computing_seconds / seconds.max(f64::MIN_POSITIVE)
    }

    /// Tells the coordinator how far the run is.
    pub(crate) fn tell_progress(&self) {
        let (version, seconds) = (self.state.version, self.seconds());
        let (images, network_evaluations) = self.totals();
        let reward = self.records.metrics().last().map(|row| row.reward.mean);
        let held_out = self.records.evaluations().last().map(held_out);
        self.trainer.progress.update(|progress| {
            progress.iteration = version;
            progress.iterations = self.config().run.iterations;
            progress.reward = reward;
            progress.held_out = held_out;
            progress.images = images;
            progress.network_evaluations = network_evaluations;
            progress.seconds = seconds;
            progress.learner_busy = self.busy_share(seconds);
        });
    }

    /// What the run achieved and cost.
    pub(crate) fn summary(&self) -> Summary {
        let (seconds, evaluations) = (self.seconds(), self.records.evaluations());
        let (images, network_evaluations) = self.totals();
        // The best version by evaluations may have no checkpoint, because it could not be written or was damaged.
        let best = self.checkpoints.best();
        let is_of_test_prompts = self.config().data.has_validation();
        let reported = if is_of_test_prompts { self.records.tests() } else { evaluations };
        let comparable = evaluation::comparable(reported);
        let reported = |version: u32| comparable.iter().copied().find(|row| row.version == version);
        let last = match is_of_test_prompts {
            true => Some(self.state.version),
            false => evaluations.last().map(|row| row.version),
        };
        let after = last.and_then(&reported);
        // After a change of prompts or rewards the first that compares may be the last version itself.
        let is_earlier = |row: &&Evaluation| after.is_none_or(|after| row.version < after.version);
        let before = comparable.first().copied().filter(is_earlier);
        Summary {
            before: before.map(held_out),
            after: after.map(held_out),
            best: best.and_then(&reported).map(held_out),
            gain: after.map_or(0.0, |row| row.gain),
            gain_standard_error: after.map_or(0.0, |row| row.gain_standard_error),
            prompts: after.map_or(0, |row| row.prompts),
            seconds,
            images,
            network_evaluations,
            learner_busy: self.busy_share(seconds),
            // Both are known to the coordinator, which fills them in.
            worker_busy: 0.0,
            worker_busy_seconds: 0.0,
            adapter: self.directory.adapter().display().to_string(),
            best_adapter: match best.is_some() {
                true => self.directory.best_adapter().display().to_string(),
                false => String::new(),
            },
            scores: before.zip(after).map(|(before, after)| score_changes(before, after)).unwrap_or_default(),
            reward_hacking: evaluations.last().map(|row| row.reward_hacking.clone()).unwrap_or_default(),
            is_of_test_prompts,
        }
    }

    /// Images scored and guided network evaluations, for training and evaluations.
    fn totals(&self) -> (u64, u64) {
        let rows = [self.records.evaluations(), self.records.tests()].concat();
        let images = rows.iter().map(|row| row.images).sum::<u64>();
        let network_evaluations = rows.iter().map(|row| row.network_evaluations).sum::<u64>();
        (self.state.images + images, self.state.network_evaluations + network_evaluations)
    }

    fn write_files(&self, directory: &Path, state: &SavedState) -> Result<(), CheckpointError> {
        self.trainer.policy.save(directory)?;
        for version in &state.earlier_versions {
            weights::write(
                &directory.join(policy_file(*version)),
                &self.trainer.earlier[version],
                &Default::default(),
            )?;
        }
        durable::write_file(&directory.join(CONFIG_FILE), self.config().to_toml().as_bytes())?;
        for (file, rows) in
            [(EVALUATIONS_FILE, self.records.evaluations()), (TESTS_FILE, self.records.tests())]
        {
            durable::write_file(&directory.join(file), &journal::to_lines(rows))?;
        }
        let text = serde_json::to_string_pretty(state).expect("the state is plain data; else this is a bug");
        Ok(durable::write_file(&directory.join(STATE_FILE), text.as_bytes())?)
    }
}

fn held_out(row: &Evaluation) -> HeldOut {
    HeldOut { version: row.version, reward: row.reward, standard_error: row.standard_error }
}

/// What became of each reward between two evaluations by the same ones.
fn score_changes(before: &Evaluation, after: &Evaluation) -> Vec<ScoreChange> {
    let change = |reward: &config::RewardSection| {
        let (before, after) = (before.scores.get(&reward.name)?, after.scores.get(&reward.name)?);
        Some(ScoreChange {
            name: reward.name.clone(),
            before: before.mean,
            before_standard_error: before.standard_error,
            after: after.mean,
            after_standard_error: after.standard_error,
        })
    };
    after.rewards.iter().filter_map(change).collect()
}
