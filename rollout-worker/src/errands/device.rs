//! The thread that owns the model. Tensors stay in it; what goes in and out is bytes and names.

use std::sync::Arc;
use std::thread::JoinHandle;

use protocol::{Task, WeightsName};
use service::WorkInHand;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::errands::weights::TrainedWeights;
use crate::sampling::task::{Sampled, Sampler, TaskError};

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
    work: Arc<WorkInHand>,
    span: Span,
    reply: oneshot::Sender<Result<Sampled, TaskError>>,
}

impl DeviceThread {
    /// Starts a thread of `n_threads` for tensor operations; `open` runs in it and makes the sampler.
    ///
    /// # Errors
    /// If `open` fails, or the thread cannot be started or dies.
    pub async fn start<E: From<DeviceDied> + From<std::io::Error> + Send + 'static>(
        n_threads: usize,
        open: impl FnOnce() -> Result<Sampler, E> + Send + 'static,
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

    /// Samples a task with the given weights; `work` gets on with every network call.
    ///
    /// # Errors
    /// [`DeviceDied`] if the thread is gone; the inner error is the task's own.
    pub async fn sample(
        &self,
        task: Task,
        weights: Arc<TrainedWeights>,
        work: Arc<WorkInHand>,
    ) -> Result<Result<Sampled, TaskError>, DeviceDied> {
        let (reply, outcome) = oneshot::channel();
        let command = Command { task, weights, work, span: Span::current(), reply };
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

fn serve(mut sampler: Sampler, mut commands: mpsc::Receiver<Command>) {
    let mut loaded: Option<WeightsName> = None;
    while let Some(Command { task, weights, work, span, reply }) = commands.blocking_recv() {
        if reply.is_closed() {
            continue;
        }
        let _in_span = span.entered();
        let outcome = match loaded == Some(weights.name) {
            true => Ok(()),
            false => {
                loaded = None;
                weights
                    .tensors()
                    .and_then(|tensors| sampler.load(&tensors))
                    .map(|()| loaded = Some(weights.name))
            }
        };
        let outcome =
            outcome.map_err(TaskError::from).and_then(|()| sampler.sample(&task, &|| work.progressed()));
        let _ = reply.send(outcome);
    }
    if !sampler.truncated().is_empty() {
        tracing::warn!("{}", sampler.truncated());
    }
}
