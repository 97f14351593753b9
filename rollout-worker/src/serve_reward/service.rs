//! The gRPC service over hosted scorers.

use proto::reward_server::Reward;
use proto::score_request::Part;
use proto::{DescribeReply, DescribeRequest, ScoreReply, ScoreRequest};
use rewards::remote::PROTOCOL_VERSION;
use tonic::{Request, Response, Status, Streaming};

use super::batch::{Assembly, BatchError};
use super::hosted::{Hosted, NoPlace};
use super::replies::replies;

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
        let mut assembly = Assembly::new(header.n_images)?;
        while let Some(ScoreRequest { part }) = requests.message().await? {
            assembly.add(part)?;
        }
        let batch = assembly.finish()?;
        let ids = batch.ids.clone();
        let outcome = place.score(batch).await.ok_or(NoPlace::Dead)?;
        let replies: Vec<_> = replies(&ids, outcome)?.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}
