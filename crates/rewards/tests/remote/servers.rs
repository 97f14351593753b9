//! The example servers, well behaved and otherwise.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rewards::{Reward, jpeg_bytes};
use serde_json::{Value, json};

use crate::example_server::ExampleServer;
use crate::{failure, geneval_prompts, pictures, prompts, scorer, values};

/// What `zlib.crc32(file) / 2**32` is of a picture's JPEG file.
fn checksums() -> Vec<f32> {
    let files = pictures().into_iter().map(|image| jpeg_bytes(&image, 75).expect("a good picture"));
    files.map(|file| (f64::from(crc32(&file)) / 4_294_967_296.0) as f32).collect()
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

fn brightness() -> Vec<f32> {
    let mean =
        |pixels: &[u8]| pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / pixels.len() as f64;
    pictures().iter().map(|image| (mean(&image.pixels) / 255.0) as f32).collect()
}

fn close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let far = got.iter().zip(expected).any(|(got, expected)| (got - expected).abs() > 1e-4);
    assert!(!far, "{got:?} is not {expected:?}");
}

/// A scorer of a running example server.
fn scorer_at(name: &str, server: &ExampleServer) -> Box<dyn Reward + Send> {
    let options = match name {
        "vlm_judge" => json!({
            "url": format!("{}/v1", server.url), "model": "judge", "question": "How bright is {prompt}?",
            "pattern": "Score: ([0-9.]+)", "max_concurrent": 2,
        }),
        _ => json!({"url": server.url}),
    };
    scorer(name, &options)
}

#[test]
fn each_protocol_is_understood_by_its_example_server() {
    let server = ExampleServer::start("flow_grpo_server", &[]);
    close(&values(scorer_at("flow_grpo_server", &server).score(&pictures(), &prompts())), &checksums());
    close(&values(scorer_at("deqa", &server).score(&pictures(), &prompts())), &checksums());
    let scores = scorer_at("geneval", &server).score(&pictures(), &geneval_prompts()).expect("scores");
    close(&scores.iter().map(|score| score.value).collect::<Vec<_>>(), &checksums());
    let strict = f32::from(u8::from(checksums()[0] > 0.5));
    let extras: Vec<_> = scores[0].extras.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    assert_eq!(extras, [("strict_accuracy", strict), ("strict_accuracy/counting", strict)]);

    let server = ExampleServer::start("flow_factory_server", &[]);
    close(&values(scorer_at("flow_factory", &server).score(&pictures(), &prompts())), &brightness());

    let server = ExampleServer::start("openai_chat_server", &[]);
    let scores = values(scorer_at("vlm_judge", &server).score(&pictures(), &prompts()));
    let expected: Vec<f32> = brightness().iter().map(|brightness| 1.0 + 4.0 * brightness).collect();
    close(&scores, &expected);
}

#[test]
fn equal_batches_give_equal_scores_however_many_ask_at_once() {
    let server = ExampleServer::start("openai_chat_server", &[]);
    let images: Vec<_> = (0..8).flat_map(|_| pictures()).collect();
    let prompts: Vec<_> = (0..8).flat_map(|_| prompts()).collect();
    let judge = scorer_at("vlm_judge", &server);
    let once = judge.score(&images, &prompts).expect("scores");
    assert_eq!(judge.score(&images, &prompts).expect("scores"), once);
    assert!(once.chunks(2).all(|pair| pair == &once[..2]), "{once:?}");
}

#[test]
fn a_wrong_number_of_scores_is_refused() {
    for (name, program, message) in [
        ("deqa", "flow_grpo_server", "sent 2 images, got 1 of `outputs`"),
        ("geneval", "flow_grpo_server", "sent 2 images, got 1 of `scores`"),
        ("flow_factory", "flow_factory_server", "sent 2 images, got 1 of `rewards`"),
        ("vlm_judge", "openai_chat_server", "the reply has no `choices[0].message.content`"),
    ] {
        let server = ExampleServer::start(program, &["--misbehave", "wrong-count"]);
        let (told, may_pass) = failure(scorer_at(name, &server).score(&pictures(), &geneval_prompts()));
        assert!(told.starts_with(&format!("reward `{name}` at {}", server.url)), "{told}");
        assert!(told.contains(message), "{told}");
        assert!(!may_pass);
    }
}

#[test]
fn nan_is_refused() {
    let server = ExampleServer::start("flow_grpo_server", &["--misbehave", "nan"]);
    let (told, may_pass) = failure(scorer_at("deqa", &server).score(&pictures(), &prompts()));
    assert_eq!(told, "reward `deqa` of image 0 is NaN; a score must be finite");
    assert!(!may_pass);
    // NaN is no JSON, but Python writes it.
    let server = ExampleServer::start("flow_factory_server", &["--misbehave", "nan"]);
    let (told, may_pass) = failure(scorer_at("flow_factory", &server).score(&pictures(), &prompts()));
    assert!(told.contains("not the JSON of this protocol") && told.contains("[NaN, "), "{told}");
    assert!(!may_pass);
}

#[test]
fn a_reply_beyond_the_limit_is_refused() {
    let server = ExampleServer::start("flow_grpo_server", &["--misbehave", "oversized"]);
    let options = json!({"url": server.url, "max_reply_bytes": 1 << 20});
    let (told, may_pass) = failure(scorer("deqa", &options).score(&pictures(), &prompts()));
    assert!(told.contains("the reply has more than 1048576 bytes (`max_reply_bytes`)"), "{told}");
    assert!(!may_pass);
}

#[test]
fn a_web_page_in_the_place_of_scores_is_quoted_with_what_was_sent() {
    for (name, program, path) in [
        ("deqa", "flow_grpo_server", ""),
        ("flow_factory", "flow_factory_server", "/compute"),
        ("vlm_judge", "openai_chat_server", "/v1/chat/completions"),
    ] {
        let server = ExampleServer::start(program, &["--misbehave", "html"]);
        let (told, may_pass) = failure(scorer_at(name, &server).score(&pictures(), &prompts()));
        assert!(told.contains(&format!("sent POST {}{path} (application/", server.url)), "{told}");
        let page = "got status 200 (text/html, 47 bytes): `<!doctype html><title>Welcome to nginx!</title>`";
        assert!(told.contains(page), "{told}");
        assert!(!may_pass);
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let server = ExampleServer::start("flow_factory_server", &["--misbehave", "redirect"]);
    let (told, may_pass) = failure(scorer_at("flow_factory", &server).score(&pictures(), &prompts()));
    assert!(told.contains("the server sends elsewhere") && told.contains("status 307"), "{told}");
    assert!(!may_pass);
}

#[test]
fn a_hostile_pickle_is_refused_by_the_name_of_what_it_calls() {
    let server = ExampleServer::start("flow_grpo_server", &["--misbehave", "hostile-pickle"]);
    let (told, may_pass) = failure(scorer_at("deqa", &server).score(&pictures(), &prompts()));
    assert!(told.contains("`outputs` of the reply: the pickle asks to call `posix.system`"), "{told}");
    assert!(!may_pass);
}

#[test]
fn what_a_server_says_is_passed_on() {
    let server = ExampleServer::start("flow_grpo_server", &["--misbehave", "error"]);
    let (told, may_pass) = failure(scorer_at("flow_grpo_server", &server).score(&pictures(), &prompts()));
    assert!(told.contains("the server says: the detector has no weights"), "{told}");
    assert!(!may_pass);
    let server = ExampleServer::start("openai_chat_server", &["--misbehave", "error"]);
    let (told, _) = failure(scorer_at("vlm_judge", &server).score(&pictures(), &prompts()));
    assert!(told.contains("no score in the answer `I would rather not say.`"), "{told}");
}

#[test]
fn a_traceback_may_pass_and_is_told_by_its_last_line() {
    let server = ExampleServer::start("flow_grpo_server", &["--fail-first", "2"]);
    let deqa = scorer_at("deqa", &server);
    for _ in 0..2 {
        let (told, may_pass) = failure(deqa.score(&pictures(), &prompts()));
        assert!(told.ends_with("HTTP status 500: RuntimeError: out of memory"), "{told}");
        assert!(may_pass);
    }
    close(&values(deqa.score(&pictures(), &prompts())), &checksums());
}

#[test]
fn a_path_that_the_server_does_not_have_is_told_by_its_own_words() {
    // DeQA's client posts to /, where Flow-Factory's server has nothing.
    let server = ExampleServer::start("flow_factory_server", &[]);
    let (told, may_pass) = failure(scorer_at("deqa", &server).score(&pictures(), &prompts()));
    assert!(told.contains("HTTP status 404: there is nothing here; sent POST http://"), "{told}");
    assert!(told.contains("got status 404 (") && told.ends_with("bytes): `there is nothing here`"), "{told}");
    assert!(!may_pass);
}

#[test]
fn a_slow_server_is_not_waited_for_beyond_the_deadline() {
    let server = ExampleServer::start("flow_grpo_server", &["--delay", "60"]);
    let deqa = scorer("deqa", &json!({"url": server.url, "timeout_seconds": 0.2}));
    let start = Instant::now();
    let (told, may_pass) = failure(deqa.score(&pictures(), &prompts()));
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(told.ends_with("no answer within 0.2 s (`timeout_seconds`)"), "{told}");
    assert!(may_pass);
}

#[test]
fn nobody_there_may_pass_and_a_restarted_server_is_used_again() {
    let server = ExampleServer::start("flow_grpo_server", &[]);
    let port = server.port().to_owned();
    let deqa = scorer_at("deqa", &server);
    close(&values(deqa.score(&pictures(), &prompts())), &checksums());
    drop(server);
    let (told, may_pass) = failure(deqa.score(&pictures(), &prompts()));
    assert!(told.contains("unreachable: ") && told.contains("refused"), "{told}");
    assert!(may_pass);
    let _server = ExampleServer::start("flow_grpo_server", &["--port", &port]);
    close(&values(deqa.score(&pictures(), &prompts())), &checksums());
}

#[test]
fn a_connection_that_breaks_and_a_host_without_an_address_may_pass() {
    let server = ExampleServer::start("flow_grpo_server", &["--misbehave", "hang-up"]);
    let (told, may_pass) = failure(scorer_at("deqa", &server).score(&pictures(), &prompts()));
    assert!(told.contains("unreachable: "), "{told}");
    assert!(may_pass);
    let nowhere = scorer("deqa", &json!({"url": "http://no-such-host.invalid"}));
    let (told, may_pass) = failure(nowhere.score(&pictures(), &prompts()));
    assert!(told.contains("at http://no-such-host.invalid: unreachable: "), "{told}");
    assert!(may_pass);
}

#[test]
fn https_where_http_is_spoken_is_told_as_such() {
    let server = ExampleServer::start("flow_grpo_server", &[]);
    let url = server.url.replace("http://", "https://");
    let (told, may_pass) = failure(scorer("deqa", &json!({"url": url})).score(&pictures(), &prompts()));
    assert!(told.contains("the server does not speak TLS, and `url` asks for it"), "{told}");
    assert!(told.contains("write `http://`"), "{told}");
    assert!(!may_pass);
}

#[test]
fn lists_of_different_length_and_empty_images_are_refused_before_anything_is_sent() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let url = format!("http://{closed}");
    for (name, options) in [
        ("deqa", json!({"url": url})),
        ("flow_factory", json!({"url": url})),
        ("unifiedreward", json!({"url": url})),
        ("grpc", json!({"url": url})),
    ] {
        let scorer = scorer(name, &options);
        let (told, _) = failure(scorer.score(&pictures(), &prompts()[..1]));
        assert!(told.contains("got 2 images and 1 prompts"), "{told}");
        let empty = rewards::RgbImage { width: 0, height: 0, pixels: Vec::new() };
        let (told, _) = failure(scorer.score(&[empty], &prompts()[..1]));
        assert!(told.contains("image 0 is 0 x 0"), "{told}");
        assert_eq!(scorer.score(&[], &[]).expect("nothing to score"), []);
        assert_eq!(scorer.patience(), Duration::from_secs(1800));
    }
}

#[test]
fn options_that_make_no_sense_are_told() {
    let told = |name: &str, options: Value| {
        let refused = rewards::build(name, &options, &rewards::Resources::local()).err();
        refused.unwrap_or_else(|| panic!("{options} is accepted")).to_string()
    };
    let judge = |key: &str, value: Value| {
        let mut options =
            json!({"url": "http://h", "model": "m", "question": "{prompt}?", "pattern": "([01])"});
        options[key] = value;
        told("vlm_judge", options)
    };
    assert!(judge("pattern", json!("[01]")).contains("`pattern` of reward `vlm_judge`: it has 0 groups"));
    assert!(judge("pattern", json!("(")).contains("`pattern` of reward `vlm_judge`: regex parse error"));
    assert!(judge("question", json!("Is it good?")).contains("it does not contain `{prompt}`"));
    assert!(judge("model", json!("")).contains("`model` of reward `vlm_judge`: it is missing"));
    assert!(judge("scale", json!(0)).contains("`scale` of reward `vlm_judge` is 0"));
    assert!(judge("max_concurrent", json!(0)).contains("use 1 to 256"));
    assert!(judge("image_size", json!(0)).contains("use 1 to 4096"));
    assert!(judge("batch_size", json!(1)).contains("unknown option; did you mean"));
    assert!(told("grpc", json!({"url": "https://h"})).contains("of no run that is secured"));
    assert!(told("grpc", json!({"url": "https://h/x"})).contains("all that gRPC is spoken over here"));
    assert!(told("grpc", json!({"url": "http://a:b@h"})).contains("all that gRPC is spoken over here"));
    assert!(told("grpc", json!({})).contains("`url` of reward `grpc`: it is missing"));
    assert!(told("deqa", json!({"batch_size": 0})).contains("`batch_size` of reward `deqa` is 0"));
    assert!(
        told("deqa", json!({"url": "nonsense url"})).contains("`url` of reward `deqa` is `nonsense url`")
    );
}
