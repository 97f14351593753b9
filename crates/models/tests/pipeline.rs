//! Whole SD3 folders: text to embeddings, velocities and images, as diffusers recorded them, and what is refused.

use std::path::{Path, PathBuf};

use models::pipeline::{self, LoadOptions, TextToImageModel};
use models::reference_case::Deviation;
use models::safetensors_file::SafetensorsFile;
use models::weights::WeightOptions;
use models::{AdapterMode, Conditioning, DecoderOptions, Guidance, to_rgb8};
use tch::{Device, Kind, Tensor};

const ALL: LoadOptions = LoadOptions {
    weights: WeightOptions::new(Kind::Float, Device::Cpu),
    text_encoders: true,
    decoder: Some(DecoderOptions::WHOLE),
};

fn sd3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3")
}

fn open() -> Box<dyn TextToImageModel> {
    pipeline::open(&sd3(), ALL).unwrap()
}

fn case(name: &str) -> (SafetensorsFile, serde_json::Value) {
    let file = SafetensorsFile::open(&sd3().join("cases").join(name)).unwrap();
    let call = serde_json::from_str(&file.metadata()["call"]).unwrap();
    (file, call)
}

fn prompts(call: &serde_json::Value) -> Vec<String> {
    call["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect()
}

fn strings(prompts: &[&str]) -> Vec<String> {
    prompts.iter().map(|p| (*p).to_owned()).collect()
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor) {
    let deviation = Deviation::between(got, want);
    assert!(deviation.is_rounding(), "{deviation:?}");
}

/// A copy of the golden folder whose file at `path` is changed by `change`.
fn altered(path: &str, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in ["scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"] {
        copy_files(&sd3().join(entry), &dir.path().join(entry));
    }
    for entry in ["tokenizer", "tokenizer_2", "tokenizer_3"] {
        copy_files(&sd3().join(entry), &dir.path().join(entry));
    }
    std::fs::copy(sd3().join("model_index.json"), dir.path().join("model_index.json")).unwrap();
    let file = dir.path().join(path);
    let mut json = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&file, json.to_string()).unwrap();
    dir
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[track_caller]
fn refusal(dir: &Path) -> String {
    pipeline::open(dir, ALL).err().expect("this folder must be refused").to_string()
}

#[test]
fn prompts_become_the_recorded_embeddings_and_ids() {
    let (file, call) = case("prompt_embeds.safetensors");
    let (model, prompts) = (open(), prompts(&call));
    let embedded = model.encode_prompts(&prompts, 32).unwrap();
    assert_close(&embedded.text, &file.read("out.prompt_embeds").unwrap());
    assert_close(embedded.pooled.as_ref().unwrap(), &file.read("out.pooled").unwrap());
    let negative = model.encode_prompts(&vec![String::new(); prompts.len()], 32).unwrap();
    assert_close(&negative.text, &file.read("out.negative_prompt_embeds").unwrap());
    for (row, prompt) in prompts.iter().enumerate() {
        let tokens = model.token_ids(prompt, 32).unwrap();
        for (name, idx) in [("out.clip_ids", 0), ("out.t5_ids", 2)] {
            let want = Vec::<i64>::try_from(file.read(name).unwrap().get(row as i64)).unwrap();
            assert_eq!(tokens[idx].tokens.ids, want, "{name} of {prompt:?}");
        }
    }
}

#[test]
fn a_prompt_has_the_same_bits_alone_and_in_company() {
    let model = open();
    let company = strings(&["a red circle", "🐈", "", "a red circle"]);
    let together = model.encode_prompts(&company, 32).unwrap();
    for (row, prompt) in company.iter().enumerate() {
        let alone = model.encode_prompts(std::slice::from_ref(prompt), 32).unwrap();
        assert_eq!(together.text.narrow(0, row as i64, 1), alone.text, "{prompt:?}");
        assert_eq!(
            together.pooled.as_ref().unwrap().narrow(0, row as i64, 1),
            alone.pooled.unwrap(),
            "{prompt:?}"
        );
    }
}

#[test]
fn a_prompt_that_does_not_fit_says_how_many_tokens_are_lost() {
    let model = open();
    let long = "circle ".repeat(200);
    let tokens = model.token_ids(&long, 32).unwrap();
    assert!(tokens.iter().all(|encoder| encoder.tokens.truncated > 0));
    assert!(model.token_ids("a circle", 32).unwrap().iter().all(|encoder| encoder.tokens.truncated == 0));
    assert_eq!(model.encode_prompts(&[long], 32).unwrap().text.size()[1], 77 + 32);
}

#[test]
fn without_t5_its_tokens_are_zeros_and_may_be_none() {
    let dir = altered("model_index.json", |index| {
        index["text_encoder_3"] = serde_json::json!([null, null]);
        index["tokenizer_3"] = serde_json::json!([null, null]);
    });
    let model = pipeline::open(dir.path(), ALL).unwrap();
    let prompt = strings(&["a red circle"]);
    let with_t5 = open().encode_prompts(&prompt, 5).unwrap();
    let without = model.encode_prompts(&prompt, 5).unwrap();
    assert_eq!(without.text.narrow(1, 0, 77), with_t5.text.narrow(1, 0, 77));
    assert_eq!(without.text.narrow(1, 77, 5).abs().max().double_value(&[]), 0.0);
    assert_eq!(model.encode_prompts(&prompt, 0).unwrap().text, without.text.narrow(1, 0, 77));
}

#[test]
fn an_autoencoder_of_another_class_is_refused_by_its_own_file_too() {
    let dir = altered("vae/config.json", |config| config["_class_name"] = "AutoencoderTiny".into());
    let message = refusal(dir.path());
    assert!(message.contains("vae/config.json") && message.contains("AutoencoderTiny"), "{message}");
    let dir = altered("vae/config.json", |config| {
        config.as_object_mut().unwrap().remove("_class_name");
    });
    pipeline::open(dir.path(), ALL).unwrap();
}

#[test]
fn guidance_mixes_the_two_velocities_that_it_is_made_of() {
    let model = open();
    let embedded = model.encode_prompts(&strings(&["a red circle", "a blue square", ""]), 32).unwrap();
    let (positive, negative) = (embedded.select(&[0, 1]), embedded.select(&[2]));
    let (latents, sigmas) =
        (Tensor::randn([2, 16, 8, 6], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[1.0_f32, 0.3]));
    let ask = |guidance: Guidance| model.velocity(&latents, &sigmas, &guidance, AdapterMode::Off);
    let plain = |conditioning: &Conditioning| ask(Guidance::none(conditioning));
    let guided = ask(Guidance { positive: &positive, negative: Some(&negative), scale: 4.5 });
    assert_close(&guided, &(plain(&negative) + (plain(&positive) - plain(&negative)) * 4.5));
    assert_eq!((model.negative_prompt(4.5), model.negative_prompt(1.0)), (Some(""), None));
}

#[test]
fn decoded_images_are_bytes_between_black_and_white() {
    let (file, _) = case("vae_decode.safetensors");
    let images = open().decode(&file.read("in.latents").unwrap()).unwrap();
    assert_close(&images, &(file.read("out.image").unwrap() / 2.0 + 0.5).clamp(0.0, 1.0));
    let rgb = to_rgb8(&images);
    assert_eq!((rgb.len(), rgb[0].len()), (2, 24 * 20 * 3));
    let red = (images.double_value(&[1, 0, 7, 3]) * 255.0).round() as u8;
    assert_eq!(rgb[1][(7 * 20 + 3) * 3], red);
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_those_that_do() {
    let model = open();
    assert_eq!(model.latent_shape(40, 32).unwrap(), [16, 10, 8]);
    assert_eq!(model.image_sequence_length(40, 32), 20);
    let message = model.latent_shape(41, 1000).unwrap_err().to_string();
    assert!(message.contains("multiples of 8 from 8 to 128") && message.contains("40×128"), "{message}");
}

#[test]
fn a_class_that_is_not_implemented_is_named_with_those_that_are() {
    let dir = altered("model_index.json", |index| index["_class_name"] = "OtherPipeline".into());
    let message = refusal(dir.path());
    assert!(message.contains("OtherPipeline") && message.contains("StableDiffusion3Pipeline"), "{message}");
}

#[test]
fn a_missing_encoder_file_is_named() {
    let dir = altered("model_index.json", |_| ());
    std::fs::remove_file(dir.path().join("text_encoder_2/model.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("text_encoder_2/model.safetensors"));
}

#[test]
fn parts_that_do_not_fit_each_other_are_named() {
    let vae = altered("vae/config.json", |config| config["latent_channels"] = 8.into());
    assert!(refusal(vae.path()).contains("latent_channels"));
    let heads = altered("text_encoder/config.json", |config| config["num_attention_heads"] = 5.into());
    assert!(refusal(heads.path()).contains("num_attention_heads"));
    let activation =
        altered("text_encoder_3/config.json", |config| config["feed_forward_proj"] = "gated-swosh".into());
    assert!(refusal(activation.path()).contains("feed_forward_proj"));
}

#[test]
fn a_folder_opened_in_part_says_what_it_lacks() {
    let mut model =
        pipeline::open(&sd3(), LoadOptions { text_encoders: false, decoder: None, ..ALL }).unwrap();
    let message = model.encode_prompts(&strings(&["a"]), 8).unwrap_err().to_string();
    assert!(message.contains("without its text encoders"), "{message}");
    let latents = Tensor::zeros([1, 16, 4, 4], (Kind::Float, Device::Cpu));
    assert!(model.decode(&latents).unwrap_err().to_string().contains("without its decoder"));

    model.open_text_encoders().unwrap();
    let embedded = model.encode_prompts(&strings(&["a"]), 8).unwrap();
    assert_eq!(embedded.digest(), open().encode_prompts(&strings(&["a"]), 8).unwrap().digest());
    model.drop_text_encoders();
    assert!(model.encode_prompts(&strings(&["a"]), 8).is_err());
}

#[test]
fn conditioning_survives_its_own_names() {
    let embedded = open().encode_prompts(&strings(&["a", "b"]), 8).unwrap();
    let named =
        embedded.tensors().into_iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    let rebuilt = Conditioning::from_tensors(named.collect::<Vec<_>>()).unwrap();
    assert_eq!(
        (rebuilt.text, rebuilt.pooled),
        (embedded.text.shallow_clone(), embedded.pooled.as_ref().map(Tensor::shallow_clone))
    );
    let repeated = embedded.repeat_interleave(3);
    assert_eq!(repeated.text, embedded.select(&[0, 0, 0, 1, 1, 1]).text);
    let unknown = [("words".to_owned(), embedded.text)];
    assert!(Conditioning::from_tensors(unknown).unwrap_err().to_string().contains("words"));
}

#[test]
fn half_precision_stays_near_float32() {
    let prompt = strings(&["a photo of two red circles"]);
    let run = |kind| {
        let model =
            pipeline::open(&sd3(), LoadOptions { weights: WeightOptions::new(kind, Device::Cpu), ..ALL })
                .unwrap();
        let embedded = model.encode_prompts(&prompt, 32).unwrap();
        assert_eq!(embedded.text.kind(), kind);
        let latents = Tensor::linspace(-1.0, 1.0, 16 * 8 * 6, (Kind::Float, Device::Cpu)).view([1, 16, 8, 6]);
        let velocity = model.velocity(
            &latents,
            &Tensor::from_slice(&[0.7_f32]),
            &Guidance::none(&embedded),
            AdapterMode::Off,
        );
        assert_eq!(velocity.kind(), Kind::Float);
        (embedded.text.to_kind(Kind::Float), velocity)
    };
    let (text, velocity) = run(Kind::Float);
    for (kind, tolerance) in [(Kind::Half, 1e-2), (Kind::BFloat16, 5e-2)] {
        let (rough_text, rough_velocity) = run(kind);
        for (rough, exact) in [(rough_text, &text), (rough_velocity, &velocity)] {
            let relative = (rough - exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
            assert!(relative < tolerance, "{kind:?}: relative error {relative:e}");
        }
    }
}
