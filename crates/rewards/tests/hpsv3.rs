//! HPSv3 in its published layout against `transformers` on the package's own question, and on folders that are not it.
//!
//! `tests/reference/write_hpsv3_cases.py` wrote the folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use models::reference_case::{Deviation, TOLERANCE};
use models::safetensors_file::{read_all, write};
use models::weights::{Inventory, TensorSource};
use rewards::{PixelBounds, PromptRecord, Resources, Reward, RgbImage, TooNarrow, build, smart_resize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const PUBLISHED: &str = "published";
const WEIGHTS: &str = "HPSv3.safetensors";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn folder() -> PathBuf {
    golden("hpsv3-published")
}

#[derive(serde::Deserialize)]
struct Cases {
    prompts: Vec<String>,
    /// By the bounds of the second resize: μ and log σ of each image.
    scores: HashMap<String, Vec<[f32; 2]>>,
    bounds: HashMap<String, [usize; 2]>,
    /// Width and height before, and after the first resize.
    resized: Vec<[usize; 4]>,
}

fn cases() -> Cases {
    serde_json::from_str(&std::fs::read_to_string(folder().join("cases.json")).unwrap()).unwrap()
}

fn image(path: &Path) -> RgbImage {
    let image = image::open(path).unwrap().into_rgb8();
    let (width, height) = image.dimensions();
    RgbImage::new(width as usize, height as usize, image.into_raw()).unwrap()
}

fn record(prompt: &str) -> PromptRecord {
    PromptRecord { prompt: prompt.to_owned(), metadata: Value::Null }
}

fn inputs() -> (Vec<RgbImage>, Vec<PromptRecord>) {
    let records: Vec<PromptRecord> = cases().prompts.iter().map(|prompt| record(prompt)).collect();
    let images = (0..records.len()).map(|idx| image(&folder().join(format!("{idx}.png"))));
    (images.collect(), records)
}

fn options(model: &Path, processor: &Path) -> Value {
    json!({"model": model, "processor": processor})
}

fn published(more: &Value) -> Value {
    let mut options = options(&folder().join("model"), &folder().join("processor"));
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

fn scorer(options: &Value) -> Box<dyn Reward + Send> {
    build("hpsv3", options, &Resources::local()).unwrap()
}

#[track_caller]
fn refusal(options: &Value) -> String {
    let resources = Resources { source: TensorSource::Headers(Inventory::default()), ..Resources::local() };
    let message = |resources| build("hpsv3", options, resources).err().expect("must be refused").to_string();
    let without_reading = message(&resources);
    assert_eq!(message(&Resources::local()), without_reading, "all that is wrong is seen in headers");
    without_reading
}

#[track_caller]
fn assert_scores(reward: &dyn Reward, expected: &[[f32; 2]], tolerance: f64) {
    let (images, records) = inputs();
    let scores = reward.score(&images, &records).unwrap();
    let scores: Vec<[f32; 2]> = scores.iter().map(|score| [score.value, score.extras["log_sigma"]]).collect();
    let tensor = |rows: &[[f32; 2]]| Tensor::from_slice(rows.as_flattened());
    let deviation = Deviation::between(&tensor(&scores), &tensor(expected));
    assert!(deviation.relative <= tolerance, "{deviation:?}: {scores:?}, expected {expected:?}");
}

/// A copy of a folder, whose files can be changed.
fn copy(of: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(of).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// A copy of the published processor with one of its JSON files changed.
fn processor_with(file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = copy(&folder().join("processor"));
    let path = dir.path().join(file);
    let mut value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
    dir
}

/// A copy of the published model with its tensors changed.
fn model_with(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut tensors, _) = read_all(&folder().join("model").join(WEIGHTS)).unwrap();
    change(&mut tensors);
    write(&dir.path().join(WEIGHTS), &tensors, &HashMap::new()).unwrap();
    dir
}

#[test]
fn scores_are_those_of_the_package_whatever_the_batches() {
    let expected = &cases().scores[PUBLISHED];
    for batch_size in [1, 3] {
        assert_scores(&*scorer(&published(&json!({"batch_size": batch_size}))), expected, TOLERANCE);
    }
}

#[test]
fn the_processor_resizes_once_more_within_its_own_bounds() {
    let cases = cases();
    let [least, most] = cases.bounds["small"];
    let processor = processor_with("preprocessor_config.json", |config| {
        (config["min_pixels"], config["max_pixels"]) = (least.into(), most.into());
    });
    let own = scorer(&options(&folder().join("model"), processor.path()));
    assert_scores(&*own, &cases.scores["small"], TOLERANCE);
    let newer = processor_with("preprocessor_config.json", |config| {
        let config = config.as_object_mut().unwrap();
        config.retain(|key, _| !key.ends_with("_pixels"));
        config.insert("size".to_owned(), json!({"shortest_edge": least, "longest_edge": most}));
    });
    let newer = scorer(&options(&folder().join("model"), newer.path()));
    assert_scores(&*newer, &cases.scores["small"], TOLERANCE);
}

#[test]
fn bfloat16_scores_are_near_those_of_float32() {
    assert_scores(&*scorer(&published(&json!({"dtype": "bfloat16"}))), &cases().scores[PUBLISHED], 0.2);
}

#[test]
fn sizes_are_those_of_the_package() {
    let bounds = PixelBounds { min: 256 * 28 * 28, max: 256 * 28 * 28 };
    let cases = cases();
    assert!(cases.resized.len() > 40);
    for [width, height, wide, high] in cases.resized {
        assert_eq!(smart_resize((width, height), 28, bounds), Ok((wide, high)), "{width} x {height}");
    }
    let narrow = [(201, 1), (1, 201), (0, 5), (5, 0), (0, 0)];
    assert!(narrow.into_iter().all(|size| smart_resize(size, 28, bounds) == Err(TooNarrow)));
    assert!(smart_resize((200, 1), 28, bounds).is_ok());
}

#[test]
fn tensors_under_newer_names_score_the_same() {
    let model = model_with(|tensors| {
        for (name, _) in tensors {
            let renamed = match name.split_once('.').unwrap() {
                ("visual", rest) => format!("model.visual.{rest}"),
                ("model", rest) => format!("model.language_model.{rest}"),
                _ => name.clone(),
            };
            *name = renamed;
        }
    });
    let newer = scorer(&options(model.path(), &folder().join("processor")));
    assert_scores(&*newer, &cases().scores[PUBLISHED], TOLERANCE);
}

#[test]
fn a_folder_that_has_it_all_needs_no_processor_and_may_keep_the_head_apart() {
    let whole = golden("hpsv3");
    let by_itself = scorer(&json!({"model": whole}));
    let with_processor = scorer(&options(&whole, &whole));
    let (images, records) = inputs();
    let scores = by_itself.score(&images[..1], &records[..1]).unwrap();
    assert_eq!(scores, with_processor.score(&images[..1], &records[..1]).unwrap());
}

#[test]
fn a_processor_that_the_model_lacks_is_the_published_one() {
    let asked = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = asked.clone();
    let find_model = Box::new(move |model: &Path| {
        log.borrow_mut().push(model.to_owned());
        Ok(folder().join(if model == Path::new("MizzenAI/HPSv3") { "model" } else { "processor" }))
    });
    let resources = Resources { find_model, ..Resources::local() };
    assert!(build("hpsv3", &Value::Null, &resources).is_ok());
    assert_eq!(*asked.borrow(), [Path::new("MizzenAI/HPSv3"), Path::new("Qwen/Qwen2-VL-7B-Instruct")]);
    let find_model = Box::new(|_: &Path| Err("it is nowhere".into()));
    let nowhere = build("hpsv3", &Value::Null, &Resources { find_model, ..Resources::local() });
    assert_eq!(nowhere.err().unwrap().to_string(), "reward `hpsv3`: it is nowhere");
}

#[test]
fn files_that_are_missing_are_named() {
    let processor = folder().join("processor");
    let empty = tempfile::tempdir().unwrap();
    let message = refusal(&options(empty.path(), &processor));
    assert!(message.contains("HPSv3.safetensors is missing"), "{message}");
    for name in ["config.json", "preprocessor_config.json", "vocab.json"] {
        let dir = copy(&processor);
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let message = refusal(&options(&folder().join("model"), dir.path()));
        assert!(message.contains(&format!("{name} is missing")), "{message}");
    }
}

#[test]
fn tensors_that_are_not_those_of_hpsv3_are_all_named() {
    let model = model_with(|tensors| {
        tensors.retain(|(name, _)| name != "rm_head.5.bias");
        tensors.push(("rm_head.7.bias".to_owned(), Tensor::zeros([2], (Kind::Float, tch::Device::Cpu))));
    });
    let message = refusal(&options(model.path(), &folder().join("processor")));
    assert!(
        message.contains("missing: rm_head.5.bias") && message.contains("unexpected: rm_head.7.bias"),
        "{message}"
    );
    let model = model_with(|tensors| {
        let weight = tensors.iter_mut().find(|(name, _)| name == "visual.merger.mlp.2.weight").unwrap();
        weight.1 = weight.1.narrow(0, 0, 3).contiguous();
    });
    let message = refusal(&options(model.path(), &folder().join("processor")));
    assert!(
        message.contains("visual.merger.mlp.2.weight has shape [3, 128], expected [32, 128]"),
        "{message}"
    );
    let model = model_with(|tensors| {
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name == "model.embed_tokens.weight") {
            *tensor = tensor.narrow(0, 0, 481).contiguous();
        }
    });
    let message = refusal(&options(model.path(), &folder().join("processor")));
    assert!(message.contains("<|Reward|> the id 481") && message.contains("481 tokens"), "{message}");
}

#[test]
fn the_configuration_of_another_model_is_refused() {
    let refused = |change: fn(&mut Value)| {
        let processor = processor_with("config.json", change);
        refusal(&options(&folder().join("model"), processor.path()))
    };
    let other = refused(|config| config["model_type"] = "qwen2_5_vl".into());
    assert!(other.contains("config.json: model_type: \"qwen2_5_vl\" is not qwen2_vl"), "{other}");
    let axes = refused(|config| config["rope_scaling"] = Value::Null);
    assert!(axes.contains("rope_scaling.mrope_section"), "{axes}");
    let width = refused(|config| config["vision_config"]["hidden_size"] = 64.into());
    assert!(width.contains("vision_config.hidden_size: 64 is not the 32 features"), "{width}");
    let heads = refused(|config| config["vision_config"]["num_heads"] = 3.into());
    assert!(heads.contains("vision_config.num_heads: 3"), "{heads}");
    let activation = refused(|config| config["vision_config"]["hidden_act"] = "odd".into());
    assert!(activation.contains("vision_config.hidden_act: \"odd\""), "{activation}");
    let token = refused(|config| config["image_token_id"] = 480.into());
    assert!(
        token.contains("image_token_id: 480, but the tokenizer gives <|image_pad|> the id 479"),
        "{token}"
    );
}

#[test]
fn a_preprocessor_that_does_not_fit_is_refused() {
    for (key, value, words) in [
        ("patch_size", json!(16), "patch_size: 16, but the vision tower of config.json takes 14"),
        ("do_normalize", json!(false), "do_normalize: false is not supported"),
        ("resample", json!(2), "resample: 2 is not supported; use 3"),
        ("min_pixels", json!(100_000_000), "min_pixels: 100000000 is not between 1 and"),
        ("image_std", json!([0.2, 0.0, 0.2]), "image_std: 0"),
        ("image_mean", json!("no"), "image_mean"),
    ] {
        let processor = processor_with("preprocessor_config.json", |config| config[key] = value);
        let message = refusal(&options(&folder().join("model"), processor.path()));
        assert!(message.contains("preprocessor_config.json") && message.contains(words), "{message}");
    }
}

#[test]
fn a_tokenizer_without_the_special_tokens_is_refused() {
    let processor = processor_with("tokenizer_config.json", |config| {
        config["added_tokens_decoder"].as_object_mut().unwrap().retain(|id, _| id == "474");
    });
    std::fs::remove_file(processor.path().join("added_tokens.json")).unwrap();
    let message = refusal(&options(&folder().join("model"), processor.path()));
    assert!(message.contains("does not know <|im_start|>"), "{message}");
}

#[test]
fn options_that_do_not_work_are_named() {
    let unknown = refusal(&json!({"modle": "x"}));
    assert!(unknown.contains("unknown field `modle`") && unknown.contains("`model`"), "{unknown}");
    let size = refusal(&published(&json!({"batch_size": 0})));
    assert_eq!(size, "option `batch_size` of reward `hpsv3` is 0; use at least 1");
    let dtype = refusal(&published(&json!({"dtype": "int8"})));
    assert!(dtype.contains("option `dtype` of reward `hpsv3`") && dtype.contains("bfloat16"), "{dtype}");
}

#[test]
fn images_and_prompts_that_cannot_be_scored_are_named() {
    let reward = scorer(&published(&json!({})));
    let square = RgbImage::filled(8, 8, [9; 3]);
    let narrow = [square.clone(), RgbImage::filled(402, 2, [0; 3])];
    let message = reward.score(&narrow, &[record("a"), record("b")]).unwrap_err().to_string();
    assert!(
        message.starts_with("image 1 is 402 x 2; reward `hpsv3` takes images whose longer side"),
        "{message}"
    );
    for token in ["<|Reward|>", "<|image_pad|>"] {
        let prompt = format!("a cat {token}");
        let message =
            reward.score(std::slice::from_ref(&square), &[record(&prompt)]).unwrap_err().to_string();
        assert!(message.contains(&prompt) && message.contains("2 times"), "{message}");
    }
    let long = record(&"a cat ".repeat(20_000));
    let message = reward.score(std::slice::from_ref(&square), &[long]).unwrap_err().to_string();
    assert!(message.contains("it may have 32768"), "{}", &message[message.len() - 200..]);
    assert!(reward.score(&[square], &[]).unwrap_err().to_string().contains("1 images and 0 prompts"));
}
