//! A worker's server for other workers: the versions that it holds, as the learner streams them.

use super::HeldWeights;
use crate::connect::{Address, MESSAGE_LIMIT, Router, server};
use crate::metrics::Counts;
use crate::network::{self, ListenAddress, NetworkError};
use crate::trust::Trust;
use crate::{ServiceError, chunks, serve, shown, taken_in_time};
use bytes::Bytes;
use config::PortRange;
use proto::weights_relay_server::{WeightsRelay, WeightsRelayServer};
use proto::{Chunk, WeightsManifest, WeightsReply, WeightsRequest, weights_reply};
use protocol::{FAN_OUT, WeightsName};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Streams at a time that are served at all: the coordinator may have lost sight of some.
const MOST_STREAMS: usize = 2 * FAN_OUT;
/// Longest call; a stream that is its answer may take longer.
const LONGEST_CALL: Duration = Duration::from_secs(60);
/// How long who fetches weights may take for the next chunk.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
/// Characters of a foreign name that are shown.
const LONGEST_NAME: usize = 100;

/// The replies that weights consist of; `sent` hears of the bytes of each chunk as it is taken, and is dropped with the stream.
pub fn weights_replies(
    manifest: WeightsManifest,
    bytes: Bytes,
    sent: impl Fn(usize) + Send + 'static,
) -> impl Stream<Item = Result<WeightsReply, Status>> + Send + 'static {
    let chunks = chunks(bytes).map(move |chunk| {
        // A copy of its own: what waits to be sent must not keep a whole version.
        let data = Bytes::copy_from_slice(&chunk.data);
        sent(data.len());
        weights_reply::Part::Chunk(Chunk { data, ..chunk })
    });
    let parts = std::iter::once(weights_reply::Part::Manifest(manifest)).chain(chunks);
    taken_in_time(parts.map(|part| WeightsReply { part: Some(part) }), TAKE_DEADLINE)
}

/// Where a worker listens for others.
#[derive(Clone, Debug)]
pub struct RelayPlace {
    /// As it was told; if not, at the address by which it speaks to the coordinator.
    pub listen: Option<ListenAddress>,
    /// What others are told to reach it by; empty follows where it listens.
    pub advertise: String,
    /// The run's ports, if it was not told where to listen: the first free one of several, of one alone any.
    pub ports: PortRange,
}

impl RelayPlace {
    /// Listens, and says where others reach this process.
    ///
    /// # Errors
    /// If all ports are taken, this host has no such address, others could not reach it, or would be served in plain text unwished.
    pub async fn listen(
        &self,
        coordinator: &str,
        trust: &Trust,
    ) -> Result<(TcpListener, String), ServiceError> {
        let bound = self.bind(coordinator).await;
        let (listener, address) = bound.map_err(|error| ServiceError::RelayPlace(Box::new(error)))?;
        trust.check_listener(&listener)?;
        Ok((listener, address))
    }

    async fn bind(&self, coordinator: &str) -> Result<(TcpListener, String), NetworkError> {
        let coordinator = match coordinator.parse::<Address>() {
            Ok(address) => address.number().await,
            Err(_) => None,
        };
        let place = self.listen.clone().unwrap_or_else(|| self.on_the_way_to(coordinator));
        let listener = place.bind().await?;
        let bound = listener.local_addr().map_err(NetworkError::System)?;
        let host = network::advertised(bound.ip(), &self.advertise, coordinator)?;
        Ok((listener, network::joined(&host, &bound.port().to_string())))
    }

    fn on_the_way_to(&self, coordinator: Option<IpAddr>) -> ListenAddress {
        let host = network::of_way(coordinator).unwrap_or(Ipv4Addr::LOCALHOST.into());
        let ports = if self.ports.ports().len() > 1 { self.ports } else { PortRange::one(0) };
        ListenAddress { host: host.to_string(), ports }
    }
}

/// Serves what a worker holds.
pub struct WeightsRelayService {
    run_id: String,
    held: HeldWeights,
    sent_bytes: Counts<0>,
    room: Arc<Semaphore>,
}

impl WeightsRelayService {
    /// Serves members of a run, and counts the bytes.
    pub fn new(run_id: String, held: HeldWeights, sent_bytes: Counts<0>) -> Self {
        Self { run_id, held, sent_bytes, room: Arc::new(Semaphore::new(MOST_STREAMS)) }
    }

    /// Serves what comes to a listener, for ever.
    ///
    /// # Errors
    /// If the listener breaks, or would serve others in plain text unwished.
    pub async fn serve(self, listener: TcpListener, trust: Trust) -> Result<(), ServiceError> {
        serve(self.router(), listener, trust, std::future::pending()).await
    }

    fn router(self) -> Router {
        let service = WeightsRelayServer::new(self).max_decoding_message_size(MESSAGE_LIMIT);
        server(LONGEST_CALL).add_service(service)
    }

    fn admit(&self, request: &WeightsRequest) -> Result<WeightsName, Status> {
        match &request.caller {
            Some(caller) if caller.run_id == self.run_id => {}
            Some(caller) => {
                let (own, theirs) = (&self.run_id, shown(&caller.run_id, LONGEST_NAME));
                return Err(Status::failed_precondition(format!(
                    "fenced: this worker is of run `{own}`, not `{theirs}`"
                )));
            }
            None => return Err(Status::invalid_argument("the caller is missing")),
        }
        let name = WeightsName::from_wire(request.version, request.role());
        name.map_err(|fault| Status::invalid_argument(fault.to_string()))
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.room.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("this worker serves {MOST_STREAMS} others already"))
        })
    }
}

#[tonic::async_trait]
impl WeightsRelay for WeightsRelayService {
    type WeightsStream = Pin<Box<dyn Stream<Item = Result<WeightsReply, Status>> + Send>>;

    async fn weights(
        &self,
        request: Request<WeightsRequest>,
    ) -> Result<Response<Self::WeightsStream>, Status> {
        let name = self.admit(request.get_ref())?;
        let copy = self.held.get(name);
        let copy = copy
            .ok_or_else(|| Status::not_found(format!("this worker does not hold {name} of the weights")))?;
        let (place, sent_bytes) = (self.enter()?, self.sent_bytes.clone());
        let replies = weights_replies(copy.manifest.clone(), copy.bytes.clone(), move |n_bytes| {
            // It is free again once the stream is dropped.
            let _ = &place;
            sent_bytes.add([], n_bytes as f64);
        });
        Ok(Response::new(Box::pin(replies)))
    }
}
