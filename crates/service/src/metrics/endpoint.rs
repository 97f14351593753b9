//! The port: `/metrics` for scrapers, `/healthz` and `/readyz` for who restarts processes, `/targets` where a process
//! knows of others that are scraped.

use super::{Exposition, process};
use crate::incoming::Incoming;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

/// Connections at a time; further ones wait.
const MOST_CONNECTIONS: usize = 16;
/// How long a request may take to arrive.
const REQUEST_DEADLINE: Duration = Duration::from_secs(3);
/// How long a connection may last, the answer to a slow reader included.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a request, the least that the library takes.
const MOST_REQUEST_BYTES: usize = 8 * 1024;
/// A page that was asked for sooner than that after the last one is the last one.
const FRESH: Duration = Duration::from_secs(1);

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// What a process shows of itself.
pub trait Page: Send + Sync + 'static {
    /// What the process is, in a word.
    fn role(&self) -> &'static str;

    /// Writes its own numbers, beside those that every process has.
    fn show(&self, exposition: &mut Exposition);

    /// Why it cannot do its work yet, or any more.
    fn unready(&self) -> Option<String>;

    /// Who else is scraped, as Prometheus discovers targets by HTTP; `None` where the process knows of nobody.
    fn targets(&self) -> Option<serde_json::Value> {
        None
    }
}

/// Shows a page at `listener`; never ends.
pub async fn serve_page(listener: TcpListener, page: Arc<dyn Page>) {
    let pages = Arc::new(Pages { page, written: Mutex::default() });
    let mut incoming = Incoming::new(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(Ok(connection)) = incoming.next(), if connections.len() < MOST_CONNECTIONS => {
                connections.spawn(serve_connection(connection, pages.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers the request that comes over a connection, with a page that is shown on no other.
pub async fn answer_connection(connection: impl AsyncRead + AsyncWrite + Unpin, page: Arc<dyn Page>) {
    serve_connection(connection, Arc::new(Pages { page, written: Mutex::default() })).await;
}

async fn serve_connection(connection: impl AsyncRead + AsyncWrite + Unpin, pages: Arc<Pages>) {
    let service = service_fn(|request| {
        let answer = pages.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .max_buf_size(MOST_REQUEST_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    match tokio::time::timeout(CONNECTION_DEADLINE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection for metrics broke: {error}"),
        Err(_) => tracing::debug!("a connection for metrics was given up: it takes too long"),
    }
}

/// What is shown, and the numbers as they were written last.
struct Pages {
    page: Arc<dyn Page>,
    written: Mutex<Option<(Instant, Bytes)>>,
}

impl Pages {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => response(StatusCode::OK, TEXT, self.numbers()),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => match self.page.unready() {
                None => plain(StatusCode::OK, "ok\n"),
                Some(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
            },
            "/targets" => match self.page.targets() {
                Some(targets) => response(StatusCode::OK, JSON, targets.to_string().into()),
                None => plain(StatusCode::NOT_FOUND, "ask the coordinator whom to scrape\n"),
            },
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
        }
    }

    fn numbers(&self) -> Bytes {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match &*written {
            Some((when, text)) if when.elapsed() < FRESH => text.clone(),
            _ => {
                let mut exposition = Exposition::default();
                process::show(&mut exposition, self.page.role());
                self.page.show(&mut exposition);
                let text = Bytes::from(exposition.text());
                *written = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(text.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
