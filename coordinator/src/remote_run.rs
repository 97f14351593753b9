//! Commands against a living run from a host that has no directory of it: all that they need comes by the wire.

use crate::admin::{DEADLINE, check_version, prepare_destination, scale_by, show, with_cards};
use crate::error::CoordinatorError;
use crate::server::connect_admin;
use crate::view::{RunView, Stage};
use proto::admin_client::AdminClient;
use proto::{DownRequest, ExportRequest, FilePart, LogsRequest, StatusReply, StatusRequest};
use service::logging::LogFormat;
use service::output::print_line;
use service::{OperatorArguments, PeerRole, ReceiveError, RunDirectory, Trust, durable, trust_by};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Handle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Between two looks at whether a coordinator has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A run whose coordinator has answered.
pub struct RemoteRun {
    address: String,
    trust: Trust,
    client: AdminClient<Channel>,
    reply: StatusReply,
}

impl RemoteRun {
    /// Reaches the coordinator that the arguments name; `None` where they name none.
    ///
    /// # Errors
    /// If it is not reached, does not let this operator in, or is of another version.
    pub async fn reach(arguments: &OperatorArguments) -> Result<Option<Self>, CoordinatorError> {
        let Some((address, security)) = arguments.credentials()? else { return Ok(None) };
        let trust = trust_by(security, PeerRole::Admin, Duration::ZERO).await?;
        let mut client = connect_admin(address, &trust).await?;
        let asked = StatusRequest { with_files: true };
        let reply = client.status(service::request(asked, DEADLINE)).await?.into_inner();
        check_version(&format!("the run at {address}"), &reply)?;
        Ok(Some(Self { address: address.to_owned(), trust, client, reply }))
    }

    /// Shows how the run is doing.
    pub fn status(self, format: LogFormat) {
        let held_out_rewards = self.reply.held_out_rewards.iter().cloned().map(Into::into).collect();
        let directory = RunDirectory::new(&self.reply.run_directory);
        let stage = Stage::Living(Box::new(with_cards(self.reply.into())));
        show(&RunView { stage, held_out_rewards, directory }, format);
    }

    /// Sets the number of rollout workers.
    ///
    /// # Errors
    /// A usage error if config or machine do not take so many.
    pub async fn scale(self, workers: u32) -> Result<(), CoordinatorError> {
        scale_by(self.client, self.reply, workers).await
    }

    /// Stops the run after what is in flight, and waits until its coordinator answers no more.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn down(mut self) -> Result<(), CoordinatorError> {
        self.client.down(service::request(DownRequest {}, DEADLINE)).await?;
        print_line(format_args!("stopping {}: what is in flight is finished first", self.reply.run_name));
        while self.answers().await {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        print_line(format_args!("stopped: nobody answers at {} any more", self.address));
        Ok(())
    }

    /// Whether the coordinator of this run is still there, asked by a new connection where the last one broke.
    async fn answers(&mut self) -> bool {
        let asked = || service::request(StatusRequest::default(), DEADLINE);
        if self.client.status(asked()).await.is_ok() {
            return true;
        }
        let Ok(mut client) = connect_admin(&self.address, &self.trust).await else { return false };
        let answer = client.status(asked()).await;
        self.client = client;
        answer.is_ok_and(|reply| reply.into_inner().run_id == self.reply.run_id)
    }

    /// Prints the logs that lie in the run's directory: all, or the last `tail` lines; with `follow`, goes on as they grow
    /// until the coordinator ends.
    ///
    /// # Errors
    /// If it refuses, the stream breaks or `output` fails.
    pub async fn logs(
        mut self,
        follow: bool,
        tail: Option<usize>,
        output: &mut impl Write,
    ) -> Result<(), CoordinatorError> {
        let tail = tail.map(|tail| u32::try_from(tail).unwrap_or(u32::MAX));
        let logs = self.client.logs(LogsRequest { tail, follow }).await;
        let mut parts = logs.map_err(|status| refusal(&self.address, status))?.into_inner();
        let unwritten =
            |source| CoordinatorError::File { action: "write to", path: "standard output".into(), source };
        while let Some(part) = parts.message().await.map_err(|status| refusal(&self.address, status))? {
            output.write_all(&part.text).map_err(unwritten)?;
        }
        output.flush().map_err(unwritten)
    }

    /// Copies what was trained so far to a folder here.
    ///
    /// # Errors
    /// A usage error if the run has nothing yet or the destination exists; another if the stream breaks.
    pub async fn export(self, to: &Path) -> Result<(), CoordinatorError> {
        export_by(self.client, self.address, to).await
    }
}

/// The same, by a coordinator that has been reached at an address.
pub(crate) async fn export_by(
    mut client: AdminClient<Channel>,
    address: String,
    to: &Path,
) -> Result<(), CoordinatorError> {
    prepare_destination(to)?;
    let exported = client.export(ExportRequest {}).await;
    let parts = exported.map_err(|status| refusal(&address, status))?.into_inner();
    let (handle, folder) = (Handle::current(), to.to_owned());
    let mut incoming = Incoming { parts, handle, address };
    let received = tokio::task::spawn_blocking(move || {
        durable::write_directory(&folder, |partial| incoming.receive_all(partial))
    });
    received.await.expect("receiving does not panic; else this is a bug")?;
    print_line(to.display());
    Ok(())
}

/// What a coordinator's refusal, or the end of the way to it, comes to for who typed the command.
fn refusal(address: &str, status: Status) -> CoordinatorError {
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted => {
            CoordinatorError::Usage(status.message().to_owned())
        }
        Code::Aborted => CoordinatorError::NotExported(status.message().to_owned()),
        Code::PermissionDenied | Code::Unauthenticated | Code::Internal if !is_broken(&status) => {
            status.into()
        }
        _ => CoordinatorError::Lost { address: address.to_owned(), source: Box::new(status) },
    }
}

/// Whether the connection failed rather than the coordinator refused.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The files of an export as they come, one chunk in memory at a time.
struct Incoming {
    parts: Streaming<FilePart>,
    handle: Handle,
    address: String,
}

impl Incoming {
    fn receive_all(&mut self, folder: &Path) -> Result<(), CoordinatorError> {
        let Self { parts, handle, address } = self;
        service::receive_files(folder, &mut || handle.block_on(parts.message())).map_err(
            |error| match error {
                ReceiveError::Stream(status) => refusal(address, status),
                ReceiveError::File(error) => error.into(),
                ReceiveError::Damaged(what) => CoordinatorError::NotExported(format!(
                    "what {address} sends is damaged: {what}; try again"
                )),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_whether_the_command_the_moment_or_the_way_is_at_fault() {
        for (code, exit_code) in [
            (Code::FailedPrecondition, 2),
            (Code::InvalidArgument, 2),
            (Code::Aborted, 75),
            (Code::PermissionDenied, 1),
            (Code::Unavailable, 75),
        ] {
            let error = refusal("https://a:1", Status::new(code, "why"));
            assert_eq!(error.exit_code(), exit_code, "{error}");
            let told = format!("{:#}", anyhow::Error::from(error));
            assert!(told.contains("why"), "{told}");
        }
    }
}
