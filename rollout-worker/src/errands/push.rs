//! Delivers outcomes to the learner, as often as it takes: pushing is idempotent.

use std::time::Duration;

use bytes::Bytes;
use proto::push_reply::Status as PushStatus;
use proto::{MissingConditioningRequest, PushReply, push_request};
use protocol::{Delivered, Failure, PushAction, PushError, PushEvent, Pushing};
use service::WorkInHand;
use service::metrics::Counts;
use tonic::{Code, Status};

use crate::errands::learner_link::{LearnerLink, failure};
use crate::metrics::WorkerMetrics;
use crate::sampling::delivery::Delivery;

const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
const PUSH_DEADLINE: Duration = Duration::from_secs(300);

/// Pushes until the learner holds the task or does not want it, however long the learner is away meanwhile.
///
/// # Errors
/// If the learner refuses for good, or the bytes are lost on the way again and again.
pub async fn push(
    link: &mut LearnerLink,
    delivery: &Delivery,
    work: &WorkInHand,
    metrics: &WorkerMetrics,
) -> Result<Delivered, PushError> {
    let (mut pushing, mut with_next_latents) = (Pushing::default(), false);
    loop {
        let messages = Messages { delivery, with_next_latents, sent: metrics.pushed_bytes.clone() };
        let event = match attempt(link, messages, work).await {
            Ok(reply) => {
                link.answered(work);
                event_of(reply.status())
            }
            Err(failure) => PushEvent::Failed(failure),
        };
        metrics.pushes.count([in_a_word(&event)]);
        match pushing.on(event) {
            PushAction::End(outcome) => return outcome,
            PushAction::PushNextLatents => {
                with_next_latents = true;
                continue;
            }
            PushAction::PushLater { problem, n_damaged: None } => {
                tracing::warn!("push failed, trying again: {problem}");
            }
            PushAction::PushLater { problem, n_damaged: Some(n_damaged) } => {
                tracing::warn!(n_damaged, "push was damaged, trying again: {problem}");
            }
        }
        link.pause(work).await;
    }
}

/// What one push sends.
struct Messages<'a> {
    delivery: &'a Delivery,
    with_next_latents: bool,
    /// Counts its bytes as they go.
    sent: Counts<0>,
}

fn in_a_word(event: &PushEvent) -> &'static str {
    match event {
        PushEvent::Answered(Delivered::Held) => "held",
        PushEvent::Answered(Delivered::NotWanted) => "not_wanted",
        PushEvent::NextLatentsNeeded => "next_latents_needed",
        PushEvent::Failed(failure) => failure.cause(),
    }
}

fn event_of(status: PushStatus) -> PushEvent {
    match status {
        PushStatus::Held => PushEvent::Answered(Delivered::Held),
        PushStatus::NotWanted => PushEvent::Answered(Delivered::NotWanted),
        PushStatus::NextLatentsNeeded => PushEvent::NextLatentsNeeded,
        PushStatus::Unspecified => {
            PushEvent::Failed(Failure::Damaged("the learner's reply is empty".to_owned()))
        }
    }
}

async fn attempt(
    link: &mut LearnerLink,
    Messages { delivery, with_next_latents, sent }: Messages<'_>,
    work: &WorkInHand,
) -> Result<PushReply, Failure> {
    let mut client = link.client(delivery.learner_rank, work).await;
    let caller = link.membership().caller();
    let digests: Vec<Bytes> = delivery.embeddings.iter().map(|embedding| embedding.digest.clone()).collect();
    let missing = if digests.is_empty() {
        Vec::new()
    } else {
        let question = MissingConditioningRequest { caller: Some(caller.clone()), digests };
        let answer = client.missing_conditioning(service::request(question, QUESTION_DEADLINE)).await;
        answer.map_err(|status| failure(&status))?.into_inner().missing
    };
    let messages = delivery.messages(caller, &missing, with_next_latents);
    let messages = tokio_stream::iter(messages.inspect(move |message| {
        if let Some(push_request::Part::Chunk(chunk)) = &message.part {
            sent.add([], chunk.data.len() as f64);
        }
    }));
    let reply = client.push(service::request(messages, PUSH_DEADLINE)).await;
    reply.map(tonic::Response::into_inner).map_err(|status| failure_of_push(&status))
}

/// What the status of a failed push means: as of any call, but a line that is too slow for it does not get faster. A client
/// whose own deadline has passed calls it cancelled.
fn failure_of_push(status: &Status) -> Failure {
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => Failure::Damaged(status.message().to_owned()),
        _ => failure(status),
    }
}
