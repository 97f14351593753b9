//! A server that runs out of file descriptors: it waits for better times, without keeping a core busy. The limit is the
//! whole process's, so this is the only test here.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use service::{Insecure, PeerRole, Trust};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a usage");
    Duration::from_micros((usage.user_time() + usage.system_time()).num_microseconds() as u64)
}

fn n_open() -> u64 {
    std::fs::read_dir("/proc/self/fd").expect("a list").count() as u64
}

#[test]
fn without_file_descriptors_a_server_waits_and_then_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let router = service::server(Duration::from_secs(60))
        .add_service(proto::reward_server::RewardServer::new(Nothing));
    runtime.spawn(service::serve(router, listener, Trust::Plain(Insecure::Loopback), std::future::pending()));

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    // Room for three connections of which both ends are here, and one more end.
    setrlimit(Resource::RLIMIT_NOFILE, n_open() + 6, hard).expect("lowered");
    let mut clients: Vec<TcpStream> = Vec::new();
    while let Ok(client) = TcpStream::connect(address) {
        clients.push(client);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(clients.len() > 3, "more ends than could be accepted");
    let (start, before) = (Instant::now(), processor_time());
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time() - before;
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < 0.2, "the accept loop takes {share:.2} of a core");

    clients.clear();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("raised");
    let described = runtime.block_on(async {
        let channel = service::connect(
            &address.to_string(),
            PeerRole::Coordinator,
            &Trust::Plain(Insecure::Loopback),
            Duration::from_secs(60),
        )
        .await
        .expect("connected");
        service::reward_client(channel)
            .describe(service::request(proto::DescribeRequest {}, Duration::from_secs(60)))
            .await
    });
    assert_eq!(described.expect("answered").into_inner().rewards, ["nothing"]);
}

/// Hosts a reward by name only.
struct Nothing;

#[tonic::async_trait]
impl proto::reward_server::Reward for Nothing {
    type ScoreStream = tokio_stream::Empty<Result<proto::ScoreReply, tonic::Status>>;

    async fn describe(
        &self,
        _: tonic::Request<proto::DescribeRequest>,
    ) -> Result<tonic::Response<proto::DescribeReply>, tonic::Status> {
        let rewards = vec!["nothing".to_owned()];
        Ok(tonic::Response::new(proto::DescribeReply { protocol_version: 1, rewards }))
    }

    async fn score(
        &self,
        _: tonic::Request<tonic::Streaming<proto::ScoreRequest>>,
    ) -> Result<tonic::Response<Self::ScoreStream>, tonic::Status> {
        Ok(tonic::Response::new(tokio_stream::empty()))
    }
}
