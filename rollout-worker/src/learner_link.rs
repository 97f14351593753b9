//! The way to the learner: where it is now, which failures pass, how long to wait in between.

use std::time::Duration;

use proto::learner_client::LearnerClient;
use service::{Backoff, Membership, WorkInHand};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long one attempt to connect may take before the address is looked up again.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// A connection to whichever learner the coordinator names; it moves when the learner does.
pub struct LearnerLink {
    membership: Membership,
    connection: Option<(String, LearnerClient<Channel>)>,
    backoff: Backoff,
}

/// What a failed call to the learner means.
#[derive(Debug)]
pub enum Failure {
    /// The learner is away or restarting: try again, however long it takes.
    Passing(Status),
    /// The bytes were damaged, or the learner broke over them: try again, but not for ever.
    Damaged(Status),
    /// The learner is of another run.
    Fenced(Status),
    /// The learner says that trying again will not help.
    Final(Status),
}

impl LearnerLink {
    /// A link that connects when it is first needed.
    pub fn new(membership: Membership) -> Self {
        Self { membership, connection: None, backoff: patience() }
    }

    /// The membership whose identity its calls carry.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// A client of the learner, for the sake of `work`, as soon as there is one.
    pub async fn client(&mut self, work: &WorkInHand) -> LearnerClient<Channel> {
        loop {
            let address = self.membership.standing().borrow().learner_address.clone();
            match &self.connection {
                Some((connected, client)) if *connected == address => return client.clone(),
                _ if address.is_empty() => self.pause(work).await,
                _ => match service::connect(&address, CONNECT_PATIENCE).await {
                    Ok(channel) => self.connection = Some((address, service::learner_client(channel))),
                    Err(error) => {
                        tracing::debug!("{error}");
                        self.pause(work).await;
                    }
                },
            }
        }
    }

    /// Waits before the next attempt, longer each time.
    pub async fn pause(&mut self, work: &WorkInHand) {
        // Waiting for the learner is no sign of a hanging worker.
        work.progressed();
        tokio::time::sleep(self.backoff.next_pause()).await;
    }

    /// Notes that the learner answered.
    pub fn answered(&mut self, work: &WorkInHand) {
        work.progressed();
        self.backoff = patience();
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::FailedPrecondition => Self::Fenced(status),
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated => Self::Final(status),
            Code::DataLoss | Code::Internal => Self::Damaged(status),
            _ => Self::Passing(status),
        }
    }
}

fn patience() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
}
