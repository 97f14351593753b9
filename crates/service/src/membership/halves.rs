//! What a learner with a directory of its own and the coordinator send each other of the run's files.

use super::Membership;
use super::link::CALL_DEADLINE;
use crate::own_half::result_files;
use crate::{
    OwnedDirectory, Provenance, ReceiveError, RunDirectory, ServiceError, Timely, files_end, receive_files,
    request, send_files,
};
use proto::keep_results_request::Part;
use proto::{FilePart, KeepResultsRequest, ResultsBegin, RunFilesRequest};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// How long the coordinator may take for one part, and to keep them all at the end.
const PART_PATIENCE: Duration = Duration::from_secs(60);
/// Parts that wait for the network, of at most a chunk each.
const PARTS_AHEAD: usize = 2;
/// What is being exported anew meanwhile is sent again, so often and after such a pause.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);

impl Membership {
    /// Learner: gets what it reads of the run into `inputs` of its half, in place of what it got before.
    ///
    /// # Errors
    /// If the coordinator cannot or does not send it, it comes damaged, or it cannot be written.
    pub async fn fetch_inputs(&self, half: &OwnedDirectory) -> Result<(), ServiceError> {
        let message = RunFilesRequest { caller: Some(self.caller()) };
        let asked = self.link.client.clone().run_files(request(message, PART_PATIENCE)).await;
        let mut parts = Timely::new(asked.map_err(|status| self.link.failed(status))?.into_inner());
        let (half, this, handle) = (half.clone(), self.clone(), Handle::current());
        let received = tokio::task::spawn_blocking(move || {
            half.write_directory(half.inputs_received().path(), |partial| {
                receive_files(partial, &mut || handle.block_on(parts.next())).map_err(|error| match error {
                    ReceiveError::Stream(status) => this.link.failed(status),
                    ReceiveError::File(error) => error,
                    ReceiveError::Damaged(what) => {
                        ServiceError::Damaged { address: this.link.address.clone(), what }
                    }
                })
            })
        });
        received.await.expect("receiving does not panic; else this is a bug")
    }

    /// Learner: sends what it has to show, in answer to a question of this number or to none, 0.
    ///
    /// # Errors
    /// If the coordinator does not take it, or a file cannot be read.
    pub async fn send_results(&self, half: &RunDirectory, number: u64) -> Result<(), ServiceError> {
        let mut tries = 1..TRIES;
        loop {
            match self.try_to_send_results(half, number).await {
                // It was being exported anew, or the coordinator is still busy with what was sent before.
                Err(status)
                    if matches!(status.code(), Code::Aborted | Code::ResourceExhausted)
                        && tries.next().is_some() =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                sent => return sent.map_err(|status| self.link.failed(status)),
            }
        }
    }

    async fn try_to_send_results(&self, half: &RunDirectory, number: u64) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        let begin = ResultsBegin { caller: Some(self.caller()), number };
        let (half, handle) = (half.clone(), Handle::current());
        let send = move |part: Part| {
            let sent = sender.send(KeepResultsRequest { part: Some(part) });
            handle.block_on(tokio::time::timeout(PART_PATIENCE, sent)).is_ok_and(|sent| sent.is_ok())
        };
        let sending = tokio::task::spawn_blocking(move || send_results_by(&half, begin, &send));
        let mut client = self.link.client.clone();
        let called = client.keep_results(ReceiverStream::new(receiver));
        let in_time = tokio::time::timeout(CALL_DEADLINE * 2, called).await;
        let mut answer = in_time.map_err(|_| too_slow())??.into_inner();
        let sent = sending.await.expect("sending does not panic; else this is a bug");
        let kept = tokio::time::timeout(PART_PATIENCE, answer.message()).await.map_err(|_| too_slow())?;
        // What was not sent whole is refused; why it was not says more.
        sent?;
        match kept? {
            Some(_) => Ok(()),
            None => Err(Status::unavailable("the coordinator did not say that it keeps what was sent")),
        }
    }
}

fn too_slow() -> Status {
    Status::deadline_exceeded("the coordinator does not take what is sent")
}

/// Sends the whole, or stops before its end; where nobody takes it any more the answer says why.
fn send_results_by(
    half: &RunDirectory,
    begin: ResultsBegin,
    send: &dyn Fn(Part) -> bool,
) -> Result<(), Status> {
    let unreadable = |error: ServiceError| Status::internal(protocol::with_causes(&error));
    // First, so that an export that begins between the two is noticed.
    let before = Provenance::of_exports(half);
    let files = result_files(half).map_err(unreadable)?;
    let send_file = |part: FilePart| send(Part::File(part));
    if !send(Part::Begin(begin)) || !send_files(&files, send_file).map_err(unreadable)? {
        return Ok(());
    }
    if Provenance::of_exports(half) != before {
        return Err(Status::aborted("what is exported changed while it was sent"));
    }
    send_file(files_end(&files));
    Ok(())
}
