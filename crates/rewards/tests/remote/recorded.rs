//! What is sent is what the reference's clients send; what its servers answered is read as the scores it holds
//! (`tests/golden/rewards/make_exchanges.py`).

use std::io::Write;
use std::net::TcpListener;
use std::thread::JoinHandle;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pickle::{Limits, Value as Pickled};
use rewards::PromptRecord;
use serde_json::{Value, json};

use crate::http_request::Request;
use crate::{failure, geneval_prompts, picture, pictures, prompts, repository, scorer, values};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/golden/rewards").join(name)).expect("golden exchange")
}

/// A server that answers one request with these bytes; gives its URL and what it saw.
fn answering_once(status: &str, content_type: &str, reply: Vec<u8>) -> (String, JoinHandle<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        reply.len()
    );
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let request = Request::read(&stream);
        (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&reply)).expect("a client");
        request
    });
    (url, server)
}

fn unpickled(bytes: &[u8]) -> Pickled {
    pickle::read(bytes, &Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn deqa_sends_and_reads_what_the_reference_does() {
    let (url, server) = answering_once("200 OK", "text/html; charset=utf-8", golden("deqa.reply"));
    let scores = scorer("deqa", &json!({"url": url})).score(&pictures(), &prompts());
    assert_eq!(values(scores), [0.8125, 0.4375]);
    let request = server.join().expect("a request");
    assert_eq!(request.line, "post / http/1.1");
    assert_eq!(unpickled(&request.body), unpickled(&golden("deqa.request")));
}

#[test]
fn geneval_sends_and_reads_what_the_reference_does() {
    let (url, server) = answering_once("200 OK", "text/html; charset=utf-8", golden("geneval.reply"));
    let scorer = scorer("geneval", &json!({"url": url, "only_strict": false}));
    let scores = scorer.score(&pictures(), &geneval_prompts()).unwrap_or_else(|error| panic!("{error}"));
    let request = unpickled(&server.join().expect("a request").body);
    let expected = unpickled(&golden("geneval.request"));
    for key in ["images", "only_strict"] {
        assert_eq!(request.get(key), expected.get(key), "{key}");
    }
    let rows = |tree: &Pickled| tree.get("meta_datas").and_then(Pickled::as_sequence).map(<[_]>::to_vec);
    let (rows, expected) = (rows(&request).expect("rows"), rows(&expected).expect("rows"));
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(&expected) {
        for key in ["tag", "prompt", "exclude"] {
            assert_eq!(row.get(key), expected.get(key), "{key}");
        }
    }
    assert_eq!(scores.iter().map(|score| score.value).collect::<Vec<_>>(), [0.75, 0.5]);
    let extras =
        |index: usize| scores[index].extras.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let first: Vec<(&str, f32)> = extras(0);
    let strict = ("strict_accuracy", 0.0);
    let expected = [("accuracy", 1.0), ("accuracy/counting", 1.0), strict, ("strict_accuracy/counting", 0.0)];
    assert_eq!(first, expected);
    let second: Vec<(&str, f32)> = extras(1);
    let expected = [("accuracy", 0.0), ("accuracy/position", 0.0), strict, ("strict_accuracy/position", 0.0)];
    assert_eq!(second, expected);
}

#[test]
fn verl_omnis_servers_are_spoken_to_as_its_client_does() {
    let (url, server) = answering_once("200 OK", "application/octet-stream", golden("verl_omni.reply"));
    let scores = scorer("flow_grpo_server", &json!({"url": url})).score(&pictures(), &prompts());
    assert_eq!(values(scores), [0.75, 0.5]);
    let request = server.join().expect("a request");
    assert_eq!(unpickled(&request.body), unpickled(&golden("verl_omni.request")));
}

/// The pixels of a PNG file in base64: the same picture has other bytes from another encoder.
fn pixels(base64: &str) -> Vec<u8> {
    let file = BASE64_STANDARD.decode(base64).expect("base64");
    image::load_from_memory(&file).expect("a picture").to_rgb8().into_raw()
}

#[test]
fn flow_factory_sends_and_reads_what_the_reference_does() {
    let (url, server) = answering_once("200 OK", "application/json", golden("flow_factory.reply"));
    let scores = scorer("flow_factory", &json!({"url": format!("{url}/")})).score(&pictures(), &prompts());
    assert_eq!(values(scores), [0.25, -1.5]);
    let request = server.join().expect("a request");
    assert_eq!(request.line, "post /compute http/1.1");
    assert!(request.headers.contains("content-type: application/json"), "{}", request.headers);
    let [mut sent, mut expected] =
        [&request.body, &golden("flow_factory.request")].map(|body| serde_json::from_slice::<Value>(body));
    let [sent, expected] = [&mut sent, &mut expected].map(|value| value.as_mut().expect("JSON"));
    let images = |value: &mut Value| {
        let images = value["image"].take();
        let images = images.as_array().expect("images").iter();
        images.map(|image| pixels(image.as_str().expect("text"))).collect::<Vec<_>>()
    };
    assert!(images(sent) == images(expected), "other pictures");
    assert_eq!(sent, expected);
}

#[test]
fn unifiedreward_sends_and_reads_what_the_reference_does() {
    let (url, server) = answering_once("200 OK", "application/json", golden("unifiedreward.reply"));
    let scorer = scorer("unifiedreward", &json!({"url": format!("{url}/v1")}));
    let scores = scorer.score(&[picture("shapes_16x16")], &prompts()[1..]);
    assert_eq!(values(scores), [0.85]);
    let request = server.join().expect("a request");
    assert_eq!(request.line, "post /v1/chat/completions http/1.1");
    let [mut sent, mut expected] = [&request.body, &golden("unifiedreward.request")]
        .map(|body| serde_json::from_slice::<Value>(body).expect("JSON"));
    let image = |value: &mut Value| {
        let url = value["messages"][0]["content"][0]["image_url"]["url"].take();
        pixels(url.as_str().and_then(|url| url.strip_prefix("data:image;base64,")).expect("a data URL"))
    };
    assert!(image(&mut sent) == image(&mut expected), "other pictures");
    assert_eq!(sent, expected);
}

#[test]
fn batches_are_cut_as_evenly_as_the_references() {
    let images = vec![picture("noise_17x13"); 4];
    let prompts = vec![prompts()[0].clone(); 4];
    // Four images in batches of at most three are two and two, not three and one; the reply below is about two.
    let (url, server) = answering_once("200 OK", "text/html", golden("deqa.reply"));
    let (message, _) =
        failure(scorer("deqa", &json!({"url": url, "batch_size": 3})).score(&images, &prompts));
    assert!(message.contains("unreachable"), "the second batch finds nobody: {message}");
    let request = unpickled(&server.join().expect("a request").body);
    assert_eq!(request.get("images").and_then(Pickled::as_sequence).map(<[_]>::len), Some(2));
}

#[test]
fn keys_and_passwords_are_sent_and_never_told() {
    let (url, server) =
        answering_once("401 Unauthorized", "application/json", b"{\"error\": \"who?\"}".to_vec());
    let url = url.replace("http://", "http://ada:hunter2@");
    let (message, may_pass) = failure(scorer("deqa", &json!({"url": url})).score(&pictures(), &prompts()));
    assert!(message.contains("HTTP status 401: {\\\"error\\\": \\\"who?\\\"}"), "{message}");
    assert!(!message.contains("hunter2") && !message.contains("ada"), "{message}");
    assert!(!may_pass);
    let headers = server.join().expect("a request").headers;
    // base64 of ada:hunter2, in lower case.
    assert!(headers.contains("authorization: basic ywrhomh1bnrlcji="), "{headers}");

    let (url, server) = answering_once("200 OK", "application/json", golden("unifiedreward.reply"));
    let resources = rewards::Resources {
        variable: Box::new(|name| (name == "JUDGE_KEY").then(|| "sk-secret".to_owned())),
        ..rewards::Resources::local()
    };
    let options = json!({"url": url, "api_key_env": "JUDGE_KEY"});
    let judge =
        rewards::build("unifiedreward", &options, &resources).unwrap_or_else(|error| panic!("{error}"));
    values(judge.score(&pictures()[..1], &prompts()[..1]));
    let headers = server.join().expect("a request").headers;
    assert!(headers.contains("authorization: bearer sk-secret"), "{headers}");

    let options = json!({"url": url, "api_key_env": "NO_SUCH_KEY"});
    let refused = rewards::build("unifiedreward", &options, &resources).err().map(|error| error.to_string());
    let refused = refused.unwrap_or_default();
    assert!(refused.contains("no usable key is in the environment variable `NO_SUCH_KEY`"), "{refused}");
}

#[test]
fn an_answer_without_a_score_is_an_error_that_quotes_it() {
    let answer = json!({"choices": [{"message": {"content": format!("Hm. {}", "x".repeat(400))}}]});
    let (url, server) = answering_once("200 OK", "application/json", answer.to_string().into_bytes());
    let judge = scorer("unifiedreward", &json!({"url": url}));
    let (message, may_pass) = failure(judge.score(&pictures()[..1], &prompts()[..1]));
    assert!(
        message.contains(&format!("image 0: no score in the answer `Hm. {}…`", "x".repeat(196))),
        "{message}"
    );
    assert!(message.contains("Final Score:"), "{message}");
    assert!(!may_pass);
    server.join().expect("a request");
}

#[test]
fn a_judge_of_ones_own_is_asked_ones_own_question() {
    let answer = json!({"choices": [{"message": {"content": "I give it <score>7</score>."}}]});
    let (url, server) = answering_once("200 OK", "application/json", answer.to_string().into_bytes());
    let judge = scorer(
        "vlm_judge",
        &json!({
            "url": url, "model": "judge-7b", "question": "Does it show {prompt}? 0 to 10.",
            "pattern": "<score>([0-9]+)</score>", "scale": 10, "image_size": 8,
        }),
    );
    let record = PromptRecord { prompt: "a {prompt}".to_owned(), metadata: Value::Null };
    assert_eq!(values(judge.score(&pictures()[..1], &[record])), [0.7]);
    let request: Value = serde_json::from_slice(&server.join().expect("a request").body).expect("JSON");
    let content = &request["messages"][0]["content"];
    assert_eq!(content[1]["text"], "Does it show a {prompt}? 0 to 10.");
    assert_eq!(request["model"], "judge-7b");
    let image =
        content[0]["image_url"]["url"].as_str().and_then(|url| url.rsplit_once(',')).expect("a data URL");
    assert_eq!(pixels(image.1).len(), 8 * 8 * 3);
}
