//! The commands around a run, as a user types them: signals and terminals, going on, branching off, looking at it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{Run, binary, coordinator, coordinator_output, repository};

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// Runs a command of the coordinator and expects its exit code and words.
#[track_caller]
fn says(arguments: &[&str], code: i32, words: &[&str]) -> String {
    let output = coordinator_output(arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}:\n{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in:\n{text}"));
    text
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_terminal_that_closes_stops_a_run_as_politely_as_a_signal_to_do_so() {
    let mut run = Run::new(&[]);
    run.start(&["--workers", "1"]);
    run.wait_for_iterations(1);
    // Both the shell and the system tell of it.
    kill(run.coordinator_pid(), Signal::SIGHUP).expect("the coordinator lives");
    kill(run.coordinator_pid(), Signal::SIGHUP).expect("the coordinator lives");
    assert_eq!(run.wait(), Some(75), "{}", run.output());
    let directory = path_text(&run.directory());
    let advice = format!("stopped; go on with `coordinator resume {directory}`");
    assert!(run.said().contains(&advice), "{}", run.said());
}

#[test]
fn a_resumed_run_has_the_settings_it_was_started_with_wherever_it_is_resumed() {
    let mut run = Run::new(&[]);
    run.start(&["--workers", "1", "--set", "run.seed=7", "--set", "run.iterations=4"]);
    run.wait_for_iterations(1);
    kill(run.coordinator_pid(), Signal::SIGTERM).expect("the coordinator lives");
    assert_eq!(run.wait(), Some(75), "{}", run.output());
    let directory = path_text(&run.directory());
    says(
        &["up", &path_text(&run.config()), "--resume"],
        2,
        &["run.seed: 7 → 42 differs from what", &format!("coordinator resume {directory}")],
    );
    says(&["resume", &directory, "--set", "run.name=b"], 2, &["names another run"]);
    says(&["resume", "no/such-run"], 2, &["no run `no/such-run`"]);
    let mut elsewhere = Command::new(coordinator());
    elsewhere.args(["resume", "law"]).current_dir(run.directory().parent().expect("its home"));
    fs::create_dir(run.directory().with_file_name("runs")).expect("created");
    std::os::unix::fs::symlink(run.directory(), run.directory().with_file_name("runs").join("law"))
        .expect("linked");
    let output = elsewhere.output().expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(run.rows("metrics.jsonl").len(), 4);
    let config = fs::read_to_string(run.directory().join("config.toml")).expect("there");
    assert!(config.contains("seed = 7") && config.contains("iterations = 4"), "{config}");

    says(&["resume", &directory, "--set", "run.iterations=2"], 2, &["`run.iterations` is 2, but 4 are done"]);
    run.resume(&["--set", "run.iterations=5"]);
    assert_eq!(run.wait(), Some(0), "{}", run.output());
    assert_eq!(run.rows("metrics.jsonl").len(), 5);
}

#[test]
fn a_run_stops_when_its_hours_are_over_and_has_them_again_when_it_goes_on() {
    let mut run = Run::new(&[("run.max_hours", "0.0007"), ("run.iterations", "1000000")]);
    for start in 0..2 {
        match start {
            0 => run.start(&["--workers", "1"]),
            _ => run.resume(&[]),
        }
        assert_eq!(run.wait(), Some(75), "{}", run.output());
    }
    assert_eq!(run.said().matches("stopping after `run.max_hours`").count(), 2, "{}", run.said());
    assert!(run.said().contains("go on with `coordinator resume"), "{}", run.said());
}

#[test]
fn members_of_a_run_that_may_be_fast_are_told_and_status_says_so() {
    let mut run = Run::new(&[("run.iterations", "1000000"), ("run.determinism", "\"fast\"")]);
    run.start(&["--workers", "1"]);
    // A member that computes otherwise than the run wants would have ended it.
    run.wait_for_iterations(1);
    let status = run.status(&[]);
    assert!(status.lines().next().is_some_and(|line| line.ends_with(" · fast")), "{status}");
    let directory = path_text(&run.directory());
    let mut strict = Command::new(binary("rollout-worker"));
    let record = fs::read(run.directory().join("run.json")).expect("there");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    let address = format!("http://127.0.0.1:{}", record["port"]);
    strict.args(["serve", "--coordinator", &address, "--member-id", "strict"]);
    let output = strict.env_remove("FLOW_RL_DETERMINISM").output().expect("the worker starts");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("start it with FLOW_RL_DETERMINISM=fast"), "{said}");
    says(&["down", &directory], 0, &["stopped"]);
}

/// Waits until a command of the coordinator says all of these words.
#[track_caller]
fn comes_to_say(arguments: &[&str], words: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let said = says(arguments, 0, &[]);
        match words.iter().find(|word| !said.contains(**word)) {
            None => return,
            Some(word) => assert!(Instant::now() < deadline, "`{word}` never came to be in:\n{said}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits for a process that is nobody's child here to end.
fn wait_for_end(pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while kill(Pid::from_raw(pid), None).is_ok() && Instant::now() < deadline {
        // A zombie counts as gone.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.contains("State:\tZ") {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(kill(Pid::from_raw(pid), None).is_err(), "{pid} still lives");
}

#[test]
fn a_detached_run_outlives_its_terminal_and_is_followed_and_stopped_by_the_commands_it_names() {
    let run = Run::new(&[("run.iterations", "1000000")]);
    let (config, directory) = (path_text(&run.config()), path_text(&run.directory()));
    // `script` gives it a terminal, and closes that when the command has returned.
    let command = format!("{} up {config} --workers 1 --detach", coordinator().display());
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]).current_dir(repository());
    let output = terminal.stdin(Stdio::null()).output().expect("a terminal");
    let said = text(&output);
    assert!(output.status.success() && said.contains("started (process "), "{said}");
    let pid = said.split("started (process ").nth(1).and_then(|rest| rest.split(')').next());
    let pid: i32 = pid.and_then(|pid| pid.parse().ok()).expect("a process id");
    // The command returns when the learner is there; workers come after it.
    comes_to_say(&["status", &directory], &["worker-0", "iteration ", "ETA", "tensorboard --logdir"]);
    comes_to_say(&["logs", &directory, "--tail", "5"], &["INFO"]);
    says(&["up", &config, "--detach"], 2, &["has a living coordinator"]);
    says(&["resume", &directory, "--detach"], 2, &["has a living coordinator"]);
    says(&["down", &directory], 0, &["stopped"]);
    wait_for_end(pid);
    assert!(run.status(&[]).contains("stopped; go on with `coordinator resume"), "{}", run.status(&[]));
    says(&["up", &config], 0, &["was stopped by `coordinator down` and is left so", "coordinator resume"]);
    says(&["resume", &directory, "--detach"], 0, &["started (process "]);
    says(&["down", &directory], 0, &["stopped"]);
}

#[test]
fn a_detached_run_that_cannot_start_says_why_before_the_command_returns() {
    let run = Run::new(&[]);
    let config = path_text(&run.config());
    says(
        &["up", &config, "--detach", "--set", "model.path=no/model"],
        2,
        &["`no/model` is neither a folder"],
    );
    assert!(!run.directory().exists(), "nothing was started");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    says(&["up", &config, "--detach", "--port", &port], 2, &["is taken"]);
}

#[test]
fn nothing_panics_where_nobody_reads() {
    let mut run = Run::new(&[("run.iterations", "1")]);
    run.complete(&["--workers", "1"]);
    let directory = path_text(&run.directory());
    let model = repository().join("assets/tiny-sd3");
    let images = run.directory().join("drawn");
    let one = run.directory().join("one.txt");
    fs::write(&one, "a red circle\n").expect("written");
    let (model, images, one) = (path_text(&model), path_text(&images), path_text(&one));
    let (config, exported) = (path_text(&run.config()), path_text(&run.directory().join("exported")));
    let cases: [(&str, &[&str]); 12] = [
        ("coordinator", &["status", &directory]),
        ("coordinator", &["logs", &directory]),
        ("coordinator", &["plan", &config]),
        ("coordinator", &["validate", &config]),
        ("coordinator", &["init", "--list"]),
        ("coordinator", &["up", &config, "--dry-run", "--resume"]),
        ("coordinator", &["--help"]),
        ("rollout-worker", &["inspect", &model]),
        (
            "rollout-worker",
            &["sample", "--model", &model, "--prompts", &one, "--out", &images, "--steps", "2"],
        ),
        (
            "rollout-worker",
            &["score", "--reward", "jpeg_compressibility", "--images", &images, "--prompts", &one],
        ),
        ("learner", &["export", &directory, "--to", &exported]),
        ("learner", &["parity", &model, "--cases", "tests/golden/sd3/cases"]),
    ];
    for (program, arguments) in cases {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(binary(program));
        command.args(arguments).current_dir(repository()).stdin(Stdio::null());
        drop(reader);
        let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut errors = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
        let code = child.wait().expect("it ends").code();
        assert!(
            !errors.contains("panicked") && code != Some(101),
            "{program} {arguments:?}: {code:?}\n{errors}"
        );
        assert!(!errors.contains("Broken pipe"), "{program} {arguments:?}: {errors}");
    }
    let shell = format!(
        "{} status {directory} 2>&1 | head -1; {0} validate no/file 2>&1 >/dev/null | true",
        coordinator().display()
    );
    let output = Command::new("sh").args(["-c", &shell]).output().expect("a shell");
    assert!(text(&output).starts_with("run law-") && text(&output).lines().count() == 1, "{}", text(&output));
}

#[test]
fn a_run_takes_no_more_workers_than_its_config_and_its_machine_do() {
    let mut run = Run::new(&[("run.iterations", "1000000"), ("resources.max_workers", "3")]);
    run.start(&["--workers", "1"]);
    run.wait_for_iterations(1);
    let directory = path_text(&run.directory());
    says(&["scale", &directory, "--workers", "2500"], 2, &["2500 workers", "`resources.max_workers` = 3"]);
    says(&["scale", &directory, "--workers", "2"], 0, &["2 workers wanted"]);
    says(&["down", &directory], 0, &["stopped"]);
    assert_eq!(run.wait(), Some(75), "{}", run.output());
    run.resume(&["--set", "resources.max_workers=1000000", "--workers", "1000000"]);
    assert_eq!(run.wait(), Some(2), "{}", run.output());
    assert!(run.said().contains("1000000 more workers do not fit on this machine"), "{}", run.said());
    says(
        &["up", &path_text(&run.config()), "--workers", "4", "--resume"],
        2,
        &["`resources.workers`: is 4, more than"],
    );
}

#[test]
fn a_branch_starts_from_what_a_checkpoint_had_trained() {
    let mut run = Run::new(&[("run.iterations", "3"), ("checkpoints.keep_last", "9")]);
    run.complete(&["--workers", "1"]);
    let (directory, home) = (path_text(&run.directory()), run.directory());
    let home = home.parent().expect("its home");
    let file = path_text(&home.join("branch.toml"));
    says(
        &["init", "--from", &directory, "--checkpoint", "7", &file],
        2,
        &["checkpoint 7 cannot be used", "0, 1, 2, 3"],
    );
    let told = says(
        &["init", "--from", &directory, "--checkpoint", "2", "--set", "run.iterations=1", &file],
        0,
        &["after 2 iterations", "Carried over", "Not carried over: the moments of the optimizer", "wrote "],
    );
    assert!(home.join("branch-adapter/peft/adapter_config.json").is_file(), "{told}");
    says(&["init", "--from", &directory, &file], 2, &["branch.toml exists"]);
    says(&["validate", &file], 0, &["is valid"]);
    says(&["up", &file, "--workers", "1"], 0, &["test reward after"]);
    // The first evaluation of a branch looks at what the run had trained then, under the same noises.
    says(&["init", "--from", &directory, &path_text(&home.join("newest.toml"))], 0, &["after 3 iterations"]);
    says(
        &["up", &path_text(&home.join("newest.toml")), "--workers", "1", "--set", "run.iterations=1"],
        0,
        &[],
    );
    let first = |name: &str| -> Value {
        let text = fs::read_to_string(home.join(name).join("evaluations.jsonl")).expect("there");
        serde_json::from_str(text.lines().next().expect("a row")).expect("JSON")
    };
    let last = run.rows("evaluations.jsonl").pop().expect("a row");
    assert_eq!(last["version"], 3);
    assert_eq!(first("newest")["prompt_rewards"], last["prompt_rewards"]);
    assert_ne!(first("branch")["prompt_rewards"], last["prompt_rewards"], "it branched off earlier");
}

#[test]
fn validate_names_all_that_is_wrong_at_once() {
    let run = Run::new(&[("resources.device", "\"cuda\""), ("sampling.max_rows", "0")]);
    let config = fs::read_to_string(run.config()).expect("there");
    let config = config
        .replace("assets/prompts/test.jsonl", "assets/prompts/nowhere.jsonl")
        .replace("assets/tiny-sd3", "assets/no-model");
    // A port that nobody gets who takes any free one.
    let reward = "\n[[rewards]]\nname = \"deqa\"\nurl = \"http://127.0.0.1:1\"\n";
    fs::write(run.config(), config + reward).expect("written");
    let mut words = vec![
        "is not a valid run config",
        "`sampling.max_rows`: is 0",
        "no-model/model_index.json is missing",
        "nowhere.jsonl",
        "nobody answers at http://127.0.0.1:1",
    ];
    if !Path::new("/dev/nvidiactl").exists() {
        words.push("`resources.device`: ");
    }
    says(&["validate", &path_text(&run.config())], 2, &words);
}

#[test]
fn a_plan_tells_the_time_that_the_run_itself_has_taken_so_far() {
    let mut run = Run::new(&[("run.iterations", "3")]);
    let config = path_text(&run.config());
    says(&["plan", &config], 0, &["time: not known without a rate; give `--rate`"]);
    says(
        &["plan", &config, "--rate", "250"],
        0,
        &["time at 250.0 network evaluations/s of each worker", "core-hours"],
    );
    says(&["plan", &config, "--rate", "0"], 2, &["must be above 0"]);
    run.complete(&["--workers", "1"]);
    says(&["plan", &config], 0, &["network evaluations/s, as this run has gone so far", "core-hours"]);
}
