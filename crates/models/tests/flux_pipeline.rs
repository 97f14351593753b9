//! Whole FLUX.1 folders: text to embeddings, velocities and images, as diffusers recorded them, and what is refused.

use std::path::{Path, PathBuf};

use models::pipeline::{self, LoadOptions, TextToImageModel};
use models::reference_case::{Deviation, TOLERANCE};
use models::safetensors_file::SafetensorsFile;
use models::weights::WeightOptions;
use models::{AdapterMode, Guidance};
use tch::{Device, Kind, Tensor};

const ALL: LoadOptions = LoadOptions {
    weights: WeightOptions::new(Kind::Float, Device::Cpu),
    text_encoders: true,
    decoder: Some(models::DecoderOptions::WHOLE),
};

fn flux() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux")
}

fn open() -> Box<dyn TextToImageModel> {
    pipeline::open(&flux(), ALL).unwrap()
}

fn case(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&flux().join("cases").join(name)).unwrap()
}

fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    Deviation::between(got, want).relative
}

/// What opening says about a copy of the golden folder whose file at `path` is changed by `change`.
#[track_caller]
fn refusal(path: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(flux()).unwrap().map(Result::unwrap) {
        let to = dir.path().join(entry.file_name());
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to).unwrap();
            continue;
        }
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
            if file.path().is_file() {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
    let file = dir.path().join(path);
    let mut json = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&file, json.to_string()).unwrap();
    pipeline::open(dir.path(), ALL).err().expect("this folder must be refused").to_string()
}

#[test]
fn prompts_become_the_recorded_embeddings() {
    let file = case("prompt_embeds.safetensors");
    let call: serde_json::Value = serde_json::from_str(&file.metadata()["call"]).unwrap();
    let prompts: Vec<String> = serde_json::from_value(call["prompts"].clone()).unwrap();
    let model = open();
    let embedded = model.encode_prompts(&prompts, 24).unwrap();
    assert!(relative_error(&embedded.text, &file.read("out.prompt_embeds").unwrap()) <= TOLERANCE);
    assert!(
        relative_error(embedded.pooled.as_ref().unwrap(), &file.read("out.pooled").unwrap()) <= TOLERANCE
    );
    let alone = model.encode_prompts(&prompts[2..3], 24).unwrap();
    assert_eq!(embedded.select(&[2]).text, alone.text);

    let names: Vec<&str> =
        model.token_ids("a circle", 24).unwrap().iter().map(|tokens| tokens.tokenizer).collect();
    assert_eq!(names, ["tokenizer", "tokenizer_2"]);
    let error = model.encode_prompts(&prompts, 0).unwrap_err().to_string();
    assert!(error.contains("max_sequence_length"), "{error}");
}

#[test]
fn latents_are_packed_as_the_reference_packs_them() {
    let (model, file) = (open(), case("transformer.safetensors"));
    let (latents, packed) =
        (file.read("in.latents_unpacked").unwrap(), file.read("in.hidden_states").unwrap());
    assert_eq!(model.pack(&latents), packed);
    assert_eq!(model.unpack(&packed, &[4, 10, 8]).unwrap(), latents);
    let error = model.unpack(&packed, &[4, 8, 8]).unwrap_err().to_string();
    assert!(error.contains("[2, 20, 16]") && error.contains("[4, 8, 8]"), "{error}");
}

#[test]
fn guidance_goes_into_the_network_without_a_negative_prompt() {
    let model = open();
    assert_eq!((model.negative_prompt(3.5), model.negative_prompt(1.0)), (None, None));
    let embedded = model.encode_prompts(&["a red circle".to_owned()], 24).unwrap();
    let latents = Tensor::linspace(-1.0, 1.0, 2 * 4 * 6 * 4, (Kind::Float, Device::Cpu)).view([2, 4, 6, 4]);
    let ask = |scale| {
        let guidance = Guidance { positive: &embedded, negative: None, scale };
        model.velocity(&latents, &Tensor::from_slice(&[0.9_f32, 0.2]), &guidance, AdapterMode::Off)
    };
    assert_eq!(ask(3.5).size(), [2, 4, 6, 4]);
    assert!(relative_error(&ask(3.5), &ask(1.0)) > 1e-3);
}

#[test]
fn sizes_are_those_of_whole_patches() {
    let model = open();
    assert_eq!(model.latent_shape(20, 4000).unwrap(), [4, 10, 2000]);
    assert_eq!(model.image_sequence_length(20, 16), 20);
    let message = model.latent_shape(21, 1).unwrap_err().to_string();
    assert!(message.contains("multiples of 4,") && message.contains("20×4"), "{message}");
    assert!(model.latent_shape(i64::MAX, 16).is_err());
}

#[test]
fn inputs_that_the_network_would_panic_at_are_named() {
    let (model, zeros) = (open(), |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu)));
    let embedded = model.encode_prompts(&["a".to_owned()], 24).unwrap();
    model.check_inputs(&zeros(&[3, 4, 6, 4]), &embedded).unwrap();
    for (size, word) in [([1, 3, 6, 4], "channels"), ([1, 4, 5, 4], "multiple of 2")] {
        let error = model.check_inputs(&zeros(&size), &embedded).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let unpooled = models::Conditioning { pooled: None, text_mask: None, text: embedded.text };
    let error = model.check_inputs(&zeros(&[1, 4, 6, 4]), &unpooled).unwrap_err().to_string();
    assert!(error.contains("pooled embeddings"), "{error}");
}

#[test]
fn parts_that_do_not_fit_each_other_are_named() {
    let vae = refusal("vae/config.json", |config| config["latent_channels"] = 8.into());
    assert!(vae.contains("latent_channels"), "{vae}");
    let width = refusal("text_encoder_2/config.json", |config| config["d_model"] = 48.into());
    assert!(width.contains("text_encoder_2"), "{width}");
    let length = refusal("text_encoder/config.json", |config| config["max_position_embeddings"] = 7.into());
    assert!(length.contains("text_encoder"), "{length}");
    let class = refusal("model_index.json", |index| index["text_encoder"][1] = "CLIPVisionModel".into());
    assert!(class.contains("CLIPVisionModel") && class.contains("CLIPTextModel"), "{class}");
    let rope = refusal("transformer/config.json", |config| config["axes_dims_rope"][0] = 6.into());
    assert!(rope.contains("axes_dims_rope"), "{rope}");
}

#[test]
fn half_precision_stays_near_float32() {
    let run = |kind| {
        let options = LoadOptions { weights: WeightOptions::new(kind, Device::Cpu), ..ALL };
        let model = pipeline::open(&flux(), options).unwrap();
        let embedded = model.encode_prompts(&["a photo of two red circles".to_owned()], 24).unwrap();
        assert_eq!(embedded.text.kind(), kind);
        let latents = Tensor::linspace(-1.0, 1.0, 4 * 8 * 6, (Kind::Float, Device::Cpu)).view([1, 4, 8, 6]);
        let guidance = Guidance { positive: &embedded, negative: None, scale: 3.5 };
        let velocity = model.velocity(&latents, &Tensor::from_slice(&[0.7_f32]), &guidance, AdapterMode::Off);
        assert_eq!(velocity.kind(), Kind::Float);
        velocity
    };
    let exact = run(Kind::Float);
    for (kind, tolerance) in [(Kind::Half, 1e-2), (Kind::BFloat16, 5e-2)] {
        let error = relative_error(&run(kind), &exact);
        assert!(error < tolerance, "{kind:?}: relative error {error:e}");
    }
}

#[test]
fn more_tokens_than_t5_is_asked_for_are_refused() {
    let model = open();
    let message = model.encode_prompts(&["a cat".to_owned()], 100_000).unwrap_err().to_string();
    assert!(message.contains("100000") && message.contains("at most 512"), "{message}");
}
