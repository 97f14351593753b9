//! What a worker does when the learner does not take an outcome, or does not give it weights: which failures are tried
//! again, and how often.

use crate::WeightsName;
use proto::Blame;

/// How often an outcome may be lost on the way before its task is given back.
const MOST_DAMAGED_PUSHES: u32 = 5;
/// How often weights may be unavailable, and how often arrive damaged, before the task is given back.
const MOST_FAILED_FETCHES: u32 = 10;

/// What a failed call to the learner means, with what the learner said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The learner is away or restarting: try again, however long it takes.
    Passing(String),
    /// The bytes did not arrive whole or in time, or the learner broke over them: try again, but not for ever.
    Damaged(String),
    /// The learner is of another run.
    Fenced(String),
    /// The learner says that trying again will not help.
    Final(String),
}

impl Failure {
    /// What it is, in a word that can be counted.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Passing(_) => "away",
            Self::Damaged(_) => "damaged",
            Self::Fenced(_) => "fenced",
            Self::Final(_) => "refused",
        }
    }
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The learner holds the task.
    Held,
    /// The learner has no use for the task (any more).
    NotWanted,
}

/// A delivery that the learner will not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// It serves another run.
    #[error("the learner serves another run: {0}")]
    Fenced(String),
    /// It finds fault with the bytes' meaning.
    #[error("the learner refuses the outcome: {0}")]
    Refused(String),
    /// It never arrives whole, or the learner breaks over it. Sampling anew, or elsewhere, may help.
    #[error("the outcome was lost on the way to the learner {attempts} times, last: {last}")]
    Damaged {
        /// How often it was sent.
        attempts: u32,
        /// What the learner said last.
        last: String,
    },
}

impl PushError {
    /// Whose fault it is: any worker's outcome would be refused, another may have a better line.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Refused(_) => Blame::Task,
            Self::Fenced(_) | Self::Damaged { .. } => Blame::Worker,
        }
    }
}

/// What one push came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushEvent {
    /// The learner answered for good.
    Answered(Delivered),
    /// It cannot rebuild the next latents.
    NextLatentsNeeded,
    /// It did not take the outcome.
    Failed(Failure),
}

/// What to do after a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushAction {
    /// Push again at once, with the next latents.
    PushNextLatents,
    /// Push again after a pause, for this reason; so many pushes were damaged by now.
    PushLater {
        /// What the learner said.
        problem: String,
        /// Damaged pushes, if this was one.
        n_damaged: Option<u32>,
    },
    /// Nothing more: tell the coordinator.
    End(Result<Delivered, PushError>),
}

/// The pushes of one outcome; the first is without next latents.
#[derive(Clone, Debug, Default)]
pub struct Pushing {
    n_damaged: u32,
}

impl Pushing {
    /// Decides what follows a push.
    pub fn on(&mut self, event: PushEvent) -> PushAction {
        let failure = match event {
            PushEvent::Answered(delivered) => return PushAction::End(Ok(delivered)),
            PushEvent::NextLatentsNeeded => return PushAction::PushNextLatents,
            PushEvent::Failed(failure) => failure,
        };
        match failure {
            Failure::Passing(problem) => PushAction::PushLater { problem, n_damaged: None },
            Failure::Damaged(last) => {
                self.n_damaged += 1;
                match self.n_damaged {
                    attempts @ MOST_DAMAGED_PUSHES.. => {
                        PushAction::End(Err(PushError::Damaged { attempts, last }))
                    }
                    n_damaged => PushAction::PushLater { problem: last, n_damaged: Some(n_damaged) },
                }
            }
            Failure::Fenced(problem) => PushAction::End(Err(PushError::Fenced(problem))),
            Failure::Final(problem) => PushAction::End(Err(PushError::Refused(problem))),
        }
    }
}

/// Why weights cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// The learner does not offer them, and has not for a while.
    #[error("the learner does not offer version {version} of the weights: {problem}")]
    Unavailable {
        /// The version asked for.
        version: u32,
        /// The learner's answer.
        problem: String,
    },
    /// They never arrive whole.
    #[error("version {version} of the weights arrived damaged {attempts} times, last: {problem}")]
    Damaged {
        /// The version asked for.
        version: u32,
        /// How often they came.
        attempts: u32,
        /// What was wrong with them last.
        problem: String,
    },
    /// The learner is of another run, or refuses for good.
    #[error("the learner refuses to send version {version} of the weights: {problem}")]
    Refused {
        /// The version asked for.
        version: u32,
        /// The learner's answer.
        problem: String,
    },
}

/// Why one attempt to fetch weights failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// The learner does not offer them: not yet, or not any more.
    Unavailable(String),
    /// Anything else.
    Call(Failure),
}

/// Attempts to fetch weights.
#[derive(Clone, Debug)]
pub struct Fetching {
    name: WeightsName,
    n_unavailable: u32,
    n_damaged: u32,
}

impl Fetching {
    /// Before the first attempt.
    pub fn new(name: WeightsName) -> Self {
        Self { name, n_unavailable: 0, n_damaged: 0 }
    }

    /// Attempts that brought damaged weights.
    pub fn n_damaged(&self) -> u32 {
        self.n_damaged
    }

    /// Decides whether to try again after a pause.
    ///
    /// # Errors
    /// Why the weights cannot be had.
    pub fn on(&mut self, failure: FetchFailure) -> Result<(), WeightsError> {
        let version = self.name.version;
        match failure {
            FetchFailure::Call(Failure::Passing(_)) => Ok(()),
            FetchFailure::Unavailable(problem) => {
                self.n_unavailable += 1;
                match self.n_unavailable {
                    MOST_FAILED_FETCHES.. => Err(WeightsError::Unavailable { version, problem }),
                    _ => Ok(()),
                }
            }
            FetchFailure::Call(Failure::Damaged(problem)) => {
                self.n_damaged += 1;
                match self.n_damaged {
                    attempts @ MOST_FAILED_FETCHES.. => {
                        Err(WeightsError::Damaged { version, attempts, problem })
                    }
                    _ => Ok(()),
                }
            }
            FetchFailure::Call(Failure::Fenced(problem) | Failure::Final(problem)) => {
                Err(WeightsError::Refused { version, problem })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(failure: fn(String) -> Failure) -> PushEvent {
        PushEvent::Failed(failure("why".to_owned()))
    }

    fn later(n_damaged: Option<u32>) -> PushAction {
        PushAction::PushLater { problem: "why".to_owned(), n_damaged }
    }

    #[test]
    fn a_learner_that_is_away_is_waited_for_however_long() {
        let mut pushing = Pushing::default();
        for _ in 0..1000 {
            assert_eq!(pushing.on(failed(Failure::Passing)), later(None));
        }
        // It was told to forget the iteration meanwhile, or has it from an earlier push whose answer was lost.
        for delivered in [Delivered::Held, Delivered::NotWanted] {
            assert_eq!(pushing.on(PushEvent::Answered(delivered)), PushAction::End(Ok(delivered)));
        }
    }

    #[test]
    fn damage_counts_over_outages_moves_and_next_latents() {
        let mut pushing = Pushing::default();
        for n_damaged in 1..5 {
            assert_eq!(pushing.on(failed(Failure::Damaged)), later(Some(n_damaged)));
            assert_eq!(pushing.on(failed(Failure::Passing)), later(None));
            assert_eq!(pushing.on(PushEvent::NextLatentsNeeded), PushAction::PushNextLatents);
        }
        let PushAction::End(Err(error)) = pushing.on(failed(Failure::Damaged)) else { panic!("given up") };
        assert_eq!(error.to_string(), "the outcome was lost on the way to the learner 5 times, last: why");
        assert_eq!(error.blame(), Blame::Worker, "another worker may have a better line");
    }

    #[test]
    fn what_is_final_ends_at_once_and_only_a_refusal_is_the_tasks_fault() {
        for (failure, blame) in
            [(Failure::Fenced as fn(String) -> Failure, Blame::Worker), (Failure::Final, Blame::Task)]
        {
            let PushAction::End(Err(error)) = Pushing::default().on(failed(failure)) else {
                panic!("an end")
            };
            assert_eq!(error.blame(), blame, "{error}");
        }
    }

    #[test]
    fn weights_that_are_gone_or_damaged_are_asked_for_ten_times() {
        let why = || "why".to_owned();
        let failures = [
            (FetchFailure::Unavailable(why()), "the learner does not offer version 4 of the weights: why"),
            (
                FetchFailure::Call(Failure::Damaged(why())),
                "version 4 of the weights arrived damaged 10 times, last: why",
            ),
        ];
        for (failure, told) in failures {
            let mut fetching = Fetching::new(WeightsName::policy(4));
            for _ in 0..9 {
                assert_eq!(fetching.on(failure.clone()), Ok(()));
                assert_eq!(fetching.on(FetchFailure::Call(Failure::Passing(why()))), Ok(()));
            }
            assert_eq!(fetching.on(failure).unwrap_err().to_string(), told);
        }
        for failure in [Failure::Fenced(why()), Failure::Final(why())] {
            let refused = WeightsError::Refused { version: 4, problem: why() };
            assert_eq!(Fetching::new(WeightsName::average(4)).on(FetchFailure::Call(failure)), Err(refused));
        }
    }
}
