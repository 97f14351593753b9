//! The inspect and sample commands as a user types them, on models in folders, in a cache, and by configurations alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use config::ModelInspection;
use serde_json::json;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/sd3")
}

fn rollout_worker(cache: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
    command.args(arguments).env("HF_HUB_CACHE", cache).env_remove("HUGGINGFACE_HUB_CACHE");
    command.output().unwrap()
}

fn inspected(cache: &Path, arguments: &[&str]) -> ModelInspection {
    let output = rollout_worker(cache, &[&["inspect", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(cache: &Path, arguments: &[&str]) -> String {
    let output = rollout_worker(cache, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Writes `FOLDER/NAME/config.json` for every name.
fn write_configs(folder: &Path, configs: &[(&str, serde_json::Value)]) {
    for (name, config) in configs {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        let file = if *name == "scheduler" { "scheduler_config.json" } else { "config.json" };
        std::fs::write(folder.join(name).join(file), config.to_string()).unwrap();
    }
}

/// Stable Diffusion 3.5 Medium as published, without its weights and tokenizers.
fn published() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let index = json!({
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    std::fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    let clip = |width: i64, layers: i64, heads: i64, act: &str| {
        json!({
            "vocab_size": 49408, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "max_position_embeddings": 77, "projection_dim": width, "hidden_act": act,
        })
    };
    let t5 = json!({
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
    });
    let transformer = json!({
        "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16,
        "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
        "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "out_channels": 16,
        "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": (0..13).collect::<Vec<i64>>(),
    });
    let vae = json!({
        "_class_name": "AutoencoderKL", "out_channels": 3, "latent_channels": 16, "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_post_quant_conv": false,
    });
    let configs = [
        ("scheduler", json!({"num_train_timesteps": 1000, "shift": 3.0})),
        ("text_encoder", clip(768, 12, 12, "quick_gelu")),
        ("text_encoder_2", clip(1280, 32, 20, "gelu")),
        ("text_encoder_3", t5),
        ("transformer", transformer),
        ("vae", vae),
    ];
    write_configs(folder.path(), &configs);
    folder
}

#[test]
fn a_published_model_is_sized_by_its_configurations() {
    let folder = published();
    let model = folder.path().to_str().unwrap();
    let arguments = [model, "--random-weights", "--dtype", "bfloat16", "--height", "512", "--rank", "32"];
    let inspection = inspected(Path::new("/nowhere"), &[&arguments[..], &["--target", "attn.to_q"]].concat());
    let parameters = |name: &str| {
        inspection.components.iter().find(|component| component.name == name).unwrap().parameters
    };
    // As transformers and diffusers count them.
    assert_eq!(parameters("text_encoder"), 123_650_304);
    assert_eq!(parameters("text_encoder_2"), 694_659_840);
    assert_eq!(parameters("text_encoder_3"), 4_762_310_656);
    assert_eq!(parameters("vae"), 49_545_475);
    // The published file has 4.94 GB in half precision.
    assert_eq!((2 * parameters("transformer") + 5_000_000) / 10_000_000, 494);
    let image = &inspection.image;
    assert_eq!((image.height, image.width, image.tokens), (512, 1024, 32 * 64));
    assert_eq!(image.latent_shape, [16, 64, 128]);
    assert_eq!((inspection.n_blocks, inspection.width, inspection.text_tokens), (24, 1536, 77 + 128));
    assert_eq!(inspection.rows_per_evaluation, 2);
    assert_eq!(inspection.adapter.unwrap().parameters, 24 * 2 * 32 * 1536);
}

#[test]
fn a_repository_in_the_cache_is_found_by_its_name() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--org--tiny");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("snapshots")).unwrap();
    std::fs::write(repository.join("refs/main"), "abc123").unwrap();
    std::os::unix::fs::symlink(golden(), repository.join("snapshots/abc123")).unwrap();
    let inspection = inspected(cache.path(), &["org/tiny", "--guidance", "1"]);
    assert_eq!(inspection.class, "StableDiffusion3Pipeline");
    assert_eq!(inspection.components.len(), 5);
    assert_eq!(inspection.rows_per_evaluation, 1);
    assert_eq!(inspection.adapter, None);
    let error = refused(cache.path(), &["inspect", "org/other"]);
    assert!(error.contains("hf download org/other"), "{error}");
}

#[test]
fn what_does_not_fit_is_bad_input() {
    let golden = golden();
    let model = golden.to_str().unwrap();
    let adapter = ["inspect", model, "--rank", "4", "--target", "attn.to_z"];
    for (arguments, word) in [
        (&["inspect", model, "--height", "20"][..], "multiples of 8"),
        (&adapter[..], "attn.to_z"),
        (&["inspect", model, "--variant", "fp16"][..], "variants present: none"),
        (&["inspect", "/nowhere"][..], "model_index.json"),
    ] {
        let error = refused(Path::new("/nowhere"), arguments);
        assert!(error.contains(word), "{word} is not in {error}");
    }
}

#[test]
fn a_device_that_cannot_be_used_is_bad_input() {
    // Where there is a GPU, the device is there and the prompts are not.
    let golden = golden();
    let model = golden.to_str().unwrap();
    let arguments =
        ["sample", "--model", model, "--prompts", "/nowhere.txt", "--out", "/nowhere", "--device", "cuda"];
    let error = refused(Path::new("/nowhere"), &arguments);
    assert!(
        error.contains("device `cpu`") || error.contains("use `cpu`") || error.contains("nowhere.txt"),
        "{error}"
    );
}

#[test]
fn images_are_drawn_by_configurations_alone_and_cut_prompts_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        let file = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        std::fs::copy(golden().join(part).join(file), folder.path().join(part).join(file)).unwrap();
    }
    std::fs::copy(golden().join("model_index.json"), folder.path().join("model_index.json")).unwrap();
    let (prompts, out) = (folder.path().join("prompts.txt"), folder.path().join("out"));
    std::fs::write(&prompts, format!("short\n{}\n", "long ".repeat(20))).unwrap();
    let [model, prompts, images] = [folder.path(), &prompts, &out].map(|path| path.to_str().unwrap());
    let arguments = ["--model", model, "--prompts", prompts, "--out", images, "--random-weights"];
    let size = ["--height", "16", "--width", "16", "--steps", "2", "--max-sequence-length", "16"];
    let output = rollout_worker(Path::new("/nowhere"), &[&["sample"], &arguments[..], &size[..]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
    assert!(errors.contains("tokenizer_3 has no files"), "{errors}");
    assert!(errors.contains("1 were cut to what tokenizer_3 takes"), "{errors}");
}

#[test]
fn numbers_that_no_run_could_use_are_bad_usage() {
    let model = golden().display().to_string();
    let sample = ["sample", "--model", &model, "--prompts", "none.txt", "--out", "none"];
    for (option, value) in [
        ("--guidance", "nan"),
        ("--guidance", "1e308"),
        ("--steps", "1"),
        ("--steps", "1000000000000"),
        ("--max-sequence-length", "100000000000"),
        ("--images-per-prompt", "0"),
        ("--threads", "65535"),
        ("--seed", "-1"),
        ("--height", "99999999999999999999"),
    ] {
        let argument = format!("{option}={value}");
        let message = refused(&golden(), &[&sample[..], &[&argument]].concat());
        assert!(message.contains(option) && message.contains(value), "{message}");
    }
    let message = refused(&golden(), &["parity", &model, "--rtol=nan"]);
    assert!(message.contains("--rtol"), "{message}");
}

#[test]
fn the_adapter_that_training_goes_on_from_is_opened_with_the_model() {
    let model = golden().display().to_string();
    let start =
        |adapter: &str| format!("--start-from={}", golden().join("../adapters").join(adapter).display());
    let fixed = ["inspect", &model, "--alpha=3", "--target=attn.to_q", "--target=attn.to_v"];
    for (adapter, rank, word) in [
        ("plain", "--rank=4", "rank 2 and alpha 3"),
        ("pissa", "--rank=2", "init_lora_weights"),
        ("exclude_modules", "--rank=2", "2 of those are not in it"),
        ("nothing", "--rank=2", "nothing is missing"),
    ] {
        let message = refused(&golden(), &[&fixed[..], &[rank, &start(adapter)]].concat());
        assert!(message.contains(word), "{adapter}: {message}");
    }
    let with_text_encoder = start("diffusers_text_encoder");
    let arguments = [&fixed[..], &["--rank=2", &with_text_encoder]].concat();
    let output = rollout_worker(&golden(), &arguments);
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && warning.contains("tensors of text_encoder are left out"), "{warning}");
}
