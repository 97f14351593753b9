//! What is shown of a run, by the display of `up` and by `status`, in words and as JSON; made here and nowhere else. The
//! names of the fields are keys of the JSON.

use crate::cards::{Card, CardMemory};
use crate::history::History;
use crate::membership::{Member, role_in_words};
use crate::rates::Rates;
use crate::results::{HeldOutReward, RunProgress};
use crate::run_record::{RunEnding, RunRecord};
use crate::run_state::RunState;
use proto::Role;
use protocol::TaskName;
use serde::{Serialize, Serializer};
use serde_json::Value;
use service::RunDirectory;
use std::path::Path;
use std::time::{Duration, Instant};

/// A run, alive or not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunView {
    /// What a coordinator says of it, or said last.
    #[serde(flatten)]
    pub stage: Stage,
    /// All evaluations so far, in the order of versions.
    pub held_out_rewards: Vec<HeldOutReward>,
    /// Where its files are.
    #[serde(rename = "files", serialize_with = "places")]
    pub directory: RunDirectory,
}

/// Whether a run lives, and what there is to say of it then.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Stage {
    /// Its coordinator answers.
    Living(Box<LivingRun>),
    /// Its coordinator noted how it ended.
    Ended(EndedRun),
}

/// A run whose coordinator lives, as it says itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LivingRun {
    /// Tells it from any other.
    pub run_id: String,
    /// The name in its config.
    pub run_name: String,
    /// How it is doing as a whole.
    #[serde(flatten)]
    pub overview: Overview,
    /// All members, those that have not been gone for long included, by id.
    pub members: Vec<MemberView>,
    /// What the learner wanted a user to hear of.
    pub notices: Vec<String>,
}

/// A living run without its members, which are too many to look at all the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overview {
    /// What the learner last reported.
    #[serde(flatten)]
    pub progress: RunProgress,
    /// Of the last minutes.
    pub images_per_second: f64,
    /// Guided, of the last minutes.
    pub network_evaluations_per_second: f64,
    /// To the end of the run; absent while nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
    /// Tasks of the iterations at work that nobody has.
    pub tasks_waiting: u32,
    /// Those that a worker has.
    pub tasks_running: u32,
    /// Those that the learner has.
    pub tasks_held: u32,
    /// Living rollout workers.
    pub workers: u32,
    /// Rollout workers there should be.
    pub workers_wanted: u32,
    /// Share of the workers' time with a task in hand.
    pub worker_busy: f64,
}

/// A member of a living run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberView {
    /// Chosen by its launcher.
    pub member_id: String,
    /// Learner or rollout worker.
    #[serde(serialize_with = "words_of_role")]
    pub role: Role,
    /// Whether it is there, in a word.
    pub state: String,
    /// Learner: where workers reach it.
    pub address: String,
    /// Its process on its host.
    pub pid: u32,
    /// Where it runs.
    pub host: String,
    /// What it computes on; empty until it has said so.
    pub device: String,
    /// Which card that is; absent on the CPU.
    pub card: Option<CardView>,
    /// Where its metrics are served; empty where they are not.
    pub metrics_address: String,
    /// Since its last sign of life.
    pub seconds_since_heartbeat: f64,
    /// Finished by all its incarnations.
    pub tasks_done: u64,
    /// The tasks that it has.
    #[serde(serialize_with = "words_of_tasks")]
    pub running: Vec<TaskName>,
    /// Share of its time that it had something to do.
    pub busy: f64,
    /// What is wrong while it goes on, in its words.
    pub troubles: Vec<String>,
}

/// The card that a member computes on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CardView {
    /// As `CUDA_VISIBLE_DEVICES` names it.
    pub name: String,
    /// What kind of card it is; absent where whoever looks does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its memory; absent likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<CardMemory>,
}

/// A run whose coordinator has ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndedRun {
    /// Tells it from any other.
    pub run_id: String,
    /// How it ended.
    pub ended: RunEnding,
    /// Time since.
    #[serde(skip)]
    pub ago: Duration,
}

impl RunView {
    /// Adds what the files of a run tell.
    pub fn with_files(stage: Stage, directory: RunDirectory) -> Self {
        Self { stage, held_out_rewards: History::read(&directory).held_out(), directory }
    }
}

impl CardView {
    /// A card of which nothing else is known; an empty name is none.
    pub fn named(name: String) -> Option<Self> {
        (!name.is_empty()).then_some(Self { name, model: None, memory_bytes: None })
    }
}

impl LivingRun {
    /// Adds what is known of the cards of members on a host, by their names.
    pub fn with_cards<'a>(mut self, host: &str, known: impl Fn(&str) -> Option<&'a Card>) -> Self {
        let members = self.members.iter_mut().filter(|member| member.host == host);
        for card in members.filter_map(|member| member.card.as_mut()) {
            if let Some(found) = known(&card.name) {
                (card.model, card.memory_bytes) = (Some(found.name.clone()), found.memory);
            }
        }
        self
    }

    /// Looks at everything.
    pub fn of(state: &RunState, rates: &Rates, now: Instant) -> Self {
        Self {
            run_id: state.members.run_id().to_owned(),
            run_name: state.run_name().to_owned(),
            overview: Overview::of(state, rates, now),
            members: state.members.iter().map(|member| MemberView::of(state, member, now)).collect(),
            notices: state.notices().to_vec(),
        }
    }
}

impl Overview {
    /// Looks at the run as a whole.
    pub fn of(state: &RunState, rates: &Rates, now: Instant) -> Self {
        let (progress, tasks) = (state.progress().clone(), state.tasks().counts());
        Self {
            images_per_second: rates.images_per_second(),
            network_evaluations_per_second: rates.network_evaluations_per_second(),
            seconds_left: rates.time_left(progress.iterations).map(|left| left.as_secs_f64()),
            tasks_waiting: tasks.waiting,
            tasks_running: tasks.leased,
            tasks_held: tasks.held,
            workers: state.members.n_workers(),
            workers_wanted: state.workers_wanted(),
            worker_busy: state.worker_busy(now),
            progress,
        }
    }
}

impl MemberView {
    fn of(state: &RunState, member: &Member, now: Instant) -> Self {
        let applicant = &member.applicant;
        Self {
            member_id: applicant.member_id.clone(),
            role: applicant.role,
            state: member.presence.as_str().to_owned(),
            address: applicant.address.clone(),
            pid: applicant.process.pid,
            host: applicant.process.host.clone(),
            device: member.device.clone(),
            card: CardView::named(member.card.clone()),
            metrics_address: applicant.process.metrics_address.clone(),
            seconds_since_heartbeat: now.saturating_duration_since(member.last_heartbeat).as_secs_f64(),
            tasks_done: member.tasks_done,
            running: state.tasks().leases_of(&applicant.member_id).to_vec(),
            busy: state.busy(member, now),
            troubles: member.troubles.clone(),
        }
    }
}

impl EndedRun {
    /// Reads the record of a run that does not live; `None` where it was killed before it could note how it ended.
    pub fn of(record: RunRecord, directory: &RunDirectory) -> Option<Self> {
        Some(Self { run_id: record.run_id, ended: record.ended?, ago: age(&directory.run_file()) })
    }
}

/// Time since a file was written.
fn age(path: &Path) -> Duration {
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    written.and_then(|written| written.elapsed().ok()).unwrap_or_default()
}

/// The JSON of what is shown, its keys in alphabetical order.
pub fn to_json(shown: &impl Serialize) -> Value {
    serde_json::to_value(shown).expect("what is shown has a JSON form; anything else is a bug")
}

fn words_of_role<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role_in_words(*role))
}

fn words_of_tasks<S: Serializer>(tasks: &[TaskName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tasks.iter().map(TaskName::to_string))
}

fn places<S: Serializer>(run: &RunDirectory, serializer: S) -> Result<S::Ok, S::Error> {
    let places = [
        ("directory", run.path().to_owned()),
        ("adapter", run.adapter()),
        ("checkpoints", run.checkpoints()),
        ("samples", run.samples()),
        ("logs", run.logs()),
        ("tensorboard", run.tensorboard()),
    ];
    serializer.collect_map(places)
}

#[cfg(test)]
pub(crate) mod tests;
