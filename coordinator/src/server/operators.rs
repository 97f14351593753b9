//! What an operator asks of a living run.

use super::{ControlPlane, MOST_READERS};
use crate::file_streams::{self, MOST_TAIL_LINES};
use crate::history::History;
use crate::launch::capacity;
use crate::log_questions::FollowedLogs;
use crate::logs::ShownLogs;
use crate::logs_elsewhere::LogsElsewhere;
use crate::membership::Members;
use crate::run_record::StopWish;
use proto::admin_server::Admin;
use proto::{
    DownReply, DownRequest, ExportRequest, FilePart, LogsReply, LogsRequest, MemberLogsReply,
    MemberLogsRequest, Role, ScaleReply, ScaleRequest, StatusReply, StatusRequest,
};
use service::{OwnedDirectory, RunDirectory};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Parts of a stream that wait for the network: at most 1 MiB each.
const PARTS_AHEAD: usize = 2;

#[tonic::async_trait]
impl Admin for ControlPlane {
    type LogsStream = ReceiverStream<Result<LogsReply, Status>>;
    type ExportStream = ReceiverStream<Result<FilePart, Status>>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let mut reply = StatusReply::from(self.view());
        if request.get_ref().with_files
            && let (Ok(directory), Ok(shown)) = (self.run_directory(), self.shown_directory())
        {
            reply.run_directory = directory.path().display().to_string();
            reply.learner_half = self.read(|state| state.learner_half().cloned().map(Into::into));
            let history = tokio::task::spawn_blocking(move || History::read(&shown).held_out()).await;
            let history = history.map_err(|error| Status::internal(format!("metrics.jsonl: {error}")))?;
            reply.held_out_rewards = history.into_iter().map(Into::into).collect();
        }
        Ok(Response::new(reply))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleReply>, Status> {
        let workers = request.get_ref().workers;
        let (current, most, room, pids) = self.read(|state| {
            (state.workers_wanted(), state.most_workers(), state.room, living_workers(&state.members))
        });
        if workers > current {
            let refusal =
                capacity::of_config(workers, most).or_else(|| room.refusal(current, workers, &pids));
            if let Some(refusal) = refusal {
                return Err(Status::resource_exhausted(refusal));
            }
        }
        self.update(|state, _| state.scale(workers));
        Ok(Response::new(ScaleReply {}))
    }

    async fn down(&self, _: Request<DownRequest>) -> Result<Response<DownReply>, Status> {
        self.update(|state, _| state.stop(StopWish::Down));
        Ok(Response::new(DownReply {}))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { tail, follow } = request.into_inner();
        if let Some(tail) = tail.filter(|tail| *tail > MOST_TAIL_LINES) {
            return Err(Status::invalid_argument(format!(
                "`--tail {tail}` is more than the {MOST_TAIL_LINES} lines that are held for a command elsewhere; leave it out \
                 to get all lines"
            )));
        }
        let directory = self.run_directory()?;
        let mut read = FollowedLogs::from_last(tail.unwrap_or(u32::MAX));
        let elsewhere = read.read(self.logs_of_members_elsewhere(&read.request()).await?);
        let mut following = follow.then(|| LogsElsewhere::follow(self.clone(), read));
        let tail = tail.map(|tail| tail as usize);
        self.stream(move |sender| {
            let logs = ShownLogs { directory: &directory, elsewhere: &elsewhere };
            file_streams::send_logs(&logs, tail, following.as_mut(), sender)
        })
    }

    async fn export(&self, _: Request<ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let (plane, asked) = (self.clone(), self.ask_results());
        self.stream(move |sender| {
            asked.map_or(Ok(()), |number| plane.wait_for_results(number))?;
            file_streams::send_export(&plane.shown_directory()?, sender)
        })
    }

    async fn member_logs(
        &self,
        request: Request<MemberLogsRequest>,
    ) -> Result<Response<MemberLogsReply>, Status> {
        let logs = self.logs_of_members_elsewhere(request.get_ref()).await?;
        Ok(Response::new(MemberLogsReply { logs }))
    }
}

impl ControlPlane {
    pub(super) fn run_directory(&self) -> Result<RunDirectory, Status> {
        Ok(RunDirectory::new(self.owned_directory()?.path()))
    }

    pub(super) fn owned_directory(&self) -> Result<&OwnedDirectory, Status> {
        let directory = self.ownership.as_ref().map(|ownership| ownership.directory());
        directory.ok_or_else(|| Status::failed_precondition("this coordinator has no run directory"))
    }

    /// Has a thread of its own send the parts of a stream, so that slow disks and slow readers hold up nobody else.
    fn stream<T: Send + 'static>(
        &self,
        send: impl FnOnce(&mpsc::Sender<Result<T, Status>>) -> Result<(), Status> + Send + 'static,
    ) -> Result<Response<ReceiverStream<Result<T, Status>>>, Status> {
        let place = self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{MOST_READERS} commands read files of this run already, as `coordinator logs --follow` does; end one of them"
            ))
        })?;
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
            let _place = place;
            if let Err(status) = send(&sender) {
                // Who has hung up does not hear why.
                let _ = sender.blocking_send(Err(status));
            }
        });
        thread.map_err(|error| Status::resource_exhausted(format!("no thread to read files by: {error}")))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Process ids of the living workers.
fn living_workers(members: &Members) -> Vec<u32> {
    let living = members.iter().filter(|member| member.is_living());
    let workers = living.filter(|member| member.applicant.role == Role::RolloutWorker);
    workers.map(|member| member.applicant.process.pid).collect()
}
