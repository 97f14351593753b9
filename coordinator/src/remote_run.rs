//! Commands against a living run from a host that has no directory of it: all that they need comes by the wire.

use crate::admin::{DEADLINE, check_version, scale_by, show, with_cards};
use crate::error::CoordinatorError;
use crate::export_stream::{export_by, refusal};
use crate::learner_half::LearnerHalf;
use crate::run_files::RunFiles;
use crate::server::connect_admin;
use crate::view::{RunView, Stage};
use proto::admin_client::AdminClient;
use proto::{DownRequest, LogsRequest, StatusReply, StatusRequest};
use service::logging::LogFormat;
use service::output::print_line;
use service::{OperatorArguments, PeerRole, RunDirectory, Trust, trust_by};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Channel;

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
        let half = self.reply.learner_half.clone().map(LearnerHalf::from);
        let stage = Stage::Living(Box::new(with_cards(self.reply.into())));
        show(&RunView { stage, held_out_rewards, files: RunFiles { directory, half } }, format);
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

    /// Prints the logs of the run: all, or the last `tail` lines; with `follow`, goes on as they grow until the coordinator
    /// ends.
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
