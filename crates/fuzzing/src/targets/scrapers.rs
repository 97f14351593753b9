//! What scrapers and kubelets ask, in plain HTTP and without a certificate.

use service::metrics::{Exposition, Page, answer_connection};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

/// What may be answered: pages, what is not there, what may not be done, and requests that are none.
const STATUSES: [&str; 7] = ["200", "400", "404", "405", "414", "431", "503"];

/// How often a client is asked for more before it hangs up, which leaves time to answer.
const PATIENCE: u32 = 4;

/// A client that says this, waits a little, and hangs up.
struct Client<'a> {
    said: &'a [u8],
    patience: u32,
}

impl AsyncRead for Client<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let client = self.get_mut();
        if client.said.is_empty() && client.patience > 0 {
            client.patience -= 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (now, later) = client.said.split_at(client.said.len().min(buffer.remaining()));
        buffer.put_slice(now);
        client.said = later;
        Poll::Ready(Ok(()))
    }
}

struct SmallPage;

impl Page for SmallPage {
    fn role(&self) -> &'static str {
        "worker"
    }

    fn show(&self, exposition: &mut Exposition) {
        exposition.gauge("tempflow_workers", "Rollout workers that live", 1.0);
    }

    fn unready(&self) -> Option<String> {
        Some("the model is being opened".to_owned())
    }
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    [
        "GET /metrics HTTP/1.1\r\nHost: node-1:9400\r\nAccept: text/plain;version=0.0.4\r\nConnection: close\r\n\r\n",
        "HEAD /healthz HTTP/1.1\r\nHost: node-1:9400\r\n\r\n",
        "GET /readyz HTTP/1.0\r\n\r\n",
        "GET http://node-1:9400/targets?a=%20 HTTP/1.1\r\nHost: [::1]:9400\r\nUser-Agent: curl/8\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ]
    .map(|request| request.as_bytes().to_vec())
    .to_vec()
}

/// What a client says is answered once, in HTTP, or not at all.
pub(super) fn check_request(bytes: &[u8]) -> bool {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_current_thread().enable_time().build().expect("a runtime without sockets")
    });
    let mut answer = Vec::new();
    let connection = tokio::io::join(Client { said: bytes, patience: PATIENCE }, &mut answer);
    RUNTIME.block_on(answer_connection(connection, Arc::new(SmallPage)));
    if answer.is_empty() {
        return false;
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    assert!(status.is_some_and(|status| STATUSES.contains(&status) || status == "100"), "{text}");
    true
}
