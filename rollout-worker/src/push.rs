//! Delivers outcomes to the learner, as often as it takes: pushing is idempotent.

use std::time::Duration;

use bytes::Bytes;
use proto::push_reply::Status as PushStatus;
use proto::{MissingConditioningRequest, PushReply};
use tonic::Status;

use crate::delivery::Delivery;
use crate::learner_link::{Failure, LearnerLink};

const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
const PUSH_DEADLINE: Duration = Duration::from_secs(300);

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The learner holds the task.
    Held,
    /// The learner has no use for the task (any more).
    NotWanted,
}

/// The learner refuses a delivery for good.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It serves another run.
    #[error("the learner serves another run: {}", .0.message())]
    Fenced(Box<Status>),
    /// It finds fault with the bytes' meaning.
    #[error("the learner refuses the outcome: {}", .0.message())]
    Refused(Box<Status>),
}

/// Pushes until the learner holds the task or does not want it, whatever happens to the learner meanwhile.
///
/// # Errors
/// If the learner refuses for good.
pub async fn push(link: &mut LearnerLink, delivery: &Delivery) -> Result<Delivered, PushError> {
    let mut with_next_latents = false;
    loop {
        let failure = match attempt(link, delivery, with_next_latents).await {
            Ok(reply) => {
                link.answered();
                match reply.status() {
                    PushStatus::Held => return Ok(Delivered::Held),
                    PushStatus::NotWanted => return Ok(Delivered::NotWanted),
                    PushStatus::NextLatentsNeeded => {
                        with_next_latents = true;
                        continue;
                    }
                    PushStatus::Unspecified => {
                        Failure::Passing(Status::internal("the learner's reply is empty"))
                    }
                }
            }
            Err(status) => Failure::from(status),
        };
        match failure {
            Failure::Passing(status) => tracing::warn!("push failed, trying again: {}", status.message()),
            Failure::Fenced(status) => return Err(PushError::Fenced(Box::new(status))),
            Failure::Final(status) => return Err(PushError::Refused(Box::new(status))),
        }
        link.pause().await;
    }
}

async fn attempt(
    link: &mut LearnerLink,
    delivery: &Delivery,
    with_next_latents: bool,
) -> Result<PushReply, Status> {
    let mut client = link.client().await;
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
