//! The gRPC service over hosted scorers.

use std::time::Duration;

use proto::reward_server::Reward;
use proto::score_request::Part;
use proto::{DescribeReply, DescribeRequest, ScoreReply, ScoreRequest};
use rewards::remote::PROTOCOL_VERSION;
use service::{Timely, shown};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::batch::{Assembly, BatchError};
use super::hosted::{Hosted, ImageBatch, NoPlace};
use super::replies::replies;

/// How long the images of a batch may take to come, while they hold a place that others could use.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(120);
/// Characters of a name that is unknown, when it is told so.
const LONGEST_NAME: usize = 100;

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
                let name = shown(name, LONGEST_NAME);
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

/// The images of a batch, as its call brings them, and a place for them, which `place` gives once pixels come.
async fn receive<P>(
    requests: &mut Timely<impl Stream<Item = Result<ScoreRequest, Status>> + Unpin>,
    n_images: u32,
    place: impl Fn() -> Result<P, NoPlace>,
) -> Result<(P, ImageBatch), Status> {
    let mut assembly = Assembly::new(n_images)?;
    let mut placed = None;
    while let Some(request) = requests.next().await? {
        if placed.is_none() && matches!(&request.part, Some(Part::Pixels(_))) {
            placed = Some(place()?);
        }
        assembly.add(request.part)?;
    }
    let batch = assembly.finish()?;
    let place = placed.map_or_else(place, Ok)?;
    Ok((place, batch))
}

fn too_slow() -> Status {
    let seconds = ARRIVAL_DEADLINE.as_secs();
    Status::deadline_exceeded(format!(
        "the batch did not arrive within {seconds} s; send fewer images in a call"
    ))
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
        let mut requests = Timely::new(request.into_inner());
        let first = requests.next().await?.and_then(|request| request.part);
        let Some(Part::Batch(header)) = first else { return Err(BatchError::SecondBatch.into()) };
        let hosted = self.find(&header.reward)?;
        let arrival = receive(&mut requests, header.n_images, || hosted.place());
        let arrived = tokio::time::timeout(ARRIVAL_DEADLINE, arrival).await;
        let (place, batch) = arrived.unwrap_or_else(|_| Err(too_slow()))?;
        let ids = batch.ids.clone();
        let outcome = place.score(batch).await.ok_or(NoPlace::Dead)?;
        let replies: Vec<_> = replies(&ids, outcome)?.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::Cell;
    use std::time::Instant;
    use tokio_stream::StreamExt;
    use tonic::Code;

    /// What becomes of a call that brings these parts and then stands still or ends, and how many places it took.
    async fn received(parts: Vec<Part>, stands_still: bool) -> (Result<usize, Code>, u32) {
        let n_images = parts.iter().filter(|part| matches!(part, Part::Image(_))).count() as u32;
        let n_places = Cell::new(0);
        let place = || {
            n_places.set(n_places.get() + 1);
            Ok(())
        };
        let messages =
            tokio_stream::iter(parts.into_iter().map(|part| Ok(ScoreRequest { part: Some(part) })));
        let received = match stands_still {
            true => receive(&mut Timely::new(messages.chain(tokio_stream::pending())), n_images, place).await,
            false => receive(&mut Timely::new(messages), n_images, place).await,
        };
        let n_received = received.map(|((), batch)| batch.images.len()).map_err(|status| status.code());
        (n_received, n_places.get())
    }

    fn image() -> Part {
        Part::Image(proto::ImageHeader { height: 1, width: 2, ..Default::default() })
    }

    fn pixels(n_bytes: usize) -> Part {
        Part::Pixels(vec![0; n_bytes].into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_stands_still_has_no_place_or_soon_gives_it_back() {
        let start = tokio::time::Instant::now();
        let late = Err(Code::DeadlineExceeded);
        assert_eq!(received(vec![], true).await, (late, 0));
        assert_eq!(received(vec![image()], true).await, (late, 0));
        assert_eq!(received(vec![image(), pixels(3)], true).await, (late, 1));
        assert!(start.elapsed().as_secs() < 65, "{:?} for three", start.elapsed());
        assert_eq!(received(vec![], false).await, (Ok(0), 1), "a batch of nothing");
        assert_eq!(received(vec![image(), pixels(3), pixels(3)], false).await, (Ok(1), 1));
    }

    #[tokio::test]
    async fn pieces_without_pixels_do_not_go_on_for_ever() {
        let endless = std::iter::repeat_with(|| Ok(ScoreRequest { part: Some(pixels(0)) }));
        let first = Ok(ScoreRequest { part: Some(image()) });
        let messages = tokio_stream::iter(std::iter::once(first).chain(endless));
        let start = Instant::now();
        let refused = receive(&mut Timely::new(messages), 1, || Ok(())).await.expect_err("it has no end");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(start.elapsed().as_secs() < 60);
    }
}
