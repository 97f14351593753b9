//! Delivers outcomes to the learner, as often as it takes: pushing is idempotent.

use std::time::Duration;

use bytes::Bytes;
use proto::push_reply::Status as PushStatus;
use proto::{MissingConditioningRequest, PushReply};
use service::WorkInHand;
use tonic::Status;

use crate::delivery::Delivery;
use crate::learner_link::{Failure, LearnerLink};

const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
const PUSH_DEADLINE: Duration = Duration::from_secs(300);
/// How often an outcome may be lost on the way before its task is given back.
const MAX_DAMAGED: u32 = 5;

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The learner holds the task.
    Held,
    /// The learner has no use for the task (any more).
    NotWanted,
}

/// A delivery that the learner will not hold.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It serves another run.
    #[error("the learner serves another run: {}", .0.message())]
    Fenced(Box<Status>),
    /// It finds fault with the bytes' meaning.
    #[error("the learner refuses the outcome: {}", .0.message())]
    Refused(Box<Status>),
    /// It never arrives whole, or the learner breaks over it. Sampling anew, or elsewhere, may help.
    #[error("the outcome was lost on the way to the learner {attempts} times, last: {}", last.message())]
    Damaged {
        /// How often it was sent.
        attempts: u32,
        /// What the learner said last.
        last: Box<Status>,
    },
}

/// Pushes until the learner holds the task or does not want it, however long the learner is away meanwhile.
///
/// # Errors
/// If the learner refuses for good, or the bytes are lost on the way again and again.
pub async fn push(
    link: &mut LearnerLink,
    delivery: &Delivery,
    work: &WorkInHand,
) -> Result<Delivered, PushError> {
    let (mut with_next_latents, mut n_damaged) = (false, 0);
    loop {
        let failure = match attempt(link, delivery, with_next_latents, work).await {
            Ok(reply) => {
                link.answered(work);
                match reply.status() {
                    PushStatus::Held => return Ok(Delivered::Held),
                    PushStatus::NotWanted => return Ok(Delivered::NotWanted),
                    PushStatus::NextLatentsNeeded => {
                        with_next_latents = true;
                        continue;
                    }
                    PushStatus::Unspecified => {
                        Failure::Damaged(Status::internal("the learner's reply is empty"))
                    }
                }
            }
            Err(status) => Failure::from(status),
        };
        match failure {
            Failure::Passing(status) => tracing::warn!("push failed, trying again: {}", status.message()),
            Failure::Damaged(status) => {
                n_damaged += 1;
                if n_damaged == MAX_DAMAGED {
                    return Err(PushError::Damaged { attempts: n_damaged, last: Box::new(status) });
                }
                tracing::warn!(n_damaged, "push was damaged, trying again: {}", status.message());
            }
            Failure::Fenced(status) => return Err(PushError::Fenced(Box::new(status))),
            Failure::Final(status) => return Err(PushError::Refused(Box::new(status))),
        }
        link.pause(work).await;
    }
}

async fn attempt(
    link: &mut LearnerLink,
    delivery: &Delivery,
    with_next_latents: bool,
    work: &WorkInHand,
) -> Result<PushReply, Status> {
    let mut client = link.client(work).await;
    let caller = link.membership().caller();
    let digests: Vec<Bytes> = delivery.embeddings.iter().map(|embedding| embedding.digest.clone()).collect();
    let missing = if digests.is_empty() {
        Vec::new()
    } else {
        let question = MissingConditioningRequest { caller: Some(caller.clone()), digests };
        client.missing_conditioning(service::request(question, QUESTION_DEADLINE)).await?.into_inner().missing
    };
    let messages = tokio_stream::iter(delivery.messages(caller, &missing, with_next_latents));
    Ok(client.push(service::request(messages, PUSH_DEADLINE)).await?.into_inner())
}
