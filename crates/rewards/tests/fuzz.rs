//! A bounded run of what reads the replies of reward servers, see docs/fuzzing.md.

use fuzzing::{CountingAllocator, INSTRUMENTED_SYSTEM, MemoryBound, Target, is_read};
use rewards::remote::{Exchange, FlowFactoryReward, FlowGrpoReward, GenevalReward, Reply, Sent, VlmJudge};
use rewards::{Resources, Score};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: &CountingAllocator = &INSTRUMENTED_SYSTEM;

/// Images of a batch, as in the recorded replies.
const IMAGES: usize = 2;

const TARGETS: &[Target] = &[Target {
    name: "reward_reply",
    examples: replies,
    check: check_reply,
    memory: MemoryBound { per_byte: 256, fixed: 4 << 20 },
}];

/// Clients of servers that nobody calls.
struct Clients {
    with_prompts: FlowGrpoReward,
    geneval: GenevalReward,
    judge: VlmJudge,
}

thread_local! {
    static CLIENTS: Clients = {
        let (options, resources) = (json!({"url": "http://127.0.0.1:1"}), Resources::local());
        let all_verdicts = json!({"url": "http://127.0.0.1:1", "only_strict": false});
        Clients {
            with_prompts: FlowGrpoReward::with_prompts(&options, &resources).expect("valid options"),
            geneval: GenevalReward::new(&all_verdicts, &resources).expect("valid options"),
            judge: VlmJudge::unified_reward(&options, &resources).expect("valid options"),
        }
    };
}

#[test]
fn no_reply_makes_its_reader_panic_hang_or_take_more_memory_than_its_bound() {
    fuzzing::run(TARGETS, ALLOCATOR, |line| eprintln!("{line}"));
}

/// The first byte chooses the protocol; the last is of the first again.
fn replies() -> Vec<Vec<u8>> {
    let bodies: [&[u8]; 5] = [
        include_bytes!("../../../tests/golden/rewards/deqa.reply"),
        include_bytes!("../../../tests/golden/rewards/geneval.reply"),
        include_bytes!("../../../tests/golden/rewards/flow_factory.reply"),
        include_bytes!("../../../tests/golden/rewards/unifiedreward.reply"),
        include_bytes!("../../../tests/golden/rewards/verl_omni.reply"),
    ];
    bodies.iter().enumerate().map(|(protocol, body)| [&[protocol as u8], *body].concat()).collect()
}

/// A reply is one score for each image, or an error that says something.
fn check_reply(bytes: &[u8]) -> bool {
    let Some((&protocol, body)) = bytes.split_first() else { return false };
    let sent = Sent { url: "http://127.0.0.1:1".to_owned(), content_type: "application/json", n_bytes: 0 };
    let reply = Reply { status: 200, content_type: String::new(), body: body.to_vec() };
    let exchange = Exchange { sent, reply: Some(reply) };
    let scores = CLIENTS.with(|clients| match protocol % 4 {
        0 => clients.with_prompts.read_reply(exchange, IMAGES),
        1 => clients.geneval.read_reply(exchange, IMAGES),
        2 => FlowFactoryReward::read_reply(exchange, IMAGES),
        _ => clients.judge.read_reply(exchange).map(|score| vec![Score::from(score); IMAGES]),
    });
    if let Ok(scores) = &scores {
        assert_eq!(scores.len(), IMAGES, "another number of scores than of images");
    }
    is_read(scores)
}
