//! The two halves of a run whose learner shares no file system with the coordinator: which learner may go on with which
//! half, and what the coordinator asks of it. Decisions only.
//!
//! 1. A run has one half of a learner. Once that has a checkpoint, a learner without it is refused: it would begin anew.
//! 2. Questions have numbers, and an open one is asked again with every heartbeat, so that one that was lost does no harm.

use crate::log_questions::LogQuestions;
use config::LearnerPlace;
use proto::{AskResults, OwnDirectory, order};
use serde::{Deserialize, Serialize};
use service::{RunDirectory, shown};

/// Characters that are kept of the name of a host or directory.
const LONGEST_NAME: usize = 300;

/// A half of a run on the host of its learner, as `run.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnerHalf {
    /// The host, as the learner calls it.
    pub host: String,
    /// The directory there.
    pub directory: String,
    /// Whether there are checkpoints in it.
    #[serde(default)]
    pub has_begun: bool,
}

impl std::fmt::Display for LearnerHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.directory, self.host)
    }
}

impl From<proto::LearnerHalf> for LearnerHalf {
    fn from(half: proto::LearnerHalf) -> Self {
        let proto::LearnerHalf { host, directory, has_begun } = half;
        Self { host, directory, has_begun }
    }
}

impl From<LearnerHalf> for proto::LearnerHalf {
    fn from(half: LearnerHalf) -> Self {
        let LearnerHalf { host, directory, has_begun } = half;
        Self { host, directory, has_begun }
    }
}

/// The directory that has what a run has to show: its own, or the one with what a learner elsewhere sent last.
pub fn shown_directory(directory: &RunDirectory, half: Option<&LearnerHalf>) -> RunDirectory {
    if half.is_some() { directory.results() } else { directory.clone() }
}

/// What is known of the halves of a run.
#[derive(Clone, Debug, Default)]
pub struct Halves {
    /// The learner's, if it has one of its own.
    learner: Option<LearnerHalf>,
    /// Whether there are checkpoints in the coordinator's directory.
    has_begun_here: bool,
    /// What the newest question for results is, and the newest that was answered.
    results_asked: u64,
    results_kept: u64,
    logs: LogQuestions,
}

impl Halves {
    /// As the run's directory and record have it.
    pub fn new(learner: Option<LearnerHalf>, has_begun_here: bool) -> Self {
        Self { learner, has_begun_here, ..Self::default() }
    }

    /// The learner's half, if it has one of its own.
    pub fn learner(&self) -> Option<&LearnerHalf> {
        self.learner.as_ref()
    }

    /// A path of the learner's for who is on any host: as `scp` writes it, where it is in a half of its own.
    pub(crate) fn place_of(&self, path: &str) -> String {
        match &self.learner {
            Some(half) if !path.is_empty() => format!("{}:{path}", half.host),
            _ => path.to_owned(),
        }
    }

    /// Whether a learner with this directory of its own, or without one, may go on with the run.
    ///
    /// # Errors
    /// Why not, with the remedy.
    pub(crate) fn check(
        &self,
        (run_id, place): (&str, LearnerPlace),
        own: Option<&OwnDirectory>,
    ) -> Result<(), String> {
        let Some(own) = own else {
            return match self.learner.as_ref().filter(|half| half.has_begun) {
                None => Ok(()),
                Some(half) => Err(format!(
                    "the learner of this run has its checkpoints in {half}: start it there with `--run-directory`"
                )),
            };
        };
        let path = shown(&own.path, LONGEST_NAME);
        if place == LearnerPlace::Here {
            return Err(format!(
                "the coordinator of this run starts the learner itself, and {path} could not become part of it; have the run go \
                 on with `--set network.learner=by-hand` first"
            ));
        }
        if own.has_begun {
            let is_known = own.run_id.is_empty() || own.run_id == run_id;
            return match is_known {
                true => Ok(()),
                false => Err(format!(
                    "{path} is of the run `{}` and this is `{run_id}`; give another folder by `--run-directory`",
                    shown(&own.run_id, LONGEST_NAME)
                )),
            };
        }
        match &self.learner {
            Some(half) if half.has_begun => Err(format!(
                "the learner of this run has its checkpoints in {half}, and {path} has none: start the learner there, or copy \
                 that folder to this place first"
            )),
            _ if self.has_begun_here => Err(format!(
                "the run has checkpoints in the coordinator's directory, and {path} has none: copy `checkpoints`, `*.jsonl`, \
                 `adapter`, `samples` and `tensorboard` from there first, or leave `network.learner` at `here`"
            )),
            _ => Ok(()),
        }
    }

    /// Takes note of the half of a learner that has joined.
    pub(crate) fn joined(&mut self, host: &str, own: Option<&OwnDirectory>) {
        self.learner = own.map(|own| LearnerHalf {
            host: host.to_owned(),
            directory: shown(&own.path, LONGEST_NAME),
            has_begun: own.has_begun,
        });
    }

    /// Takes note of an iteration that was trained: the learner has a checkpoint of it, or is about to.
    pub(crate) fn trained(&mut self, iteration: u32) {
        if iteration > 0 {
            self.learner.iter_mut().for_each(|half| half.has_begun = true);
        }
    }

    /// Asks the learner for what it has to show, and returns the number of the question.
    pub(crate) fn ask_results(&mut self) -> u64 {
        self.results_asked += 1;
        self.results_asked
    }

    /// Whether a question for results has been answered.
    pub fn has_results(&self, number: u64) -> bool {
        self.results_kept >= number
    }

    /// Results are kept that answer a question, 0 being none.
    pub(crate) fn results_kept(&mut self, number: u64) {
        self.results_kept = self.results_kept.max(number.min(self.results_asked));
    }

    /// What is asked about the logs of members.
    pub(crate) fn logs(&self) -> &LogQuestions {
        &self.logs
    }

    /// The same, to ask and to take answers.
    pub(crate) fn logs_mut(&mut self) -> &mut LogQuestions {
        &mut self.logs
    }

    /// What a member is asked now.
    pub(crate) fn orders(&self, member_id: &str, is_learner: bool) -> impl Iterator<Item = order::Order> {
        let is_open = is_learner && self.learner.is_some() && self.results_asked > self.results_kept;
        let results = is_open.then_some(order::Order::AskResults(AskResults { number: self.results_asked }));
        self.logs.of(member_id).map(order::Order::AskLog).chain(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(run_id: &str, has_begun: bool) -> OwnDirectory {
        OwnDirectory { path: "/data/half".to_owned(), run_id: run_id.to_owned(), has_begun }
    }

    fn half(has_begun: bool) -> LearnerHalf {
        LearnerHalf { host: "gpu1".to_owned(), directory: "/data/half".to_owned(), has_begun }
    }

    #[test]
    fn a_learner_without_the_runs_checkpoints_is_refused_once_there_are_some() {
        let check = |halves: &Halves, place, own: Option<OwnDirectory>| {
            halves.check(("run-1", place), own.as_ref()).err().unwrap_or_default()
        };
        let by_hand = LearnerPlace::ByHand;
        let new = Halves::default();
        assert_eq!(check(&new, by_hand, Some(own("", false))), "");
        assert_eq!(check(&new, LearnerPlace::Here, None), "");
        assert_eq!(check(&new, by_hand, None), "", "one that has the coordinator's directory");
        assert!(check(&new, LearnerPlace::Here, Some(own("", false))).contains("network.learner=by-hand"));
        let stillborn = Halves::new(Some(half(false)), false);
        assert_eq!(check(&stillborn, by_hand, Some(own("run-0", false))), "");
        let begun = Halves::new(Some(half(true)), false);
        assert_eq!(check(&begun, by_hand, Some(own("run-1", true))), "");
        assert_eq!(check(&begun, by_hand, Some(own("", true))), "", "a copy of a run directory");
        assert!(check(&begun, by_hand, Some(own("run-1", false))).contains("/data/half on gpu1, and"));
        assert!(check(&begun, by_hand, Some(own("run-0", true))).contains("is of the run `run-0`"));
        assert!(check(&begun, by_hand, None).contains("/data/half on gpu1: start it there"));
        let begun_here = Halves::new(None, true);
        assert!(check(&begun_here, by_hand, Some(own("", false))).contains("copy `checkpoints`"));
        assert_eq!(check(&begun_here, by_hand, Some(own("", true))), "");
    }

    #[test]
    fn a_half_has_begun_with_the_first_iteration() {
        let mut halves = Halves::default();
        halves.joined("gpu1", Some(&own("", false)));
        assert_eq!(["/a", ""].map(|path| halves.place_of(path)), ["gpu1:/a", ""]);
        halves.trained(0);
        assert_eq!(halves.learner(), Some(&half(false)));
        halves.trained(1);
        assert_eq!(halves.learner(), Some(&half(true)));
        halves.joined("gpu1", None);
        assert_eq!((halves.learner(), halves.place_of("/a").as_str()), (None, "/a"));
    }

    #[test]
    fn what_is_asked_is_asked_until_it_is_answered() {
        let mut halves = Halves::new(Some(half(true)), false);
        let orders =
            |halves: &Halves, member: &str| halves.orders(member, member == "learner").collect::<Vec<_>>();
        assert_eq!(orders(&halves, "learner"), []);
        let number = halves.ask_results();
        assert_eq!(orders(&halves, "learner"), [order::Order::AskResults(AskResults { number })]);
        assert_eq!(orders(&halves, "worker-0"), []);
        halves.results_kept(0);
        assert!(!halves.has_results(number));
        halves.results_kept(number);
        assert!(halves.has_results(number) && orders(&halves, "learner").is_empty());
    }
}
