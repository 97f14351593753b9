//! The run as all ranks but the first know it: iterations, nothing else.

use config::TaskKind;

use crate::error::LearnerError;
use crate::run::TrainingEnd;
use crate::training::trainer::Trainer;

/// A rank of the learner that follows the first one.
pub struct Follower {
    trainer: Trainer,
    /// Training tasks of these iterations are wanted.
    wanted: Vec<u32>,
}

impl Follower {
    /// A rank that is nowhere yet: it learns from the first one where the run is.
    pub fn new(trainer: Trainer) -> Self {
        Self { trainer, wanted: Vec::new() }
    }

    /// Trains with the others until told to leave, which the coordinator does once the run has ended: a first rank that died
    /// at its very end may need the others again.
    ///
    /// # Errors
    /// If training cannot go on.
    pub fn run(&mut self) -> Result<TrainingEnd, LearnerError> {
        let mut end = self.trainer.meet().err();
        loop {
            match end {
                None | Some(LearnerError::TakenOver) => {}
                Some(LearnerError::Stopped(_)) => return Ok(TrainingEnd::Left),
                Some(error) => return Err(error),
            }
            self.begin_anew();
            end = self.iterate().err();
        }
    }

    /// Nothing that was wanted or held before counts any more.
    fn begin_anew(&mut self) {
        for iteration in self.wanted.drain(..) {
            self.trainer.inbox.forget(TaskKind::Train, iteration);
        }
        // In the midst of an iteration its version was taken over.
        if self.trainer.next_update() == 0 {
            self.trainer.remember_policy(self.trainer.iteration);
        }
    }

    fn iterate(&mut self) -> Result<(), LearnerError> {
        while self.trainer.iteration < self.trainer.config.run.iterations {
            let iteration = self.trainer.iteration;
            self.want_tasks(iteration)?;
            self.trainer.meet()?;
            let metrics = self.trainer.train()?;
            tracing::info!(iteration, computing = metrics.time.computing, "iteration trained");
            self.trainer.inbox.forget(TaskKind::Train, iteration);
            self.wanted.retain(|wanted| *wanted != iteration);
            self.trainer.iteration += 1;
            self.trainer.remember_policy(self.trainer.iteration);
        }
        self.trainer.progress.phase("done");
        self.trainer.rest()
    }

    fn want_tasks(&mut self, iteration: u32) -> Result<(), LearnerError> {
        let config = &self.trainer.config;
        self.trainer.embeddings.begin_iteration(iteration);
        let ahead = (iteration + config.run.lag + 1).min(config.run.iterations);
        for wanted in iteration..ahead {
            // Updates of this iteration that are made need no more tasks.
            let update = if wanted == iteration { self.trainer.next_update() } else { 0 };
            self.trainer.inbox.want(TaskKind::Train, wanted, self.trainer.own_tasks(wanted, update)?);
            if !self.wanted.contains(&wanted) {
                self.wanted.push(wanted);
            }
        }
        self.trainer.progress.update(|progress| progress.iteration = iteration);
        Ok(())
    }
}
