//! Answers of a reward server that are no scores: what they are, and by which words a worker refuses them. Pure.

use proto::score_reply::Outcome;
use proto::{ImageScore, ScoreReply};

/// One way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// A score that is not a number.
    NotANumber,
    /// A score without bound.
    Infinity,
    /// All scores but one.
    OneMissing,
    /// A second score for an image.
    OneTooMany,
    /// Scores of images that were not sent, as those of another batch.
    OfAnotherBatch,
    /// Replies that hold nothing.
    Nothing,
    /// A scorer of another name, said before anything is sent.
    OfAnotherReward,
    /// Bytes that are no message.
    Garbage,
}

/// Each once. A worker gives a task up after three answers of this kind, and the run ends when a task was given up three
/// times: it takes nine to end a run, so that these eight never do, whoever is told them.
pub(super) const LIES: [Lie; 8] = [
    Lie::NotANumber,
    Lie::Garbage,
    Lie::OneMissing,
    Lie::OfAnotherReward,
    Lie::Infinity,
    Lie::OneTooMany,
    Lie::Nothing,
    Lie::OfAnotherBatch,
];

/// What is added to the names of images that nobody sent.
const ELSEWHERE: u64 = 1 << 40;

impl Lie {
    /// What a worker says of it.
    pub(super) fn refusal(self) -> &'static str {
        match self {
            Self::NotANumber => "is NaN; a score must be finite",
            Self::Infinity => "is inf; a score must be finite",
            Self::OneMissing => " of `score`",
            Self::OneTooMany => "image 0 was not sent, or is answered twice",
            Self::OfAnotherBatch => "image 1099511627776 was not sent",
            Self::Nothing => "has neither score nor error",
            Self::OfAnotherReward => "the server hosts no reward `shapes`; there are: aesthetic",
            Self::Garbage => "failed to decode Protobuf message",
        }
    }

    /// What is said of images with these names, where it is said by replies.
    pub(super) fn replies(self, ids: &[u64]) -> Vec<ScoreReply> {
        let value = match self {
            Self::NotANumber => f32::NAN,
            Self::Infinity => f32::INFINITY,
            _ => 0.5,
        };
        let score = |id| {
            let score = ImageScore { value, extras: [].into() };
            ScoreReply { id, outcome: Some(Outcome::Score(score)) }
        };
        match self {
            Self::OneMissing => ids.iter().skip(1).copied().map(score).collect(),
            Self::OneTooMany => ids.iter().chain(ids.first()).copied().map(score).collect(),
            Self::OfAnotherBatch => ids.iter().map(|id| score(id + ELSEWHERE)).collect(),
            Self::Nothing => ids.iter().map(|&id| ScoreReply { id, outcome: None }).collect(),
            _ => ids.iter().copied().map(score).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lie_that_is_told_by_replies_is_an_answer() {
        let ids = [0, 1, 2];
        for lie in LIES.into_iter().filter(|lie| ![Lie::Garbage, Lie::OfAnotherReward].contains(lie)) {
            let replies = lie.replies(&ids);
            let scores = replies.iter().map(|reply| match &reply.outcome {
                Some(Outcome::Score(score)) if score.value.is_finite() => Some(reply.id),
                _ => None,
            });
            assert_ne!(scores.collect::<Vec<_>>(), ids.map(Some), "{lie:?}");
        }
    }

    #[test]
    fn lies_are_too_few_to_end_a_run_and_told_apart_by_their_refusals() {
        let mut refusals = LIES.map(Lie::refusal);
        refusals.sort_unstable();
        let apart = refusals.windows(2).all(|two| two[0] != two[1]);
        assert!(apart && LIES.len() < 9, "{refusals:?}");
    }
}
