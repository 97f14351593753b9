//! Bounded runs of what the learner makes of bytes: bodies of pushes and checkpoints, see docs/fuzzing.md. What libtorch
//! holds is not counted.

use config::{TaskKind, TaskSpec};
use fuzzing::{CountingAllocator, INSTRUMENTED_SYSTEM, MemoryBound, Target, is_read, parts};
use learner::exchange::embeddings::Embeddings;
use learner::exchange::receive::{OutcomeReader, announced_bytes, hash_of};
use learner::run::checkpoint::Checkpoints;
use models::{Conditioning, tensor_bytes};
use prost::Message;
use proto::{ElementType, PushHeader, TensorInfo};
use protocol::{PushSchema, push_tensors};
use tch::{Device, Kind, Tensor};

#[global_allocator]
static ALLOCATOR: &CountingAllocator = &INSTRUMENTED_SYSTEM;

const STEPS: [u32; 2] = [0, 1];
const STATE: &[u8] = br#"{"version": 3, "updates": 12}"#;

const TARGETS: &[Target] = &[
    Target {
        name: "push_body",
        examples: pushes,
        check: check_push,
        memory: MemoryBound { per_byte: 64, fixed: 4 << 20 },
    },
    Target {
        name: "checkpoint",
        examples: checkpoints,
        check: check_checkpoint,
        memory: MemoryBound { per_byte: 256, fixed: 4 << 20 },
    },
];

#[test]
fn no_push_or_checkpoint_makes_its_reader_panic_hang_or_take_more_memory_than_its_bound() {
    fuzzing::run(TARGETS, ALLOCATOR, |line| eprintln!("{line}"));
}

fn reader() -> OutcomeReader {
    let schema = PushSchema {
        latent_shape: vec![4, 2, 2],
        embedding_widths: (8, 4),
        most_tokens: 16,
        image_size: (16, 16),
        n_branches: 2,
        training_rewards: vec!["shapes".to_owned()],
        evaluation_rewards: vec!["shapes".to_owned()],
        is_guided: false,
    };
    OutcomeReader { schema, run_seed: 7, stds: vec![0.5; STEPS.len()] }
}

fn task(kind: TaskKind) -> TaskSpec {
    TaskSpec {
        kind,
        iteration: 3,
        index: 1,
        version: 2,
        prompts: vec![4],
        prompt_slot: 1,
        first_seed: 0,
        n_seeds: 2,
    }
}

/// A tensor of small numbers, as it is announced and sent.
fn floats(name: &str, shape: &[i64]) -> (TensorInfo, Vec<u8>) {
    let n_elements = shape.iter().product::<i64>();
    let bytes = (0..n_elements).flat_map(|position| (position as f32 / 8.0).to_le_bytes()).collect();
    (info(name, shape, ElementType::F32), bytes)
}

fn info(name: &str, shape: &[i64], element_type: ElementType) -> TensorInfo {
    TensorInfo { name: name.to_owned(), shape: shape.to_vec(), element_type: element_type.into() }
}

fn push(header: PushHeader, tensors: Vec<(TensorInfo, Vec<u8>)>) -> Vec<u8> {
    let (infos, bytes): (Vec<TensorInfo>, Vec<Vec<u8>>) = tensors.into_iter().unzip();
    let header = PushHeader { version: 2, tensors: infos, ..header };
    [header.encode_length_delimited_to_vec(), bytes.concat()].concat()
}

/// A header behind its length, then the bytes that it announces: of training, with an embedding, and of images.
fn pushes() -> Vec<Vec<u8>> {
    let numbers = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let embedding =
        Conditioning { text: numbers(&[1, 3, 8]), pooled: Some(numbers(&[1, 4])), text_mask: None };
    let digest = embedding.digest();
    let next_latents = floats(push_tensors::NEXT_LATENTS, &[2, 2, 2, 4, 2, 2]);
    let latents: Vec<f32> = (0..128).map(|position| position as f32 / 8.0).collect();
    let hashes = latents.chunks_exact(16).flat_map(hash_of).collect();
    let mut training = vec![
        floats(push_tensors::STATES, &[2, 2, 4, 2, 2]),
        floats(push_tensors::MEANS, &[2, 2, 4, 2, 2]),
        floats(push_tensors::LOG_PROBS, &[2, 2, 2]),
        floats(push_tensors::REWARDS, &[2, 2, 2]),
        floats(&push_tensors::score_name("shapes"), &[2, 2, 2]),
        (info(push_tensors::NEXT_HASHES, &[2, 2, 2, 8], ElementType::U8), hashes),
        next_latents,
    ];
    training.extend(embedding.tensors().into_iter().map(|(part, tensor)| {
        let name = push_tensors::embedding_part_name(&digest, part);
        let announced = tensor_bytes::tensor_info(name, tensor).expect("the wire has floats");
        (announced, tensor_bytes::to_bytes(tensor))
    }));
    let header =
        PushHeader { steps: STEPS.to_vec(), conditioning: digest.to_vec().into(), ..Default::default() };
    let images = vec![
        (info(push_tensors::IMAGES, &[2, 16, 16, 3], ElementType::U8), vec![7; 2 * 16 * 16 * 3]),
        floats(push_tensors::REWARDS, &[2]),
        floats(&push_tensors::score_name("shapes"), &[2]),
        floats(&push_tensors::extra_name("shapes", "count"), &[2]),
    ];
    vec![push(header, training), push(PushHeader::default(), images)]
}

/// What a checked header announces is turned into an outcome, or refused with a reason.
fn check_push(bytes: &[u8]) -> bool {
    let mut body = bytes;
    let Ok(header) = PushHeader::decode_length_delimited(&mut body) else { return false };
    let reader = reader();
    let is_taken = |kind| {
        let task = task(kind);
        if reader.schema.check(&header, &task, &STEPS).is_err() {
            return false;
        }
        let announced = announced_bytes(&header.tensors).expect("a header that was checked has a size");
        let Some(body) = body.get(..announced) else { return false };
        is_read(reader.outcome(&header, body, &task, &Embeddings::default()))
    };
    [TaskKind::Train, TaskKind::Evaluate].map(is_taken).contains(&true)
}

/// The manifest, then the file that it tells of.
fn checkpoints() -> Vec<Vec<u8>> {
    let manifest = serde_json::json!({
        "files": { "state.json": { "bytes": STATE.len(), "blake3": blake3::hash(STATE).to_hex().as_str() } }
    });
    vec![[manifest.to_string().as_bytes(), STATE].join(&0xff)]
}

/// A checkpoint that is trusted has the file that its manifest tells of.
fn check_checkpoint(bytes: &[u8]) -> bool {
    let [manifest, state] = parts(bytes);
    let home = tempfile::tempdir().expect("a folder");
    let checkpoints = Checkpoints::of_run(home.path());
    std::fs::create_dir(checkpoints.path(3)).expect("made");
    std::fs::write(checkpoints.path(3).join("manifest.json"), manifest).expect("written");
    std::fs::write(checkpoints.path(3).join("state.json"), state).expect("written");
    let newest = checkpoints.newest_intact();
    let is_intact = newest.as_ref().is_ok_and(|newest| newest.checkpoint.is_some());
    assert_eq!(is_intact, is_read(checkpoints.check(3)), "the newest is not the one that is intact");
    match checkpoints.digest(3, "state.json") {
        Ok(digest) if is_intact => {
            assert_eq!(digest, blake3::hash(state).to_hex().to_string(), "another file is trusted");
        }
        digest => {
            is_read(digest);
        }
    }
    is_intact
}
