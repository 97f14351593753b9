//! What a call is answered with.

use proto::score_reply::Outcome as ReplyOutcome;
use proto::{ImageError, ImageScore, ScoreReply};
use protocol::with_causes;
use rewards::{RewardError, Score};
use tonic::{Code, Status};

use super::hosted::Outcome;

/// A reply for each image, or for the one that failed.
///
/// # Errors
/// If the scorer failed and it was no image's fault.
pub(super) fn replies(ids: &[u64], outcome: Outcome) -> Result<Vec<ScoreReply>, Status> {
    match outcome {
        Ok(scores) => Ok(ids.iter().zip(scores).map(|(&id, score)| score_reply(id, score)).collect()),
        Err(error) => {
            let (code, message) = (code(&error), with_causes(&error));
            match error.image().and_then(|index| ids.get(index)) {
                Some(&id) => {
                    let error = ImageError { code: code as u32, message };
                    Ok(vec![ScoreReply { id, outcome: Some(ReplyOutcome::Error(error)) }])
                }
                None => Err(Status::new(code, message)),
            }
        }
    }
}

fn score_reply(id: u64, Score { value, extras }: Score) -> ScoreReply {
    let score = ImageScore { value, extras: extras.into_iter().collect() };
    ScoreReply { id, outcome: Some(ReplyOutcome::Score(score)) }
}

fn code(error: &RewardError) -> Code {
    match error {
        _ if error.may_pass() => Code::Unavailable,
        RewardError::Lengths { .. }
        | RewardError::Image { .. }
        | RewardError::ImageSize { .. }
        | RewardError::Metadata { .. }
        | RewardError::MetadataValue { .. }
        | RewardError::Prompt { .. }
        | RewardError::Jpeg { .. }
        | RewardError::Png { .. } => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_go_by_the_clients_ids() {
        let score = Score { value: 0.5, extras: [("part".to_owned(), 2.0)].into() };
        let replies = replies(&[7, 3], Ok(vec![Score::from(1.0), score])).expect("replies");
        assert_eq!((replies[0].id, replies[1].id), (7, 3));
        let Some(ReplyOutcome::Score(score)) = &replies[1].outcome else { panic!("{replies:?}") };
        assert_eq!((score.value, score.extras["part"]), (0.5, 2.0));
    }

    #[test]
    fn a_failure_is_the_images_where_it_names_one_and_the_calls_where_not() {
        let not_finite = RewardError::NotFinite { name: "odd".to_owned(), index: 1, value: f32::NAN };
        let replies_of = |error| replies(&[7, 3], Err(error));
        let one = replies_of(not_finite).expect("a reply");
        let Some(ReplyOutcome::Error(error)) = &one[0].outcome else { panic!("{one:?}") };
        assert_eq!((one.len(), one[0].id, error.code), (1, 3, Code::Internal as u32));
        assert!(error.message.contains("is NaN"), "{}", error.message);
        let status = replies_of(RewardError::Lengths { images: 2, prompts: 1 }).expect_err("a status");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}
