//! Between what is shown of a run and the messages that carry it.

use crate::results::{HeldOutReward, RunProgress, RunSummary, ScoreChange};

impl From<proto::HeldOut> for HeldOutReward {
    fn from(wire: proto::HeldOut) -> Self {
        Self { version: wire.version, reward: wire.reward, standard_error: wire.standard_error }
    }
}

impl From<HeldOutReward> for proto::HeldOut {
    fn from(held_out: HeldOutReward) -> Self {
        Self { version: held_out.version, reward: held_out.reward, standard_error: held_out.standard_error }
    }
}

impl From<proto::Progress> for RunProgress {
    fn from(wire: proto::Progress) -> Self {
        Self {
            iteration: wire.iteration,
            iterations: wire.iterations,
            phase: wire.phase,
            reward: wire.reward,
            held_out: wire.held_out.map(Into::into),
            images: wire.images,
            network_evaluations: wire.network_evaluations,
            seconds: wire.seconds,
            learner_busy: wire.learner_busy,
        }
    }
}

impl From<RunProgress> for proto::Progress {
    fn from(progress: RunProgress) -> Self {
        Self {
            iteration: progress.iteration,
            iterations: progress.iterations,
            phase: progress.phase,
            reward: progress.reward,
            held_out: progress.held_out.map(Into::into),
            images: progress.images,
            network_evaluations: progress.network_evaluations,
            seconds: progress.seconds,
            learner_busy: progress.learner_busy,
        }
    }
}

impl From<proto::ScoreChange> for ScoreChange {
    fn from(wire: proto::ScoreChange) -> Self {
        Self {
            name: wire.name,
            before: wire.before,
            before_standard_error: wire.before_standard_error,
            after: wire.after,
            after_standard_error: wire.after_standard_error,
        }
    }
}

impl From<proto::Summary> for RunSummary {
    fn from(wire: proto::Summary) -> Self {
        Self {
            before: wire.before.map(Into::into),
            after: wire.after.map(Into::into),
            best: wire.best.map(Into::into),
            gain: wire.gain,
            gain_standard_error: wire.gain_standard_error,
            prompts: wire.prompts,
            seconds: wire.seconds,
            images: wire.images,
            network_evaluations: wire.network_evaluations,
            learner_busy: wire.learner_busy,
            worker_busy: wire.worker_busy,
            worker_busy_seconds: wire.worker_busy_seconds,
            adapter: wire.adapter,
            best_adapter: wire.best_adapter,
            scores: wire.scores.into_iter().map(Into::into).collect(),
            reward_hacking: wire.reward_hacking,
            is_of_test_prompts: wire.is_of_test_prompts,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::run_record::{RunEnding, RunRecord};

    #[test]
    fn a_summary_arrives_as_it_was_sent() {
        let row = |version, reward| Some(proto::HeldOut { version, reward, standard_error: 0.01 });
        let score = proto::ScoreChange {
            name: "shapes".to_owned(),
            before: 0.4,
            before_standard_error: 0.03,
            after: 0.6,
            after_standard_error: 0.04,
        };
        let sent = proto::Summary {
            before: row(0, 0.4),
            after: row(150, 0.6),
            best: row(90, 0.65),
            gain: 0.2,
            gain_standard_error: 0.02,
            prompts: 200,
            seconds: 600.5,
            images: 6000,
            network_evaluations: 240_000,
            learner_busy: 0.5,
            worker_busy: 0.875,
            worker_busy_seconds: 601.25,
            adapter: "runs/demo/adapter".to_owned(),
            best_adapter: "runs/demo/adapter/best".to_owned(),
            scores: vec![score],
            reward_hacking: vec!["pickscore".to_owned()],
            is_of_test_prompts: true,
        };
        let record: RunRecord =
            serde_json::from_str(include_str!("../tests/golden/run.json")).expect("readable");
        assert_eq!(record.ended, Some(RunEnding::Done { summary: Box::new(sent.into()) }));
    }
}
