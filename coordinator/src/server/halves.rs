//! What the coordinator and a learner with a directory of its own send each other of the run's files.

use super::ControlPlane;
use crate::exported;
use crate::learner_half::shown_directory;
use config::PromptSplit;
use proto::keep_results_request::Part;
use proto::{FilePart, KeepResultsReply, KeepResultsRequest, ResultsBegin, RunFilesRequest};
use protocol::with_causes;
use service::{
    OwnedDirectory, PeerRole, ReceiveError, RunDirectory, SentFile, ServiceError, Timely, files_end,
    receive_files, send_files, start_files,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Files for a learner.
pub(super) type FileParts = ReceiverStream<Result<FilePart, Status>>;
/// The one answer to results.
pub(super) type KeptParts = ReceiverStream<Result<KeepResultsReply, Status>>;

/// Parts of a stream that wait for the network, of at most a chunk each.
const PARTS_AHEAD: usize = 2;
/// How long an operator waits for a learner of which nothing comes.
const RESULTS_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);
const BUSY: &str = "files of this run are on their way already; try again in a moment";

/// Room for one stream each way, and how much has come.
pub(super) struct Exchange {
    sending: Arc<Semaphore>,
    receiving: Arc<Semaphore>,
    /// Counts the parts of results that came.
    n_parts: AtomicU64,
}

impl Default for Exchange {
    fn default() -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { sending: one(), receiving: one(), n_parts: AtomicU64::new(0) }
    }
}

fn enter(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    room.clone().try_acquire_owned().map_err(|_| Status::resource_exhausted(BUSY))
}

/// Work that reads or writes files, on a thread of its own.
fn begin(work: impl FnOnce() + Send + 'static) -> Result<(), Status> {
    let thread = std::thread::Builder::new().name("files".to_owned()).spawn(work);
    thread.map(drop).map_err(|error| Status::unavailable(format!("no thread to move files by: {error}")))
}

impl ControlPlane {
    /// Sends a learner what it reads of the run.
    pub(super) fn send_run_files(&self, request: &RunFilesRequest) -> Result<Response<FileParts>, Status> {
        self.read(|state| state.check_elsewhere(request.caller.as_ref()))?;
        let directory = self.run_directory()?;
        let start_from = self.read(|state| state.config().adapter.start_from.clone());
        let room = enter(&self.exchange.sending)?;
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        begin(move || {
            let _room = room;
            let send = |part| sender.blocking_send(Ok(part)).is_ok();
            let sent = run_files(&directory, &start_from)
                .and_then(|files| Ok(send_files(&files, send)? && send(files_end(&files))));
            if let Err(error) = sent {
                // A learner that has hung up does not hear why.
                let _ = sender.blocking_send(Err(Status::failed_precondition(with_causes(&error))));
            }
        })?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// Keeps what a learner has to show, in place of what it sent before.
    pub(super) async fn receive_results(
        &self,
        peer: Option<PeerRole>,
        parts: Streaming<KeepResultsRequest>,
    ) -> Result<Response<KeptParts>, Status> {
        let mut parts = Timely::new(parts);
        let first = parts.next().await?.and_then(|message| message.part);
        let Some(Part::Begin(ResultsBegin { caller, number })) = first else {
            return Err(Status::invalid_argument("results begin with who sends them"));
        };
        self.check_caller(peer, caller.as_ref())?;
        self.read(|state| state.check_elsewhere(caller.as_ref()))?;
        let directory = self.owned_directory()?.clone();
        let room = enter(&self.exchange.receiving)?;
        let (plane, handle) = (self.clone(), Handle::current());
        let (sender, receiver) = mpsc::channel(1);
        begin(move || {
            let _room = room;
            let mut next = || {
                plane.exchange.n_parts.fetch_add(1, Ordering::Relaxed);
                match handle.block_on(parts.next())?.map(|message| message.part) {
                    Some(Some(Part::File(part))) => Ok(Some(part)),
                    Some(_) => Err(Status::invalid_argument("results begin once and have no empty part")),
                    None => Ok(None),
                }
            };
            let kept = keep(&directory, &mut next);
            if kept.is_ok() {
                plane.update(|state, _| state.halves_mut().results_kept(number));
            }
            // A learner that has hung up sends them again.
            let _ = sender.blocking_send(kept.map(|()| KeepResultsReply {}));
        })?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// Asks a learner with a directory of its own for what it has to show; `None` where there is no such learner.
    pub(super) fn ask_results(&self) -> Option<u64> {
        let is_there = self.read(|state| state.has_learner_elsewhere());
        is_there.then(|| self.update(|state, _| state.halves_mut().ask_results()))
    }

    /// Waits until the learner has sent what it was asked for, on a thread that may wait.
    pub(super) fn wait_for_results(&self, number: u64) -> Result<(), Status> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let (has_come, lives) =
                self.read(|state| (state.halves().has_results(number), state.has_learner_elsewhere()));
            if has_come {
                return Ok(());
            }
            let n_parts = self.exchange.n_parts.load(Ordering::Relaxed);
            if n_parts != seen {
                (seen, since) = (n_parts, Instant::now());
            }
            if !lives || since.elapsed() > RESULTS_PATIENCE {
                let half = self.read(|state| state.learner_half().map(ToString::to_string));
                let half = half.unwrap_or_default();
                return Err(Status::aborted(format!(
                    "the learner, which has its files in {half}, does not send what it has trained; try again once it lives"
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The directory that has what the run has to show.
    pub(super) fn shown_directory(&self) -> Result<RunDirectory, Status> {
        let directory = self.run_directory()?;
        Ok(self.read(|state| shown_directory(&directory, state.learner_half())))
    }
}

/// What a learner reads of a run: prompts, and what training goes on from.
fn run_files(directory: &RunDirectory, start_from: &Path) -> Result<Vec<SentFile>, ServiceError> {
    let of_split = |split: PromptSplit| {
        let path = directory.prompts(split);
        let name = path.strip_prefix(directory.path()).unwrap_or(&path).to_owned();
        SentFile { name, path }
    };
    let prompts = PromptSplit::ALL.map(of_split).into_iter().filter(|file| file.path.is_file());
    let mut files: Vec<SentFile> = prompts.collect();
    if !start_from.as_os_str().is_empty() {
        files.extend(start_files(start_from)?);
    }
    Ok(files)
}

fn keep(
    directory: &OwnedDirectory,
    next: &mut dyn FnMut() -> Result<Option<FilePart>, Status>,
) -> Result<(), Status> {
    let kept = directory.write_directory(directory.results().path(), |partial| {
        receive_files(partial, next).map_err(|error| match error {
            ReceiveError::Stream(status) => Unkept(status),
            ReceiveError::Damaged(what) => Unkept(Status::aborted(format!("what came is damaged: {what}"))),
            ReceiveError::File(error) => error.into(),
        })?;
        let is_whole = exported::check(&RunDirectory::new(partial), true);
        is_whole.map_err(|error| Unkept(Status::aborted(error.to_string())))
    });
    kept.map_err(|Unkept(status)| status)
}

/// Why results are not kept.
struct Unkept(Status);

impl From<ServiceError> for Unkept {
    fn from(error: ServiceError) -> Self {
        Self(Status::internal(with_causes(&error)))
    }
}
