//! The learner's service over a real socket: pushes that are good, repeated, damaged, absurd or of another run.

use std::sync::Arc;
use std::time::Duration;

use crate::lab::{Lab, Sample, Shared, Worker, trajectories};
use ::service::{Assembly, Insecure, MESSAGE_LIMIT, PeerRole, Trust, connect, learner_client};
use bytes::Bytes;
use config::{TaskKind, TaskSpec};
use learner::exchange::push_gate::PushGate;
use learner::exchange::server::LearnerService;
use learner::metrics::ExchangeMetrics;
use proto::learner_client::LearnerClient;
use proto::learner_server::LearnerServer;
use proto::push_reply::Status as PushStatus;
use proto::{
    Caller, Chunk, MissingConditioningRequest, PushHeader, PushRequest, WeightsRequest, WeightsRole,
    push_request, weights_reply,
};
use protocol::{TaskSet, WeightsName};
use run_setup::TrainedSteps;
use tokio_stream::StreamExt;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

const RUN_ID: &str = "run-1";

/// A learner's service that wants the tasks of iteration 0, and one of them sampled.
struct Served {
    client: LearnerClient<Channel>,
    shared: Shared,
    pushes: Arc<PushGate>,
    task: TaskSpec,
    sample: Sample,
}

impl Served {
    async fn start() -> Self {
        let lab = Lab::new(|_| {});
        let shared = Shared::default();
        let trainer = lab.trainer(&shared);
        shared.publications.publish(WeightsName::policy(0), trainer.policy.trained()).unwrap();
        let tasks = lab.config.train_tasks(3, 0);
        let task = tasks[1].clone();
        let steps = TrainedSteps::new(&lab.config, &trainer.schedule, 0).unwrap().on_the_wire();
        shared.inbox.want(TaskKind::Train, 0, TaskSet { tasks, steps, outcome_bytes: 0 });
        let mut worker = Worker::new(&lab.config);
        let sample = worker.sample(&task, &shared.publications).unwrap();
        let pushes = Arc::new(PushGate::new(3, 1));
        let service = LearnerService {
            run_id: RUN_ID.to_owned(),
            inbox: shared.inbox.clone(),
            embeddings: shared.embeddings.clone(),
            publications: shared.publications.clone(),
            reader: Arc::new(worker.receiver),
            pushes: pushes.clone(),
            metrics: ExchangeMetrics::default(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = LearnerServer::new(service).max_decoding_message_size(MESSAGE_LIMIT);
        let router = ::service::server(Duration::from_secs(600)).add_service(server);
        tokio::spawn(::service::serve(
            router,
            listener,
            Trust::Plain(Insecure::Loopback),
            std::future::pending(),
        ));
        let client = learner_client(
            connect(&address, PeerRole::Learner, &Trust::Plain(Insecure::Loopback), Duration::from_secs(60))
                .await
                .unwrap(),
        );
        Self { client, shared, pushes, task, sample }
    }

    /// Waits until so many more pushes could be let in.
    async fn wait_for_places(&self, holds: impl Fn(usize) -> bool) {
        let wait = async {
            while !holds(self.pushes.n_free_places()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), wait).await.expect("places change in time");
    }

    async fn send(&mut self, messages: Vec<PushRequest>) -> Result<PushStatus, Status> {
        Ok(self.client.push(tokio_stream::iter(messages)).await?.into_inner().status())
    }

    async fn push(&mut self, change: impl FnOnce(&mut Vec<PushRequest>)) -> Result<PushStatus, Status> {
        let mut messages = messages(self.sample.push(&self.task));
        change(&mut messages);
        self.send(messages).await
    }
}

fn caller() -> Caller {
    Caller { run_id: RUN_ID.to_owned(), member_id: "worker-0".to_owned(), incarnation: 1 }
}

fn messages((header, bytes): (PushHeader, Vec<u8>)) -> Vec<PushRequest> {
    let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
    let header = PushHeader { caller: Some(caller()), ..header };
    std::iter::once(push_request::Part::Header(header))
        .chain(::service::chunks(bytes.into()).map(push_request::Part::Chunk))
        .chain([push_request::Part::Digest(digest)])
        .map(|part| PushRequest { part: Some(part) })
        .collect()
}

fn header(messages: &mut [PushRequest]) -> &mut PushHeader {
    let Some(push_request::Part::Header(header)) = &mut messages[0].part else { panic!("a push begins so") };
    header
}

#[tokio::test]
async fn what_is_pushed_is_what_training_takes() {
    let mut served = Served::start().await;
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
    let task = &served.task;
    let taken = trajectories(served.shared.inbox.take(TaskKind::Train, 0, task.index as usize).unwrap());
    let floats = |name: &str| Vec::<f32>::try_from(&served.sample.tensor(name).flatten(0, -1)).unwrap();
    assert_eq!(taken.states, floats("states"));
    assert_eq!(taken.rewards, floats("rewards"));
    assert_eq!(taken.next_latents.len(), taken.states.len() * 3, "next latents were rebuilt");
    assert_eq!(taken.scores, [("shapes".to_owned(), floats("rewards"))]);
}

#[tokio::test]
async fn a_push_counts_once_and_only_while_it_is_wanted() {
    let mut served = Served::start().await;
    for _ in 0..3 {
        assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
    }
    assert_eq!(served.shared.inbox.wanted()[0].held, [served.task.index]);
    let unwanted = served.push(|messages| header(messages).task.as_mut().unwrap().iteration = 7).await;
    assert_eq!(unwanted.unwrap(), PushStatus::NotWanted);
    served.shared.inbox.forget(TaskKind::Train, 0);
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::NotWanted);
}

#[tokio::test]
async fn damage_on_the_way_asks_for_the_bytes_again() {
    let mut served = Served::start().await;
    let flip = |messages: &mut Vec<PushRequest>| {
        let Some(push_request::Part::Chunk(chunk)) = &mut messages[1].part else { panic!("a chunk is next") };
        let mut data = chunk.data.to_vec();
        data[5] ^= 1;
        chunk.data = data.into();
    };
    let cut = |messages: &mut Vec<PushRequest>| messages.truncate(2);
    let lose = |messages: &mut Vec<PushRequest>| {
        messages.remove(1);
    };
    assert_eq!(served.push(flip).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(served.push(cut).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(served.push(lose).await.unwrap_err().code(), Code::DataLoss);
    assert!(served.shared.inbox.wanted()[0].held.is_empty(), "nothing of it is held");
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
}

#[tokio::test]
async fn a_header_that_does_not_fit_is_refused_by_name() {
    let mut served = Served::start().await;
    let absurd = served.push(|messages| header(messages).tensors[0].shape[0] = i64::MAX).await.unwrap_err();
    assert_eq!(absurd.code(), Code::InvalidArgument);
    assert!(
        absurd.message().contains("training task 1 of iteration 0: tensor `states`"),
        "{}",
        absurd.message()
    );
    let stale = served.push(|messages| header(messages).version = 3).await.unwrap_err();
    assert!(stale.message().contains("version 3"), "{}", stale.message());
    assert_eq!(served.send(vec![]).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_embedding_must_fit_the_model_but_not_its_partner() {
    let mut served = Served::start().await;
    let digest = served.sample.header.conditioning.clone();
    let prefix = format!("conditioning.{}", blake3::Hash::from_slice(&digest).unwrap().to_hex());
    let wide = served.push(|messages| {
        let tensors = &mut header(messages).tensors;
        let text = tensors.iter_mut().find(|info| info.name == format!("{prefix}.text")).unwrap();
        text.shape.swap(1, 2);
    });
    let refusal = wide.await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert!(refusal.message().contains("does not fit the model"), "{}", refusal.message());
    assert!(served.shared.inbox.wanted()[0].held.is_empty(), "nothing of it is held");

    // One token less than the negative prompt has, under its own right digest.
    let part = |sample: &Sample, name: &str| sample.tensor(&format!("{prefix}.{name}"));
    let text = part(&served.sample, "text");
    let text = text.narrow(1, 0, text.size()[1] - 1).contiguous();
    let pooled = Some(part(&served.sample, "pooled"));
    let short = models::Conditioning { text, pooled, text_mask: None };
    served.sample.tensors.retain(|(name, _)| !name.starts_with(&prefix));
    let hex = blake3::Hash::from(short.digest()).to_hex();
    for (name, tensor) in short.tensors() {
        served.sample.tensors.push((format!("conditioning.{hex}.{name}"), tensor.shallow_clone()));
    }
    served.sample.header.conditioning = Bytes::copy_from_slice(&short.digest());
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
}

#[tokio::test]
async fn pushes_wait_for_each_other_before_their_bytes_are_read() {
    let mut served = Served::start().await;
    let pushes = served.pushes.clone();
    let permit = pushes.turn().await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), served.push(|_| {})).await;
    assert!(waiting.is_err(), "it waits");
    assert!(served.shared.inbox.wanted()[0].held.is_empty());
    drop(permit);
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
    assert_eq!(served.pushes.n_free_turns(), 1, "it is given back");
}

/// A push that brings these messages and then stands still.
fn standing_still(client: &LearnerClient<Channel>, messages: Vec<PushRequest>) -> AbortOnDropHandle<()> {
    let mut client = client.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let messages = tokio_stream::iter(messages).chain(tokio_stream::pending());
        let _ = client.push(messages).await;
    }))
}

#[tokio::test]
async fn pushes_that_stand_still_take_nobodys_turn() {
    let mut served = Served::start().await;
    let mut header = messages(served.sample.push(&served.task));
    header.truncate(1);
    let first = standing_still(&served.client, header.clone());
    let _second = standing_still(&served.client, header.clone());
    let _unsaid = standing_still(&served.client, Vec::new());
    served.wait_for_places(|n_free| n_free <= 1).await;
    assert_eq!(served.pushes.n_free_turns(), 1, "none of them has it");
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held, "a push whose bytes flow goes ahead");

    served.shared.inbox.forget(TaskKind::Train, 0);
    let tasks = vec![TaskSpec { index: 0, ..served.task.clone() }, served.task.clone()];
    let steps = served.sample.header.steps.clone();
    served.shared.inbox.want(TaskKind::Train, 0, TaskSet { tasks, steps, outcome_bytes: 0 });
    let _third = standing_still(&served.client, header);
    served.wait_for_places(|n_free| n_free == 0).await;
    let full = served.push(|_| {}).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "what waits is bounded, too: {}", full.message());
    drop(first);
    served.wait_for_places(|n_free| n_free > 0).await;
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held, "who hangs up makes room");
}

#[tokio::test]
async fn a_push_of_nothing_has_an_end() {
    let mut served = Served::start().await;
    let header = messages(served.sample.push(&served.task)).remove(0);
    let chunk = PushRequest { part: Some(push_request::Part::Chunk(proto::Chunk::default())) };
    let endless = tokio_stream::iter(std::iter::once(header).chain(std::iter::repeat(chunk)));
    let refused = served.client.push(endless).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss);
    assert!(refused.message().contains("is empty"), "{}", refused.message());
}

#[tokio::test]
async fn a_refused_push_leaves_nothing_behind() {
    let mut served = Served::start().await;
    let digests =
        vec![served.sample.header.conditioning.clone(), served.sample.header.negative_conditioning.clone()];
    let _ = served.sample.tensor("rewards").get(0).get(1).fill_(f64::NAN);
    assert_eq!(served.push(|_| {}).await.unwrap_err().code(), Code::InvalidArgument);
    let question = MissingConditioningRequest { caller: Some(caller()), digests: digests.clone() };
    let missing = served.client.missing_conditioning(question).await.unwrap().into_inner().missing;
    assert_eq!(missing, digests, "its embeddings were right, but nobody needs them");
    let question =
        MissingConditioningRequest { caller: Some(caller()), digests: vec![digests[0].clone(); 5000] };
    let refused = served.client.missing_conditioning(question).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn numbers_that_are_none_are_refused_and_another_worker_may_try() {
    let mut served = Served::start().await;
    for name in ["states", "means", "log_probs", "rewards", "reward.shapes"] {
        for bad in [f64::NAN, f64::NEG_INFINITY] {
            let tensor = served.sample.tensor(name);
            let original = tensor.copy();
            let _ = tensor.get(0).get(1).fill_(bad);
            let refused = served.push(|_| {}).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{name}");
            let expected = format!("training task 1 of iteration 0: tensor `{name}` holds {bad} at [0, 1, 0");
            assert!(refused.message().starts_with(&expected), "{}", refused.message());
            served.sample.tensor(name).copy_(&original);
        }
    }
    assert!(served.shared.inbox.wanted()[0].held.is_empty(), "nothing of it is held");
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held, "from a worker that computes rightly");
}

#[tokio::test]
async fn embeddings_of_more_tokens_than_the_config_says_are_refused() {
    let mut served = Served::start().await;
    let hex = blake3::Hash::from_slice(&served.sample.header.conditioning).unwrap().to_hex();
    let long = served.push(|messages| {
        let tensors = &mut header(messages).tensors;
        let text = tensors.iter_mut().find(|info| info.name == format!("conditioning.{hex}.text")).unwrap();
        text.shape[1] = 20_000;
    });
    let refusal = long.await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert!(refusal.message().contains("`model.max_sequence_length`"), "{}", refusal.message());
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

#[tokio::test]
async fn refused_pushes_do_not_fill_the_memory() {
    let mut served = Served::start().await;
    let hex = blake3::Hash::from_slice(&served.sample.header.conditioning).unwrap().to_hex();
    let piece = Bytes::from(vec![7; 1 << 20]);
    let mut before = 0;
    for round in 0..31 {
        let pushed = served.push(|messages| {
            let tensors = &mut header(messages).tensors;
            let name = format!("conditioning.{hex}.text");
            let text = tensors.iter_mut().find(|info| info.name == name).unwrap();
            text.shape[1] = 20_000;
            let chunk = |number: u64| Chunk { offset: number << 20, data: piece.clone(), crc32: 0 };
            let chunks = (0..20).map(|number| push_request::Part::Chunk(chunk(number)));
            messages.splice(1..1, chunks.map(|part| PushRequest { part: Some(part) }));
        });
        assert_eq!(pushed.await.unwrap_err().code(), Code::InvalidArgument);
        if round == 0 {
            before = resident_bytes();
        }
    }
    let (before, after) = (before >> 20, resident_bytes() >> 20);
    println!("resident: {before} MiB after one refused push of 20 MiB, {after} MiB after 30 more");
    // Tests beside this one have a part in it. What was pushed is 600 MiB.
    assert!(after < before + 300, "{before} MiB before, {after} MiB after");
}

#[tokio::test]
async fn what_a_refusal_says_is_short_whatever_was_sent() {
    let mut served = Served::start().await;
    let giant = "\u{1b}[2J".repeat(1 << 20);
    let named = served.push(|messages| {
        let info = proto::TensorInfo { name: giant.clone(), ..header(messages).tensors[0].clone() };
        header(messages).tensors.push(info);
    });
    let refusals = [
        named.await.unwrap_err(),
        served.push(|messages| header(messages).steps = vec![u32::MAX; 1 << 20]).await.unwrap_err(),
        served
            .push(|messages| header(messages).tensors[0].shape = vec![i64::MAX; 1 << 19])
            .await
            .unwrap_err(),
        served
            .push(|messages| header(messages).caller.as_mut().unwrap().run_id = giant.clone())
            .await
            .unwrap_err(),
        served.push(|messages| header(messages).conditioning = vec![7; 4 << 20].into()).await.unwrap_err(),
    ];
    for refusal in refusals {
        assert!(
            matches!(refusal.code(), Code::InvalidArgument | Code::FailedPrecondition),
            "{:?} {}",
            refusal.code(),
            refusal.message().len()
        );
        assert!(refusal.message().len() < 6000 && !refusal.message().contains('\u{1b}'));
    }
}

#[tokio::test]
async fn another_run_is_fenced() {
    let mut served = Served::start().await;
    let other = |messages: &mut Vec<PushRequest>| {
        header(messages).caller.as_mut().unwrap().run_id = "run-2".to_owned();
    };
    assert_eq!(served.push(other).await.unwrap_err().code(), Code::FailedPrecondition);
    let request =
        WeightsRequest { caller: None, version: 0, role: WeightsRole::Policy.into(), only_manifest: false };
    assert_eq!(served.client.weights(request).await.err().unwrap().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn next_latents_that_cannot_be_rebuilt_are_asked_for() {
    let mut served = Served::start().await;
    // Another device: its next latents are its own, and so are their hashes.
    let next = {
        let means = served.sample.tensor("means").unsqueeze(2);
        let mut shape = means.size();
        shape[2] = 3;
        means.expand(shape, false) + 0.5
    };
    let floats: Vec<f32> = Vec::try_from(&next.flatten(0, -1)).unwrap();
    let hashes: Vec<u8> = floats.chunks(256).flat_map(learner::exchange::receive::hash_of).collect();
    let mut own_hashes = served.sample.tensor("next_hashes");
    own_hashes.copy_(&tch::Tensor::from_slice(&hashes).view(own_hashes.size().as_slice()));
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::NextLatentsNeeded);
    served.sample.tensors.push(("next_latents".to_owned(), next.contiguous()));
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
    let taken =
        trajectories(served.shared.inbox.take(TaskKind::Train, 0, served.task.index as usize).unwrap());
    assert_eq!(taken.next_latents, floats);
}

#[tokio::test]
async fn an_embedding_crosses_the_wire_once() {
    let mut served = Served::start().await;
    let digests =
        vec![served.sample.header.conditioning.clone(), served.sample.header.negative_conditioning.clone()];
    let question = MissingConditioningRequest { caller: Some(caller()), digests: digests.clone() };
    let missing = served.client.missing_conditioning(question.clone()).await.unwrap().into_inner().missing;
    assert_eq!(missing, digests);
    let without = |sample: &mut Sample| sample.tensors.retain(|(name, _)| !name.starts_with("conditioning."));
    let embeddings: Vec<_> =
        served.sample.tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    without(&mut served.sample);
    assert_eq!(served.push(|_| {}).await.unwrap_err().code(), Code::DataLoss, "it was not sent before");
    served.sample.tensors = embeddings;
    assert_eq!(served.push(|_| {}).await.unwrap(), PushStatus::Held);
    assert!(served.client.missing_conditioning(question).await.unwrap().into_inner().missing.is_empty());
}

#[tokio::test]
async fn weights_arrive_as_their_manifest_says() {
    let mut served = Served::start().await;
    let request = WeightsRequest {
        caller: Some(caller()),
        version: 0,
        role: WeightsRole::Policy.into(),
        only_manifest: false,
    };
    let mut stream = served.client.weights(request).await.unwrap().into_inner();
    let Some(weights_reply::Part::Manifest(manifest)) = stream.message().await.unwrap().unwrap().part else {
        panic!("the manifest comes first")
    };
    let n_bytes = learner::exchange::receive::announced_bytes(&manifest.tensors).unwrap();
    let mut assembly = Assembly::new(n_bytes);
    while let Some(reply) = stream.message().await.unwrap() {
        let Some(weights_reply::Part::Chunk(chunk)) = reply.part else { panic!("chunks follow") };
        assembly.accept(&chunk).unwrap();
    }
    let bytes = assembly.finish(&manifest.digest).unwrap();
    let tensors = models::tensor_bytes::split(&manifest.tensors, &bytes).unwrap();
    assert!(tensors.iter().any(|(name, _)| name.ends_with("attn.to_q.lora_A.weight")));
    let request = WeightsRequest {
        caller: Some(caller()),
        version: 4,
        role: WeightsRole::Policy.into(),
        only_manifest: false,
    };
    assert_eq!(served.client.weights(request).await.err().unwrap().code(), Code::NotFound);
}
