//! Who is let in and who is not, over real sockets, and what they are told.

mod lab;
mod named;

use lab::{DAY, PATIENCE, Run, Server, connect, describe, join, serve};
use service::trust::{CertificateFiles, Credentials, TokenSource, Tokens};
use service::{Insecure, PeerRole, ServiceError, Source, Trust};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

fn told(error: &ServiceError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_its_holder_in_as_its_role_and_as_nothing_else() {
    let run = Run::new("run-a");
    let server = run.serve().await;
    let worker = run.join(&server, PeerRole::Worker).await.expect("certified");
    let channel = connect(&server, &worker).await.expect("connected");
    assert_eq!(describe(&channel).await.expect("a worker may"), ["worker"]);
    let learner = run.join(&server, PeerRole::Learner).await.expect("certified");
    let refused = describe(&connect(&server, &learner).await.expect("connected")).await.expect_err("may not");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let words = "a process of the role `learner` may not call Describe";
    assert!(
        refused.message().contains(words) && refused.message().contains("use the token file of that role"),
        "{refused}"
    );
    let error = join(&server, run.token(PeerRole::Worker), PeerRole::Learner).await.err().expect("refused");
    assert!(error.to_string().contains("give it learner.token"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_refused_with_the_file_to_take() {
    let (run, other) = (Run::new("run-a"), Run::new("run-b"));
    let server = run.serve().await;
    let before = std::fs::read(Tokens::path(run.home.path(), PeerRole::Worker)).expect("a token file");
    let kept = run.home.path().join("old.token");
    write_secret(&kept, &before);
    run.tokens.rotate(PeerRole::Worker).expect("rotated");
    let error = join(&server, TokenSource::File(kept), PeerRole::Worker).await.err().expect("refused");
    assert!(
        !error.is_outage() && told(&error).contains("not any more: take a new copy of worker.token"),
        "{}",
        told(&error)
    );
    run.join(&server, PeerRole::Worker).await.expect("by the new one");
    let error = join(&server, other.token(PeerRole::Worker), PeerRole::Worker).await.err().expect("refused");
    let told = told(&error);
    assert!(
        told.contains("not of the authority that this process trusts") && told.contains("use the token file"),
        "{told}"
    );
    assert!(!error.is_outage(), "waiting does not help");
}

/// A token file whose certificate was exchanged, so that only the coordinator can see that the token is not its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_another_run_is_refused_by_the_coordinator() {
    let (run, other) = (Run::new("run-a"), Run::new("run-b"));
    let server = run.serve().await;
    let text =
        |run: &Run| std::fs::read_to_string(Tokens::path(run.home.path(), PeerRole::Worker)).expect("a file");
    let (own, foreign) = (text(&run), text(&other));
    let token = foreign.lines().find(|line| line.starts_with("tempflow.")).expect("a token");
    let mixed = own.lines().map(|line| if line.starts_with("tempflow.") { token } else { line });
    let path = run.home.path().join("mixed.token");
    write_secret(&path, mixed.collect::<Vec<_>>().join("\n").as_bytes());
    let error = join(&server, TokenSource::File(path), PeerRole::Worker).await.err().expect("refused");
    assert!(told(&error).contains("not of `run-b`, which this process belongs to"), "{}", told(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_certificate_is_refused_by_both_sides() {
    let (run, other) = (Run::new("run-a"), Run::new("run-a"));
    let server = run.serve().await;
    let stranger = other.trust_of(PeerRole::Worker, SystemTime::now());
    let error = connect(&server, &stranger).await.expect_err("the client sees it");
    assert!(told(&error).contains("not of the authority"), "{}", told(&error));
    let disguised = other.authority.issue(PeerRole::Worker, SystemTime::now()).expect("issued");
    let disguised = Credentials::of(run.authority.roots().expect("an authority"), disguised);
    let error = connect(&server, &Trust::Mutual(Arc::new(disguised))).await.expect_err("the server sees it");
    let told = told(&error);
    assert!(
        told.contains("does not accept this process's certificate") && told.contains("use the token file"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_run_is_no_server_of_it() {
    let run = Run::new("run-a");
    for role in [PeerRole::Learner, PeerRole::Worker] {
        let server = run.serve_as(run.trust_of(role, SystemTime::now())).await;
        let worker = run.trust_of(PeerRole::Worker, SystemTime::now());
        let error = connect(&server, &worker).await.expect_err("an impostor");
        let is_told = told(&error).contains("not the coordinator that should answer");
        assert!(is_told && !error.is_outage(), "{}", told(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_a_day_apart_are_told() {
    let run = Run::new("run-a");
    let now = SystemTime::now();
    for (made, words) in [(now - 2 * DAY, "ended at"), (now + DAY + DAY / 12, "begins to hold only at")] {
        let server = run.serve().await;
        let channel =
            connect(&server, &run.trust_of(PeerRole::Worker, made)).await.expect("let in to be told");
        let refused = describe(&channel).await.expect_err("it does not hold");
        assert_eq!(refused.code(), Code::Unauthenticated);
        let told_here = refused.message();
        assert!(
            told_here.contains(words) && told_here.contains("set the clocks of both hosts"),
            "{told_here}"
        );

        let server = run.serve_as(run.trust_of(PeerRole::Coordinator, made)).await;
        let error = run.join(&server, PeerRole::Worker).await.err().expect("the coordinator's does not hold");
        let told = told(&error);
        assert!(told.contains("tempflow://run-a/coordinator") && told.contains(words), "{told}");
        assert!(told.contains("set the clocks"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_tls_tell_each_other_apart() {
    let run = Run::new("run-a");
    let (secure, plain) = (run.serve().await, serve(Trust::Plain(Insecure::Loopback), None).await);
    let worker = run.trust_of(PeerRole::Worker, SystemTime::now());

    let error = connect(&plain, &worker).await.expect_err("the address says so");
    assert!(
        told(&error).contains("asks for plain text") && told(&error).contains("write `https://`"),
        "{}",
        told(&error)
    );
    let error = connect(&secure, &Trust::Plain(Insecure::Loopback)).await.expect_err("the address says so");
    assert!(
        told(&error).contains("asks for TLS") && told(&error).contains("--token-file"),
        "{}",
        told(&error)
    );

    let bare = |server: &Server| server.address.split_once("//").expect("a scheme").1.to_owned();
    let server = Server { address: bare(&plain), _stop: CancellationToken::new().drop_guard() };
    let error = connect(&server, &worker).await.expect_err("it answers in plain text");
    assert!(told(&error).contains("does not speak TLS"), "{}", told(&error));
    let server = Server { address: bare(&secure), _stop: CancellationToken::new().drop_guard() };
    let channel = connect(&server, &Trust::Plain(Insecure::Loopback)).await.expect("connected, to be told");
    let reply = format!("{:?}", describe(&channel).await.expect_err("nothing is served in plain text"));
    assert!(reply.contains("this server speaks TLS"), "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_calls_go_on() {
    let run = Run::with_lifetime("run-a", Duration::from_secs(5));
    let server = run.serve().await;
    let worker = run.join(&server, PeerRole::Worker).await.expect("certified");
    let channel = connect(&server, &worker).await.expect("connected");
    let Trust::Mutual(credentials) = &worker else { panic!("by a token") };
    let first = credentials.identity().expect("certified").certificate.clone();
    let (mut n_served, mut n_broken) = (0, 0);
    while SystemTime::now() < first.not_after + Duration::from_secs(3) {
        match describe(&channel).await {
            Ok(_) => n_served += 1,
            // The connection of the certificate before has just ended.
            Err(status) if status.code() != Code::Unauthenticated => n_broken += 1,
            Err(status) => panic!("{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(credentials.identity().expect("certified").certificate.not_after > first.not_after);
    assert!(n_served > 10 && n_broken < n_served / 4, "{n_served} calls served, {n_broken} broken");
}

/// What was let in with a certificate is not let on without a new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_does_not_outlive_its_certificate() {
    let run = Run::with_lifetime("run-a", Duration::from_secs(3));
    let server = run.serve().await;
    let worker = run.trust_of(PeerRole::Worker, SystemTime::now());
    let channel = connect(&server, &worker).await.expect("connected");
    describe(&channel).await.expect("it holds");
    let ends = async {
        while describe(&channel).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ends).await.expect("it ends");
    let refused = async {
        loop {
            match describe(&channel).await {
                Err(status) if status.code() == Code::Unauthenticated => return status,
                // The connection has just been broken.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(_) => panic!("served without a certificate that holds"),
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("connecting again does not help");
    assert!(refused.message().contains("ended at"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_user_do_as_well_and_are_read_again() {
    let run = Run::new("cluster");
    let files = |role: PeerRole| {
        let (pem, key) = authority_pem(&run, role);
        let name = |end: &str| run.home.path().join(format!("{role}.{end}"));
        std::fs::write(name("crt"), pem).expect("written");
        write_secret(&name("key"), key.as_bytes());
        CertificateFiles {
            authority: run.home.path().join("ca.pem"),
            certificate: name("crt"),
            key: name("key"),
        }
    };
    let trust = |role| Source::Files(files(role)).trust(role, Duration::ZERO);
    let server = serve(trust(PeerRole::Coordinator).await.expect("files"), None).await;
    let worker = trust(PeerRole::Worker).await.expect("files");
    assert_eq!(
        describe(&connect(&server, &worker).await.expect("connected")).await.expect("may"),
        ["worker"]
    );

    let error = Source::Files(files(PeerRole::Worker)).trust(PeerRole::Learner, Duration::ZERO).await.err();
    let told = error.expect("refused").to_string();
    assert!(told.contains("is for the role `worker`, and this is a process of the role `learner`"), "{told}");
    let missing = CertificateFiles { key: "/nowhere/tls.key".into(), ..files(PeerRole::Worker) };
    let error = Source::Files(missing).trust(PeerRole::Worker, Duration::ZERO).await.err();
    assert!(error.expect("refused").to_string().contains("/nowhere/tls.key cannot be read"));
    let swapped = CertificateFiles {
        key: Path::new(&files(PeerRole::Worker).key).with_file_name("ca.key"),
        ..files(PeerRole::Worker)
    };
    let error = Source::Files(swapped).trust(PeerRole::Worker, Duration::ZERO).await.err();
    assert!(error.expect("refused").to_string().contains("do not go together"));
}

fn write_secret(path: &Path, bytes: &[u8]) {
    service::durable::write_private_file(path, bytes).expect("written");
}

/// Certificate and key of a role, as a user's own tools would write them.
fn authority_pem(run: &Run, role: PeerRole) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    let der = run.authority.answer(request.der(), role, SystemTime::now()).expect("signed");
    (pem("CERTIFICATE", &der), key.serialize_pem())
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64(der))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |group: &[u8]| {
        let word = group.iter().chain([&0, &0]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let letters = (0..4).map(|place| match place <= group.len() {
            true => char::from(LETTERS[(word >> (18 - 6 * place) & 63) as usize]),
            false => '=',
        });
        letters.collect::<String>()
    };
    bytes.chunks(48).map(|line| line.chunks(3).map(encode).collect::<String>()).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_keeps_nobody_else_out() {
    let run = Run::new("run-a");
    let server = run.serve().await;
    let address = server.address.split_once("//").expect("a scheme").1;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.expect("accepted"));
    }
    let mut noisy = TcpStream::connect(address).await.expect("accepted");
    noisy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, noisy.read_to_end(&mut answer)).await.expect("hung up").expect("read");
    let worker = run.join(&server, PeerRole::Worker).await.expect("certified");
    assert_eq!(
        describe(&connect(&server, &worker).await.expect("connected")).await.expect("may"),
        ["worker"]
    );
}
