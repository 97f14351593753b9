//! The thread that owns the model. Tensors stay in it; what goes in and out is bytes and names.

use std::sync::Arc;
use std::thread::JoinHandle;

use models::ModelError;
use protocol::{Task, WeightsName};
use run_setup::catch_out_of_memory;
use tch::Tensor;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::errands::weights::TrainedWeights;
use crate::sampling::task::{Sampled, Sampler, TaskError};

/// What the thread owns.
pub trait TaskSampler {
    /// Samples with these weights from now on.
    ///
    /// # Errors
    /// If they are not those of the model.
    fn load(&mut self, weights: &[(String, Tensor)]) -> Result<(), ModelError>;

    /// Samples a task; `goes_on` is asked at every network call, and where it says no the outcome is of no use to anybody.
    ///
    /// # Errors
    /// If the task has no outcome.
    fn sample(&mut self, task: &Task, goes_on: &dyn Fn() -> bool) -> Result<Sampled, TaskError>;

    /// Says at the end what a user should hear of.
    fn leave(&self);
}

impl TaskSampler for Sampler {
    fn load(&mut self, weights: &[(String, Tensor)]) -> Result<(), ModelError> {
        Self::load(self, weights)
    }

    fn sample(&mut self, task: &Task, goes_on: &dyn Fn() -> bool) -> Result<Sampled, TaskError> {
        Self::sample(self, task, goes_on)
    }

    fn leave(&self) {
        if !self.truncated().is_empty() {
            tracing::warn!("{}", self.truncated());
        }
    }
}

/// A thread with a sampler in it.
pub struct DeviceThread {
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
}

/// The thread is gone, so the process has no more purpose.
#[derive(Debug, thiserror::Error)]
#[error("the device thread has died; its panic is in the log")]
pub struct DeviceDied;

struct Command {
    task: Task,
    weights: Arc<TrainedWeights>,
    progressed: Box<dyn Fn() + Send>,
    span: Span,
    reply: oneshot::Sender<Result<Sampled, TaskError>>,
}

impl DeviceThread {
    /// Starts a thread of `n_threads` for tensor operations; `open` runs in it and makes the sampler.
    ///
    /// # Errors
    /// If `open` fails, or the thread cannot be started or dies.
    pub async fn start<S: TaskSampler, E: From<DeviceDied> + From<std::io::Error> + Send + 'static>(
        n_threads: usize,
        open: impl FnOnce() -> Result<S, E> + Send + 'static,
    ) -> Result<Self, E> {
        // One task waits while another runs; the caller does not send more.
        let (commands, receiver) = mpsc::channel(1);
        let (opened, is_open) = oneshot::channel();
        let work = move || {
            // Before the first tensor, and on this thread: OpenMP counts threads by who starts them.
            tch::set_num_threads(n_threads as i32);
            match open() {
                Ok(sampler) => {
                    let _ = opened.send(Ok(()));
                    serve(sampler, receiver);
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn(work)?;
        is_open.await.unwrap_or_else(|_| Err(DeviceDied.into()))?;
        Ok(Self { commands, thread })
    }

    /// Samples a task with the given weights; `progressed` is called at every network call. Who waits no more for the outcome
    /// has the thread leave off at the next of them.
    ///
    /// # Errors
    /// [`DeviceDied`] if the thread is gone; the inner error is the task's own.
    pub async fn sample(
        &self,
        task: Task,
        weights: Arc<TrainedWeights>,
        progressed: Box<dyn Fn() + Send>,
    ) -> Result<Result<Sampled, TaskError>, DeviceDied> {
        let (reply, outcome) = oneshot::channel();
        let command = Command { task, weights, progressed, span: Span::current(), reply };
        self.commands.send(command).await.map_err(|_| DeviceDied)?;
        outcome.await.map_err(|_| DeviceDied)
    }

    /// Lets the thread finish what it does, and waits for it.
    pub async fn stop(self) {
        drop(self.commands);
        let thread = self.thread;
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

fn serve(mut sampler: impl TaskSampler, mut commands: mpsc::Receiver<Command>) {
    let mut loaded: Option<WeightsName> = None;
    while let Some(Command { task, weights, progressed, span, reply }) = commands.blocking_recv() {
        if reply.is_closed() {
            continue;
        }
        let _in_span = span.entered();
        let is_loaded = loaded.take() == Some(weights.name);
        let goes_on = || {
            progressed();
            !reply.is_closed()
        };
        let drawn = catch_out_of_memory(|| {
            if !is_loaded {
                sampler.load(&weights.tensors()?)?;
            }
            sampler.sample(&task, &goes_on)
        });
        // Weights that memory was short for may be there in part.
        loaded = drawn.is_ok().then_some(weights.name);
        let _ = reply.send(drawn.unwrap_or_else(|short| Err(TaskError::OutOfMemory(short))));
    }
    sampler.leave();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use config::TaskKind;
    use proto::Blame;
    use protocol::TaskName;
    use tch::{Device, Kind};

    use super::*;

    /// Fails as it is told, one task after the other; counts how often it is given weights.
    struct Failing {
        failures: Vec<fn()>,
        n_loaded: Arc<AtomicU32>,
    }

    impl TaskSampler for Failing {
        fn load(&mut self, _: &[(String, Tensor)]) -> Result<(), ModelError> {
            self.n_loaded.fetch_add(1, SeqCst);
            Ok(())
        }

        fn sample(&mut self, task: &Task, goes_on: &dyn Fn() -> bool) -> Result<Sampled, TaskError> {
            self.failures.remove(0)();
            assert!(goes_on(), "somebody waits for it");
            Ok(Sampled::nothing_of(task.clone()))
        }

        fn leave(&self) {}
    }

    async fn device(failures: Vec<fn()>) -> (DeviceThread, Arc<AtomicU32>) {
        let n_loaded = Arc::new(AtomicU32::new(0));
        let sampler = Failing { failures, n_loaded: n_loaded.clone() };
        let open = || Ok::<_, anyhow::Error>(sampler);
        (DeviceThread::start(1, open).await.expect("started"), n_loaded)
    }

    async fn sample(device: &DeviceThread) -> Result<Result<Sampled, TaskError>, DeviceDied> {
        let name = TaskName { iteration: 0, kind: TaskKind::Train, index: 0 };
        let task = Task {
            name,
            version: 0,
            prompts: Vec::new(),
            prompt_slot: 0,
            first_seed: 0,
            n_seeds: 1,
            learner_rank: 0,
        };
        let weights = Arc::new(TrainedWeights::nothing(WeightsName::policy(0)));
        device.sample(task, weights, Box::new(|| ())).await
    }

    /// What libtorch really does where memory is short.
    fn ask_for_256_tib() {
        let _ = Tensor::zeros([1 << 20, 1 << 26], (Kind::Float, Device::Cpu));
    }

    #[tokio::test]
    async fn memory_that_is_short_fails_the_task_with_remedies_and_the_thread_goes_on() {
        let (device, n_loaded) = device(vec![|| (), ask_for_256_tib, || (), || ()]).await;
        sample(&device).await.expect("alive").expect("sampled");
        let short = sample(&device).await.expect("alive").expect_err("short of memory");
        assert_eq!(short.blame(), Blame::Memory);
        let told = short.to_string();
        for words in
            ["out of memory", "allocate", "sampling.max_rows", "sampling.vae_tile", "model.embedding_cache"]
        {
            assert!(told.contains(words), "{words} is not in {told}");
        }
        for _ in 0..2 {
            sample(&device).await.expect("alive").expect("sampled");
        }
        assert_eq!(n_loaded.load(SeqCst), 2, "weights that may be there in part are loaded again, once");
    }

    #[tokio::test]
    async fn any_other_failure_of_a_device_ends_the_thread() {
        let (device, _) =
            device(vec![|| panic!("CUDA error: an illegal memory access was encountered")]).await;
        let died = sample(&device).await.expect_err("it died").to_string();
        assert!(died.contains("device thread has died"), "{died}");
    }
}
