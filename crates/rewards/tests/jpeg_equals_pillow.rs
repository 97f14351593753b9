//! The JPEG scorers' files are byte for byte what Pillow wrote (`tests/golden/jpeg/make_jpeg.py`).

use std::path::{Path, PathBuf};

use rewards::{PromptRecord, Resources, RgbImage, build, jpeg_bytes};
use serde_json::Value;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/jpeg").join(file)
}

fn read_png(name: &str) -> RgbImage {
    let picture = image::open(golden(&format!("{name}.png"))).expect("golden picture").to_rgb8();
    RgbImage::new(picture.width() as usize, picture.height() as usize, picture.into_raw())
        .expect("full buffer")
}

fn read_jpeg(name: &str) -> Vec<u8> {
    std::fs::read(golden(&format!("{name}.jpg"))).expect("golden file")
}

#[test]
fn files_equal_pillows_at_quality_95() {
    for name in ["shapes_16x16", "noise_17x13", "waves_64x48", "waves_101x37", "noise_1x1", "waves_1x40"] {
        let ours = jpeg_bytes(&read_png(name), 95).expect("good picture");
        let pillow = read_jpeg(name);
        assert_eq!(ours.len(), pillow.len(), "{name}");
        assert!(ours == pillow, "{name}: same length, other bytes");
    }
}

#[test]
fn scores_are_bytes_over_a_thousand_and_their_negative_over_five_hundred() {
    let n_bytes = read_jpeg("waves_64x48").len() as f32;
    let record = PromptRecord { prompt: "waves".to_owned(), metadata: Value::Null };
    let score = |name| {
        let reward = build(name, &Value::Null, &Resources::local()).expect("known name");
        reward.score(&[read_png("waves_64x48")], std::slice::from_ref(&record)).expect("good picture")[0]
            .value
    };
    assert_eq!(score("jpeg_incompressibility"), n_bytes / 1000.0);
    assert_eq!(score("jpeg_compressibility"), -n_bytes / 1000.0 / 500.0);
}

#[test]
fn empty_image_is_refused_with_its_index() {
    let reward = build("jpeg_compressibility", &Value::Null, &Resources::local()).expect("known name");
    let record = PromptRecord { prompt: "nothing".to_owned(), metadata: Value::Null };
    let error = reward.score(&[RgbImage::filled(0, 0, [0; 3])], &[record]).expect_err("no pixels");
    assert!(error.to_string().starts_with("image 0 cannot be encoded as JPEG: "), "{error}");
}
