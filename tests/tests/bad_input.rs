//! What a user can get wrong, run for real: the message in the output of `coordinator up` itself, the exit code, and
//! nothing lost.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{Run, coordinator_output, repository};

/// A copy of the shipped model, to be damaged.
struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        copy_folder(&repository().join("assets/tiny-sd3"), folder.path());
        Self { folder }
    }

    /// The weights of a component.
    fn weights(&self, component: &str) -> PathBuf {
        self.folder.path().join(component).join("diffusion_pytorch_model.safetensors")
    }

    /// The key of a run config that names this model.
    fn key(&self) -> (&'static str, String) {
        ("model.path", format!("{:?}", self.folder.path().display().to_string()))
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let copy = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &copy),
            false => fs::copy(entry.path(), &copy).map(drop).expect("copied"),
        }
    }
}

/// Changes the announcement of the tensors in a safetensors file, and their bytes.
fn edit_weights(path: &Path, edit: impl FnOnce(&mut serde_json::Value, &mut [u8])) {
    let bytes = fs::read(path).expect("readable");
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let mut header = serde_json::from_slice(&rest[..length]).expect("a header");
    let mut tensors = rest[length..].to_vec();
    edit(&mut header, &mut tensors);
    let text = header.to_string().into_bytes();
    let length = (text.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], &text, &tensors].concat()).expect("written");
}

/// Brings a run with these keys up and expects it to end with that code, saying all of `words`.
#[track_caller]
fn ends(keys: &[(&str, String)], code: i32, words: &[&str]) -> Run {
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut run = Run::new(&keys);
    run.start(&["--workers", "1"]);
    expect_end(&mut run, code, words);
    run
}

#[track_caller]
fn expect_end(run: &mut Run, code: i32, words: &[&str]) {
    assert_eq!(run.wait(), Some(code), "{}", run.output());
    let said = run.said();
    for word in words {
        assert!(said.contains(word), "`{word}` is not in what `up` said:\n{said}");
    }
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

#[test]
fn missing_and_truncated_model_files_are_named() {
    for component in ["transformer", "vae"] {
        let model = Model::new();
        let bytes = fs::read(model.weights(component)).expect("readable");
        fs::write(model.weights(component), &bytes[..bytes.len() / 2]).expect("written");
        ends(&[model.key()], 2, &[&model.weights(component).display().to_string(), "is damaged"]);
        fs::remove_file(model.weights(component)).expect("removed");
        ends(&[model.key()], 2, &[&model.weights(component).display().to_string(), "is missing"]);
    }
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let model = Model::new();
    edit_weights(&model.weights("transformer"), |header, _| {
        header["context_embedder.weight"]["shape"].as_array_mut().expect("a shape").reverse();
    });
    ends(&[model.key()], 2, &["mis-shaped: context_embedder.weight has shape"]);
}

#[test]
fn adapters_and_sizes_that_do_not_fit_the_model_are_refused() {
    let cases = [
        (&[("adapter.targets", "[\"attn.to_qq\"]")][..], "attn.to_qq"),
        (&[("adapter.rank", "4096")], "lower `adapter.rank`"),
        (&[("sampling.height", "17"), ("sampling.width", "17")], "cannot draw 17×17 pixels"),
        (&[("sampling.height", "24")], "`shapes` takes squares with a side of 16 to 64 pixels"),
    ];
    for (keys, words) in cases {
        let keys: Vec<(&str, String)> = keys.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        ends(&keys, 2, &[words]);
    }
}

#[test]
fn validate_and_plan_refuse_what_processes_of_a_run_would() {
    let eighths = Model::new();
    edit_weights(&eighths.weights("transformer"), |header, _| {
        let tensor = &mut header["context_embedder.weight"];
        tensor["dtype"] = "F8_E4M3".into();
        let rows = tensor["shape"][0].as_u64().expect("rows");
        tensor["shape"][0] = (4 * rows).into();
    });
    let whole = Model::new();
    edit_weights(&whole.weights("vae"), |header, _| {
        let name =
            header.as_object().expect("a header").keys().find(|name| name.starts_with("decoder.")).cloned();
        header[name.expect("a tensor")]["dtype"] = "I32".into();
    });
    let pointer = Model::new();
    let text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(pointer.weights("transformer"), text).expect("written");
    let adapter = |name: &str| quoted(&repository().join("tests/golden/adapters").join(name));
    let start = |value: String| vec![("adapter.start_from", value)];
    let of_its_size = [("adapter.rank", "2".to_owned()), ("adapter.alpha", "3".to_owned())];
    for (keys, words) in [
        (vec![eighths.key()], "context_embedder.weight in element type F8_E4M3"),
        (vec![whole.key()], "in element type Int"),
        (vec![pointer.key()], "is a Git LFS pointer"),
        (start("\"no/adapter\"".to_owned()), "no/adapter is missing"),
        (start(adapter("plain")), "rank 2 and alpha 3"),
        (start(adapter("pissa")), "init_lora_weights"),
        (
            [&start(adapter("plain"))[..], &of_its_size].concat(),
            "adapts other modules than `adapter.targets`",
        ),
        (vec![("adapter.rank", "4096".to_owned())], "lower `adapter.rank`"),
        (vec![("sampling.vae_tile", "17".to_owned())], "tiles of 17 pixels"),
    ] {
        let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let run = Run::new(&keys);
        for command in ["validate", "plan"] {
            let output = coordinator_output(&[command, &run.config().display().to_string()]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command}: {said}");
            assert!(said.contains(words) && !said.contains("damaged"), "`{words}` is not in:\n{said}");
        }
    }
}

#[test]
fn all_errors_of_a_config_are_named_at_once_with_the_nearest_key() {
    let keys = [("run.itertions", "3"), ("sampling.steps", "1"), ("training.learning_rate", "0.0")];
    let keys = keys.map(|(key, value)| (key, value.to_owned()));
    ends(&keys, 2, &["run.itertions", "run.iterations", "sampling.steps", "training.learning_rate"]);
}

#[test]
fn prompt_files_are_named_with_their_lines() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("prompts.jsonl");
    let cases = [
        ("", "holds no prompt"),
        ("{\"prompt\": \"a red circle\"}\n{\"prompt\": 3}\n", "line 2"),
        ("{\"prompt\": \"a red circle\"}\n", "has no `tag`"),
    ];
    for (text, words) in cases {
        fs::write(&path, text).expect("written");
        ends(&[("data.train", quoted(&path))], 2, &["prompts.jsonl", words]);
    }
    ends(&[("evaluation.prompts", "91".to_owned())], 2, &["`evaluation.prompts` is 91", "holds 90 prompts"]);
}

#[test]
fn paths_are_expanded_from_the_environment_or_say_what_is_not_set() {
    let run = Run::new(&[]);
    let validate = |variables: &[(&str, &Path)]| {
        let mut command = Command::new(tests::coordinator());
        command.arg("validate").arg(run.config()).envs(variables.iter().copied());
        command.args([
            "--set",
            "data.train=$PROMPTS_OF_A_TEST/train.jsonl",
            "--set",
            "model.path=~/tiny-sd3",
        ]);
        let output = command.output().expect("the coordinator starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let assets = repository().join("assets");
    let (code, said) = validate(&[("HOME", &assets), ("PROMPTS_OF_A_TEST", &assets.join("prompts"))]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = validate(&[("HOME", Path::new("/nowhere"))]);
    assert_eq!(code, Some(2), "{said}");
    for words in ["/nowhere/tiny-sd3/model_index.json is missing", "variable `PROMPTS_OF_A_TEST` is not set"]
    {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_run_goes_on_with_other_prompts_only_if_somebody_says_so() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("prompts.jsonl");
    let shipped = fs::read_to_string(repository().join("assets/prompts/train.jsonl")).expect("readable");
    let write = |n_prompts: usize| {
        let lines: Vec<&str> = shipped.lines().take(n_prompts).collect();
        fs::write(&path, lines.join("\n")).expect("written");
    };
    write(40);
    let mut run = ends(&[("data.train", quoted(&path)), ("run.iterations", "1".to_owned())], 0, &[]);
    write(41);
    let longer = ["--resume", "--workers", "1", "--set", "run.iterations=2"];
    run.start(&longer);
    let words = ["`data.train`: 41 prompts, 40 when the run began", "--accept-changed-data"];
    expect_end(&mut run, 2, &words);
    run.start(&[&longer[..], &["--accept-changed-data"]].concat());
    expect_end(&mut run, 0, &["accepted: `data.train`: 41 prompts"]);
    assert_eq!(run.rows("metrics.jsonl").len(), 2);
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let mut run = Run::new(&[]);
    run.start(&["--port", &port]);
    expect_end(&mut run, 2, &[&format!("port {port} is taken"), "--port"]);
}

#[test]
fn a_network_that_yields_no_numbers_ends_the_run_with_prompt_seed_and_step() {
    let model = Model::new();
    edit_weights(&model.weights("transformer"), |header, tensors| {
        let place = &header["proj_out.bias"]["data_offsets"];
        let [from, to] = [0, 1].map(|end| place[end].as_u64().expect("an offset") as usize);
        for number in tensors[from..to].chunks_exact_mut(4) {
            number.copy_from_slice(&f32::NAN.to_le_bytes());
        }
    });
    ends(&[model.key()], 1, &["failed 3 times", "prompt `", "seed 0", "not finite at step 0"]);
}

#[test]
fn weights_that_are_no_numbers_any_more_end_the_run_with_prompts_and_seeds() {
    let key = ("training.learning_rate", "1e300".to_owned());
    let run = ends(&[key], 1, &["is not finite", "iteration 0", "seed", "lower `training.learning_rate`"]);
    assert!(run.directory().join("checkpoints/iteration-000000").is_dir(), "the one before is kept");
}

#[test]
fn a_run_that_is_done_is_left_alone() {
    let mut run = Run::new(&[]);
    run.complete(&["--workers", "1"]);
    let digests = run.adapter_digests();
    run.start(&[]);
    expect_end(&mut run, 0, &["is done and is left so", "coordinator resume", "run.name"]);
    assert_eq!(run.adapter_digests(), digests);
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_and_said_so() {
    let mut run = Run::new(&[]);
    run.complete(&["--workers", "1"]);
    let digests = run.adapter_digests();
    let path = run.directory().join("checkpoints/iteration-000006/adapter.safetensors");
    let mut bytes = fs::read(&path).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&path, bytes).expect("written");
    run.start(&["--resume", "--workers", "1"]);
    expect_end(&mut run, 0, &["damaged checkpoint passed over", "iteration-000006", "another digest"]);
    assert_eq!(run.adapter_digests(), digests, "the last iteration was trained again");
}

#[test]
fn a_disk_that_stays_full_ends_the_run_and_costs_nothing_that_was_written() {
    let mut straight = Run::new(&[]);
    straight.complete(&["--workers", "1"]);
    let mut run = Run::new(&[("run.iterations", "2")]);
    run.complete(&["--workers", "1"]);
    // No file may grow beyond the size of an adapter's; the optimizer's is twice as large.
    let more = ["--resume", "--workers", "1", "--set", "run.iterations=6"];
    run.start_with_small_files(&[&more[..], &["--set", "checkpoints.retry_minutes=0.01"]].concat());
    let words = ["not written, earlier ones are kept", "no checkpoint could be written for", "make room"];
    expect_end(&mut run, 1, &words);
    assert!(run.directory().join("checkpoints/iteration-000002/manifest.json").is_file());
    run.complete(&["--resume", "--workers", "1", "--set", "run.iterations=6"]);
    assert_eq!(run.adapter_digests(), straight.adapter_digests());
}

#[test]
fn a_run_without_workers_says_what_it_waits_for_and_takes_those_that_come() {
    let mut run = Run::new(&[("resources.workers", "0"), ("run.iterations", "1")]);
    run.start(&[]);
    run.wait_until_said("resources.workers is 0, so no worker is started here");
    let directory = run.directory().display().to_string();
    let scaled = coordinator_output(&["scale", &directory, "--workers", "1"]);
    assert!(scaled.status.success(), "{scaled:?}");
    assert_eq!(run.wait(), Some(0), "{}", run.output());
}
