//! Servers that say no to some requests: what they answered is kept, and only the rest is asked for again.

use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use rewards::PromptRecord;
use serde_json::{Value, json};

use crate::http_request::Request;
use crate::{failure, picture, prompts, repository, scorer, values};

/// What a server says to the request of this number.
type Script = dyn Fn(usize) -> &'static str + Send + Sync;

/// A server that answers request after request with 200 and a recorded reply, or with the status that its script has.
struct ScriptedServer {
    url: String,
    /// The statuses of all requests so far.
    said: Arc<Mutex<Vec<&'static str>>>,
}

impl ScriptedServer {
    fn start(reply: &str, script: impl Fn(usize) -> &'static str + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let reply =
            std::fs::read(repository().join("tests/golden/rewards").join(reply)).expect("golden exchange");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (statuses, script): (_, Arc<Script>) = (said.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (statuses, script, reply) = (statuses.clone(), script.clone(), reply.clone());
                std::thread::spawn(move || {
                    let stream = stream.expect("a client");
                    Request::read(&stream);
                    let status = {
                        let mut statuses = statuses.lock().expect("not poisoned");
                        let status = script(statuses.len());
                        statuses.push(status);
                        status
                    };
                    let body = if status.starts_with("200") { &reply[..] } else { b"later" };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nRetry-After: 0\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(body));
                });
            }
        });
        Self { url, said }
    }

    /// How often a request was answered, and how often refused.
    fn counts(&self) -> (usize, usize) {
        let said = self.said.lock().expect("not poisoned");
        let answered = said.iter().filter(|status| status.starts_with("200")).count();
        (answered, said.len() - answered)
    }
}

fn batch(n_images: usize) -> (Vec<rewards::RgbImage>, Vec<PromptRecord>) {
    (vec![picture("noise_17x13"); n_images], vec![prompts().remove(0); n_images])
}

fn judge(server: &ScriptedServer) -> Value {
    json!({"url": server.url, "max_concurrent": 4})
}

#[test]
fn a_judge_that_refuses_some_questions_for_the_moment_is_asked_those_again() {
    let server = ScriptedServer::start("unifiedreward.reply", |number| match number % 3 {
        1 => "429 Too Many Requests",
        _ => "200 OK",
    });
    let (images, prompts) = batch(20);
    let scores = scorer("unifiedreward", &judge(&server)).score(&images, &prompts);
    assert_eq!(values(scores), [4.25 / 5.0; 20]);
    let (answered, refused) = server.counts();
    assert!(answered == 20 && refused >= 6, "{answered} answered, {refused} refused");
}

#[test]
fn what_a_judge_has_answered_is_not_asked_again_after_an_outage() {
    let server = ScriptedServer::start("unifiedreward.reply", |number| match number {
        7..40 => "503 Service Unavailable",
        _ => "200 OK",
    });
    let (images, prompts) = batch(12);
    let scorer = scorer("unifiedreward", &judge(&server));
    let mut n_failures = 0;
    let scores = loop {
        match scorer.score(&images, &prompts) {
            Ok(scores) => break Ok(scores),
            failed => {
                let (told, may_pass) = failure(failed);
                assert!(may_pass && told.contains("HTTP status 503: later"), "{told}");
                n_failures += 1;
            }
        }
    };
    assert_eq!(values(scores), [4.25 / 5.0; 12]);
    assert!(n_failures > 0);
    assert_eq!(server.counts(), (12, 33));
}

#[test]
fn parts_of_a_batch_that_were_scored_are_not_scored_again() {
    let server = ScriptedServer::start("deqa.reply", |number| match number {
        2 => "500 Internal Server Error",
        _ => "200 OK",
    });
    let scorer = scorer("deqa", &json!({"url": server.url, "batch_size": 2}));
    let (images, prompts) = batch(8);
    let (_, may_pass) = failure(scorer.score(&images, &prompts));
    assert!(may_pass);
    assert_eq!(values(scorer.score(&images, &prompts)), [0.8125, 0.4375].repeat(4));
    assert_eq!(server.counts(), (4, 1), "two parts, a failure, the other two");
    assert_eq!(values(scorer.score(&images, &prompts)).len(), 8);
    assert_eq!(server.counts(), (8, 1), "a batch that was finished is asked for anew");
}
