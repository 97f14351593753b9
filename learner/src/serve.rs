//! The process around the training thread: joins the run, serves workers, reports, and ends for one of four reasons.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use config::{PromptSplit, RunConfig};
use proto::learner_server::LearnerServer;
use proto::{Fatal, Role};
use run_setup::catch_out_of_memory;
use service::{
    Hub, JoinDetails, MESSAGE_LIMIT, Membership, PromptCopies, RunDirectory, ServiceError, exit_code,
};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::error::{LearnerError, chain};
use crate::exchange::embeddings::Embeddings;
use crate::exchange::inbox::Inbox;
use crate::exchange::outcome::push_schema;
use crate::exchange::publications::Publications;
use crate::exchange::push_gate::PushGate;
use crate::exchange::receive::OutcomeReader;
use crate::exchange::server::{LONGEST_CALL, LearnerService};
use crate::progress::ProgressBoard;
use crate::run::{Ended, HeldOutPrompts, Run};
use crate::training::gradient::Objective;
use crate::training::policy::Policy;
use crate::training::trainer::Trainer;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Changes closer together than this share a report.
const REPORT_PAUSE: Duration = Duration::from_millis(20);

/// Where a learner joins and listens.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address of the coordinator, `http://host:port`.
    pub coordinator: String,
    /// Name among the members, kept over restarts.
    pub member_id: String,
    /// Where workers reach this process; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
    /// Where models are found by name.
    pub hub: Hub,
}

/// Why the process ends, when nothing is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The run is done.
    Done,
    /// The run is not done, and a learner started again will continue it.
    Retry,
}

/// Why the process ends in failure.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {address}; choose another with `--listen`")]
    Listen {
        /// As asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The coordinator cannot be reached or does not want this learner.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The config that the coordinator handed out does not parse.
    #[error("the run config of the coordinator: {0}")]
    Config(config::ConfigErrors),
    /// Training cannot go on.
    #[error(transparent)]
    Training(#[from] LearnerError),
    /// The training thread is gone.
    #[error("the training thread panicked; its message is above")]
    Panicked,
    /// Workers or the coordinator would hear no more of this learner.
    #[error("the task that {task} ended before the run: {reason}")]
    TaskEnded {
        /// What it is there for.
        task: &'static str,
        /// How it ended.
        reason: String,
    },
}

impl ServeError {
    /// The exit code that tells the kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit_code::BAD_USAGE,
            Self::Service(error) => match error {
                ServiceError::Unreachable { .. } | ServiceError::CoordinatorGone { .. } => exit_code::RETRY,
                ServiceError::Address { .. } => exit_code::BAD_USAGE,
                _ => exit_code::FAILED,
            },
            Self::Training(error) if error.is_bad_input() => exit_code::BAD_USAGE,
            _ => exit_code::FAILED,
        }
    }
}

/// What the training thread shares with the rest of the process.
#[derive(Clone, Default)]
struct Shared {
    inbox: Arc<Inbox>,
    embeddings: Arc<Embeddings>,
    publications: Arc<Publications>,
    progress: Arc<ProgressBoard>,
}

/// Joins a run and trains it until it is done, `shutdown` is cancelled, or something is wrong.
///
/// # Errors
/// If the process cannot take part in the run, or training cannot go on.
pub async fn serve(options: ServeOptions, shutdown: CancellationToken) -> Result<Exit, ServeError> {
    let address = options.listen;
    let unusable = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(unusable)?;
    let details = JoinDetails {
        role: Role::Learner,
        member_id: options.member_id,
        address: listener.local_addr().map_err(unusable)?.to_string(),
        grace: options.grace,
    };
    let (membership, reply) = Membership::join(&options.coordinator, details).await?;
    let config = RunConfig::from_toml(&reply.config).map_err(ServeError::Config)?;
    membership.computes_on(config.resources.device);
    let shared = Shared::default();
    let (reader_ready, receiver) = oneshot::channel();
    let places = Places {
        directory: RunDirectory::new(&reply.run_directory),
        prompts: PromptCopies::of(&reply),
        hub: options.hub,
    };
    let ended = spawn_training(config, places, shared.clone(), reader_ready);

    let stop_network = CancellationToken::new();
    let _stop_network = stop_network.clone().drop_guard();
    let run_id = membership.caller().run_id;
    let accepting = accept(listener, run_id, shared.clone(), receiver);
    let accepting = tokio::spawn(stop_network.clone().run_until_cancelled_owned(accepting));
    let reporting = report(membership.clone(), shared.clone());
    let reporting = tokio::spawn(stop_network.run_until_cancelled_owned(reporting));
    let stop_reporting = reporting.abort_handle();
    let breakdown = async {
        tokio::select! {
            end = accepting => task_ended("serves workers", end),
            end = reporting => task_ended("reports to the coordinator", end),
        }
    };

    let ended = wait_for_end(ended, &membership, &shared.inbox, shutdown, breakdown).await;
    stop_reporting.abort();
    say_goodbye(ended, membership, &shared.progress).await
}

/// Waits for the training thread, and tells it to leave when the process has to.
async fn wait_for_end(
    ended: oneshot::Receiver<Result<Ended, LearnerError>>,
    membership: &Membership,
    inbox: &Inbox,
    shutdown: CancellationToken,
    breakdown: impl Future<Output = ServeError>,
) -> Result<Ended, ServeError> {
    let mut standing = membership.standing();
    let told_to_leave = async {
        tokio::select! {
            () = shutdown.cancelled() => None,
            _ = standing.wait_for(|standing| standing.drain.is_some()) => None,
            loss = membership.lost() => Some(loss.into()),
            breakdown = breakdown => Some(breakdown),
        }
    };
    tokio::pin!(ended);
    let loss = tokio::select! {
        result = &mut ended => return Ok(result.map_err(|_| ServeError::Panicked)??),
        loss = told_to_leave => loss,
    };
    inbox.stop();
    let result = ended.await.map_err(|_| ServeError::Panicked)??;
    match loss {
        Some(loss) => Err(loss),
        None => Ok(result),
    }
}

/// A task ended that lives as long as the process: by an error of its own, or by a panic.
fn task_ended(task: &'static str, end: Result<Option<String>, JoinError>) -> ServeError {
    let reason = match end {
        Ok(reason) => reason.unwrap_or_else(|| "it was stopped".to_owned()),
        Err(error) => chain(&error),
    };
    ServeError::TaskEnded { task, reason }
}

async fn say_goodbye(
    ended: Result<Ended, ServeError>,
    membership: Membership,
    progress: &ProgressBoard,
) -> Result<Exit, ServeError> {
    match ended {
        Ok(Ended::Done(summary)) => {
            progress.phase("done");
            membership.report_done(progress.get(), *summary).await?;
            membership.leave().await;
            Ok(Exit::Done)
        }
        Ok(Ended::Left) => {
            membership.leave().await;
            Ok(Exit::Retry)
        }
        Err(ServeError::Service(ServiceError::CoordinatorGone { address, grace })) => {
            tracing::error!(
                "the coordinator at {address} has been away for {} s, leaving",
                grace.as_secs_f64()
            );
            Ok(Exit::Retry)
        }
        Err(error) => {
            if let ServeError::Training(problem) = &error {
                let (reason, bad_input) = (chain(problem), problem.is_bad_input());
                let fatal = Fatal { reason, bad_input, summary: problem.summary() };
                membership.report_fatal(fatal).await?;
            }
            Err(error)
        }
    }
}

/// Where the training thread reads and writes.
struct Places {
    directory: RunDirectory,
    prompts: PromptCopies,
    hub: Hub,
}

/// The thread owns the network, whose tensors never leave it. Embeddings, which never change, are shared with it.
fn spawn_training(
    config: RunConfig,
    places: Places,
    shared: Shared,
    reader_ready: oneshot::Sender<OutcomeReader>,
) -> oneshot::Receiver<Result<Ended, LearnerError>> {
    let (ended_sender, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let trained = catch_out_of_memory(|| train(config, places, shared, reader_ready));
        let result = trained.unwrap_or_else(|short| Err(LearnerError::OutOfMemory(short)));
        // Nobody listens once the process is being torn down.
        let _ = ended_sender.send(result);
    });
    ended
}

fn train(
    config: RunConfig,
    places: Places,
    shared: Shared,
    reader_ready: oneshot::Sender<OutcomeReader>,
) -> Result<Ended, LearnerError> {
    tch::set_num_threads(config.resources.learner_threads as i32);
    tch::set_num_interop_threads(1);
    let Places { directory, prompts, hub } = places;
    let policy = Policy::open(&config, &hub.resolve(&config.model.path)?)?;
    let latent_shape = policy.model().latent_shape(config.sampling.height, config.sampling.width)?;
    let schedule = run_setup::training_schedule(&config, policy.model())?;
    let receiver = OutcomeReader {
        schema: push_schema(&config, policy.model(), latent_shape.clone()),
        run_seed: config.run.seed,
        stds: run_setup::move_stds(&config, &schedule)?,
    };
    let trainer = Trainer {
        objective: Objective::new(&config, &latent_shape),
        prompts: prompts.read(PromptSplit::Train)?,
        inbox: shared.inbox,
        embeddings: shared.embeddings,
        progress: shared.progress,
        updates: 0,
        told_drift: 0.0,
        policy,
        schedule,
        config,
    };
    let held_out = HeldOutPrompts::read(&trainer.config.data, |split| prompts.read(split))?;
    let mut run = Run::open(trainer, held_out, shared.publications, directory)?;
    // If the process is being torn down, the run stops at its first wait.
    let _ = reader_ready.send(receiver);
    run.run()
}

/// Serves workers as soon as the training thread knows what to expect of them; returns why it no longer can.
async fn accept(
    listener: TcpListener,
    run_id: String,
    shared: Shared,
    receiver: oneshot::Receiver<OutcomeReader>,
) -> String {
    // Without it the training thread has ended, and says so itself.
    let Ok(receiver) = receiver.await else { return std::future::pending().await };
    let service = LearnerService {
        run_id,
        inbox: shared.inbox,
        embeddings: shared.embeddings,
        publications: shared.publications,
        reader: Arc::new(receiver),
        pushes: Arc::new(PushGate::default()),
    };
    let service = LearnerServer::new(service).max_decoding_message_size(MESSAGE_LIMIT);
    let router = service::server(LONGEST_CALL).add_service(service);
    let served = service::serve(router, listener, std::future::pending()).await;
    served.map_or_else(|error| chain(&error), |()| "there are no more connections".to_owned())
}

/// Tells the coordinator what is wanted and how far the run is: at every change, and every second.
async fn report(membership: Membership, shared: Shared) -> String {
    let (mut wanted, mut progress) = (shared.inbox.changes(), shared.progress.changes());
    loop {
        let board = &shared.progress;
        match membership.report(shared.inbox.wanted(), board.get(), board.notices()).await {
            Ok(reply) if reply.drain => shared.inbox.stop(),
            Ok(_) => {}
            // The loss of the membership is noticed elsewhere.
            Err(error) => tracing::warn!("report not taken: {error}"),
        }
        tokio::time::sleep(REPORT_PAUSE).await;
        tokio::select! {
            _ = wanted.changed() => {}
            _ = progress.changed() => {}
            () = tokio::time::sleep(REPORT_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_an_error_that_names_it() {
        let panicking = tokio::spawn(async { panic!("a reason") });
        let error = task_ended("reports to the coordinator", panicking.await);
        let text = error.to_string();
        assert!(text.contains("reports to the coordinator") && text.contains("panicked"), "{text}");
        assert_eq!(error.exit_code(), exit_code::FAILED);
    }

    #[test]
    fn exit_codes_tell_bad_input_from_a_coordinator_that_is_away() {
        let gone = ServiceError::CoordinatorGone { address: "a".to_owned(), grace: Duration::ZERO };
        assert_eq!(ServeError::from(gone).exit_code(), exit_code::RETRY);
        let other = LearnerError::OtherConfig { path: String::new(), saved: String::new() };
        assert_eq!(ServeError::from(other).exit_code(), exit_code::BAD_USAGE);
        let missing = service::PromptCopyError::Changed { path: "prompts/train.jsonl".into() };
        assert_eq!(ServeError::from(LearnerError::from(missing)).exit_code(), exit_code::BAD_USAGE);
        assert_eq!(ServeError::Panicked.exit_code(), exit_code::FAILED);
    }
}
