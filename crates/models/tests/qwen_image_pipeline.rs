//! Whole Qwen-Image folders: text to embeddings, velocities and images, as diffusers recorded them, and what is refused.

use std::path::{Path, PathBuf};

use models::pipeline::{self, LoadOptions, TextToImageModel};
use models::qwen2_decoder::{Qwen2Config, Qwen2Decoder};
use models::reference_case::Deviation;
use models::safetensors_file::SafetensorsFile;
use models::weights::{WeightOptions, Weights, read_all, write};
use models::{AdapterMode, Conditioning, Guidance};
use tch::{Device, Kind, Tensor};

const ALL: LoadOptions = LoadOptions {
    weights: WeightOptions::new(Kind::Float, Device::Cpu),
    text_encoders: true,
    decoder: Some(models::DecoderOptions::WHOLE),
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen-image")
}

fn open() -> Box<dyn TextToImageModel> {
    pipeline::open(&golden(), ALL).unwrap()
}

fn case(name: &str) -> (SafetensorsFile, serde_json::Value) {
    let file = SafetensorsFile::open(&golden().join("cases").join(name)).unwrap();
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
    for entry in ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"] {
        std::fs::create_dir(dir.path().join(entry)).unwrap();
        for file in std::fs::read_dir(golden().join(entry)).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), dir.path().join(entry).join(file.file_name())).unwrap();
        }
    }
    std::fs::copy(golden().join("model_index.json"), dir.path().join("model_index.json")).unwrap();
    let file = dir.path().join(path);
    let mut json = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&file, json.to_string()).unwrap();
    dir
}

#[track_caller]
fn refusal(dir: &Path) -> String {
    pipeline::open(dir, ALL).err().expect("this folder must be refused").to_string()
}

/// Two noises and noise levels for images of 40×32 pixels.
fn noises() -> (Tensor, Tensor) {
    let latents = Tensor::linspace(-1.5, 1.5, 2 * 16 * 10 * 8, (Kind::Float, Device::Cpu));
    ((latents * 7.0).sin().view([2, 16, 10, 8]), Tensor::from_slice(&[1.0_f32, 0.3]))
}

#[test]
fn prompts_become_the_recorded_embeddings() {
    let (file, call) = case("prompt_embeds.safetensors");
    let (model, prompts) = (open(), prompts(&call));
    let embedded = model.encode_prompts(&prompts, 48).unwrap();
    assert_close(&embedded.text, &file.read("out.prompt_embeds").unwrap());
    assert_eq!(embedded.mask(), file.read("out.mask").unwrap());
    let negative = model.encode_prompts(&strings(&["", ""]), 48).unwrap();
    assert_close(&negative.text, &file.read("out.negative_prompt_embeds").unwrap());
    assert!(negative.text_mask.is_none() && negative.pooled.is_none());
}

#[test]
fn a_prompt_has_the_same_bits_alone_and_in_company() {
    let model = open();
    let company = strings(&["a red circle", "🐈", "", "a red circle"]);
    let together = model.encode_prompts(&company, 48).unwrap();
    for (row, prompt) in company.iter().enumerate() {
        let alone = model.encode_prompts(std::slice::from_ref(prompt), 48).unwrap();
        let own = together.select(&[row as i64]);
        assert!(alone.text_mask.is_none(), "a prompt alone is not padded");
        assert_eq!(own.text.narrow(1, 0, alone.tokens()), alone.text, "{prompt:?}");
        assert_eq!(own.mask().sum(Kind::Int64).int64_value(&[]), alone.tokens());
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_cut_and_says_by_how_much() {
    let model = open();
    let truncated = |prompt: &str, length| model.token_ids(prompt, length).unwrap()[0].tokens.truncated;
    let long = "circle ".repeat(200);
    let embedded = model.encode_prompts(std::slice::from_ref(&long), 48).unwrap();
    assert_eq!(embedded.tokens(), 48);
    // Cut earlier or later, what is left is the same: a token does not see those after it.
    let more = model.encode_prompts(std::slice::from_ref(&long), 60).unwrap();
    assert_close(&more.text.narrow(1, 0, 48), &embedded.text);
    assert!(truncated(&long, 48) == truncated(&long, 60) + 12 && truncated(&long, 60) > 0);
    // What follows the prompt may be cut off without a loss.
    let whole = model.token_ids("a circle", 48).unwrap()[0].tokens.ids.len();
    assert_eq!((truncated("a circle", 48), truncated("a circle", whole - 34 - 1)), (0, 0));
    for length in [0, 1025] {
        let message = model.encode_prompts(&strings(&["a"]), length).unwrap_err().to_string();
        assert!(message.contains("max_sequence_length") && message.contains("1024"), "{message}");
    }
}

#[test]
fn both_layouts_of_the_language_models_names_are_read() {
    let dir = altered("text_encoder/config.json", |_| ());
    let path = dir.path().join("text_encoder/model.safetensors");
    let (tensors, _) = read_all(&path).unwrap();
    let older = |name: &str| match name.strip_prefix("model.visual.") {
        Some(rest) => format!("visual.{rest}"),
        None => name.replacen("model.language_model.", "model.", 1),
    };
    let renamed: Vec<_> = tensors.into_iter().map(|(name, tensor)| (older(&name), tensor)).collect();
    assert!(renamed.iter().any(|(name, _)| name.starts_with("visual.")));
    assert!(renamed.iter().any(|(name, _)| name == "model.embed_tokens.weight"));
    write(&path, &renamed, &Default::default()).unwrap();
    let prompt = strings(&["a red circle"]);
    let embedded = pipeline::open(dir.path(), ALL).unwrap().encode_prompts(&prompt, 48).unwrap();
    assert_eq!(embedded.text, open().encode_prompts(&prompt, 48).unwrap().text);
}

#[test]
fn tokens_of_images_have_a_position_of_their_own_on_each_axis() {
    let config = Qwen2Config::read(&golden().join("text_encoder/config.json")).unwrap();
    let weights = Weights::random(5, Kind::Float, Device::Cpu);
    let decoder = Qwen2Decoder::new(&weights.scope("model"), config);
    let ids = Tensor::from_slice(&[5_i64, 9, 11, 7]).unsqueeze(0);
    let positions = |axes: [[i64; 4]; 3]| Tensor::from_slice(&axes.concat()).view([3, 1, 4]);
    let ask = |axes| decoder.forward(&decoder.embed(&ids), &positions(axes));
    let text = [0, 1, 2, 3];
    assert_eq!(ask([text; 3]), decoder.forward_text(&ids));
    for axis in 0..3 {
        let mut axes = [text; 3];
        axes[axis] = [0, 1, 1, 3];
        let (moved, plain) = (ask(axes), decoder.forward_text(&ids));
        // Tokens before the one that moved do not see it.
        assert_eq!(moved.narrow(1, 0, 2), plain.narrow(1, 0, 2));
        assert_ne!(moved.narrow(1, 2, 2), plain.narrow(1, 2, 2), "axis {axis}");
    }
    // Only distances matter.
    assert_close(&ask([[4, 5, 6, 7]; 3]), &decoder.forward_text(&ids));
}

#[test]
fn guidance_goes_away_from_the_negative_prompt_and_keeps_each_patch_as_long_as_it_was() {
    let model = open();
    let positive =
        model.encode_prompts(&strings(&["a red circle", "two dogs and a cat by the sea"]), 48).unwrap();
    let negative = model.encode_prompts(&strings(&[" "]), 48).unwrap();
    let (latents, sigmas) = noises();
    let ask = |guidance: Guidance| model.velocity(&latents, &sigmas, &guidance, AdapterMode::Off);
    let plain = |conditioning: &Conditioning| ask(Guidance::none(conditioning));
    let guided = ask(Guidance { positive: &positive, negative: Some(&negative), scale: 4.0 });
    let (towards, from) = (plain(&positive), plain(&negative));
    let (guided, towards, direction) =
        (model.pack(&guided), model.pack(&towards), model.pack(&(&from + (&towards - &from) * 4.0)));
    let length = |x: &Tensor| x.square().sum_dim_intlist(-1, true, Kind::Float).sqrt();
    assert_close(&length(&guided), &length(&towards));
    assert_close(&(&guided / length(&guided)), &(&direction / length(&direction)));
    assert_eq!((model.negative_prompt(4.0), model.negative_prompt(1.0)), (Some(" "), None));
}

#[test]
fn a_row_does_not_depend_on_the_prompts_that_share_its_batch() {
    let model = open();
    let prompts =
        strings(&["a red circle", "a much longer prompt, with many more words than the other one has"]);
    let together = model.encode_prompts(&prompts, 48).unwrap();
    let negative = model.encode_prompts(&strings(&[" "]), 48).unwrap();
    let (latents, sigmas) = noises();
    let ask = |rows: (i64, i64), positive: &Conditioning| {
        let guidance = Guidance { positive, negative: Some(&negative), scale: 4.0 };
        let narrow = |x: &Tensor| x.narrow(0, rows.0, rows.1);
        model.velocity(&narrow(&latents), &narrow(&sigmas), &guidance, AdapterMode::Off)
    };
    let both = ask((0, 2), &together);
    for (row, prompt) in prompts.iter().enumerate() {
        let alone = model.encode_prompts(std::slice::from_ref(prompt), 48).unwrap();
        assert_close(&both.narrow(0, row as i64, 1), &ask((row as i64, 1), &alone));
    }
}

#[test]
fn texts_of_one_length_share_a_batch_and_others_do_not_with_the_same_result() {
    let model = open();
    let positive = model.encode_prompts(&strings(&["a red circle"]), 48).unwrap();
    let negative = model.encode_prompts(&strings(&[" "]), 48).unwrap();
    // Padded to the other's length, which is what the rule is there to avoid.
    let padded = Conditioning::cat(&[&negative, &positive]).select(&[0]);
    assert!(padded.tokens() == positive.tokens() && negative.tokens() < positive.tokens());
    let (latents, sigmas) = noises();
    let ask = |negative: &Conditioning| {
        let guidance = Guidance { positive: &positive, negative: Some(negative), scale: 4.0 };
        model.velocity(&latents, &sigmas, &guidance, AdapterMode::Off)
    };
    assert_close(&ask(&padded), &ask(&negative));
}

#[test]
fn latents_are_packed_and_unpacked() {
    let model = open();
    let (file, _) = case("transformer.safetensors");
    let latents = file.read("in.latents_unpacked").unwrap().squeeze_dim(1);
    let packed = model.pack(&latents);
    assert_eq!(packed, file.read("in.hidden_states").unwrap());
    assert_eq!(model.unpack(&packed, &[16, 10, 8]).unwrap(), latents);
    for shape in [&[16, 10, 10][..], &[8, 10, 8], &[16, 80]] {
        assert!(model.unpack(&packed, shape).unwrap_err().to_string().contains("packed latents"));
    }
}

#[test]
fn decoded_images_are_those_of_diffusers() {
    let (file, _) = case("vae_decode.safetensors");
    let latents = file.read("in.latents").unwrap().squeeze_dim(2);
    let model = open();
    assert_close(&model.decode_signed(&latents).unwrap(), &file.read("out.image").unwrap());
    let message = model.decode(&latents.unsqueeze(2)).unwrap_err().to_string();
    assert!(message.contains("latents have shape"), "{message}");
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_those_that_do() {
    let model = open();
    assert_eq!(model.latent_shape(40, 32).unwrap(), [16, 10, 8]);
    assert_eq!(model.image_sequence_length(40, 32), 20);
    let message = model.latent_shape(41, 3).unwrap_err().to_string();
    assert!(message.contains("multiples of 8") && message.contains("40×8"), "{message}");
}

#[test]
fn inputs_that_do_not_fit_are_refused_before_the_network_panics_at_them() {
    let model = open();
    let text = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let conditioning = |size: &[i64]| Conditioning { text: text(size), pooled: None, text_mask: None };
    let check = |latents: &[i64], conditioning: Conditioning| {
        model.check_inputs(&text(latents), &conditioning).err().map(|error| error.to_string())
    };
    assert_eq!(check(&[2, 16, 4, 4], conditioning(&[1, 3, 64])), None);
    let masked = Conditioning { text_mask: Some(text(&[2, 4])), ..conditioning(&[2, 3, 64]) };
    let pooled = Conditioning { pooled: Some(text(&[2, 8])), ..conditioning(&[2, 3, 64]) };
    for (latents, conditioning, word) in [
        (&[2, 16, 4][..], conditioning(&[2, 3, 64]), "latents"),
        (&[2, 8, 4, 4], conditioning(&[2, 3, 64]), "latents"),
        (&[2, 16, 4, 5], conditioning(&[2, 3, 64]), "4x5"),
        (&[2, 16, 4, 4], conditioning(&[3, 3, 64]), "text embeddings"),
        (&[2, 16, 4, 4], conditioning(&[2, 0, 64]), "text embeddings"),
        (&[2, 16, 4, 4], conditioning(&[2, 3, 65]), "text embeddings"),
        (&[2, 16, 4, 4], masked, "text mask"),
        (&[2, 16, 4, 4], pooled, "pooled"),
    ] {
        let message = check(latents, conditioning).unwrap();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn parts_that_do_not_fit_each_other_are_named() {
    let vae = altered("vae/config.json", |config| {
        config["z_dim"] = 8.into();
        for key in ["latents_mean", "latents_std"] {
            config[key].as_array_mut().unwrap().truncate(8);
        }
    });
    assert!(refusal(vae.path()).contains("z_dim"));
    let encoder = altered("model_index.json", |index| index["text_encoder"][1] = "T5EncoderModel".into());
    assert!(refusal(encoder.path()).contains("Qwen2_5_VLForConditionalGeneration"));
    let heads = altered("text_encoder/config.json", |config| {
        config["text_config"]["num_key_value_heads"] = 3.into();
    });
    assert!(refusal(heads.path()).contains("num_key_value_heads"));
    let layers = altered("transformer/config.json", |config| config["num_layers"] = 4.into());
    assert!(refusal(layers.path()).contains("transformer_blocks.3"));
}

#[test]
fn a_folder_opened_in_part_says_what_it_lacks() {
    let model =
        pipeline::open(&golden(), LoadOptions { text_encoders: false, decoder: None, ..ALL }).unwrap();
    let message = model.encode_prompts(&strings(&["a"]), 8).unwrap_err().to_string();
    assert!(message.contains("without its text encoder"), "{message}");
    let latents = Tensor::zeros([1, 16, 4, 4], (Kind::Float, Device::Cpu));
    assert!(model.decode(&latents).unwrap_err().to_string().contains("without its decoder"));
}

#[test]
fn half_precision_stays_near_float32() {
    let run = |kind| {
        let options = LoadOptions { weights: WeightOptions::new(kind, Device::Cpu), ..ALL };
        let model = pipeline::open(&golden(), options).unwrap();
        let positive = model.encode_prompts(&strings(&["a photo of two red circles"]), 48).unwrap();
        let negative = model.encode_prompts(&strings(&[" "]), 48).unwrap();
        assert_eq!(positive.text.kind(), kind);
        let (latents, sigmas) = noises();
        let guidance = Guidance { positive: &positive, negative: Some(&negative), scale: 1.5 };
        let velocity = model.velocity(&latents, &sigmas, &guidance, AdapterMode::Off);
        assert_eq!(velocity.kind(), Kind::Float);
        (positive.text.to_kind(Kind::Float), velocity)
    };
    let (text, velocity) = run(Kind::Float);
    let (rough_text, rough_velocity) = run(Kind::BFloat16);
    for (rough, exact) in [(rough_text, text), (rough_velocity, velocity)] {
        let relative = (rough - &exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
        assert!(relative < 5e-2, "relative error {relative:e}");
    }
}
