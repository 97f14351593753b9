//! Remote scorers against recorded exchanges, against the example servers as real processes, and over gRPC.

mod example_server;
mod grpc;
mod http_request;
mod recorded;
mod retries;
mod secured;
mod servers;

use std::path::{Path, PathBuf};

use rewards::{PromptRecord, Resources, Reward, RewardError, RgbImage, Score, build};
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn picture(name: &str) -> RgbImage {
    let path = repository().join("tests/golden/jpeg").join(format!("{name}.png"));
    let picture = image::open(path).expect("golden picture").to_rgb8();
    RgbImage::new(picture.width() as usize, picture.height() as usize, picture.into_raw())
        .expect("full buffer")
}

fn pictures() -> Vec<RgbImage> {
    vec![picture("waves_64x48"), picture("noise_17x13")]
}

fn scorer(name: &str, options: &Value) -> Box<dyn Reward + Send> {
    build(name, options, &Resources::local()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The prompts that the exchanges were recorded with, without metadata.
fn prompts() -> Vec<PromptRecord> {
    let record = |prompt: &str| PromptRecord { prompt: prompt.to_owned(), metadata: Value::Null };
    vec![record("a photo of two bears"), record("a sign that says \"café 猫\"")]
}

/// The same with GenEval's rows.
fn geneval_prompts() -> Vec<PromptRecord> {
    let rows = [
        serde_json::json!({
            "tag": "counting", "include": [{"class": "bear", "count": 2}],
            "exclude": [{"class": "bear", "count": 3}], "prompt": prompts()[0].prompt,
        }),
        serde_json::json!({
            "tag": "position", "prompt": prompts()[1].prompt,
            "include": [
                {"class": "laptop", "count": 1}, {"class": "cow", "count": 1, "position": ["right of", 0]}
            ],
        }),
    ];
    let with_row = |(record, metadata)| PromptRecord { metadata, ..record };
    prompts().into_iter().zip(rows).map(with_row).collect()
}

fn values(scores: Result<Vec<Score>, RewardError>) -> Vec<f32> {
    scores.unwrap_or_else(|error| panic!("{error}")).iter().map(|score| score.value).collect()
}

/// What is said of a failure, and whether it may pass.
fn failure(scores: Result<Vec<Score>, RewardError>) -> (String, bool) {
    let error = scores.expect_err("must fail");
    (error.to_string(), error.may_pass())
}
