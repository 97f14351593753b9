//! The thread on which a scorer is built and works, with a queue before it.

use config::RewardSection;
use rewards::{PromptRecord, Reward, RewardError, RgbImage, RunIdentity, Score, check_count};
use run_setup::{OutOfMemory, catch_out_of_memory};
use service::Hub;
use tch::Device;
use tokio::sync::{mpsc, oneshot};

use crate::bad_input::BadInput;
use crate::scoring::reward_resources::reward_resources;

/// A scorer as its thread owns it.
pub type OwnReward = Box<dyn Reward + Send>;

/// The thread of a scorer is gone, so the process has no more purpose.
#[derive(Debug, thiserror::Error)]
#[error("the thread of reward `{0}` has died; its panic is in the log")]
pub struct ScorerDied(pub String);

/// What a thread is like.
pub struct ThreadOptions {
    /// Name of the reward.
    pub name: String,
    /// CPU threads of its tensor operations.
    pub n_threads: usize,
    /// Jobs that may wait.
    pub max_queue: usize,
}

/// Makes the scorer of a section on the thread that runs it; `run` is shown to reward servers of the process's run.
pub fn build(
    section: RewardSection,
    device: Device,
    hub: Hub,
    run: RunIdentity,
) -> impl FnOnce() -> anyhow::Result<OwnReward> + Send + 'static {
    move || {
        let resources = reward_resources(device, hub, run);
        rewards::build(section.scorer(), &section.options_as_json(), &resources).map_err(|error| match error
            .is_of_host()
        {
            true => BadInput::from_error(anyhow::Error::new(error).context(unusable(&section.name))),
            false => BadInput::from_error(error),
        })
    }
}

/// Scorers are built on many hosts, and what one has another may lack.
fn unusable(reward: &str) -> String {
    format!(
        "the reward `{reward}` cannot be built on {}; its files and programs are looked up on each host: put them there, or set \
         its options to where all hosts have them",
        service::host_name()
    )
}

/// Starts a thread on which `build` makes a scorer, waits for that, and leaves the scorer to `serve` until it returns.
///
/// # Errors
/// If `build` fails, or the thread cannot be started or dies.
pub async fn start<Job: Send + 'static>(
    options: ThreadOptions,
    build: impl FnOnce() -> anyhow::Result<OwnReward> + Send + 'static,
    serve: impl FnOnce(OwnReward, mpsc::Receiver<Job>) + Send + 'static,
) -> anyhow::Result<mpsc::Sender<Job>> {
    let ThreadOptions { name, n_threads, max_queue } = options;
    let (jobs, queue) = mpsc::channel(max_queue);
    let (built, is_built) = oneshot::channel();
    let work = move || {
        // On this thread: OpenMP counts threads by who starts them.
        tch::set_num_threads(n_threads as i32);
        match build() {
            Ok(reward) => {
                let _ = built.send(Ok(()));
                serve(reward, queue);
            }
            Err(error) => {
                let _ = built.send(Err(error));
            }
        }
    };
    std::thread::Builder::new().name(format!("reward {name}")).spawn(work)?;
    is_built.await.unwrap_or_else(|_| Err(ScorerDied(name).into()))?;
    Ok(jobs)
}

/// Has a batch scored, and refuses scores that are not one for each image.
///
/// # Errors
/// If the scorer fails, memory is short, or it gives another number of scores.
pub fn score(
    reward: &dyn Reward,
    images: &[RgbImage],
    prompts: &[PromptRecord],
) -> Result<Vec<Score>, RewardError> {
    let scored = catch_out_of_memory(|| reward.score(images, prompts));
    let out_of_memory = |short: OutOfMemory| RewardError::OutOfMemory {
        name: reward.name().to_owned(),
        told: short.to_string(),
    };
    let scores = scored.map_err(out_of_memory)??;
    check_count(reward.name(), images.len(), &scores).map(|()| scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ThreadOptions {
        ThreadOptions { name: "far".to_owned(), n_threads: 1, max_queue: 1 }
    }

    #[tokio::test]
    async fn a_scorer_that_cannot_be_built_says_why() {
        let build = || anyhow::bail!("no such model");
        let error = start(options(), build, |_, _: mpsc::Receiver<()>| ()).await.expect_err("refused");
        assert_eq!(error.to_string(), "no such model");
    }

    #[tokio::test]
    async fn a_thread_that_dies_while_it_builds_is_noticed() {
        let build = || panic!("on purpose");
        let error = start(options(), build, |_, _: mpsc::Receiver<()>| ()).await.expect_err("died");
        assert_eq!(error.to_string(), "the thread of reward `far` has died; its panic is in the log");
    }
}
