//! One place for how processes reach each other: windows, keep-alive, message limits, patience.

use crate::{ServiceError, backoff};
use proto::coordinator_client::CoordinatorClient;
use proto::learner_client::LearnerClient;
use proto::reward_client::RewardClient;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint, Server};

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
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server with the limits of the wire, to be run by [`serve`](crate::serve); add services with
/// `.max_decoding_message_size(MESSAGE_LIMIT)`. A call that is not answered within `longest_call`, its request not even
/// complete perhaps, is given up; the messages of an answer that is a stream may take longer.
pub fn server(longest_call: Duration) -> Server {
    Server::builder()
        .timeout(longest_call)
        .initial_stream_window_size(SERVER_STREAM_WINDOW)
        .initial_connection_window_size(SERVER_CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}

/// Connects to `address` (`http://host:port` or `host:port`), trying for `patience` at most.
///
/// The channel connects again by itself when the connection breaks; calls in flight then fail with `Unavailable`.
///
/// # Errors
/// If the address does not parse or nobody answers in time.
pub async fn connect(address: &str, patience: Duration) -> Result<Channel, ServiceError> {
    let endpoint = endpoint(address)?;
    let start = Instant::now();
    let mut pauses = backoff(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(source) if start.elapsed() >= patience => {
                return Err(ServiceError::Unreachable { address: address.to_owned(), patience, source });
            }
            Err(_) => tokio::time::sleep(pauses.next_pause()).await,
        }
    }
}

/// A client of the coordinator with the limits of the wire.
pub fn coordinator_client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// A client of the learner with the limits of the wire.
pub fn learner_client(channel: Channel) -> LearnerClient<Channel> {
    LearnerClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
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

pub(crate) fn endpoint(address: &str) -> Result<Endpoint, ServiceError> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|source| ServiceError::Address { address: address.to_owned(), source })?;
    Ok(endpoint
        .initial_stream_window_size(CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unreadable_address_is_named() {
        let error = connect("http://not an address", Duration::ZERO).await.expect_err("unreadable");
        assert!(error.to_string().contains("`http://not an address`"), "{error}");
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error_that_names_the_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let error = connect(&address, Duration::ZERO).await.expect_err("nobody listens");
        assert!(error.to_string().contains(&address), "{error}");
    }
}
