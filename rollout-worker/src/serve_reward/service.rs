//! The gRPC service over hosted scorers.

use std::time::Duration;

use proto::reward_server::Reward;
use proto::score_request::Part;
use proto::{DescribeReply, DescribeRequest, ScoreReply, ScoreRequest};
use rewards::remote::PROTOCOL_VERSION;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::batch::{Assembly, BatchError};
use super::hosted::{Hosted, ImageBatch, NoPlace};
use super::replies::replies;

/// How long the images of a batch may take to come, while they hold a place that others could use.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(120);

/// Answers for scorers that are hosted here.
pub(super) struct RewardService {
    hosted: Vec<Hosted>,
}

impl RewardService {
    pub(super) fn new(hosted: Vec<Hosted>) -> Self {
        Self { hosted }
    }

    fn names(&self) -> Vec<String> {
        self.hosted.iter().map(|hosted| hosted.name().to_owned()).collect()
    }

    fn find(&self, name: &str) -> Result<&Hosted, Status> {
        match &self.hosted[..] {
            [only] if name.is_empty() => Ok(only),
            hosted => hosted.iter().find(|hosted| hosted.name() == name).ok_or_else(|| {
                Status::not_found(format!("no reward `{name}` here; there are: {}", self.names().join(", ")))
            }),
        }
    }
}

impl From<BatchError> for Status {
    fn from(error: BatchError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<NoPlace> for Status {
    fn from(error: NoPlace) -> Self {
        match error {
            NoPlace::Full => Self::resource_exhausted("too many batches are waiting; try again later"),
            NoPlace::Dead => Self::unavailable("the scorer has died"),
        }
    }
}

/// The images of a batch, as its call brings them.
async fn receive(
    mut requests: impl Stream<Item = Result<ScoreRequest, Status>> + Unpin,
    n_images: u32,
) -> Result<ImageBatch, Status> {
    let arrival = async {
        let mut assembly = Assembly::new(n_images)?;
        while let Some(request) = requests.next().await {
            assembly.add(request?.part)?;
        }
        Ok(assembly.finish()?)
    };
    let too_slow = |_| {
        let seconds = ARRIVAL_DEADLINE.as_secs();
        Status::deadline_exceeded(format!(
            "the batch did not arrive within {seconds} s; send fewer images in a call"
        ))
    };
    tokio::time::timeout(ARRIVAL_DEADLINE, arrival).await.map_err(too_slow)?
}

#[tonic::async_trait]
impl Reward for RewardService {
    type ScoreStream = tokio_stream::Iter<std::vec::IntoIter<Result<ScoreReply, Status>>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        Ok(Response::new(DescribeReply { protocol_version: PROTOCOL_VERSION, rewards: self.names() }))
    }

    // Should the caller go away or its deadline pass, this future is dropped wherever it is, and with it the batch.
    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.part);
        let Some(Part::Batch(header)) = first else { return Err(BatchError::SecondBatch.into()) };
        let place = self.find(&header.reward)?.place()?;
        let batch = receive(requests, header.n_images).await?;
        let ids = batch.ids.clone();
        let outcome = place.score(batch).await.ok_or(NoPlace::Dead)?;
        let replies: Vec<_> = replies(&ids, outcome)?.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_stalls_does_not_keep_its_place() {
        let stalled = receive(tokio_stream::pending(), 1).await.expect_err("too slow");
        assert_eq!(stalled.code(), tonic::Code::DeadlineExceeded);
        assert!(stalled.message().contains("within 120 s"), "{stalled}");
        assert!(receive(tokio_stream::empty(), 0).await.expect("a batch of nothing").images.is_empty());
    }
}
