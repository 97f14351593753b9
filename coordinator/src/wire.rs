//! Between what is shown of a run and the messages that carry it.

use crate::events::EventCount;
use crate::results::{HeldOutReward, RunProgress, RunSummary, ScoreChange};
use crate::view::{CardView, LivingRun, MemberView, Overview, PlannedMemory};
use proto::StatusReply;
use protocol::{PROGRAM_VERSION, PROTOCOL_VERSION, TaskName};

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

impl From<StatusReply> for LivingRun {
    fn from(wire: StatusReply) -> Self {
        Self {
            run_id: wire.run_id,
            run_name: wire.run_name,
            determinism: wire.determinism,
            overview: Overview {
                progress: wire.progress.unwrap_or_default().into(),
                images_per_second: wire.images_per_second,
                network_evaluations_per_second: wire.network_evaluations_per_second,
                seconds_left: wire.seconds_left,
                tasks_waiting: wire.tasks_queued,
                tasks_running: wire.tasks_running,
                tasks_held: wire.tasks_held,
                workers: wire.workers,
                workers_wanted: wire.workers_wanted,
                worker_busy: wire.worker_busy,
            },
            members: wire.members.into_iter().map(Into::into).collect(),
            notices: wire.notices,
            events: wire.events.into_iter().map(Into::into).collect(),
            events_dropped: wire.events_dropped,
            metrics_address: wire.metrics_address,
            memory_planned: wire.memory_planned.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<proto::EventCount> for EventCount {
    fn from(proto::EventCount { event, cause, count }: proto::EventCount) -> Self {
        Self { event, cause, count }
    }
}

impl From<EventCount> for proto::EventCount {
    fn from(EventCount { event, cause, count }: EventCount) -> Self {
        Self { event, cause, count }
    }
}

impl From<proto::PlannedMemory> for PlannedMemory {
    fn from(proto::PlannedMemory { role, place, bytes }: proto::PlannedMemory) -> Self {
        Self { role, place, bytes }
    }
}

impl From<PlannedMemory> for proto::PlannedMemory {
    fn from(PlannedMemory { role, place, bytes }: PlannedMemory) -> Self {
        Self { role, place, bytes }
    }
}

impl From<LivingRun> for StatusReply {
    fn from(run: LivingRun) -> Self {
        let overview = run.overview;
        Self {
            run_id: run.run_id,
            run_name: run.run_name,
            determinism: run.determinism,
            progress: Some(overview.progress.into()),
            members: run.members.into_iter().map(Into::into).collect(),
            tasks_queued: overview.tasks_waiting,
            tasks_running: overview.tasks_running,
            workers_wanted: overview.workers_wanted,
            images_per_second: overview.images_per_second,
            network_evaluations_per_second: overview.network_evaluations_per_second,
            seconds_left: overview.seconds_left,
            tasks_held: overview.tasks_held,
            workers: overview.workers,
            worker_busy: overview.worker_busy,
            notices: run.notices,
            events: run.events.into_iter().map(Into::into).collect(),
            events_dropped: run.events_dropped,
            metrics_address: run.metrics_address,
            memory_planned: run.memory_planned.into_iter().map(Into::into).collect(),
            protocol_version: PROTOCOL_VERSION,
            program_version: PROGRAM_VERSION.to_owned(),
            // Of the files of the run.
            held_out_rewards: Vec::new(),
            run_directory: String::new(),
            learner_half: None,
        }
    }
}

impl From<proto::Member> for MemberView {
    fn from(wire: proto::Member) -> Self {
        Self {
            role: wire.role(),
            // What has no name here is of another version's kind.
            running: wire.running.iter().flat_map(TaskName::try_from).collect(),
            member_id: wire.member_id,
            state: wire.state,
            address: wire.address,
            pid: wire.pid,
            host: wire.host,
            device: wire.device,
            device_kind: wire.device_kind,
            card: CardView::named(wire.card),
            metrics_address: wire.metrics_address,
            seconds_since_heartbeat: wire.seconds_since_heartbeat,
            tasks_done: wire.tasks_done,
            busy: wire.busy,
            speed: wire.speed,
            is_slow: wire.is_slow,
            troubles: wire.troubles,
        }
    }
}

impl From<MemberView> for proto::Member {
    fn from(member: MemberView) -> Self {
        Self {
            member_id: member.member_id,
            role: member.role.into(),
            state: member.state,
            address: member.address,
            pid: member.pid,
            seconds_since_heartbeat: member.seconds_since_heartbeat,
            tasks_done: member.tasks_done,
            running: member.running.into_iter().map(Into::into).collect(),
            busy: member.busy,
            speed: member.speed,
            is_slow: member.is_slow,
            troubles: member.troubles,
            host: member.host,
            device: member.device,
            device_kind: member.device_kind,
            card: member.card.map(|card| card.name).unwrap_or_default(),
            metrics_address: member.metrics_address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_record::RunEnding;
    use crate::view::tests::{ended_run, living_run};

    #[test]
    fn a_living_run_survives_the_wire() {
        let run = living_run();
        assert_eq!(LivingRun::from(StatusReply::from(run.clone())), run);
    }

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
        assert_eq!(ended_run().ended, RunEnding::Done { summary: Box::new(sent.into()) });
    }
}
