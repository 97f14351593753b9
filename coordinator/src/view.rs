//! What is shown of a run, by the display of `up` and by `status`, in words and as JSON; made here and nowhere else. The
//! names of the fields are keys of the JSON.

use crate::cards::{Card, CardMemory};
use crate::events::EventCount;
use crate::history::History;
use crate::learner_half::shown_directory;
use crate::membership::{Member, Presence, role_in_words};
use crate::rates::Rates;
use crate::results::{HeldOutReward, RunProgress};
use crate::run_files::RunFiles;
use crate::run_record::{RunEnding, RunRecord};
use crate::run_state::RunState;
use config::{ComputeDevice, MemoryPlace, MemoryPlan};
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
    pub files: RunFiles,
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
    /// `strict` or `fast`, as `run.determinism`.
    pub determinism: String,
    /// How it is doing as a whole.
    #[serde(flatten)]
    pub overview: Overview,
    /// All members, those that have not been gone for long included, by id.
    pub members: Vec<MemberView>,
    /// What the learner wanted a user to hear of.
    pub notices: Vec<String>,
    /// How often what was decided, since the coordinator was started.
    pub events: Vec<EventCount>,
    /// Events since then that are not in `events.jsonl`.
    pub events_dropped: u64,
    /// Where metrics of the coordinator are shown, `host:port`; empty where they are not.
    pub metrics_address: String,
    /// What processes are reckoned to hold; nothing where nobody looks.
    pub memory_planned: Vec<PlannedMemory>,
}

/// What one process of a role is reckoned to hold in one place at the fullest moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedMemory {
    /// `learner` or `worker`.
    pub role: String,
    /// `host` or `device`.
    pub place: String,
    /// That many.
    pub bytes: f64,
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
    /// What kind of device that is: equal kinds give equal bits. Empty where it is not known.
    pub device_kind: String,
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
    /// Worker: its speed as a share of the median worker's; absent while nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// It has long been slower than half the median worker.
    pub is_slow: bool,
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
        let half = RunRecord::read(&directory).ok().and_then(|record| record.learner_half);
        let history = History::read(&shown_directory(&directory, half.as_ref()));
        Self { stage, held_out_rewards: history.held_out(), files: RunFiles { directory, half } }
    }
}

impl PlannedMemory {
    /// Of learner and worker; where the device is the CPU, all of it is the host's.
    pub fn of(plan: &MemoryPlan, device: ComputeDevice) -> Vec<Self> {
        let [host, on_device] = [MemoryPlace::Host, MemoryPlace::Device];
        let of_role = |role: &str, bytes: &dyn Fn(MemoryPlace) -> f64| {
            let planned = |place: &str, bytes| Self { role: role.to_owned(), place: place.to_owned(), bytes };
            match device.is_cpu() {
                true => vec![planned("host", bytes(host) + bytes(on_device))],
                false => vec![planned("host", bytes(host)), planned("device", bytes(on_device))],
            }
        };
        let learner = of_role("learner", &|place| plan.learner_bytes(place));
        learner.into_iter().chain(of_role("worker", &|place| plan.worker_bytes(place))).collect()
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
            determinism: state.determinism().to_string(),
            overview: Overview::of(state, rates, now),
            members: state.members.iter().map(|member| MemberView::of(state, member, now)).collect(),
            notices: state.notices().to_vec(),
            events: state.events().counts(),
            // Of the process around the state.
            events_dropped: 0,
            metrics_address: String::new(),
            memory_planned: Vec::new(),
        }
    }
}

impl Overview {
    /// Looks at the run as a whole.
    pub fn of(state: &RunState, rates: &Rates, now: Instant) -> Self {
        let (progress, tasks) = (state.progress().clone(), state.tasks().counts());
        // However fast it has been, nothing gets on where nobody takes tasks.
        let left = rates.time_left(progress.iterations).filter(|_| state.members.n_taking_tasks() > 0);
        Self {
            images_per_second: rates.images_per_second(),
            network_evaluations_per_second: rates.network_evaluations_per_second(),
            seconds_left: left.map(|left| left.as_secs_f64()),
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
    /// Whether it is there.
    pub fn is_living(&self) -> bool {
        self.state == Presence::Living.as_str()
    }

    fn of(state: &RunState, member: &Member, now: Instant) -> Self {
        let applicant = &member.applicant;
        let speed = state.tasks().speed(&applicant.member_id);
        Self {
            member_id: applicant.member_id.clone(),
            role: applicant.role,
            state: member.presence.as_str().to_owned(),
            address: applicant.address.clone(),
            pid: applicant.process.pid,
            host: applicant.process.host.clone(),
            device: member.device.clone(),
            device_kind: state.kind_of(&applicant.process).to_owned(),
            card: CardView::named(member.card.clone()),
            metrics_address: applicant.process.metrics_address.clone(),
            seconds_since_heartbeat: now.saturating_duration_since(member.last_heartbeat).as_secs_f64(),
            tasks_done: member.tasks_done,
            running: state.tasks().leases_of(&applicant.member_id).to_vec(),
            busy: state.busy(member, now),
            speed: speed.map(|speed| speed.of_median),
            is_slow: speed.is_some_and(|speed| speed.is_slow),
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

#[cfg(test)]
pub(crate) mod tests;
