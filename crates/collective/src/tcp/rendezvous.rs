//! How ranks find each other: each connects to all ranks below its own and is called by all above.

use super::hello::{Hello, answer, hear_answer};
use super::link::Link;
use super::patient_stream::PatientStream;
use super::switch::Switch;
use super::{TcpSettings, TcpTls};
use crate::{CollectiveError, Peer};
use rustls::{ClientConnection, Connection, ServerConnection, Stream};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a caller has for its handshakes: a stranger that says nothing must not keep a place.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long one attempt to connect takes at most, and the pause before the next one.
const CONNECT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
/// Callers beyond the expected ones that are listened to at once; others wait.
const STRANGERS: usize = 32;

type Met = Result<Link, CollectiveError>;

/// One rank's search for the others.
pub(super) struct Rendezvous<'a> {
    pub settings: &'a TcpSettings,
    pub switch: &'a Switch,
    pub deadline: Instant,
    /// No connection is needed any more.
    is_over: AtomicBool,
}

impl<'a> Rendezvous<'a> {
    pub fn new(settings: &'a TcpSettings, switch: &'a Switch, deadline: Instant) -> Self {
        Self { settings, switch, deadline, is_over: AtomicBool::new(false) }
    }

    /// The connections to all ranks; nothing in this rank's place.
    ///
    /// # Errors
    /// By the deadline, naming who did not come; at once if another rank refuses this one or the group is aborted.
    pub fn meet(&self, listener: &TcpListener) -> Result<Vec<Option<Link>>, CollectiveError> {
        listener.set_nonblocking(true).map_err(|error| system("listen for other ranks", &error))?;
        let (met, meetings) = channel();
        thread::scope(|scope| {
            for rank in 0..self.settings.rank {
                let met = met.clone();
                scope.spawn(move || met.send(self.call(self.peer(rank))));
            }
            scope.spawn(|| self.listen(listener, &met));
            let links = self.collect(&meetings);
            self.is_over.store(true, Ordering::Release);
            links
        })
    }

    fn peer(&self, rank: usize) -> Peer {
        Peer { rank, address: self.settings.addresses[rank] }
    }

    fn is_unwanted(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || self.switch.check().is_err()
    }

    fn collect(&self, meetings: &Receiver<Met>) -> Result<Vec<Option<Link>>, CollectiveError> {
        let start = Instant::now();
        let (rank, n_ranks) = (self.settings.rank, self.settings.addresses.len());
        let mut links: Vec<Option<Link>> = (0..n_ranks).map(|_| None).collect();
        loop {
            self.switch.check()?;
            let is_missing = |other: &usize| *other != rank && links[*other].is_none();
            let Some(missing) = (0..n_ranks).find(is_missing) else { return Ok(links) };
            match meetings.recv_timeout(PAUSE) {
                // Who calls again has given up its earlier call.
                Ok(met) => {
                    self.switch.check()?;
                    let link = met?;
                    let rank = link.peer.rank;
                    links[rank] = Some(link);
                }
                Err(RecvTimeoutError::Disconnected) => thread::sleep(PAUSE),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= self.deadline {
                let part = if missing < rank { "answer this rank's call" } else { "call this rank" };
                let part = format!("{part} for epoch {}", self.settings.id.epoch);
                return Err(CollectiveError::Late {
                    peer: self.peer(missing),
                    part,
                    waited: start.elapsed(),
                });
            }
        }
    }

    /// Calls a lower rank until it answers.
    fn call(&self, peer: Peer) -> Met {
        let start = Instant::now();
        loop {
            let problem = match self.try_to_call(peer) {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(reason)) => return Err(CollectiveError::Refused { peer, reason }),
                Err(error) => error,
            };
            // What TLS finds fault with does not pass by itself.
            if problem.kind() == io::ErrorKind::InvalidData {
                let operation = "the handshake of TLS".to_owned();
                return Err(CollectiveError::Gone { peer, operation, problem: problem.to_string() });
            }
            if self.is_unwanted() || Instant::now() + PAUSE >= self.deadline {
                let part =
                    format!("answer this rank's call for epoch {} ({problem})", self.settings.id.epoch);
                return Err(CollectiveError::Late { peer, part, waited: start.elapsed() });
            }
            thread::sleep(PAUSE);
        }
    }

    fn try_to_call(&self, peer: Peer) -> io::Result<Result<Link, String>> {
        let left = self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let stream = TcpStream::connect_timeout(&peer.address, left.min(CONNECT))?;
        let tls = self.settings.tls.as_ref().map(TcpTls::client).transpose()?;
        let hello = Hello {
            id: self.settings.id,
            n_ranks: self.settings.addresses.len() as u64,
            from: self.settings.rank as u64,
            to: peer.rank as u64,
        };
        let is_unwanted = || self.is_unwanted();
        let mut stream = self.patient(stream, &is_unwanted)?;
        let (verdict, tls) = match tls {
            None => (say_hello(&mut stream, hello)?, None),
            Some(mut tls) => {
                let verdict = say_hello(&mut Stream::new(&mut tls, &mut stream), hello)?;
                (verdict, Some(Connection::Client(tls)))
            }
        };
        match verdict {
            Ok(()) => self.link(peer, stream, tls).map(Ok),
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn patient<'s>(
        &self,
        stream: TcpStream,
        is_unwanted: &'s (dyn Fn() -> bool + Sync),
    ) -> io::Result<PatientStream<'s>> {
        stream.set_nodelay(true)?;
        let deadline = self.deadline.min(Instant::now() + HANDSHAKE);
        Ok(PatientStream { stream, deadline, is_unwanted })
    }

    fn link(&self, peer: Peer, stream: PatientStream<'_>, tls: Option<Connection>) -> io::Result<Link> {
        let link = Link::new(peer, stream.stream, tls)?;
        self.switch.add(link.handle()?);
        Ok(link)
    }

    /// Listens to callers, each in a thread of its own, until the group is complete.
    fn listen(&self, listener: &TcpListener, met: &Sender<Met>) {
        let n_callers = AtomicUsize::new(0);
        let most = self.settings.addresses.len() + STRANGERS;
        thread::scope(|scope| {
            while !self.is_unwanted() && Instant::now() < self.deadline {
                let is_full = n_callers.load(Ordering::Acquire) >= most;
                // A caller that is gone again, or too few descriptors: either passes, or the deadline does.
                let Some((stream, _)) = listener.accept().ok().filter(|_| !is_full) else {
                    thread::sleep(PAUSE / 10);
                    continue;
                };
                n_callers.fetch_add(1, Ordering::AcqRel);
                let n_callers = &n_callers;
                scope.spawn(move || {
                    // Who cannot say hello is a stranger, or calls again.
                    if let Ok(Some(link)) = self.hear(stream) {
                        // Nobody listens any more where the group is complete.
                        let _ = met.send(Ok(link));
                    }
                    n_callers.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
    }

    /// Hears who calls; nothing if it does not belong here, which it is told.
    fn hear(&self, stream: TcpStream) -> io::Result<Option<Link>> {
        stream.set_nonblocking(false)?;
        let is_unwanted = || self.is_unwanted();
        let mut stream = self.patient(stream, &is_unwanted)?;
        let tls = self.settings.tls.as_ref().map(TcpTls::server).transpose()?;
        let (from, tls) = match tls {
            None => (self.let_in(&mut stream)?, None),
            Some(mut tls) => {
                let from = self.let_in(&mut Stream::new(&mut tls, &mut stream))?;
                (from, Some(Connection::Server(tls)))
            }
        };
        let Some(rank) = from else { return Ok(None) };
        self.link(self.peer(rank), stream, tls).map(Some)
    }

    fn let_in(&self, stream: &mut (impl io::Read + io::Write)) -> io::Result<Option<usize>> {
        let Some(hello) = Hello::read(stream)? else { return Ok(None) };
        let TcpSettings { rank, addresses, id, .. } = self.settings;
        let verdict = hello.check(id, addresses.len(), *rank);
        answer(stream, &verdict)?;
        Ok(verdict.ok().map(|()| hello.from as usize))
    }
}

fn say_hello(stream: &mut (impl io::Read + io::Write), hello: Hello) -> io::Result<Result<(), String>> {
    hello.write(stream)?;
    hear_answer(stream)
}

/// Something that the operating system refuses.
pub(super) fn system(doing: &str, error: &io::Error) -> CollectiveError {
    CollectiveError::System { doing: doing.to_owned(), problem: error.to_string() }
}

impl TcpTls {
    fn client(&self) -> io::Result<ClientConnection> {
        ClientConnection::new(self.client.clone(), self.server_name.clone()).map_err(io::Error::other)
    }

    fn server(&self) -> io::Result<ServerConnection> {
        ServerConnection::new(self.server.clone()).map_err(io::Error::other)
    }
}
