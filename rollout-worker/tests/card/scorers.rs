//! Every scorer that has a network.

use std::path::{Path, PathBuf};

use rewards::{PromptRecord, Resources, RgbImage, build};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::{Found, assert_same};

/// Those that compute on no device: by arithmetic, in a program, or in another process.
const WITHOUT_NETWORK: [&str; 11] = [
    "shapes",
    "jpeg_compressibility",
    "jpeg_incompressibility",
    "ocr",
    "flow_grpo_server",
    "geneval",
    "deqa",
    "flow_factory",
    "unifiedreward",
    "vlm_judge",
    "grpc",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// Where a scorer's small model lies.
fn model_of(name: &str) -> Value {
    let (clip, hpsv3) = (golden("clip_rewards/clip"), golden("hpsv3-published"));
    match name {
        "pickscore" => json!({"model": golden("pickscore")}),
        "clipscore" => json!({"model": clip}),
        "aesthetic" => json!({"model": clip, "predictor": golden("clip_rewards/predictor")}),
        "hpsv2.1" => json!({"model": golden("clip_rewards/hpsv2.1"), "processor": clip}),
        "hpsv3" => json!({"model": hpsv3.join("model"), "processor": hpsv3.join("processor")}),
        other => panic!("{other} is not known here; say where its model lies, or that it has none"),
    }
}

fn image(path: &Path) -> RgbImage {
    let image = image::open(path).expect("a golden image").to_rgb8();
    RgbImage::new(image.width() as usize, image.height() as usize, image.into_raw()).expect("whole")
}

/// Images of unequal sizes with their prompts.
fn inputs() -> (Vec<RgbImage>, Vec<PromptRecord>) {
    let images = (0..4).map(|idx| image(&golden("hpsv3-published").join(format!("{idx}.png"))));
    let prompts = ["a red circle", "a blue square left of a green triangle", "nothing", "a red circle"];
    let record = |prompt: &str| PromptRecord { prompt: prompt.to_owned(), metadata: Value::Null };
    (images.collect(), prompts.map(record).to_vec())
}

fn scores(name: &str, dtype: &str, device: Device) -> Found {
    let mut options = model_of(name);
    options["dtype"] = json!(dtype);
    options["batch_size"] = json!(3);
    let reward = build(name, &options, &Resources { device, ..Resources::local() });
    let reward = reward.unwrap_or_else(|error| panic!("{error}"));
    let (images, prompts) = inputs();
    let scores = reward.score(&images, &prompts).unwrap_or_else(|error| panic!("{error}"));
    let values: Vec<f32> = scores.iter().map(|score| score.value).collect();
    vec![(format!("{name} in {dtype}"), Tensor::from_slice(&values))]
}

#[test]
fn scorers_compute_on_the_card() {
    tests::on_stand_in_card("scorers::scorers_compute_on_the_card", || {
        for name in rewards::names().into_iter().filter(|name| !WITHOUT_NETWORK.contains(name)) {
            for dtype in ["float32", "bfloat16"] {
                assert_same(|device| scores(name, dtype, device));
            }
        }
    });
}
