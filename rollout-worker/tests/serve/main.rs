//! A whole worker between a coordinator and a learner that misbehave, with a small real model.

mod fakes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::RunConfig;
use fakes::{Arrived, FakeCoordinator, FakeLearner, Reaction, Server};
use flow::{NoiseGrid, Schedule, SchedulerConfig, TransitionCoefficients};
use models::lora::LoraConfig;
use models::weights::WeightOptions;
use models::{LoadOptions, tensor_bytes};
use proto::push_reply::Status as PushStatus;
use proto::{Blame, FinishTaskRequest, Prompt, Task, TaskId, TaskKind, WeightsManifest, WeightsRole};
use protocol::WeightsName;
use rollout_worker::bad_input::BadInput;
use rollout_worker::serve::{self, ServeOptions};
use service::Hub;
use service::weights::WeightsCopy;
use tch::{Device, Kind, Tensor};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for a loaded machine; nothing waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(120);

type Change = fn(&mut RunConfig);

/// A worker and its surroundings.
struct World {
    coordinator: FakeCoordinator,
    learner: FakeLearner,
    _coordinator_server: Server,
    learner_server: Option<Server>,
    shutdown: CancellationToken,
    worker: JoinHandle<anyhow::Result<()>>,
}

impl World {
    /// Starts a worker; what `change` makes of the config and `tasks` of the queue is there from the beginning.
    fn start(
        change: impl FnOnce(&mut RunConfig),
        prepare: impl FnOnce(&FakeLearner),
        tasks: Vec<Task>,
    ) -> Self {
        let mut config = run_config();
        change(&mut config);
        let (coordinator, learner) = (FakeCoordinator::default(), FakeLearner::default());
        for version in 0..3 {
            publish(&learner, version, WeightsRole::Policy, f64::from(version) * 0.05);
            publish(&learner, version, WeightsRole::Average, f64::from(version) * 0.02);
        }
        prepare(&learner);
        let learner_server = learner.serve();
        coordinator.state().config = config.to_toml();
        coordinator.state().queue = tasks.into();
        coordinator.state().learner_address = learner_server.address.to_string();
        let coordinator_server = coordinator.serve();
        let options = ServeOptions {
            coordinator: format!("http://{}", coordinator_server.address),
            credentials: service::Security::PlainText(service::Insecure::Loopback),
            member_id: "worker-0".to_owned(),
            device: None,
            listen: None,
            advertise: String::new(),
            metrics_listen: None,
            grace: PATIENCE,
            notice: None,
            log: service::RecentLog::default(),
            hub: Hub::at("/nowhere"),
        };
        let shutdown = CancellationToken::new();
        let worker = tokio::spawn(serve::run(options, shutdown.clone()));
        let learner_server = Some(learner_server);
        Self {
            coordinator,
            learner,
            _coordinator_server: coordinator_server,
            learner_server,
            shutdown,
            worker,
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                assert!(!self.worker.is_finished(), "the worker left before this: {what}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("still waiting for this: {what}"));
    }

    /// Waits for the ends of `n` tasks, tells the worker to leave, and returns how the tasks ended and what arrived.
    async fn finish(self, n: usize) -> (Vec<FinishTaskRequest>, Vec<Arrived>) {
        self.until("all tasks have ended", |world| world.coordinator.state().finished.len() >= n).await;
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.worker).await.expect("leaves in time").unwrap().unwrap();
        assert_eq!(self.coordinator.state().n_left, 1);
        let ends = std::mem::take(&mut self.coordinator.state().finished);
        let arrived = std::mem::take(&mut self.learner.state().arrived);
        (ends, arrived)
    }
}

fn golden() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/sd3"))
}

fn run_config() -> RunConfig {
    let mut config = config::preset("tempflow-tiny-cpu").unwrap().config;
    config.model.path = golden();
    config.model.max_sequence_length = 16;
    config.adapter.rank = 2;
    let sampling = &mut config.sampling;
    (sampling.steps, sampling.height, sampling.width) = (4, 16, 16);
    (sampling.guidance_scale, sampling.branches_per_seed, sampling.max_rows) = (2.0, 2, 8);
    (sampling.seeds_per_prompt, sampling.seeds_per_task) = (2, 2);
    config.evaluation.steps = 3;
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config
}

/// An adapter whose second factors are all `value`.
fn publish(learner: &FakeLearner, version: u32, role: WeightsRole, value: f64) {
    let options = LoadOptions {
        weights: WeightOptions::new(Kind::Float, Device::Cpu),
        text_encoders: false,
        decoder: None,
    };
    let mut model = models::pipeline::open(&golden(), options).unwrap();
    let targets = run_config().adapter.targets;
    let adapter = LoraConfig { rank: 2, alpha: 4.0, targets: targets.into() };
    model
        .network_mut()
        .attach_adapter(&adapter, &mut |_, length| (0..length).map(|i| (i % 7) as f32 - 3.0).collect())
        .unwrap();
    let (mut infos, mut bytes) = (Vec::new(), Vec::new());
    for (name, tensor) in model.network().adapter_parameters() {
        let tensor = if name.contains("lora_B") { tensor.full_like(value) } else { tensor };
        infos.push(tensor_bytes::tensor_info(name, &tensor).unwrap());
        bytes.extend(tensor_bytes::to_bytes(&tensor.detach()));
    }
    let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
    let manifest = WeightsManifest { version, role: role.into(), tensors: infos, digest };
    learner.state().weights.insert((version, role.into()), (manifest, bytes.into()));
}

fn prompt(index: u32) -> Prompt {
    Prompt { index, text: format!("a photo of {index} cats"), metadata: "{}".to_owned() }
}

fn train(index: u32, version: u32) -> Task {
    Task {
        id: Some(TaskId { kind: TaskKind::Train.into(), iteration: 3, index }),
        version,
        prompts: vec![prompt(5)],
        prompt_slot: 1,
        first_seed: 2 * index,
        n_seeds: 2,
        learner_rank: 0,
    }
}

fn evaluate(version: u32) -> Task {
    Task {
        id: Some(TaskId { kind: TaskKind::Evaluate.into(), iteration: version, index: 0 }),
        version,
        prompts: (0..3).map(prompt).collect(),
        prompt_slot: 0,
        first_seed: 0,
        n_seeds: 2,
        learner_rank: 0,
    }
}

fn tensors(arrived: &Arrived) -> BTreeMap<String, Tensor> {
    tensor_bytes::split(&arrived.header.tensors, &arrived.bytes).unwrap().into_iter().collect()
}

fn names(arrived: &Arrived) -> Vec<&str> {
    arrived.header.tensors.iter().map(|info| info.name.as_str()).collect()
}

fn all_held(ends: &[FinishTaskRequest]) -> bool {
    ends.iter().all(|end| end.failure.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_run_twice_gives_the_same_bytes_whatever_ran_in_between() {
    let tasks = vec![train(0, 1), train(1, 1), evaluate(2), train(0, 1)];
    let (ends, arrived) = World::start(|_| (), |_| (), tasks.clone()).finish(4).await;
    assert!(all_held(&ends));
    assert_eq!(
        ends.iter().map(|end| end.task).collect::<Vec<_>>(),
        tasks.iter().map(|task| task.id).collect::<Vec<_>>()
    );
    // The embeddings travelled with the first push alone.
    let embeddings =
        arrived.iter().map(|push| names(push).iter().filter(|name| name.starts_with("cond")).count());
    assert_eq!(embeddings.collect::<Vec<_>>(), [4, 0, 0, 0]);
    let (first, again) = (tensors(&arrived[0]), tensors(&arrived[3]));
    assert_eq!(again.len(), 6);
    assert!(again.iter().all(|(name, tensor)| *tensor == first[name]));
    assert_ne!(tensors(&arrived[1])["states"], first["states"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_push_holds_what_the_learner_rebuilds_it_from() {
    let (_, arrived) = World::start(|_| (), |_| (), vec![train(1, 1)]).finish(1).await;
    let (header, tensors) = (&arrived[0].header, tensors(&arrived[0]));
    assert_eq!((header.version, header.steps.as_slice()), (1, &[0, 1, 2][..]));
    let cost = header.cost.unwrap();
    assert_eq!((cost.network_evaluations, cost.images), (2 * 15, 12));
    assert_eq!(tensors["states"].size(), [2, 3, 16, 4, 4]);
    assert_eq!(tensors["next_hashes"].size(), [2, 3, 2, 8]);
    for name in ["log_probs", "rewards", "reward.jpeg_compressibility"] {
        assert_eq!(tensors[name].size(), [2, 3, 2], "{name}");
    }
    let scheduler = SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() };
    let schedule = Schedule::new(&scheduler, NoiseGrid::Scheduler, 4, 0).unwrap();
    let key = run_setup::training_key(run_config().run.seed, 3, 1, 3);
    let initial = Tensor::from_slice(&noise::standard_normal(&key, 256)).view([16, 4, 4]);
    assert_eq!(tensors["states"].get(1).get(0), initial, "seed 3 is the second of its task");
    for (step, branch) in [(0, 0), (1, 1), (2, 0)] {
        let move_ = TransitionCoefficients::new(config::StepRule::FlowSde, &schedule, step, 0.7).unwrap();
        let mean: Vec<f32> = Vec::try_from(tensors["means"].get(1).get(step as i64).flatten(0, -1)).unwrap();
        let noise = noise::standard_normal(&key.transition(step as u32, branch), 256);
        let next = flow::next_latents_on_host(&mean, move_.std as f32, &noise);
        let bytes: Vec<u8> = next.iter().flat_map(|value| value.to_le_bytes()).collect();
        let hash = tensors["next_hashes"].get(1).get(step as i64).get(i64::from(branch));
        assert_eq!(Vec::<u8>::try_from(hash).unwrap(), blake3::hash(&bytes).as_bytes()[..8]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_push_holds_the_images_prompt_by_prompt() {
    let (_, arrived) = World::start(|_| (), |_| (), vec![evaluate(0), evaluate(2)]).finish(2).await;
    assert_eq!(names(&arrived[0]), ["images", "rewards", "reward.jpeg_compressibility"]);
    let (base, tuned) = (tensors(&arrived[0]), tensors(&arrived[1]));
    assert_eq!(base["images"].size(), [6, 16, 16, 3]);
    assert_eq!(base["rewards"].size(), [6]);
    assert_eq!(arrived[0].header.cost.unwrap().network_evaluations, 18);
    assert_ne!(base["images"], tuned["images"], "the averaged weights have an effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn held_out_images_have_a_guidance_of_their_own() {
    let mut outcomes = Vec::new();
    for (training, held_out) in [(2.0, 1.0), (2.0, 2.0), (1.0, 2.0)] {
        let guided = move |config: &mut RunConfig| {
            config.sampling.guidance_scale = training;
            config.evaluation.guidance_scale = held_out;
        };
        let (ends, arrived) = World::start(guided, |_| (), vec![train(0, 0), evaluate(0)]).finish(2).await;
        assert!(all_held(&ends), "{ends:?}");
        let [sampled, evaluated] = [0, 1].map(|push| tensors(&arrived[push]));
        outcomes.push((sampled["means"].shallow_clone(), evaluated["images"].shallow_clone()));
    }
    let [unguided, both, untrained] = outcomes.as_slice() else { panic!("three runs") };
    assert_eq!(unguided.0, both.0, "training does not feel the guidance of evaluations");
    assert_eq!(both.1, untrained.1, "nor they that of training");
    assert_ne!(unguided.1, both.1);
    assert_ne!(both.0, untrained.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reward_of_a_flow_grpo_path_stands_for_all_its_steps() {
    let flow_grpo = |config: &mut RunConfig| {
        config.sampling.algorithm = config::Algorithm::FlowGrpo;
        config.sampling.branches_per_seed = 1;
        config.training.advantage_group = config::AdvantageGroup::Prompt;
    };
    let (ends, arrived) = World::start(flow_grpo, |_| (), vec![train(0, 0)]).finish(1).await;
    assert!(all_held(&ends), "{ends:?}");
    let tensors = tensors(&arrived[0]);
    let rewards = &tensors["rewards"];
    assert_eq!(rewards.size(), [2, 3, 1]);
    assert_eq!(*rewards, rewards.narrow(1, 0, 1).expand([2, 3, 1], false));
    assert_eq!(arrived[0].header.cost.unwrap().images, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn next_latents_travel_when_they_are_asked_for() {
    let ask = |learner: &FakeLearner| {
        learner.state().reactions.push_back(Reaction::Reply(PushStatus::NextLatentsNeeded));
    };
    let (ends, arrived) = World::start(|_| (), ask, vec![train(0, 1)]).finish(1).await;
    assert!(all_held(&ends));
    assert!(!names(&arrived[0]).contains(&"next_latents"));
    let tensors = tensors(&arrived[1]);
    assert_eq!(tensors["next_latents"].size(), [2, 3, 2, 16, 4, 4]);
    let first = tensor_bytes::to_bytes(&tensors["next_latents"].get(0).get(0).get(0));
    let hash = Vec::<u8>::try_from(tensors["next_hashes"].get(0).get(0).get(0)).unwrap();
    assert_eq!(hash, blake3::hash(&first).as_bytes()[..8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_weights_are_asked_for_again_and_versions_are_kept() {
    let damage = |learner: &FakeLearner| learner.state().n_to_damage = 2;
    let tasks = vec![train(0, 1), evaluate(1), train(1, 0), train(2, 1)];
    let world = World::start(|_| (), damage, tasks);
    let learner = world.learner.clone();
    let (ends, arrived) = world.finish(4).await;
    assert!(all_held(&ends));
    let policy = (1, WeightsRole::Policy);
    let expected = [policy, policy, policy, (1, WeightsRole::Average), (0, WeightsRole::Policy)];
    assert_eq!(learner.state().asked_for, expected);
    let (_, undisturbed) = World::start(|_| (), |_| (), vec![train(2, 1)]).finish(1).await;
    assert_eq!(tensors(&arrived[3])["means"], tensors(&undisturbed[0])["means"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_task_is_sampled_while_the_last_is_being_finished_but_no_third() {
    let word = Arc::new(Notify::new());
    let hold = |learner: &FakeLearner| {
        learner.state().reactions.push_back(Reaction::HoldAfter(word.clone()));
    };
    let tasks = vec![train(0, 1), train(1, 1), train(2, 1)];
    let ids: Vec<TaskId> = tasks.iter().filter_map(|task| task.id).collect();
    let world = World::start(|_| (), hold, tasks);
    let has_two = |world: &World| world.coordinator.state().leased.len() == 2;
    world.until("a second task is granted while the first is pushed", has_two).await;
    assert!(world.coordinator.state().finished.is_empty());
    word.notify_one();
    let coordinator = world.coordinator.clone();
    let (ends, arrived) = world.finish(3).await;
    assert!(all_held(&ends));
    assert_eq!(arrived.iter().filter_map(|push| push.header.task).collect::<Vec<_>>(), ids);
    let finishing = &coordinator.state().finishing;
    assert_eq!(finishing[1], ids[..1]);
    assert!(finishing.iter().all(|tasks| tasks.len() <= 1), "{finishing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_drain_a_worker_finishes_both_tasks_it_has() {
    let word = Arc::new(Notify::new());
    let hold = |learner: &FakeLearner| {
        learner.state().reactions.push_back(Reaction::HoldAfter(word.clone()));
    };
    let world = World::start(|_| (), hold, vec![train(0, 1), train(1, 2), train(2, 1)]);
    // It is sampled as soon as its weights are here, and what is sampled is finished.
    let has_second = |world: &World| {
        let weights = world.coordinator.state().weights.clone().unwrap_or_default();
        weights.held.contains(&WeightsName::policy(2).into())
    };
    world.until("the second is begun", has_second).await;
    world.coordinator.state().drain = true;
    word.notify_one();
    tokio::time::timeout(PATIENCE, world.worker).await.expect("leaves in time").unwrap().unwrap();
    let state = world.coordinator.state();
    assert!(all_held(&state.finished));
    assert_eq!((state.finished.len(), state.queue.len(), state.n_left), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_lost_on_the_way_again_and_again_gives_the_task_back() {
    for (code, n_lost) in [(tonic::Code::DataLoss, 5), (tonic::Code::Internal, 5), (tonic::Code::DataLoss, 4)]
    {
        let lose = |learner: &FakeLearner| {
            learner.state().reactions.extend((0..n_lost).map(|_| Reaction::Fail(code)));
        };
        let (ends, arrived) = World::start(|_| (), lose, vec![train(0, 1)]).finish(1).await;
        let failure = &ends[0].failure;
        match n_lost {
            5 => {
                assert!(failure.contains("lost on the way to the learner 5 times, last: as the test wishes"))
            }
            _ => assert!(failure.is_empty() && arrived.len() == 1, "{failure}"),
        }
        assert!(ends[0].blame() != Blame::Task, "another worker may have more luck");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_arrive_damaged_again_and_again_give_the_task_back() {
    let damage = |learner: &FakeLearner| learner.state().n_to_damage = 10;
    let (ends, _) = World::start(|_| (), damage, vec![train(0, 1)]).finish(1).await;
    assert!(
        ends[0].blame() == Blame::Worker && ends[0].failure.contains("damaged 10 times"),
        "{:?}",
        ends[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_dies_during_a_push_is_found_again() {
    let hang = |learner: &FakeLearner| {
        learner.state().reactions.extend([Reaction::Fail(tonic::Code::DataLoss), Reaction::Hang]);
    };
    let mut world = World::start(|_| (), hang, vec![train(0, 1)]);
    world.until("the learner hangs", |world| world.learner.state().reactions.is_empty()).await;
    world.learner_server = None;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let restarted = world.learner.serve();
    world.coordinator.state().learner_address = restarted.address.to_string();
    world.learner_server = Some(restarted);
    let (ends, arrived) = world.finish(1).await;
    assert!(all_held(&ends));
    assert_eq!(arrived.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_nobody_wants_is_dropped() {
    let refuse = |learner: &FakeLearner| {
        learner.state().reactions.push_back(Reaction::Reply(PushStatus::NotWanted));
        learner.state().reactions.push_back(Reaction::Fail(tonic::Code::InvalidArgument));
    };
    let (ends, _) = World::start(|_| (), refuse, vec![train(0, 1), train(1, 1)]).finish(2).await;
    assert!(ends[0].failure.is_empty());
    assert!(
        ends[1].blame() == Blame::Task && ends[1].failure.contains("as the test wishes"),
        "{:?}",
        ends[1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_gone_astray_is_told_with_prompt_seed_and_step() {
    let spoil = |learner: &FakeLearner| publish(learner, 1, WeightsRole::Policy, f64::NAN);
    let (ends, arrived) = World::start(|_| (), spoil, vec![train(0, 1), train(1, 0)]).finish(2).await;
    assert!(ends[0].blame() == Blame::Task);
    let expected = "prompt `a photo of 5 cats`, seed 0: velocity is not finite at step 0, on the trunk";
    assert_eq!(ends[0].failure, expected);
    assert!(ends[1].failure.is_empty(), "the next version works");
    assert_eq!(arrived.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_scored_fails_its_task() {
    let shapes = |config: &mut RunConfig| config.rewards[0].name = "shapes".to_owned();
    let (ends, arrived) = World::start(shapes, |_| (), vec![train(0, 1)]).finish(1).await;
    assert!(ends[0].blame() == Blame::Task && ends[0].failure.contains("a photo of 5 cats"), "{:?}", ends[0]);
    assert!(arrived.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_are_not_offered_give_the_task_back() {
    let (ends, _) = World::start(|_| (), |_| (), vec![train(0, 9)]).finish(1).await;
    assert!(ends[0].blame() == Blame::Worker && ends[0].failure.contains("version 9"), "{:?}", ends[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_drain_a_worker_finishes_its_tasks_and_leaves() {
    let world = World::start(|_| (), |_| (), vec![train(0, 1), train(1, 1), train(2, 1), train(3, 1)]);
    world.until("the first task runs", |world| !world.coordinator.state().leased.is_empty()).await;
    world.coordinator.state().drain = true;
    tokio::time::timeout(PATIENCE, world.worker).await.expect("leaves in time").unwrap().unwrap();
    let state = world.coordinator.state();
    assert_eq!(state.n_left, 1);
    assert!(all_held(&state.finished));
    assert_eq!(state.finished.len(), world.learner.state().arrived.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_sampled_is_bad_input() {
    let no_model: Change = |config| config.model.path = "/nowhere".into();
    let odd_size: Change = |config| config.sampling.height = 20;
    let no_reward: Change = |config| config.rewards[0].name = "shape".to_owned();
    let changes =
        [("model_index.json", no_model), ("multiples of 8", odd_size), ("did you mean `shapes`", no_reward)];
    for (words, change) in changes {
        let world = World::start(change, |_| (), vec![]);
        let error = tokio::time::timeout(PATIENCE, world.worker).await.unwrap().unwrap().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains(words), "{error:#}");
        assert_eq!(world.coordinator.state().n_left, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_come_from_another_worker_and_one_that_sends_false_ones_is_passed_over() {
    let world = World::start(|_| (), |_| (), Vec::new());
    let name = WeightsName::policy(1);
    let (manifest, bytes) = world.learner.state().weights[&(1, WeightsRole::Policy.into())].clone();
    let honest = WeightsCopy { name, manifest, bytes };
    let flipped = honest.bytes.iter().map(|byte| byte ^ 1).collect();
    let (liar, _lying) = fakes::serve_weights("liar", WeightsCopy { bytes: flipped, ..honest.clone() }).await;
    let (friend, _serving) = fakes::serve_weights("friend", honest).await;
    world.coordinator.state().sources = [liar, friend].into();
    world.coordinator.state().queue.push_back(train(0, 1));
    world.until("the task has ended", |world| !world.coordinator.state().finished.is_empty()).await;
    let has_told = |world: &World| world.coordinator.state().weights.clone().unwrap_or_default();
    world.until("it can send them on", |world| has_told(world).held == [name.into()]).await;
    assert!(has_told(&world).address.starts_with("127.0.0.1:"));
    let failed = world.coordinator.state().failed_sources.clone();
    assert_eq!(failed.iter().map(|failed| &*failed.member_id).collect::<Vec<_>>(), ["liar"]);
    assert!(failed[0].reason.contains("another digest"), "{}", failed[0].reason);
    assert_eq!(world.learner.state().asked_for, [], "the learner sent the manifest alone");
    assert!(all_held(&world.finish(1).await.0));
}
