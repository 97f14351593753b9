//! The scorer `ocr` with the real Tesseract on recorded pictures (`tests/golden/ocr/make_ocr.py`), and with programs that
//! are none or misbehave.

use std::path::{Path, PathBuf};

use rewards::{OcrError, PromptRecord, Resources, Reward, RewardError, RgbImage, build};
use serde_json::{Value, json};

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/ocr").join(file)
}

fn picture(name: &str) -> RgbImage {
    let picture = image::open(golden(&format!("{name}.png"))).expect("golden picture").to_rgb8();
    RgbImage::new(picture.width() as usize, picture.height() as usize, picture.into_raw())
        .expect("full buffer")
}

fn record(prompt: &str) -> PromptRecord {
    PromptRecord { prompt: prompt.to_owned(), metadata: Value::Null }
}

fn ocr(options: &Value) -> Result<Box<dyn Reward + Send>, RewardError> {
    build("ocr", options, &Resources::local())
}

fn scores(names: &[&str], prompts: &[&str]) -> Vec<f32> {
    let reward = ocr(&Value::Null).expect("Tesseract is a prerequisite of the tests");
    let images: Vec<RgbImage> = names.iter().map(|name| picture(name)).collect();
    let prompts: Vec<PromptRecord> = prompts.iter().map(|prompt| record(prompt)).collect();
    reward.score(&images, &prompts).expect("good pictures").into_iter().map(|score| score.value).collect()
}

const PICTURES: [&str; 5] = ["dark_on_light", "light_on_dark", "misspelt", "small", "nothing"];
const PROMPTS: [&str; 5] = [
    "a banner that says \"Grand Opening\"",
    "a door with a sign \"Closed\" in the evening",
    "a front that reads \"Coffee Shop\"",
    "a platform, \"Mind the gap\" is written on it",
    "a meadow with a sign \"Keep off\"",
];

#[test]
fn words_are_read_whatever_their_ground_and_misspelt_ones_cost_a_letter() {
    let scores = scores(&PICTURES, &PROMPTS);
    assert_eq!((scores[0], scores[1], scores[3], scores[4]), (1.0, 1.0, 1.0, 0.0), "{scores:?}");
    assert!((scores[2] - 0.9).abs() < 1e-6, "one of ten letters is missing: {scores:?}");
}

#[test]
fn pictures_beside_it_do_not_change_a_score() {
    // More than go into one process, each prompt against several pictures.
    let names: Vec<&str> = (0..40).map(|index| PICTURES[index % 5]).collect();
    let prompts: Vec<&str> = (0..40).map(|index| PROMPTS[index / 5 % 5]).collect();
    let together = scores(&names, &prompts);
    for index in [0, 7, 12, 31, 32, 39] {
        assert_eq!(scores(&names[index..=index], &prompts[index..=index]), [together[index]], "{index}");
    }
    assert!(together.contains(&1.0) && together.contains(&0.0), "{together:?}");
}

#[test]
fn a_prompt_without_quotes_scores_0_without_being_read() {
    assert_eq!(scores(&["dark_on_light", "light_on_dark"], &["Grand Opening", "\"closed\""]), [0.0, 1.0]);
    let broken = ocr(&json!({"program": golden("broken.sh")})).expect("it seems to be one");
    let score = broken.score(&[picture("nothing")], &[record("no words")]).expect("nothing to read");
    assert_eq!(score[0].value, 0.0);
    assert!(broken.score(&[], &[]).expect("nothing to read").is_empty());
}

#[test]
fn images_too_small_to_hold_ink_are_refused_by_position() {
    let reward = ocr(&Value::Null).expect("Tesseract is a prerequisite of the tests");
    let prompts = [record("\"a\""), record("\"b\"")];
    let images = |width, height| [RgbImage::filled(8, 8, [200; 3]), RgbImage::filled(width, height, [9; 3])];
    assert_eq!(reward.score(&images(900, 8), &prompts).expect("just large enough").len(), 2);
    for (width, height) in [(7, 900), (0, 0)] {
        let error = reward.score(&images(width, height), &prompts).expect_err("too small");
        assert!(matches!(error, RewardError::ImageSize { index: 1, .. }), "{error}");
    }
}

fn refusal(options: Value) -> String {
    ocr(&options).err().expect("must be refused").to_string()
}

#[test]
fn what_is_missing_is_named_with_the_remedy_before_anything_is_scored() {
    for program in ["no-such-tesseract", "./no-such-tesseract"] {
        let missing = refusal(json!({"program": program}));
        for part in [program, "apt-get install tesseract-ocr", "`program`"] {
            assert!(missing.contains(part), "{missing}");
        }
    }
    let language = refusal(json!({"language": "eng+tlh"}));
    for part in ["`tlh`", "apt-get install tesseract-ocr-tlh", "eng"] {
        assert!(language.contains(part), "{language}");
    }
    let old = refusal(json!({"program": golden("old.sh")}));
    assert!(old.contains("`tesseract 4.1.1`; Tesseract 5 or newer"), "{old}");
    let other = refusal(json!({"program": "true"}));
    assert!(other.contains("Tesseract 5 or newer is needed"), "{other}");
}

#[test]
fn options_out_of_range_are_named() {
    for (options, key) in [
        (json!({"page_segmentation": 0}), "page_segmentation"),
        (json!({"page_segmentation": 14}), "page_segmentation"),
        (json!({"timeout_seconds": 0}), "timeout_seconds"),
        (json!({"timeout_seconds": 1e9}), "timeout_seconds"),
        (json!({"languages": "eng"}), "languages"),
    ] {
        let message = refusal(options);
        assert!(message.contains(&format!("`{key}`")), "{message}");
    }
}

#[test]
fn a_program_that_fails_is_an_error_and_never_a_score() {
    let error = |program: &str, timeout: f64| {
        let options = json!({"program": golden(program), "timeout_seconds": timeout});
        let score = |reward: Box<dyn Reward + Send>| {
            reward.score(&[picture("dark_on_light")], &[record("\"a\"")]).expect_err("it does not read")
        };
        ocr(&options).map(score)
    };
    let failed = error("broken.sh", 60.0).expect("it seems to be one").to_string();
    assert!(failed.ends_with("exit status: 3: out of memory"), "{failed}");
    // It has to say its version within the same time, for which a busy machine may need more.
    let hangs = [0.5, 50.0].into_iter().find_map(|timeout| error("hangs.sh", timeout).ok());
    let hangs = hangs.expect("it seems to be one");
    assert!(matches!(hangs, RewardError::Ocr(OcrError::Timeout { seconds: 0.5 | 50.0, .. })), "{hangs}");
    let mute = error("mute.sh", 60.0).expect("it seems to be one");
    assert!(matches!(mute, RewardError::Ocr(OcrError::Incomplete { got: 1, pages: 2, .. })), "{mute}");
}
