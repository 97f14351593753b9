//! The way to the learner: where it is now, what its failures mean, how long to wait in between.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::learner_client::LearnerClient;
use protocol::{Backoff, Failure};
use service::{Membership, PeerRole, ServiceError, WorkInHand, network};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long one attempt to connect may take before the address is looked up again.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// The subject of troubles on the way there.
const WAY: &str = "way to the learner";

/// Connections to the ranks of the learner that the coordinator names; each moves when its rank does.
pub struct LearnerLink {
    membership: Membership,
    /// By rank, with the address.
    connections: BTreeMap<u32, (String, LearnerClient<Channel>)>,
    backoff: Backoff,
}

impl LearnerLink {
    /// A link that connects when it is first needed.
    pub fn new(membership: Membership) -> Self {
        Self { membership, connections: BTreeMap::new(), backoff: patience() }
    }

    /// The membership whose identity its calls carry.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// A client of the learner of a rank, for the sake of `work`, as soon as there is one.
    pub async fn client(&mut self, rank: u32, work: &WorkInHand) -> LearnerClient<Channel> {
        loop {
            let address = self.address(rank);
            match self.connections.get(&rank) {
                Some((connected, client)) if *connected == address => return client.clone(),
                _ if address.is_empty() => self.pause(work).await,
                _ => match self.connect(&address).await {
                    Ok(channel) => {
                        self.membership.relieved(WAY);
                        self.connections.insert(rank, (address, service::learner_client(channel)));
                    }
                    Err(error) => {
                        let trouble = network::unreachable("learner", &address, &error);
                        tracing::debug!("{trouble}");
                        self.membership.troubled(WAY, trouble);
                        self.pause(work).await;
                    }
                },
            }
        }
    }

    async fn connect(&self, address: &str) -> Result<Channel, ServiceError> {
        service::connect_member(address, PeerRole::Learner, self.membership.trust(), CONNECT_PATIENCE).await
    }

    /// Where the learner of a rank is; empty while nobody knows.
    fn address(&self, rank: u32) -> String {
        let standing = self.membership.standing();
        let addresses = &standing.borrow().learner_addresses;
        addresses.get(rank as usize).cloned().unwrap_or_default()
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

/// What the status of a failed call means.
pub fn failure(status: &Status) -> Failure {
    let told = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition => Failure::Fenced(told),
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated => Failure::Final(told),
        Code::DataLoss | Code::Internal => Failure::Damaged(told),
        _ => Failure::Passing(told),
    }
}

fn patience() -> Backoff {
    service::backoff(Duration::from_millis(50), Duration::from_secs(2))
}
