//! A reward server that lies, at the address and with the certificate of an honest one. It tells each lie once, and then
//! that it has to be asked later.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use proto::reward_server::{Reward, RewardServer};
use proto::score_request::Part;
use proto::{DescribeReply, DescribeRequest, ScoreReply, ScoreRequest};
use service::{PeerRole, Source};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Bytes, Context, Poll, Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::lies::{LIES, Lie};
use crate::hosts::Host;

/// How long it may take until it listens.
const STARTING: Duration = Duration::from_secs(120);
const LONGEST_CALL: Duration = Duration::from_secs(60);
/// A message of four bytes that begin a number and do not end it.
const GARBAGE: &[u8] = &[0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];

/// The server; ends when dropped.
pub(super) struct Liar {
    untold: Untold,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Liar {
    /// Listens on a host, and shows what `source` has for reward servers.
    ///
    /// # Errors
    /// If the address is taken, or the certificate cannot be used.
    pub(super) fn start(host: &Host, address: SocketAddr, source: Source) -> Result<Self, String> {
        let untold = Untold::default();
        let (stop, stopped) = oneshot::channel();
        let (listens, is_listening) = std::sync::mpsc::channel();
        let server = Lying { answers: RewardServer::new(Answers(untold.clone())), untold: untold.clone() };
        let thread = host.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let serving = serve(server, (address, source), listens, stopped);
            runtime.map_err(|error| error.to_string())?.block_on(serving)
        });
        let mut liar = Self { untold, stop: Some(stop), thread: Some(thread) };
        match is_listening.recv_timeout(STARTING) {
            Ok(()) => Ok(liar),
            Err(_) => Err(liar.end().unwrap_or_else(|| format!("it does not listen at {address}"))),
        }
    }

    /// Whether every lie was told.
    pub(super) fn has_told_all(&self) -> bool {
        self.untold.lock().is_empty()
    }

    /// Ends it; why it had ended before, if it had.
    fn end(&mut self) -> Option<String> {
        drop(self.stop.take());
        self.thread.take()?.join().ok()?.err()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        // Whatever is wrong with it was seen by those who asked it.
        let _ = self.end();
    }
}

async fn serve(
    server: Lying,
    (address, source): (SocketAddr, Source),
    listens: Sender<()>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), String> {
    let trust = source.trust(PeerRole::Reward, Duration::ZERO).await.map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
    let router = service::server(LONGEST_CALL).add_service(server);
    // Whoever started this may have given up.
    let _ = listens.send(());
    tokio::select! {
        served = service::serve(router, listener, trust, pending()) => served.map_err(|error| error.to_string()),
        _ = stopped => Ok(()),
    }
}

/// The lies that were not told yet.
#[derive(Clone)]
struct Untold(Arc<Mutex<VecDeque<Lie>>>);

impl Default for Untold {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(VecDeque::from(LIES))))
    }
}

impl Untold {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Lie>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next lie, if it is one that `can` be told now.
    fn take(&self, can: impl Fn(Lie) -> bool) -> Option<Lie> {
        let mut untold = self.lock();
        let is_next = untold.front().is_some_and(|lie| can(*lie));
        if is_next { untold.pop_front() } else { None }
    }
}

/// Tells what a service of the protocol cannot say, and leaves the rest to one.
#[derive(Clone)]
struct Lying {
    untold: Untold,
    answers: RewardServer<Answers>,
}

impl NamedService for Lying {
    const NAME: &'static str = <RewardServer<Answers> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Lying {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_asked_for_scores = request.uri().path().ends_with("/Score");
        if is_asked_for_scores && self.untold.take(|lie| lie == Lie::Garbage).is_some() {
            return Box::pin(async move {
                // Whoever is answered before it has asked may think that the connection broke.
                let _ = request.into_body().collect().await;
                let mut response = http::Response::new(Body::new(Full::new(Bytes::from_static(GARBAGE))));
                let kind = http::HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
                Ok(response)
            });
        }
        self.answers.call(request)
    }
}

struct Answers(Untold);

#[tonic::async_trait]
impl Reward for Answers {
    type ScoreStream = tokio_stream::Iter<std::vec::IntoIter<Result<ScoreReply, Status>>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        let name = match self.0.take(|lie| lie == Lie::OfAnotherReward) {
            Some(_) => "aesthetic",
            None => "shapes",
        };
        Ok(Response::new(DescribeReply { protocol_version: 1, rewards: vec![name.to_owned()] }))
    }

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let (mut requests, mut ids) = (request.into_inner(), Vec::new());
        while let Some(request) = requests.message().await? {
            if let Some(Part::Image(header)) = request.part {
                ids.push(header.id);
            }
        }
        let lie = self.0.take(|lie| ![Lie::Garbage, Lie::OfAnotherReward].contains(&lie));
        let lie = lie.ok_or_else(|| Status::unavailable("no more lies for now"))?;
        let replies: Vec<_> = lie.replies(&ids).into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

#[cfg(test)]
mod tests {
    use proto::{Batch, ImageHeader};

    use super::super::certificates::Certificates;
    use super::super::enclosure;
    use super::*;
    use crate::hosts::Hosts;

    const PATIENCE: Duration = Duration::from_secs(120);

    /// What a worker hears that asks for the scores of two images.
    async fn heard(address: SocketAddr, source: Source) -> String {
        let trust = source.trust(PeerRole::Worker, Duration::ZERO).await.expect("certified");
        let channel =
            service::connect(&format!("https://{address}"), PeerRole::Reward, &trust, PATIENCE).await;
        let mut client = service::reward_client(channel.expect("known by its role"));
        let described = client.describe(service::request(DescribeRequest {}, PATIENCE)).await;
        let hosted = described.expect("described").into_inner().rewards;
        if hosted != ["shapes"] {
            return format!("hosts {hosted:?}");
        }
        let image = |id| Part::Image(ImageHeader { id, height: 1, width: 1, ..Default::default() });
        let batch = Part::Batch(Batch { reward: "shapes".to_owned(), n_images: 2 });
        let pixels = || Part::Pixels(vec![0; 3].into());
        let parts =
            [batch, image(0), pixels(), image(1), pixels()].map(|part| ScoreRequest { part: Some(part) });
        let mut replies = match client.score(service::request(tokio_stream::iter(parts), PATIENCE)).await {
            Ok(replies) => replies.into_inner(),
            Err(status) => return status.to_string(),
        };
        let mut heard = Vec::new();
        loop {
            match replies.message().await {
                Ok(Some(reply)) => heard.push(reply),
                Ok(None) => return format!("{heard:?}"),
                Err(status) => return status.to_string(),
            }
        }
    }

    fn tell_all() -> Result<(), String> {
        let (hosts, home) = (Hosts::make(1)?, tempfile::tempdir().map_err(|error| error.to_string())?);
        let certificates = Certificates::make(home.path())?;
        let address = SocketAddr::new(hosts.get(0).address(), 7300);
        let liar = Liar::start(&hosts.get(0), address, certificates.source(PeerRole::Reward))?;
        for lie in LIES {
            assert!(!liar.has_told_all());
            let source = certificates.source(PeerRole::Worker);
            let asked = hosts.get(0).run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(heard(address, source))
            });
            let heard = asked.join().expect("heard");
            let is_told = match lie {
                Lie::OfAnotherReward => heard == "hosts [\"aesthetic\"]",
                Lie::Garbage => heard.contains(lie.refusal()),
                _ => heard == format!("{:?}", lie.replies(&[0, 1])),
            };
            assert!(is_told, "{lie:?}: {heard}");
        }
        assert!(liar.has_told_all());
        drop(liar);
        // Its place is free at once for the honest one.
        drop(Liar::start(&hosts.get(0), address, certificates.source(PeerRole::Reward))?);
        Ok(())
    }

    #[test]
    fn every_lie_is_told_once_by_a_server_that_is_known_by_its_certificate() {
        const NAME: &str =
            "chaos::liar::tests::every_lie_is_told_once_by_a_server_that_is_known_by_its_certificate";
        if let Err(missing) = enclosure::test_inside(NAME, tell_all) {
            eprintln!("skipped: {missing}");
        }
    }
}
