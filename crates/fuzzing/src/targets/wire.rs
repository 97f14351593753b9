//! What comes over a connection: messages, what a push announces, and the chunks it consists of.

use bytes::Bytes;
use config::{TaskKind, TaskSpec};
use prost::Message;
use proto::{Chunk, PushHeader, PushRequest, push_request};
use protocol::{PushSchema, Task, TaskName, WeightsName, push_tensors};
use service::Assembly;

/// The most that a stream of the tests announces.
const MOST_ANNOUNCED: usize = 2 << 20;

pub(super) fn messages() -> Vec<Vec<u8>> {
    let prompt =
        proto::Prompt { index: 4, text: "a red cube".to_owned(), metadata: r#"{"count":2}"#.to_owned() };
    let task = proto::Task {
        id: Some(TaskName { iteration: 3, kind: TaskKind::Train, index: 1 }.into()),
        version: 2,
        prompts: vec![prompt],
        prompt_slot: 1,
        first_seed: 8,
        n_seeds: 4,
        learner_rank: 0,
    };
    let chunk = Chunk { offset: 0, crc32: 7, data: Bytes::from_static(b"bytes") };
    let push = |part| PushRequest { part: Some(part) }.encode_to_vec();
    vec![
        task.encode_to_vec(),
        push(push_request::Part::Header(header())),
        push(push_request::Part::Chunk(chunk)),
        push(push_request::Part::Digest(vec![1; 32].into())),
    ]
}

/// The bytes as every message of the wire that carries something; what is read is written and read again as the same bytes.
pub(super) fn check_messages(bytes: &[u8]) -> bool {
    let are_read = [
        check::<proto::JoinRequest>(bytes),
        check::<proto::JoinReply>(bytes),
        check::<proto::HeartbeatRequest>(bytes),
        check::<proto::HeartbeatReply>(bytes),
        check::<proto::NextTaskRequest>(bytes),
        check::<proto::NextTaskReply>(bytes),
        check::<proto::FinishTaskRequest>(bytes),
        check::<proto::SeekWeightsRequest>(bytes),
        check::<proto::SeekWeightsReply>(bytes),
        check::<proto::ReportRequest>(bytes),
        check::<proto::ReportReply>(bytes),
        check::<proto::StatusReply>(bytes),
        check::<proto::MissingConditioningRequest>(bytes),
        check::<proto::MissingConditioningReply>(bytes),
        check::<PushRequest>(bytes),
        check::<proto::PushReply>(bytes),
        check::<proto::WeightsRequest>(bytes),
        check::<proto::WeightsReply>(bytes),
        check::<proto::DescribeReply>(bytes),
        check::<proto::ScoreRequest>(bytes),
        check::<proto::ScoreReply>(bytes),
        check::<proto::EnrolRequest>(bytes),
        check::<proto::EnrolReply>(bytes),
        check::<proto::ScaleRequest>(bytes),
        check::<proto::DownRequest>(bytes),
        check::<proto::LeaveRequest>(bytes),
        check::<proto::StatusRequest>(bytes),
        check::<proto::LogsRequest>(bytes),
        check::<proto::ExportRequest>(bytes),
        check_task(bytes),
    ];
    are_read.contains(&true)
}

fn check<M: Message + Default>(bytes: &[u8]) -> bool {
    let Ok(message) = M::decode(bytes) else { return false };
    let written = message.encode_to_vec();
    let again = M::decode(&written[..]).expect("what was written is read");
    assert_eq!(again.encode_to_vec(), written, "it came back as another one");
    true
}

fn check_task(bytes: &[u8]) -> bool {
    if let Ok(request) = proto::WeightsRequest::decode(bytes) {
        let _ = WeightsName::from_wire(request.version, request.role());
    }
    let task = proto::Task::decode(bytes).ok().and_then(|task| Task::try_from(task).ok());
    let Some(task) = task else { return false };
    let again = Task::try_from(proto::Task::from(task.clone())).expect("what was written is read");
    assert_eq!(again, task, "it came back as another one");
    true
}

fn schema() -> PushSchema {
    PushSchema {
        latent_shape: vec![4, 2, 2],
        embedding_widths: (8, 4),
        most_tokens: 16,
        image_size: (16, 16),
        n_branches: 2,
        training_rewards: vec!["shapes".to_owned()],
        evaluation_rewards: vec!["shapes".to_owned()],
        is_guided: false,
    }
}

fn task_spec(kind: TaskKind) -> TaskSpec {
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

fn tensor(name: &str, shape: &[i64], element_type: proto::ElementType) -> proto::TensorInfo {
    proto::TensorInfo { name: name.to_owned(), shape: shape.to_vec(), element_type: element_type.into() }
}

fn header() -> PushHeader {
    use proto::ElementType::{F32, U8};
    PushHeader {
        task: Some(TaskName { iteration: 3, kind: TaskKind::Train, index: 1 }.into()),
        version: 2,
        tensors: vec![
            tensor(push_tensors::STATES, &[2, 2, 4, 2, 2], F32),
            tensor(push_tensors::MEANS, &[2, 2, 4, 2, 2], F32),
            tensor(push_tensors::LOG_PROBS, &[2, 2, 2], F32),
            tensor(push_tensors::REWARDS, &[2, 2, 2], F32),
            tensor(&push_tensors::score_name("shapes"), &[2, 2, 2], F32),
            tensor(push_tensors::NEXT_HASHES, &[2, 2, 2, 8], U8),
        ],
        steps: vec![0, 1],
        conditioning: vec![1; 32].into(),
        cost: Some(proto::TaskCost { images: 4, ..Default::default() }),
        ..Default::default()
    }
}

pub(super) fn push_headers() -> Vec<Vec<u8>> {
    let images = PushHeader {
        tensors: vec![
            tensor(push_tensors::IMAGES, &[2, 16, 16, 3], proto::ElementType::U8),
            tensor(push_tensors::REWARDS, &[2], proto::ElementType::F32),
            tensor(&push_tensors::score_name("shapes"), &[2], proto::ElementType::F32),
            tensor(&push_tensors::extra_name("shapes", "count"), &[2], proto::ElementType::F32),
        ],
        version: 2,
        ..Default::default()
    };
    vec![header().encode_to_vec(), images.encode_to_vec()]
}

/// A header that is accepted announces no more than the task's outcome and what a push may add to it.
pub(super) fn check_push_header(bytes: &[u8]) -> bool {
    let Ok(header) = PushHeader::decode(bytes) else { return false };
    let mut is_accepted = false;
    for kind in [TaskKind::Train, TaskKind::Evaluate, TaskKind::Test] {
        match schema().check(&header, &task_spec(kind), &[0, 1]) {
            Ok(()) => {
                let sizes = header.tensors.iter().map(|info| info.shape.iter().product::<i64>());
                assert!(sizes.sum::<i64>() < 100_000, "more is announced than the task can hold");
                is_accepted = true;
            }
            Err(fault) => assert!(!fault.to_string().is_empty(), "a fault without a message"),
        }
    }
    is_accepted
}

/// What is announced as four bytes, then chunks as a `PushRequest` each behind its length.
pub(super) fn chunk_streams() -> Vec<Vec<u8>> {
    [10, 5_000].map(stream).to_vec()
}

fn stream(n_bytes: usize) -> Vec<u8> {
    let data: Bytes = (0..n_bytes).map(|position| position as u8).collect();
    let mut stream = (n_bytes as u32).to_le_bytes().to_vec();
    let half = data.len() / 2;
    for (offset, data) in [(0, data.slice(..half)), (half, data.slice(half..))] {
        let crc32 = service::chunks(data.clone()).next().map_or(0, |chunk| chunk.crc32);
        let chunk = Chunk { offset: offset as u64, crc32, data };
        stream.extend(chunk.encode_length_delimited_to_vec());
    }
    stream
}

/// An assembly never holds more than was announced, and never ends well under a digest that is not that of its bytes.
pub(super) fn check_chunks(bytes: &[u8]) -> bool {
    let Some((announced, mut rest)) = bytes.split_first_chunk::<4>() else { return false };
    let announced = u32::from_le_bytes(*announced) as usize % MOST_ANNOUNCED;
    let mut assembly = Assembly::new(announced);
    let mut n_accepted = 0;
    while !rest.is_empty() {
        let Ok(chunk) = Chunk::decode_length_delimited(&mut rest) else { break };
        if assembly.accept(&chunk).is_ok() {
            n_accepted += chunk.data.len();
        }
    }
    assert!(n_accepted <= announced, "{n_accepted} bytes were accepted where {announced} were announced");
    assert!(assembly.finish(&[0; 32]).is_err(), "a digest that nothing has was accepted");
    n_accepted == announced
}
