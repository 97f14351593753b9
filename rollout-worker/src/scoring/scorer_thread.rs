//! The thread of one scorer: it builds it, owns it, and asks it again where that is of use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::with_causes;
use rewards::{Persistence, PromptRecord, RetryVerdict, RewardError, RgbImage, Score};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::scoring::reward_thread::{self, OwnReward, ThreadOptions};

/// Pauses between attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often a pause looks whether anybody still waits for the scores.
const LOOK: Duration = Duration::from_millis(100);

/// Images with the prompts they were drawn for.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the scores.
    pub images: Vec<RgbImage>,
    /// Of each image.
    pub prompts: Vec<PromptRecord>,
}

/// Who hears of scoring while it goes on.
pub trait Listener: Send + Sync {
    /// A batch is held because its scorer fails.
    fn unreachable(&self, scorer: &str, problem: &str);
    /// The scorer answers again, or its batch was given up.
    fn reachable(&self, scorer: &str);
}

/// Scores of one batch that are being made.
pub type PendingScores = oneshot::Receiver<Result<Vec<Score>, RewardError>>;

/// A thread with a scorer in it.
pub struct ScorerThread {
    commands: mpsc::Sender<Command>,
}

struct Command {
    batch: Arc<Batch>,
    listener: Arc<dyn Listener>,
    span: Span,
    reply: oneshot::Sender<Result<Vec<Score>, RewardError>>,
}

impl ScorerThread {
    /// Starts a thread of `n_threads` for tensor operations, in which `build` makes the scorer called `name`.
    ///
    /// # Errors
    /// If `build` fails, or the thread cannot be started or dies.
    pub async fn start(
        name: String,
        n_threads: usize,
        build: impl FnOnce() -> anyhow::Result<OwnReward> + Send + 'static,
    ) -> anyhow::Result<Self> {
        // The next batch may wait while one is scored; a caller that has a third waits for room.
        let options = ThreadOptions { name: name.clone(), n_threads, max_queue: 1 };
        let serve = move |reward, commands| {
            Service { name, reward, persistence: Persistence::default() }.serve(commands);
        };
        Ok(Self { commands: reward_thread::start(options, build, serve).await? })
    }

    /// Has a batch scored after those before it; `None` if the thread is gone.
    pub async fn submit(&self, batch: Arc<Batch>, listener: Arc<dyn Listener>) -> Option<PendingScores> {
        let (reply, scores) = oneshot::channel();
        let command = Command { batch, listener, span: Span::current(), reply };
        self.commands.send(command).await.ok()?;
        Some(scores)
    }
}

/// The scorer and what is remembered of its failures.
struct Service {
    name: String,
    reward: OwnReward,
    persistence: Persistence,
}

impl Service {
    fn serve(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            let _in_span = command.span.clone().entered();
            if let Some(scores) = self.score(&command) {
                let _ = command.reply.send(scores);
            }
        }
    }

    /// Scores a batch, however many attempts that takes; `None` if nobody waits for it any more.
    fn score(&mut self, command: &Command) -> Option<Result<Vec<Score>, RewardError>> {
        let Command { batch, listener, reply, .. } = command;
        self.persistence.begin_batch();
        let mut backoff = service::backoff(PAUSES.0, PAUSES.1);
        let mut held_for: Option<String> = None;
        let outcome = loop {
            if reply.is_closed() {
                break None;
            }
            let error = match reward_thread::score(&*self.reward, &batch.images, &batch.prompts) {
                Ok(scores) => {
                    self.persistence.succeeded();
                    break Some(Ok(scores));
                }
                Err(error) => error,
            };
            let patience = self.reward.patience();
            match self.persistence.failed(&error, patience, Instant::now()) {
                RetryVerdict::GiveUp if error.may_pass() && !patience.is_zero() => {
                    let problem = Box::new(error);
                    break Some(Err(RewardError::GivenUp { patience, problem }));
                }
                RetryVerdict::GiveUp => break Some(Err(error)),
                RetryVerdict::Retry => {
                    let problem = with_causes(&error);
                    // An outage is said once; a server that fails in another way each time, each time.
                    if held_for.as_ref() != Some(&problem) {
                        tracing::warn!(reward = self.name, "held until this is mended: {problem}");
                    }
                    listener.unreachable(&self.name, &problem);
                    held_for = Some(problem);
                    pause(backoff.next_pause(), command);
                }
            }
        };
        if held_for.is_some() {
            listener.reachable(&self.name);
        }
        outcome
    }
}

/// Sleeps until it is time for another attempt, or nobody waits for it any more.
fn pause(length: Duration, Command { reply, .. }: &Command) {
    let end = Instant::now() + length;
    while !reply.is_closed() && Instant::now() < end {
        std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rewards::Reward;
    use rewards::remote::RemoteError;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    /// Answers one after another what it is told to; then scores.
    struct Scripted {
        failures: Mutex<VecDeque<RewardError>>,
        patience: Duration,
    }

    impl Reward for Scripted {
        fn name(&self) -> &str {
            "scripted"
        }

        fn score(&self, images: &[RgbImage], _: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
            match self.failures.lock().unwrap().pop_front() {
                Some(error) => Err(error),
                None => Ok(vec![Score::from(0.5); images.len()]),
            }
        }

        fn patience(&self) -> Duration {
            self.patience
        }
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Listener for Heard {
        fn unreachable(&self, scorer: &str, problem: &str) {
            self.0.lock().unwrap().push(format!("{scorer} held: {problem}"));
        }

        fn reachable(&self, scorer: &str) {
            self.0.lock().unwrap().push(format!("{scorer} released"));
        }
    }

    fn outage() -> RewardError {
        let problem = Box::new(RemoteError::Unreachable { cause: "refused".into() });
        RewardError::Remote { name: "scripted".to_owned(), url: "http://far".to_owned(), problem }
    }

    fn not_finite() -> RewardError {
        RewardError::NotFinite { name: "scripted".to_owned(), index: 1, value: f32::NAN }
    }

    async fn start(failures: Vec<RewardError>, patience: Duration) -> ScorerThread {
        let reward = Scripted { failures: Mutex::new(failures.into()), patience };
        let build = move || Ok(Box::new(reward) as OwnReward);
        ScorerThread::start("far".to_owned(), 1, build).await.expect("built")
    }

    fn batch() -> Arc<Batch> {
        let prompt = PromptRecord { prompt: "a cat".to_owned(), metadata: serde_json::Value::Null };
        Arc::new(Batch { images: vec![RgbImage::filled(2, 2, [0; 3]); 2], prompts: vec![prompt; 2] })
    }

    /// What becomes of one batch, and what was heard.
    async fn score(thread: &ScorerThread) -> (Result<Vec<Score>, RewardError>, Vec<String>) {
        let heard = Arc::new(Heard::default());
        let pending = thread.submit(batch(), heard.clone()).await.expect("living");
        let scores = pending.await.expect("answered");
        let heard = heard.0.lock().unwrap().clone();
        (scores, heard)
    }

    #[tokio::test]
    async fn a_scorer_that_comes_back_scores_what_was_held() {
        let thread = start(vec![outage(), outage()], Duration::from_secs(600)).await;
        let (scores, heard) = score(&thread).await;
        assert_eq!(scores.expect("scored").len(), 2);
        let held = "far held: reward `scripted` at http://far: unreachable: refused";
        assert_eq!(heard, [held, held, "far released"]);
        assert_eq!(score(&thread).await.1, Vec::<String>::new(), "all is well again");
    }

    #[tokio::test]
    async fn a_score_that_is_not_finite_fails_its_batch_after_three_attempts_and_only_that() {
        let thread = start(vec![not_finite(), not_finite(), not_finite()], Duration::from_secs(600)).await;
        let (scores, heard) = score(&thread).await;
        assert!(matches!(scores, Err(RewardError::NotFinite { index: 1, .. })), "{scores:?}");
        assert_eq!(heard.len(), 3, "held twice, then let go: {heard:?}");
        assert!(score(&thread).await.0.is_ok());
    }

    #[tokio::test]
    async fn a_scorer_that_was_waited_for_in_vain_is_told_as_such() {
        let patience = Duration::from_millis(1);
        let thread = start((0..10).map(|_| outage()).collect(), patience).await;
        let (scores, heard) = score(&thread).await;
        let error = scores.expect_err("in vain");
        let told = "reward `scripted` at http://far: unreachable: refused; it was waited for 0.001 s, which is all its patience";
        assert_eq!((error.to_string().as_str(), error.may_pass()), (told, true));
        assert_eq!(heard.last().map(String::as_str), Some("far released"));
    }

    #[tokio::test]
    async fn without_patience_the_first_failure_counts() {
        let thread = start(vec![outage()], Duration::ZERO).await;
        let (scores, heard) = score(&thread).await;
        assert!(scores.is_err() && heard.is_empty(), "{heard:?}");
    }

    #[tokio::test]
    async fn nobody_waiting_ends_the_hold() {
        let forever = (0..10_000).map(|_| outage()).collect();
        let thread = start(forever, Duration::from_secs(600)).await;
        let heard = Arc::new(Heard::default());
        let pending = thread.submit(batch(), heard.clone()).await.expect("living");
        drop(pending);
        // The thread takes up the next batch only after it has let go of the first.
        drop(thread.submit(batch(), heard.clone()).await.expect("living"));
        drop(thread.submit(batch(), heard.clone()).await.expect("living"));
    }
}
