//! Scorers made of CLIP score as the references did (`tests/reference/write_clip_rewards.py`), on tiny random models.

use std::path::{Path, PathBuf};

use models::reference_case::{Deviation, ReferenceCase, TOLERANCE};
use models::weights::{Inventory, TensorSource};
use rewards::{PromptRecord, Resources, Reward, RgbImage, build};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn read_png(path: &Path) -> RgbImage {
    let picture = image::open(path).expect("golden picture").to_rgb8();
    RgbImage::new(picture.width() as usize, picture.height() as usize, picture.into_raw())
        .expect("full buffer")
}

fn records(prompts: Vec<String>) -> Vec<PromptRecord> {
    prompts.into_iter().map(|prompt| PromptRecord { prompt, metadata: Value::Null }).collect()
}

fn pictures() -> Vec<RgbImage> {
    (0..6).map(|i| read_png(&golden(&format!("clip_rewards/images/{i}.png")))).collect()
}

fn prompts() -> Vec<PromptRecord> {
    records(case().argument("prompts").expect("recorded"))
}

fn case() -> ReferenceCase {
    ReferenceCase::open(&golden("clip_rewards/scores.safetensors"), tch::Device::Cpu).expect("golden case")
}

/// Options that point to the tiny models, and `more`.
fn options(name: &str, more: Value) -> Value {
    let clip = golden("clip_rewards/clip");
    let mut options = match name {
        "hpsv2.1" => json!({"model": golden("clip_rewards/hpsv2.1"), "processor": clip}),
        "aesthetic" => json!({"model": clip, "predictor": golden("clip_rewards/predictor")}),
        "pickscore" => json!({"model": golden("pickscore")}),
        _ => json!({"model": clip}),
    };
    let (into, more) = (options.as_object_mut().expect("an object"), more.as_object().expect("an object"));
    into.extend(more.clone());
    options
}

fn scorer(name: &str, more: Value) -> Box<dyn Reward + Send> {
    build(name, &options(name, more), &Resources::local()).unwrap_or_else(|error| panic!("{error}"))
}

fn values(scorer: &dyn Reward, images: &[RgbImage], prompts: &[PromptRecord]) -> Vec<f32> {
    let scores = scorer.score(images, prompts).unwrap_or_else(|error| panic!("{error}"));
    scores.into_iter().map(|score| score.value).collect()
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], tolerance: f64) {
    let deviation = Deviation::between(&tch::Tensor::from_slice(got), &tch::Tensor::from_slice(want));
    assert!(deviation.relative <= tolerance, "{deviation:?}: {got:?}, expected {want:?}");
}

#[track_caller]
fn refusal(name: &str, options: &Value) -> String {
    build(name, options, &Resources::local()).err().expect("must be refused").to_string()
}

/// A copy of a golden folder.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(golden(name)).expect("golden folder") {
        let path = entry.expect("golden file").path();
        if path.is_file() {
            std::fs::copy(&path, folder.path().join(path.file_name().expect("named"))).expect("copied");
        }
    }
    folder
}

#[test]
fn scores_equal_those_of_the_references() {
    for name in ["clipscore", "aesthetic", "hpsv2.1"] {
        let want = Vec::<f32>::try_from(case().output(name).expect("recorded")).expect("floats");
        assert_close(&values(scorer(name, json!({})).as_ref(), &pictures(), &prompts()), &want, TOLERANCE);
    }
}

#[test]
fn pickscore_equals_the_reference() {
    let path = golden("pickscore/cases/score.safetensors");
    let case = ReferenceCase::open(&path, tch::Device::Cpu).expect("golden case");
    let files: Vec<String> = case.argument("images").expect("recorded");
    let images: Vec<RgbImage> =
        files.iter().map(|file| read_png(&golden("pickscore/cases").join(file))).collect();
    let want = Vec::<f32>::try_from(case.output("score").expect("recorded")).expect("floats");
    let prompts = records(case.argument("prompts").expect("recorded"));
    assert_close(&values(scorer("pickscore", json!({})).as_ref(), &images, &prompts), &want, TOLERANCE);
}

#[test]
fn safetensors_with_the_names_of_the_torch_files_do_as_well() {
    let predictor = tempfile::tempdir().expect("a folder");
    let hps = copied("clip_rewards/hpsv2.1");
    for (name, from, to) in [
        (
            "aesthetic",
            golden("clip_rewards/predictor/aesthetic-model.pth"),
            predictor.path().join("aesthetic-model.pth"),
        ),
        (
            "hpsv2.1",
            golden("clip_rewards/hpsv2.1/HPS_v2.1_compressed.pt"),
            hps.path().join("HPS_v2.1_compressed.pt"),
        ),
    ] {
        let file = models::torch_file::TorchFile::open(&from).expect("golden file");
        let tensors = file.names().into_iter().map(|tensor| {
            let shape = file.shape(&tensor).expect("listed");
            let values = tch::Tensor::empty(shape, (tch::Kind::Float, tch::Device::Cpu));
            file.read_into(&tensor, &values).expect("readable");
            (tensor, values)
        });
        let tensors: Vec<_> = tensors.collect();
        models::safetensors_file::write(&to.with_extension("safetensors"), &tensors, &Default::default())
            .expect("written");
        let _ = std::fs::remove_file(&to);
        let more = match name {
            "aesthetic" => json!({"predictor": predictor.path()}),
            _ => json!({"model": hps.path()}),
        };
        let want = values(scorer(name, json!({})).as_ref(), &pictures(), &prompts());
        assert_eq!(values(scorer(name, more).as_ref(), &pictures(), &prompts()), want, "{name}");
    }
}

#[test]
fn a_score_depends_on_the_batch_alone_and_not_on_what_was_scored_before() {
    for name in ["pickscore", "clipscore", "aesthetic", "hpsv2.1"] {
        let (images, prompts) = (pictures(), prompts());
        let fresh = values(scorer(name, json!({})).as_ref(), &images, &prompts);
        let used = scorer(name, json!({}));
        values(used.as_ref(), &images[3..], &prompts[3..]);
        values(used.as_ref(), &images[..1], &prompts[4..5]);
        assert_eq!(values(used.as_ref(), &images, &prompts), fresh, "{name}");
        let smaller = values(scorer(name, json!({"batch_size": 4})).as_ref(), &images, &prompts);
        assert_close(&smaller, &fresh, TOLERANCE);
        assert_eq!(values(used.as_ref(), &[], &[]), [0.0; 0]);
    }
}

#[test]
fn half_precision_stays_near() {
    for name in ["pickscore", "clipscore", "aesthetic", "hpsv2.1"] {
        let [whole, half] = ["float32", "bfloat16"]
            .map(|dtype| values(scorer(name, json!({"dtype": dtype})).as_ref(), &pictures(), &prompts()));
        assert_ne!(whole, half, "{name}");
        assert_close(&half, &whole, 0.05);
    }
}

#[test]
fn headers_are_enough_to_find_what_is_wrong_with_files() {
    let resources = |source| Resources { source, ..Resources::local() };
    for name in ["pickscore", "clipscore", "aesthetic", "hpsv2.1"] {
        let inventory = Inventory::default();
        let source = TensorSource::Headers(inventory.clone());
        build(name, &options(name, json!({})), &resources(source)).unwrap_or_else(|error| panic!("{error}"));
        let n_parameters: u64 = inventory.components().iter().map(|(_, size)| size.parameters).sum();
        assert!(n_parameters > 50_000, "{name}: {n_parameters}");
    }
    let broken = copied("pickscore");
    let config = broken.path().join("config.json");
    let text = std::fs::read_to_string(&config)
        .expect("golden file")
        .replace("\"patch_size\": 8", "\"patch_size\": 16");
    std::fs::write(&config, text).expect("written");
    let source = TensorSource::Headers(Inventory::default());
    let error = build("pickscore", &json!({"model": broken.path()}), &resources(source))
        .err()
        .expect("other patches");
    let error = error.to_string();
    assert!(error.contains("2 mis-shaped: vision_model.embeddings.patch_embedding.weight"), "{error}");
}

#[test]
fn wrong_files_are_told_by_name() {
    let folder = copied("pickscore");
    let at = |name: &str| folder.path().join(name);
    let options = json!({"model": folder.path()});

    let weights = std::fs::read(at("model.safetensors")).expect("golden file");
    std::fs::remove_file(at("model.safetensors")).expect("removed");
    let missing = refusal("pickscore", &options);
    assert!(
        missing.contains("reward `pickscore`: ") && missing.contains("model.safetensors is missing"),
        "{missing}"
    );
    std::fs::write(at("model.safetensors"), &weights[..weights.len() / 2]).expect("written");
    let cut = refusal("pickscore", &options);
    assert!(cut.contains("model.safetensors is damaged"), "{cut}");
    std::fs::write(at("model.safetensors"), &weights).expect("written");

    let preprocessor = std::fs::read_to_string(at("preprocessor_config.json")).expect("golden file");
    std::fs::write(at("preprocessor_config.json"), preprocessor.replace("32", "64")).expect("written");
    let larger = refusal("pickscore", &options);
    assert!(larger.contains("crop_size: 64 x 64, but the network takes 32 x 32"), "{larger}");
    std::fs::write(at("preprocessor_config.json"), &preprocessor).expect("written");

    let config = std::fs::read_to_string(at("config.json")).expect("golden file");
    for (from, to, reason) in [
        ("\"model_type\": \"clip\"", "\"model_type\": \"siglip\"", "model_type: \"siglip\" is not \"clip\""),
        (
            "\"hidden_act\": \"gelu\"",
            "\"hidden_act\": \"swoosh\"",
            "text_config.hidden_act: \"swoosh\" is not supported",
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 5",
            "text_config.num_attention_heads: 5 heads",
        ),
        ("\"image_size\": 32", "\"image_size\": 0", "vision_config.image_size: is 0"),
        (
            "\"projection_dim\": 24",
            "\"projection_dim\": 25",
            "text_projection.weight has shape [24, 32], expected [25, 32]",
        ),
        ("\"vocab_size\": 1114", "\"vocab_size\": 1113", "token_embedding.weight has shape [1114, 32]"),
    ] {
        std::fs::write(at("config.json"), config.replace(from, to)).expect("written");
        let error = refusal("pickscore", &options);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = copied("pickscore");
    let vocabulary = std::fs::read_to_string(folder.path().join("vocab.json")).expect("golden file");
    std::fs::write(folder.path().join("vocab.json"), vocabulary.replace("1113}", "5000}")).expect("written");
    let settings = std::fs::read_to_string(folder.path().join("tokenizer_config.json")).expect("golden file");
    std::fs::write(folder.path().join("tokenizer_config.json"), settings.replace("1113", "5000"))
        .expect("written");
    let error = refusal("pickscore", &json!({"model": folder.path()}));
    assert!(error.contains("the tokenizer makes id 5000, but the network knows 1114"), "{error}");
}

#[test]
fn a_torch_file_that_asks_for_calls_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("aesthetic-model.pth");
    std::fs::copy(golden("torch_file/command.pt"), &path).expect("copied");
    let error = refusal("aesthetic", &options("aesthetic", json!({"predictor": folder.path()})));
    assert!(error.contains("aesthetic-model.pth is not read: `w` is a call of `posix.system`"), "{error}");
    std::fs::copy(golden("torch_file/linear.bin"), &path).expect("copied");
    let error = refusal("aesthetic", &options("aesthetic", json!({"predictor": folder.path()})));
    assert!(
        error.contains("10 missing: layers.0.weight") && error.contains("2 unexpected: bias, weight"),
        "{error}"
    );
    std::fs::remove_file(&path).expect("removed");
    let error = refusal("aesthetic", &options("aesthetic", json!({"predictor": folder.path()})));
    assert!(error.contains("aesthetic-model.safetensors is missing"), "{error}");
}

#[test]
fn options_that_are_not_there_or_make_no_sense_are_named() {
    for name in ["pickscore", "clipscore", "aesthetic", "hpsv2.1"] {
        let unknown = refusal(name, &options(name, json!({"batchsize": 3})));
        assert!(
            unknown.contains("unknown field `batchsize`") && unknown.contains("`batch_size`"),
            "{unknown}"
        );
        let range = refusal(name, &options(name, json!({"batch_size": 0})));
        assert!(
            range.contains(&format!("option `batch_size` of reward `{name}` is 0; use at least 1")),
            "{range}"
        );
        let dtype = refusal(name, &options(name, json!({"dtype": "float16"})));
        assert!(dtype.contains("`float32` or `bfloat16`"), "{dtype}");
    }
}

#[test]
fn folders_that_are_not_found_are_told_with_what_the_cache_says() {
    let lost = |model: &Path| Err(format!("`hf download {}`", model.display()).into());
    let resources = Resources { find_model: Box::new(lost), ..Resources::local() };
    for (name, model) in [
        ("pickscore", "yuvalkirstain/PickScore_v1"),
        ("clipscore", "openai/clip-vit-large-patch14"),
        ("aesthetic", "openai/clip-vit-large-patch14"),
        ("hpsv2.1", "xswu/HPSv2"),
    ] {
        let error = build(name, &Value::Null, &resources).err().expect("nowhere").to_string();
        assert_eq!(error, format!("reward `{name}`: `hf download {model}`"));
    }
}

#[test]
fn pictures_without_pixels_and_endless_ones_are_refused_with_their_position() {
    let prompts = records(vec!["a line".to_owned(); 3]);
    for name in ["pickscore", "clipscore", "aesthetic", "hpsv2.1"] {
        let scorer = scorer(name, json!({"batch_size": 2}));
        let mut images = vec![RgbImage::filled(30, 20, [9; 3]); 3];
        images[2] = RgbImage::filled(0, 5, [0; 3]);
        let empty = scorer.score(&images, &prompts).expect_err("empty").to_string();
        assert!(
            empty.starts_with(&format!("image 2 is 0 x 5; reward `{name}` takes pictures of")),
            "{empty}"
        );
        images[2] = RgbImage::filled(1, 100_000, [0; 3]);
        match scorer.score(&images, &prompts) {
            Ok(scores) => assert!(["pickscore", "aesthetic"].contains(&name) && scores.len() == 3),
            Err(error) => assert!(error.to_string().contains("at most 100 times the shorter"), "{error}"),
        }
    }
}
