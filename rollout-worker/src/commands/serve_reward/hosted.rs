//! A scorer on a thread of its own.

use std::future::Future;

use rewards::{PromptRecord, Reward, RewardError, RgbImage, Score};
use tokio::sync::{mpsc, oneshot};

use crate::scoring::reward_thread::{self, OwnReward, ThreadOptions};

/// The images of one call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageBatch {
    /// What the client calls each image.
    pub(super) ids: Vec<u64>,
    pub(super) images: Vec<RgbImage>,
    pub(super) prompts: Vec<PromptRecord>,
}

/// Scores, or why there are none.
pub(super) type Outcome = Result<Vec<Score>, RewardError>;

struct Job {
    batch: ImageBatch,
    reply: oneshot::Sender<Outcome>,
}

/// A scorer and the queue in front of it.
pub(super) struct Hosted {
    name: String,
    jobs: mpsc::Sender<Job>,
}

/// Why there is no place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    Full,
    Dead,
}

/// A place in the queue, taken before there is a batch to put into it.
pub(super) struct Place(mpsc::OwnedPermit<Job>);

impl Hosted {
    /// Starts a thread on which `build` makes the scorer, and waits for that.
    ///
    /// # Errors
    /// If `build` fails, or the thread cannot be started or dies.
    pub(super) async fn start(
        options: ThreadOptions,
        build: impl FnOnce() -> anyhow::Result<OwnReward> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let name = options.name.clone();
        let serve = |reward: OwnReward, jobs| score_jobs(&*reward, jobs);
        Ok(Self { name, jobs: reward_thread::start(options, build, serve).await? })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends when the thread does, which it only does by a panic as long as this is there.
    pub(super) fn died(&self) -> impl Future<Output = ()> + use<> {
        let jobs = self.jobs.clone();
        async move { jobs.closed().await }
    }

    /// Takes a place in the queue.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn place(&self) -> Result<Place, NoPlace> {
        match self.jobs.clone().try_reserve_owned() {
            Ok(permit) => Ok(Place(permit)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NoPlace::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NoPlace::Dead),
        }
    }
}

impl Place {
    /// Waits for the scores of a batch; `None` if the thread has died. Dropped before its turn, the batch is skipped.
    pub(super) async fn score(self, batch: ImageBatch) -> Option<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.0.send(Job { batch, reply });
        outcome.await.ok()
    }
}

fn score_jobs(reward: &dyn Reward, mut jobs: mpsc::Receiver<Job>) {
    while let Some(Job { batch, reply }) = jobs.blocking_recv() {
        if !reply.is_closed() {
            let _ = reply.send(reward_thread::score(reward, &batch.images, &batch.prompts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as blocking;

    /// Counts its batches, and scores one only when it is let.
    struct Gate {
        scored: blocking::Sender<usize>,
        open: blocking::Receiver<()>,
    }

    impl Reward for Gate {
        fn name(&self) -> &str {
            "gate"
        }

        fn score(&self, images: &[RgbImage], _: &[PromptRecord]) -> Outcome {
            let _ = self.scored.send(images.len());
            self.open.recv().expect("opened");
            Ok(vec![Score::from(1.0); images.len()])
        }
    }

    async fn gate(max_queue: usize) -> (Hosted, blocking::Receiver<usize>, blocking::Sender<()>) {
        let (scored, n_scored) = blocking::channel();
        let (opener, open) = blocking::channel();
        let build = move || Ok(Box::new(Gate { scored, open }) as OwnReward);
        let options = ThreadOptions { name: "gate".to_owned(), n_threads: 1, max_queue };
        let hosted = Hosted::start(options, build).await.expect("a scorer");
        (hosted, n_scored, opener)
    }

    fn batch(n_images: usize) -> ImageBatch {
        let record = PromptRecord { prompt: String::new(), metadata: serde_json::Value::Null };
        ImageBatch {
            ids: (0..n_images as u64).collect(),
            images: vec![RgbImage::filled(1, 1, [0; 3]); n_images],
            prompts: vec![record; n_images],
        }
    }

    #[tokio::test]
    async fn batches_are_scored_one_by_one_and_the_abandoned_are_skipped() {
        let (hosted, n_scored, opener) = gate(3).await;
        let [first, second, third] = [1, 2, 3].map(|n_images| {
            let place = hosted.place().expect("room");
            tokio::spawn(place.score(batch(n_images)))
        });
        let n_scored =
            tokio::task::spawn_blocking(move || (n_scored.recv(), n_scored)).await.expect("joined");
        assert_eq!(n_scored.0, Ok(1));
        second.abort();
        assert!(second.await.is_err_and(|error| error.is_cancelled()));
        opener.send(()).and_then(|()| opener.send(())).expect("the thread lives");
        let n_scores = |outcome: Option<Outcome>| outcome.expect("alive").expect("scores").len();
        assert_eq!(n_scores(first.await.expect("joined")), 1);
        assert_eq!(n_scores(third.await.expect("joined")), 3);
        assert_eq!(n_scored.1.try_iter().collect::<Vec<_>>(), [3]);
    }

    #[tokio::test]
    async fn a_full_queue_has_no_place_and_a_place_given_up_is_free_again() {
        let (hosted, _n_scored, _opener) = gate(1).await;
        let place = hosted.place().expect("room");
        assert_eq!(hosted.place().err(), Some(NoPlace::Full));
        drop(place);
        assert!(hosted.place().is_ok());
    }

    #[tokio::test]
    async fn a_dead_thread_is_noticed_by_all_who_wait() {
        let (hosted, n_scored, opener) = gate(1).await;
        let waiting = tokio::spawn(hosted.place().expect("room").score(batch(1)));
        tokio::task::spawn_blocking(move || n_scored.recv()).await.expect("joined").expect("scoring");
        // The gate's thread panics where nobody can open it.
        drop(opener);
        assert!(waiting.await.expect("joined").is_none());
        hosted.died().await;
        assert_eq!(hosted.place().err(), Some(NoPlace::Dead));
    }
}
