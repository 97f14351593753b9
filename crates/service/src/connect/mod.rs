//! One place for how processes reach each other: windows, keep-alive, message limits, patience.

mod address;
mod dial;
mod greeting;

use crate::ServiceError;
use crate::trust::{AccessLayer, NamedServers, PeerRole, Trust, TrustError, trust_problem};
use proto::coordinator_client::CoordinatorClient;
use proto::learner_client::LearnerClient;
use proto::reward_client::RewardClient;
use proto::weights_relay_client::WeightsRelayClient;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tower_layer::{Identity, Stack};

pub use address::{Address, is_place};
pub(crate) use dial::Dial;
pub use greeting::{greet, speaks_tls};

/// What every call of a server passes through.
type Layers = Stack<AccessLayer, Identity>;
/// Services that [`serve`](crate::serve) runs, made by [`server`].
pub type Router = tonic::transport::server::Router<Layers>;

/// Bytes of one chunk of a stream; the wire allows 1 MiB.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Largest message either side decodes, in bytes.
pub const MESSAGE_LIMIT: usize = 8 * 1024 * 1024;

/// What a client lets a server send ahead of its reading: weights are large.
const CLIENT_STREAM_WINDOW: u32 = 16 * 1024 * 1024;
const CLIENT_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// What a server keeps of a call whose turn has not come, and of all calls of one connection.
const SERVER_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const SERVER_CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Calls of one connection at a time, further ones wait; a member makes a few.
const CALLS_OF_CONNECTION: u32 = 128;
/// Headers of one call.
const HEADER_BYTES: u32 = 16 * 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server with the limits of the wire, to be run by [`serve`](crate::serve); add services with
/// `.max_decoding_message_size(MESSAGE_LIMIT)`. A call that is not answered within `longest_call`, its request not even
/// complete perhaps, is given up; the messages of an answer that is a stream may take longer.
pub fn server(longest_call: Duration) -> Server<Layers> {
    Server::builder()
        .layer(AccessLayer)
        .timeout(longest_call)
        .initial_stream_window_size(SERVER_STREAM_WINDOW)
        .initial_connection_window_size(SERVER_CONNECTION_WINDOW)
        .max_concurrent_streams(CALLS_OF_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}

/// Connects to a process of that role at `address`, as [`Address`] reads it, trying for `patience` at most.
///
/// The channel connects again by itself when the connection breaks, to where the address then leads; calls in flight then
/// fail with `Unavailable`.
///
/// # Errors
/// If the address does not parse, nobody answers in time, or who answers is not trusted.
pub async fn connect(
    address: &str,
    role: PeerRole,
    trust: &Trust,
    patience: Duration,
) -> Result<Channel, ServiceError> {
    Dial::new(address.parse()?, role, trust)?.connect(patience).await
}

/// The same to a member of the run that says itself where it is reached, by which nobody is to be led anywhere else: `host:port`.
///
/// # Errors
/// As [`connect`].
pub async fn connect_member(
    address: &str,
    role: PeerRole,
    trust: &Trust,
    patience: Duration,
) -> Result<Channel, ServiceError> {
    Dial::new(Address::of_process(address)?, role, trust)?.connect(patience).await
}

/// The same to a server of no run, which is known by the name of its host; the address is taken to ask for TLS.
///
/// # Errors
/// As [`connect`].
pub async fn connect_named(
    address: &str,
    servers: &NamedServers,
    patience: Duration,
) -> Result<Channel, ServiceError> {
    Dial::to_named(address.parse()?, servers.clone()).connect(patience).await
}

/// A client of the coordinator with the limits of the wire.
pub fn coordinator_client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// A client of the learner with the limits of the wire.
pub fn learner_client(channel: Channel) -> LearnerClient<Channel> {
    LearnerClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// A client of what a worker serves to others, with the limits of the wire.
pub fn weights_relay_client(channel: Channel) -> WeightsRelayClient<Channel> {
    WeightsRelayClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// A client of a reward server with the limits of the wire.
pub fn reward_client(channel: Channel) -> RewardClient<Channel> {
    RewardClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// A request that fails with a deadline error unless it is answered within `deadline`.
pub fn request<T>(message: T, deadline: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Everything of a connection but where it leads, which [`Dial`] knows; servers that have many names are told which was meant.
fn endpoint(address: &Address) -> Endpoint {
    let named =
        address.resolve().ok().and_then(|place| Endpoint::from_shared(format!("http://{place}")).ok());
    named
        .unwrap_or_else(|| Endpoint::from_static("http://run.invalid"))
        .initial_stream_window_size(CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
}

/// Failures of the way to a server, or of one that is starting or stopping.
pub(crate) fn is_outage(status: &Status) -> bool {
    let passes = matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
    );
    passes && trust_problem(status).is_none_or(|problem| is_waited_for(&problem))
}

/// A server that ends may hang up in the middle of a handshake.
fn is_waited_for(problem: &TrustError) -> bool {
    matches!(problem, TrustError::Handshake(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Insecure;

    #[tokio::test]
    async fn an_unreadable_address_is_named() {
        let error = connect(
            "http://not an address",
            PeerRole::Coordinator,
            &Trust::Plain(Insecure::Loopback),
            Duration::ZERO,
        )
        .await
        .expect_err("unreadable");
        assert!(error.to_string().contains("`http://not an address`"), "{error}");
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error_that_names_the_address() {
        // A port that nobody gets who takes any free one.
        let address = "127.0.0.1:1";
        let error =
            connect(address, PeerRole::Coordinator, &Trust::Plain(Insecure::Loopback), Duration::ZERO)
                .await
                .expect_err("nobody listens");
        assert!(error.to_string().contains(address), "{error}");
    }
}
