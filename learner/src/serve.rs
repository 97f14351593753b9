//! The process around the training thread: joins the run, serves workers, reports, and ends for one of four reasons.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::{PromptSplit, RunConfig};
use proto::learner_server::LearnerServer;
use proto::{Fatal, Role};
use protocol::{HoldLimit, with_causes};
use run_setup::{catch_out_of_memory, check_determinism};
use service::metrics::MemberMetrics;
use service::network::ListenAddress;
use service::{
    Address, Hub, JoinDetails, MESSAGE_LIMIT, Membership, OwnedDirectory, PeerRole, RecentLog, RunDirectory,
    Security, ServiceError, Trust, network, trust_by,
};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::error::LearnerError;
use crate::exchange::embeddings::Embeddings;
use crate::exchange::inbox::Inbox;
use crate::exchange::outcome::push_schema;
use crate::exchange::publications::Publications;
use crate::exchange::receive::OutcomeReader;
use crate::exchange::server::{LONGEST_CALL, LearnerService};
use crate::half::{self, Half};
use crate::metrics::LearnerPage;
use crate::progress::ProgressBoard;
use crate::ranks::group::Ranks;
use crate::ranks::orders::RankOrders;
use crate::run::follower::Follower;
use crate::run::{HeldOutPrompts, Run, TrainingEnd};
use crate::training::gradient::Objective;
use crate::training::policy::Policy;
use crate::training::shares::Shares;
use crate::training::trainer::Trainer;

mod door;
mod error;

use door::{follow_orders, open_door, ranks_of};
pub use error::ServeError;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Changes closer together than this share a report.
const REPORT_PAUSE: Duration = Duration::from_millis(20);
/// Between two looks whether another process has the place of this one.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// Where a learner joins and listens.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address of the coordinator, `http://host:port`.
    pub coordinator: String,
    /// How this process shows who it is.
    pub credentials: Security,
    /// Which of the learner's ranks this process is, from 0.
    pub rank: u32,
    /// Name among the members, kept over restarts.
    pub member_id: String,
    /// Where this process listens; port 0 takes a free one.
    pub listen: ListenAddress,
    /// What workers are told to reach it by; empty follows `listen`.
    pub advertise: String,
    /// Where metrics are shown, if anywhere.
    pub metrics_listen: Option<ListenAddress>,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
    /// Memory for outcomes that training has yet to take, in bytes; half of what is free if not given.
    pub outcome_memory: Option<u64>,
    /// Where this learner keeps its half of the run, where it does not have the coordinator's directory.
    pub run_directory: Option<RunDirectory>,
    /// What this process has logged last, for who asks.
    pub log: RecentLog,
    /// Where models are found by name.
    pub hub: Hub,
}

/// Why the process ends, when nothing is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// The run is done.
    Done,
    /// The run is not done, and a learner started again will continue it.
    Retry,
}

/// What the training thread shares with the rest of the process.
#[derive(Clone, Default)]
struct Shared {
    inbox: Arc<Inbox>,
    embeddings: Arc<Embeddings>,
    publications: Arc<Publications>,
    progress: Arc<ProgressBoard>,
    /// What the coordinator says of the group of ranks.
    orders: Arc<RankOrders>,
    /// Cancelled once the training thread has opened its model and the run's files.
    opened: CancellationToken,
}

impl Shared {
    fn page(&self) -> Arc<LearnerPage> {
        let Self { inbox, publications, progress, .. } = self.clone();
        Arc::new(LearnerPage::new(inbox, publications, progress))
    }

    /// Tells the training thread to leave: it waits for nobody any more.
    fn stop(&self) {
        self.inbox.stop();
        self.orders.stop();
    }
}

/// Joins a run and trains it until it is done, `shutdown` is cancelled, or something is wrong.
///
/// # Errors
/// If the process cannot take part in the run, or training cannot go on.
pub async fn serve(options: ServeOptions, shutdown: CancellationToken) -> Result<ServeEnd, ServeError> {
    half::check(options.run_directory.as_ref())?;
    let (listener, address) = listen(&options).await?;
    let limit = hold_limit(options.outcome_memory, service::free_memory());
    let shared = Shared { inbox: Arc::new(Inbox::of_rank(options.rank, limit)), ..Shared::default() };
    let page = shared.page();
    let place = options.metrics_listen.as_ref();
    let mut metrics = MemberMetrics::open(place, &options.advertise, &options.coordinator).await?;
    let _shown = metrics.serve(page.clone());
    let trust = trust_by(options.credentials.clone(), PeerRole::Learner, options.grace);
    let Some(trust) = shutdown.run_until_cancelled(trust).await else { return Ok(ServeEnd::Retry) };
    let trust = trust?;
    trust.check_listener(&listener)?;
    let details = JoinDetails {
        role: Role::Learner,
        member_id: options.member_id.clone(),
        rank: options.rank,
        address: address.clone(),
        metrics_address: metrics.address.clone(),
        grace: options.grace,
        own_directory: options.run_directory.clone(),
    };
    let joined = Membership::join(&options.coordinator, &trust, details);
    let Some(joined) = shutdown.run_until_cancelled(joined).await else { return Ok(ServeEnd::Retry) };
    let (membership, reply) = joined?;
    membership.shows_log(options.log.clone());
    let config = RunConfig::from_toml(&reply.config).map_err(ServeError::Config)?;
    if let Err(other) = check_determinism(config.run.determinism) {
        membership.leave().await;
        return Err(other.into());
    }
    let opened = async {
        let half =
            Half::open((options.rank, options.run_directory.clone()), &membership, &reply, &config).await?;
        Ok::<_, ServeError>((half, open_door(&options, &config, &address, &trust).await?))
    };
    let (half, door) = match shutdown.run_until_cancelled(opened).await {
        Some(Ok(opened)) => opened,
        ended => {
            membership.leave().await;
            return ended.map_or(Ok(ServeEnd::Retry), |failed| failed.map(|_| ServeEnd::Retry));
        }
    };
    membership.computes_on(config.resources.device);
    metrics.tell_trouble(&membership);
    page.joined(config.clone());
    shared.progress.watched_by(membership.clone());
    let (reader_ready, receiver) = oneshot::channel();
    let superseded = superseded(half.directory.clone());
    let showing = half.clone().show(membership.clone(), shared.progress.clone());
    let places = Places { half: half.clone(), hub: options.hub };
    if let Some((_, address)) = &door {
        membership.ranks_at(address.clone());
        shared.orders.told_by(membership.clone());
    }
    let ranks = ranks_of(&config, options.rank, door.map(|(door, _)| door), &shared);
    let ended = spawn_training(config, (places, ranks), shared.clone(), reader_ready);

    let stop_network = CancellationToken::new();
    let _stop_network = stop_network.clone().drop_guard();
    let run_id = membership.caller().run_id;
    let accepting = accept((listener, trust), (run_id, page), shared.clone(), receiver);
    let accepting = tokio::spawn(stop_network.clone().run_until_cancelled_owned(accepting));
    tokio::spawn(
        stop_network
            .clone()
            .run_until_cancelled_owned(follow_orders(membership.clone(), shared.orders.clone())),
    );
    let reporting = report(membership.clone(), shared.clone());
    let reporting = tokio::spawn(stop_network.run_until_cancelled_owned(reporting));
    let stop_reporting = reporting.abort_handle();
    let showing = tokio::spawn(showing);
    let breakdown = async {
        tokio::select! {
            end = accepting => task_ended("serves workers", end),
            end = reporting => task_ended("reports to the coordinator", end),
            error = superseded => error.into(),
        }
    };

    let ended = wait_for_end(ended, &membership, &shared, shutdown, breakdown).await;
    stop_reporting.abort();
    showing.abort();
    shared.progress.unwatched();
    if matches!(&ended, Ok(_) | Err(ServeError::Training(_))) {
        half.show_last(&membership).await;
    }
    say_goodbye(ended, membership, &shared.progress).await
}

/// Listens, and says where workers reach this process.
async fn listen(options: &ServeOptions) -> Result<(TcpListener, String), ServeError> {
    let unusable = |problem: String| ServeError::Listen { address: options.listen.clone(), problem };
    let listener = options.listen.bind().await.map_err(|error| unusable(error.to_string()))?;
    let bound = listener.local_addr().map_err(|error| unusable(error.to_string()))?;
    let coordinator = options.coordinator.parse::<Address>()?.number().await;
    let host = network::advertised(bound.ip(), &options.advertise, coordinator);
    let host = host.map_err(|error| unusable(error.to_string()))?;
    Ok((listener, network::joined(&host, &bound.port().to_string())))
}

/// What there is room for: as much as a user says, else half of the memory that is free before the model is opened. The rest
/// is for what is being received, for what training has taken, and for the model where it is not on a card.
fn hold_limit(outcome_memory: Option<u64>, free_memory: Option<u64>) -> HoldLimit {
    let bytes = outcome_memory.or(free_memory.map(|free| free / 2)).unwrap_or(u64::MAX);
    HoldLimit { bytes, ..HoldLimit::NONE }
}

/// Waits for the training thread, and tells it to leave when the process has to. What it opens is not waited for then, nor
/// what it computes where the coordinator does not take this process any more: its place is another's, or it hangs.
async fn wait_for_end(
    ended: oneshot::Receiver<Result<TrainingEnd, LearnerError>>,
    membership: &Membership,
    shared: &Shared,
    shutdown: CancellationToken,
    breakdown: impl Future<Output = ServeError>,
) -> Result<TrainingEnd, ServeError> {
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
    shared.stop();
    let is_refused = matches!(&loss, Some(ServeError::Service(ServiceError::Refused { .. })));
    if is_refused || !shared.opened.is_cancelled() {
        return loss.map_or(Ok(TrainingEnd::Left), Err);
    }
    let result = ended.await.map_err(|_| ServeError::Panicked)??;
    match loss {
        Some(loss) => Err(loss),
        None => Ok(result),
    }
}

/// Waits until another process has the place of this one for good, which one that has nothing to write hears of as well.
async fn superseded(directory: Option<OwnedDirectory>) -> ServiceError {
    // A rank that changes nothing has no place there.
    let Some(directory) = directory else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PLACE_INTERVAL).await;
        let directory = directory.clone();
        // A network file system may take its time.
        match tokio::task::spawn_blocking(move || directory.check()).await {
            Ok(Err(error)) if error.is_superseded() => return error,
            Ok(_) | Err(_) => {}
        }
    }
}

/// A task ended that lives as long as the process: by an error of its own, or by a panic.
fn task_ended(task: &'static str, end: Result<Option<String>, JoinError>) -> ServeError {
    let reason = match end {
        Ok(reason) => reason.unwrap_or_else(|| "it was stopped".to_owned()),
        Err(error) => with_causes(&error),
    };
    ServeError::TaskEnded { task, reason }
}

async fn say_goodbye(
    ended: Result<TrainingEnd, ServeError>,
    membership: Membership,
    progress: &ProgressBoard,
) -> Result<ServeEnd, ServeError> {
    match ended {
        Ok(TrainingEnd::Done(summary)) => {
            progress.phase("done");
            membership.report_done(progress.get(), *summary).await?;
            membership.leave().await;
            Ok(ServeEnd::Done)
        }
        Ok(TrainingEnd::Left) => {
            membership.leave().await;
            Ok(ServeEnd::Retry)
        }
        Err(ServeError::Service(ServiceError::CoordinatorGone { address, grace })) => {
            tracing::error!(
                "the coordinator at {address} has been away for {} s, leaving",
                grace.as_secs_f64()
            );
            Ok(ServeEnd::Retry)
        }
        Err(error) if error.is_not_owner() => {
            // It speaks for a run that is another learner's, or that it has not been let into again.
            membership.leave().await;
            Err(error)
        }
        Err(error) => {
            if let ServeError::Training(problem) = &error {
                let (reason, bad_input) = (with_causes(problem), problem.is_bad_input());
                let fatal = Fatal { reason, bad_input, summary: problem.summary() };
                membership.report_fatal(fatal).await?;
            }
            Err(error)
        }
    }
}

/// Where the training thread reads and writes.
struct Places {
    half: Half,
    hub: Hub,
}

/// The thread owns the network, whose tensors never leave it. Embeddings, which never change, are shared with it.
fn spawn_training(
    config: RunConfig,
    places: (Places, Ranks),
    shared: Shared,
    reader_ready: oneshot::Sender<OutcomeReader>,
) -> oneshot::Receiver<Result<TrainingEnd, LearnerError>> {
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
    (places, ranks): (Places, Ranks),
    shared: Shared,
    reader_ready: oneshot::Sender<OutcomeReader>,
) -> Result<TrainingEnd, LearnerError> {
    tch::set_num_threads(config.resources.learner_threads as i32);
    tch::set_num_interop_threads(1);
    let Places { half, hub } = places;
    let (progress, opened) = (shared.progress.clone(), shared.opened.clone());
    let open = || Policy::open(&half.config_to_open(&config), &hub.resolve(&config.model.path)?);
    let policy = open().map_err(|error| error.on_this_host(&config.model.path))?;
    let Half { directory, prompts, .. } = half;
    progress.gets_on();
    let latent_shape = policy.model().latent_shape(config.sampling.height, config.sampling.width)?;
    let schedule = run_setup::training_schedule(&config, policy.model())?;
    let receiver = OutcomeReader {
        schema: push_schema(&config, policy.model(), latent_shape.clone()),
        run_seed: config.run.seed,
        stds: run_setup::move_stds(&config, &schedule)?,
    };
    let trainer = Trainer {
        objective: Objective::new(&config, &latent_shape).telling({
            let progress = progress.clone();
            move || progress.gets_on()
        }),
        prompts: prompts.read(PromptSplit::Train)?,
        inbox: shared.inbox,
        embeddings: shared.embeddings,
        progress: shared.progress,
        shares: Shares::of(&config, ranks.rank())?,
        ranks,
        updates: 0,
        iteration: 0,
        earlier: BTreeMap::new(),
        told_drift: 0.0,
        policy,
        schedule,
        config,
    };
    let opened = || {
        opened.cancel();
        progress.opened();
        // If the process is being torn down, the run stops at its first wait.
        let _ = reader_ready.send(receiver);
    };
    let Some(directory) = directory.filter(|_| trainer.ranks.is_first()) else {
        opened();
        return Follower::new(trainer).run();
    };
    let held_out = HeldOutPrompts::read(&trainer.config.data, |split| prompts.read(split))?;
    let mut run = Run::open(trainer, held_out, shared.publications, directory)?;
    opened();
    run.run()
}

/// Serves workers as soon as the training thread knows what to expect of them; returns why it no longer can.
async fn accept(
    (listener, trust): (TcpListener, Trust),
    (run_id, page): (String, Arc<LearnerPage>),
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
        pushes: page.pushes.clone(),
        metrics: page.exchange.clone(),
    };
    let service = LearnerServer::new(service).max_decoding_message_size(MESSAGE_LIMIT);
    let router = service::server(LONGEST_CALL).add_service(service);
    let served = service::serve(router, listener, trust, std::future::pending()).await;
    served.map_or_else(|error| with_causes(&error), |()| "there are no more connections".to_owned())
}

/// Tells the coordinator what is wanted and how far the run is: at every change, and every second.
async fn report(membership: Membership, shared: Shared) -> String {
    let (mut wanted, mut progress) = (shared.inbox.changes(), shared.progress.changes());
    loop {
        let board = &shared.progress;
        match membership.report(shared.inbox.wanted(), board.get(), board.notices()).await {
            Ok(reply) if reply.drain => shared.stop(),
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
    use service::exit_code;

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
    fn half_of_the_free_memory_is_for_outcomes_unless_a_user_says_how_much() {
        for (said, free, expected) in
            [(None, Some(100), 50), (Some(70), Some(100), 70), (None, None, u64::MAX), (Some(7), None, 7)]
        {
            assert_eq!(hold_limit(said, free), HoldLimit { outcomes: u64::MAX, bytes: expected });
        }
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
