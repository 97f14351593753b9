//! The sample command as a user types it: by flags alone, with what was trained at any level of an export, and as a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use config::RunConfig;
use models::adapter_file::SavedAdapter;
use models::weights::{read_all, write};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/sd3").canonicalize().unwrap()
}

/// The files of a folder by name.
type Files = BTreeMap<String, Vec<u8>>;

/// A folder with two prompts, to draw from and into.
struct Studio {
    home: tempfile::TempDir,
}

impl Studio {
    fn new() -> Self {
        let studio = Self { home: tempfile::tempdir().unwrap() };
        std::fs::write(studio.path("prompts.txt"), "a red circle\ntwo dogs\n").unwrap();
        studio
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Runs `sample` in the folder.
    fn sample(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
        command.arg("sample").args(arguments).current_dir(self.home.path());
        command.env("HF_HUB_CACHE", "/nowhere").env_remove("HUGGINGFACE_HUB_CACHE").output().unwrap()
    }

    /// Draws into a new folder, and returns its files.
    fn draw(&self, out: &str, arguments: &[&str]) -> Files {
        let output = self.sample(&[arguments, &["--out", out]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.files(out)
    }

    fn draw_by_flags(&self, out: &str, arguments: &[&str]) -> Files {
        let model = golden();
        let fixed = ["--model", model.to_str().unwrap(), "--prompts", "prompts.txt"];
        self.draw(out, &[&fixed[..], &SMALL[..], arguments].concat())
    }

    fn files(&self, folder: &str) -> Files {
        let entries = std::fs::read_dir(self.path(folder)).unwrap().map(Result::unwrap);
        let file = |entry: std::fs::DirEntry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        };
        entries.map(file).collect()
    }

    #[track_caller]
    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.sample(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
        error
    }

    /// A run of the model with an adapter, that best and last version share at first.
    fn run(&self, name: &str, change: impl FnOnce(&mut RunConfig)) -> PathBuf {
        let mut config = config::preset("tempflow-tiny-cpu").unwrap().config;
        config.run.seed = 7;
        config.data.validation = PathBuf::new();
        config.model.path = golden();
        config.model.max_sequence_length = 8;
        config.data.test = "prompts.txt".into();
        (config.sampling.height, config.sampling.width) = (16, 24);
        config.rewards = vec![config::RewardSection::new("jpeg_compressibility")];
        config.sampling.guidance_scale = 2.0;
        config.evaluation.guidance_scale = 2.0;
        (config.evaluation.steps, config.evaluation.prompts) = (3, 1);
        config.evaluation.images_per_prompt = 2;
        config.resources.device = config::ComputeDevice::Cpu;
        change(&mut config);
        let run = self.path(name);
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("config.toml"), config.to_toml()).unwrap();
        run
    }
}

const SMALL: [&str; 8] = ["--height", "16", "--width", "16", "--steps", "2", "--max-sequence-length", "8"];

/// The recorded adapter, `factor` times as strong.
fn adapter(factor: f64) -> SavedAdapter {
    let SavedAdapter { config, tensors, left_out } =
        SavedAdapter::read(&golden().join("cases/transformer_lora")).unwrap();
    let scaled = |(name, tensor): (String, tch::Tensor)| {
        let tensor = if name.contains("lora_B") { tensor * factor } else { tensor };
        (name, tensor)
    };
    SavedAdapter { config, tensors: tensors.into_iter().map(scaled).collect(), left_out }
}

/// Writes an adapter as a run exports it.
fn export(adapter: &SavedAdapter, folder: &Path) {
    adapter.write_peft(&folder.join("peft"), None).unwrap();
    adapter.write_diffusers(&folder.join("diffusers")).unwrap();
}

#[test]
fn images_that_are_there_are_replaced_only_with_force() {
    let studio = Studio::new();
    let first = studio.draw_by_flags("out", &[]);
    assert_eq!(first.keys().collect::<Vec<_>>(), ["00000-0.png", "00001-0.png"]);
    let model = golden();
    let again =
        ["--model", model.to_str().unwrap(), "--prompts", "prompts.txt", "--out", "out", "--seed", "1"];
    let told = studio.refusal(&[&again[..], &SMALL[..]].concat());
    for word in ["holds 2 of the 2 images already", "00000-0.png", "--out", "--force"] {
        assert!(told.contains(word), "`{word}` is not in {told}");
    }
    assert_eq!(studio.files("out"), first);
    std::fs::write(studio.path("out/00007-0.png"), "of before").unwrap();
    let output = studio.sample(&[&again[..], &SMALL[..], &["--force"]].concat());
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("holds 1 other images"), "{said}");
    let second = studio.files("out");
    assert_eq!(second["00007-0.png"], b"of before");
    assert!(second["00000-0.png"] != first["00000-0.png"]);
}

#[test]
fn an_adapter_is_found_at_every_level_of_an_export() {
    let studio = Studio::new();
    export(&adapter(1.0), &studio.path("exported"));
    let base = studio.draw_by_flags("base", &[]);
    let own = golden().join("cases/transformer_lora");
    let expected = studio.draw_by_flags("own", &["--adapter", own.to_str().unwrap()]);
    assert!(base["00000-0.png"] != expected["00000-0.png"]);
    for (number, place) in [
        "exported",
        "exported/peft",
        "exported/diffusers",
        "exported/diffusers/pytorch_lora_weights.safetensors",
    ]
    .iter()
    .enumerate()
    {
        let drawn = studio.draw_by_flags(&format!("out{number}"), &["--adapter", place]);
        assert!(drawn == expected, "{place}");
    }
    std::fs::remove_dir_all(studio.path("exported/peft")).unwrap();
    assert!(studio.draw_by_flags("out", &["--adapter", "exported"]) == expected);
}

#[test]
fn a_whole_transformer_is_found_at_every_level_of_an_export() {
    let studio = Studio::new();
    let name = "diffusion_pytorch_model.safetensors";
    let (mut tensors, _) = read_all(&golden().join("transformer").join(name)).unwrap();
    tensors.iter_mut().for_each(|(_, tensor)| *tensor = &*tensor * 1.1);
    let trained = studio.path("exported/transformer");
    std::fs::create_dir_all(&trained).unwrap();
    write(&trained.join(name), &tensors, &Default::default()).unwrap();
    std::fs::copy(golden().join("transformer/config.json"), trained.join("config.json")).unwrap();
    // What diffusers would do with it: it takes the place of the base's.
    let pipeline = studio.path("pipeline");
    std::fs::create_dir(&pipeline).unwrap();
    for entry in std::fs::read_dir(golden()).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        let from = if name == "transformer" { trained.clone() } else { entry.path() };
        std::os::unix::fs::symlink(from, pipeline.join(name)).unwrap();
    }
    let replaced = ["--model", "pipeline", "--prompts", "prompts.txt"];
    let expected = studio.draw("expected", &[&replaced[..], &SMALL[..]].concat());
    let file = format!("exported/transformer/{name}");
    for (number, place) in ["exported", "exported/transformer", &file].iter().enumerate() {
        let drawn = studio.draw_by_flags(&format!("out{number}"), &["--adapter", place]);
        assert!(drawn == expected, "{place}");
    }
    assert!(studio.draw_by_flags("base", &[]) != expected);
    let told =
        studio.refusal(&[&replaced[..], &SMALL[..], &["--out", "out", "--adapter", "pipeline"]].concat());
    assert!(told.contains("pipeline is a whole pipeline; give it as the model"), "{told}");
    tensors.pop();
    write(&trained.join(name), &tensors, &Default::default()).unwrap();
    let model = golden();
    let damaged = ["--model", model.to_str().unwrap(), "--prompts", "prompts.txt", "--adapter", "exported"];
    let told = studio.refusal(&[&damaged[..], &SMALL[..], &["--out", "out"]].concat());
    assert!(told.contains("1 missing"), "{told}");
    assert!(!studio.path("out").exists(), "nothing was drawn");
}

#[test]
fn a_run_is_drawn_as_its_evaluations_draw_unless_a_flag_says_otherwise() {
    let studio = Studio::new();
    let run = studio.run("run", |_| {});
    export(&adapter(1.0), &run.join("adapter"));
    export(&adapter(3.0), &run.join("adapter/best"));
    let model = golden();
    // The run evaluates the first of the prompts.
    std::fs::write(studio.path("first.txt"), "a red circle\n").unwrap();
    let by_flags = |out: &str, trained: &str, flags: &[&str]| {
        let all = ["--model", model.to_str().unwrap(), "--seed", "7", "--adapter", trained];
        let own = ["--height", "16", "--width", "24", "--max-sequence-length", "8"];
        studio.draw(out, &[&all[..], &own[..], flags].concat())
    };
    let same = ["--prompts", "first.txt", "--images-per-prompt", "2", "--guidance", "2", "--steps", "3"];
    let best = by_flags("best", "run/adapter/best", &same);
    assert!(studio.draw("own", &["--run", "run"]) == best);
    let last = by_flags("last", "run/adapter", &same);
    assert!(studio.draw("own-last", &["--run", "run", "--trained", "last"]) == last && last != best);
    let adapter = ["--run", "run", "--adapter", "run/adapter"];
    assert!(studio.draw("own-adapter", &adapter) == last, "a flag goes before the run's");
    let other = ["--prompts", "prompts.txt", "--images-per-prompt", "1", "--guidance", "1", "--steps", "2"];
    let expected = by_flags("other", "run/adapter/best", &other);
    assert!(studio.draw("own-other", &[&["--run", "run"], &other[..]].concat()) == expected);

    std::fs::create_dir(studio.path("runs")).unwrap();
    std::fs::rename(studio.path("run"), studio.path("runs/mine")).unwrap();
    assert!(studio.draw("by-name", &["--run", "mine"]) == best);
}

#[test]
fn what_a_run_lacks_is_told_with_the_flag_that_does_without() {
    let studio = Studio::new();
    studio.run("fresh", |_| {});
    studio.run("moved", |config| config.model.path = "models/tiny".into());
    studio.run("promptless", |config| config.data.test = "held-out.jsonl".into());
    let config = studio.run("gpu", |_| {}).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("device = \"cpu\"", "device = \"quantum\"")).unwrap();
    for (arguments, words) in [
        (&["--run", "nowhere"][..], &["no run `nowhere`", "runs/nowhere"][..]),
        (&["--run", "fresh"], &["holds nothing trained yet", "--trained none"]),
        (&["--run", "fresh", "--trained", "best"], &["--trained last"]),
        (
            &["--run", "moved", "--trained", "none"],
            &["`model.path`", "models/tiny", "start there", "--model"],
        ),
        (&["--run", "promptless", "--trained", "none"], &["`data.test`", "held-out.jsonl", "--prompts"]),
        (&["--run", "gpu", "--trained", "none"], &["quantum"]),
        (&["--run", "fresh", "--trained", "last", "--adapter", "a"], &["--trained", "--adapter"]),
        (&["--trained", "last", "--model", "m", "--prompts", "p"], &["--run"]),
        (&["--prompts", "prompts.txt"], &["--model"]),
    ] {
        let told = studio.refusal(&[arguments, &["--out", "out"]].concat());
        for word in words {
            assert!(told.contains(word), "`{word}` is not in {told}");
        }
        assert!(!studio.path("out").exists(), "nothing was drawn");
    }
    let drawn = studio.draw("out", &["--run", "fresh", "--trained", "none"]);
    assert_eq!(drawn.keys().collect::<Vec<_>>(), ["00000-0.png", "00000-1.png"]);
}
