//! A run of its own, and servers of it.

use proto::enrolment_server::EnrolmentServer;
use proto::reward_server::{Reward, RewardServer};
use proto::{DescribeReply, DescribeRequest, ScoreReply, ScoreRequest};
use service::trust::{Authority, Credentials, TokenSource, Tokens};
use service::{EnrolmentService, PeerRole, ServiceError, Source, Trust};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// A service that only says that it was reached.
pub struct Reached;

#[tonic::async_trait]
impl Reward for Reached {
    type ScoreStream = tokio_stream::Empty<Result<ScoreReply, Status>>;

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        let role = service::trust::peer_role(&request);
        let rewards = role.iter().map(|role| role.to_string()).collect();
        Ok(Response::new(DescribeReply { protocol_version: 1, rewards }))
    }

    async fn score(
        &self,
        _: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// A run with an authority and tokens of its own.
pub struct Run {
    pub home: tempfile::TempDir,
    pub authority: Arc<Authority>,
    pub tokens: Tokens,
}

impl Run {
    pub fn new(name: &str) -> Self {
        Self::with_lifetime(name, DAY)
    }

    pub fn with_lifetime(name: &str, lifetime: Duration) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(home.path(), name).expect("made").with_lifetime(lifetime);
        let tokens = Tokens::open(home.path(), &authority).expect("drawn");
        Self { home, authority: Arc::new(authority), tokens }
    }

    /// The trust of a process of that role whose certificate was made at another time than now.
    pub fn trust_of(&self, role: PeerRole, made: SystemTime) -> Trust {
        let identity = self.authority.issue(role, made).expect("issued");
        Trust::Mutual(Arc::new(Credentials::of(self.authority.roots().expect("an authority"), identity)))
    }

    /// A coordinator of this run.
    pub async fn serve(&self) -> Server {
        let source = Source::Authority(self.authority.clone());
        self.serve_as(source.trust(PeerRole::Coordinator, Duration::ZERO).await.expect("issued")).await
    }

    pub async fn serve_as(&self, trust: Trust) -> Server {
        let enrolment = EnrolmentService::new(self.authority.clone(), self.tokens.clone());
        serve(trust, Some(enrolment)).await
    }

    pub fn token(&self, role: PeerRole) -> TokenSource {
        TokenSource::File(Tokens::path(self.home.path(), role))
    }

    pub async fn join(&self, server: &Server, role: PeerRole) -> Result<Trust, ServiceError> {
        join(server, self.token(role), role).await
    }
}

pub async fn join(server: &Server, token: TokenSource, role: PeerRole) -> Result<Trust, ServiceError> {
    let coordinator = server.address.parse().expect("an address");
    Source::Token { coordinator, token }.trust(role, Duration::ZERO).await
}

pub struct Server {
    pub address: String,
    pub _stop: DropGuard,
}

pub async fn serve(trust: Trust, enrolment: Option<EnrolmentService>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("{}://{}", trust.scheme(), listener.local_addr().expect("bound"));
    let router = service::server(Duration::from_secs(60)).add_service(RewardServer::new(Reached));
    let router = router.add_optional_service(enrolment.map(EnrolmentServer::new));
    let stop = CancellationToken::new();
    tokio::spawn(stop.clone().run_until_cancelled_owned(service::serve(
        router,
        listener,
        trust,
        std::future::pending(),
    )));
    Server { address, _stop: stop.drop_guard() }
}

pub async fn connect(server: &Server, trust: &Trust) -> Result<Channel, ServiceError> {
    service::connect(&server.address, PeerRole::Coordinator, trust, Duration::ZERO).await
}

/// Whom the server takes this process for.
pub async fn describe(channel: &Channel) -> Result<Vec<String>, Status> {
    let mut client = service::reward_client(channel.clone());
    let call = client.describe(service::request(DescribeRequest {}, PATIENCE));
    tokio::time::timeout(PATIENCE, call).await.expect("in time").map(|reply| reply.into_inner().rewards)
}
