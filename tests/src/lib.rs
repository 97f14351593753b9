//! Runs the real binaries as real processes, and looks at what they leave behind.
//!
//! Every run has a directory of its own, a free port, and a deadline; dropping it kills whatever is left of it.

pub mod chaos;
pub mod hosts;
mod sources;
mod stand_in_card;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub use sources::{Source, sources};
pub use stand_in_card::{CardTraffic, on_stand_in_card, traffic_on_stand_in_card, with_stand_in_card};

/// How long any single run of these tests may take.
const DEADLINE: Duration = Duration::from_secs(300);
/// How often files of a run are looked at.
const POLL: Duration = Duration::from_millis(20);

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is below the root").to_owned()
}

/// The coordinator's binary; all three are built before the first use, so that plain `cargo test` works.
///
/// # Panics
/// If the binaries cannot be built.
pub fn coordinator() -> PathBuf {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(build).join("coordinator")
}

/// A binary beside the coordinator.
pub fn binary(name: &str) -> PathBuf {
    coordinator().with_file_name(name)
}

/// The library of `tests/interposed/file_changes.c`, made before the first use.
fn interposed() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let library = folder.path().join("file_changes.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
        compiler.arg(repository().join("tests/interposed/file_changes.c")).args(["-ldl", "-lpthread"]);
        assert!(compiler.status().expect("a C compiler").success(), "the library cannot be made");
        (folder, library)
    };
    &LIBRARY.get_or_init(make).1
}

/// Cargo in the repository, as a shell would start it. What cargo tells a test of its package is left out: build scripts that
/// look at it, such as that of `ring`, would run again, and all that depends on them be built again, then and the next time.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let is_of_package = |name: &str| {
        name == "OUT_DIR" || ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.starts_with(of))
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| is_of_package(name)).for_each(|name| {
        cargo.env_remove(name);
    });
    cargo.current_dir(repository());
    cargo
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile_directory = test.ancestors().nth(2).expect("tests are in target/PROFILE/deps").to_owned();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    if profile_directory.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the binaries cannot be built");
    profile_directory
}

/// A command of the coordinator, run to its end.
///
/// # Panics
/// If it cannot be started.
pub fn coordinator_output(arguments: &[&str]) -> Output {
    let mut command = Command::new(coordinator());
    command.args(arguments).current_dir(repository()).stdin(Stdio::null());
    command.output().expect("the coordinator starts")
}

/// A run in a directory of its own.
pub struct Run {
    home: TempDir,
    name: String,
    child: Option<Child>,
}

impl Run {
    /// Writes the config of a small run on the shipped model; `changes` are dotted keys with TOML values.
    ///
    /// # Panics
    /// If the temporary directory cannot be written.
    pub fn new(changes: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let run = Self { home, name: "law".to_owned(), child: None };
        std::fs::write(run.config(), run.config_text(changes)).expect("the config is written");
        run
    }

    fn config_text(&self, changes: &[(&str, &str)]) -> String {
        let root = repository();
        let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
        let defaults = [
            ("run.name", format!("{:?}", self.name)),
            ("run.directory", quoted(self.home.path().to_owned())),
            ("run.iterations", "6".to_owned()),
            ("model.path", quoted(root.join("assets/tiny-sd3"))),
            ("model.max_sequence_length", "0".to_owned()),
            ("adapter.rank", "4".to_owned()),
            ("adapter.alpha", "8".to_owned()),
            ("data.train", quoted(root.join("assets/prompts/train.jsonl"))),
            ("data.validation", quoted(root.join("assets/prompts/validation.jsonl"))),
            ("data.test", quoted(root.join("assets/prompts/test.jsonl"))),
            ("sampling.steps", "4".to_owned()),
            ("sampling.guidance_scale", "1.0".to_owned()),
            ("sampling.height", "16".to_owned()),
            ("sampling.width", "16".to_owned()),
            ("sampling.prompts_per_iteration", "6".to_owned()),
            ("sampling.seeds_per_prompt", "2".to_owned()),
            ("sampling.branches_per_seed", "4".to_owned()),
            ("training.learning_rate", "1e-3".to_owned()),
            ("training.clip_range", "1e-3".to_owned()),
            ("ema.interval", "1".to_owned()),
            ("evaluation.every", "3".to_owned()),
            ("evaluation.steps", "4".to_owned()),
            ("evaluation.prompts", "12".to_owned()),
            ("evaluation.prompts_per_task", "4".to_owned()),
        ];
        let mut values: BTreeMap<String, String> =
            defaults.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        values.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in &values {
            let (section, name) = key.split_once('.').expect("a dotted key");
            let _ = writeln!(sections.entry(section).or_default(), "{name} = {value}");
        }
        let body: String = sections.iter().map(|(section, keys)| format!("[{section}]\n{keys}\n")).collect();
        body + "[[rewards]]\nname = \"shapes\"\n"
    }

    /// The config file.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config.toml")
    }

    /// The directory of the run.
    pub fn directory(&self) -> PathBuf {
        self.home.path().join(&self.name)
    }

    /// Starts `coordinator up` with further arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&mut self, arguments: &[&str]) {
        self.spawn(Command::new(coordinator()), &self.up(), arguments);
    }

    /// Starts `coordinator up` with the stand-in for a GPU before every process; `environment` says what else it does.
    ///
    /// # Panics
    /// If the card cannot be made, or the coordinator not be started.
    pub fn start_on_stand_in_card(&mut self, environment: &[(&str, &str)], arguments: &[&str]) {
        let mut command = Command::new(coordinator());
        with_stand_in_card(&mut command).env("STAND_IN_CARD_COUNTS", self.home.path().join("counts"));
        command.envs(environment.iter().copied());
        self.spawn(command, &self.up(), arguments);
    }

    /// The programs that used the card, and what the card counted, as its source says.
    pub fn counts_of_stand_in_card(&self) -> Vec<String> {
        self.read("counts").lines().map(str::to_owned).collect()
    }

    /// Starts `coordinator resume` with further arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn resume(&mut self, arguments: &[&str]) {
        let words = ["resume".to_owned(), self.directory().display().to_string()];
        self.spawn(Command::new(coordinator()), &words, arguments);
    }

    fn up(&self) -> [String; 2] {
        ["up".to_owned(), self.config().display().to_string()]
    }

    /// Starts `coordinator up` so that neither it nor its members can write files of more than a few score KiB; writing
    /// then fails as on a full disk.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with_small_files(&mut self, arguments: &[&str]) {
        // Depending on the shell, blocks are 512 or 1024 bytes. The signal would end the process that writes.
        const LIMITED: &str = r#"trap '' XFSZ; ulimit -f 140; exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", LIMITED, "sh"]).arg(coordinator());
        self.spawn(command, &self.up(), arguments);
    }

    /// Starts `coordinator up` with `tests/interposed/file_changes.c` between its learner and the C library, which notes
    /// the learner's changes of files; `environment` says what else it does.
    ///
    /// # Panics
    /// If the library cannot be made, or the coordinator not be started.
    pub fn start_interposed(&mut self, environment: &[(&str, &str)], arguments: &[&str]) {
        let mut command = Command::new(coordinator());
        command.env("LD_PRELOAD", interposed()).env("INTERPOSED_PROGRAM", "learner");
        command
            .env("INTERPOSED_BELOW", self.directory())
            .env("INTERPOSED_LOG", self.home.path().join("changes"));
        command.env("INTERPOSED_KILLED", self.home.path().join("killed"));
        command.envs(environment.iter().copied());
        self.spawn(command, &self.up(), arguments);
    }

    /// What an interposed learner changed, as `OPERATION PATH`.
    pub fn changes(&self) -> Vec<String> {
        self.read("changes").lines().map(str::to_owned).collect()
    }

    fn spawn(&mut self, mut command: Command, words: &[String], arguments: &[&str]) {
        let log = |name: &str| {
            let path = self.home.path().join(name);
            std::fs::File::options().create(true).append(true).open(path).expect("a log file")
        };
        command.args(words).args(arguments).current_dir(repository());
        command.stdin(Stdio::null()).stdout(log("stdout")).stderr(log("stderr"));
        self.child = Some(command.spawn().expect("the coordinator starts"));
    }

    /// Waits for `coordinator up` to end and returns its exit code, or `None` if a signal ended it.
    ///
    /// # Panics
    /// If the run takes longer than its deadline.
    pub fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the run was started");
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait().expect("the coordinator can be waited for") {
                return status.code();
            }
            if Instant::now() > deadline {
                self.child = Some(child);
                panic!("the run took longer than {DEADLINE:?}:\n{}", self.output());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Runs from start to end.
    ///
    /// # Panics
    /// If the run fails.
    pub fn complete(&mut self, arguments: &[&str]) {
        self.start(arguments);
        assert_eq!(self.wait(), Some(0), "the run failed:\n{}", self.output());
    }

    /// Runs from start to end, however long that takes, as long as in `directory` an iteration follows another within
    /// `patience`.
    ///
    /// # Panics
    /// If the run fails or stands still.
    pub fn complete_at_its_pace(&mut self, arguments: &[&str], directory: &Path, patience: Duration) {
        self.start(arguments);
        let metrics = directory.join("metrics.jsonl");
        let (mut longest, mut moved) = (0, Instant::now());
        let mut child = self.child.take().expect("the run was started");
        let status = loop {
            if let Some(status) = child.try_wait().expect("the coordinator can be waited for") {
                break status;
            }
            let n_bytes = std::fs::metadata(&metrics).map_or(0, |metadata| metadata.len());
            if n_bytes > longest {
                (longest, moved) = (n_bytes, Instant::now());
            }
            if moved.elapsed() > patience {
                self.child = Some(child);
                panic!("no iteration was trained for {patience:?}:\n{}", self.output());
            }
            std::thread::sleep(POLL);
        };
        assert!(status.success(), "the run failed:\n{}", self.output());
    }

    /// What `coordinator up` wrote on its standard output.
    pub fn said_on_stdout(&self) -> String {
        self.read("stdout")
    }

    /// What `coordinator up` wrote, on both of its streams.
    pub fn said(&self) -> String {
        self.read("stdout") + &self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.home.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `coordinator up` has written these words.
    ///
    /// # Panics
    /// If the run ends or its deadline passes before.
    pub fn wait_until_said(&mut self, words: &str) {
        self.wait_for(&format!("`{words}`"), |run| run.said().contains(words));
    }

    /// What `coordinator status` says of the run, with further arguments.
    pub fn status(&self, arguments: &[&str]) -> String {
        let directory = self.directory().display().to_string();
        let output = coordinator_output(&[&["status", &directory], arguments].concat());
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
    }

    /// All that `coordinator up` and the members wrote.
    pub fn output(&self) -> String {
        let logs = std::fs::read_dir(self.directory().join("logs")).into_iter().flatten().flatten();
        let paths = ["stdout", "stderr"].map(|name| self.home.path().join(name));
        let texts = paths.into_iter().chain(logs.map(|entry| entry.path())).map(|path| {
            let text = std::fs::read(&path).unwrap_or_default();
            format!("── {}\n{}\n", path.display(), String::from_utf8_lossy(&text))
        });
        texts.collect()
    }

    /// Rows of a JSON-lines file of the run; none if it is not there yet.
    pub fn rows(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory().join(file)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until so many iterations are trained.
    ///
    /// # Panics
    /// If the run ends or its deadline passes before.
    pub fn wait_for_iterations(&mut self, n_iterations: usize) {
        let what = format!("iteration {n_iterations}");
        self.wait_for(&what, |run| run.rows("metrics.jsonl").len() >= n_iterations);
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // Looked at before: what the run did last counts as well.
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if holds(self) {
                return;
            }
            assert!(ended.is_none(), "the run ended before {what}:\n{}", self.output());
            assert!(Instant::now() < deadline, "no {what}:\n{}", self.output());
            std::thread::sleep(POLL);
        }
    }

    /// Process id of a member.
    ///
    /// # Panics
    /// If there is no such member.
    pub fn member_pid(&self, member_id: &str) -> Pid {
        let record = std::fs::read(self.directory().join("run.json")).expect("run.json is there");
        let record: Value = serde_json::from_slice(&record).expect("run.json is JSON");
        let pid =
            record["members"][member_id].as_i64().unwrap_or_else(|| panic!("no {member_id} in {record}"));
        Pid::from_raw(pid as i32)
    }

    /// Process id of the coordinator.
    ///
    /// # Panics
    /// If it was not started.
    pub fn coordinator_pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("the run was started").id() as i32)
    }

    /// BLAKE3 of the newest checkpoint's adapter and of the exported one: what the law is about.
    ///
    /// # Panics
    /// If the run left no checkpoint.
    pub fn adapter_digests(&self) -> BTreeMap<String, String> {
        adapter_digests_below(&self.directory())
    }
}

/// The same of any run's directory.
///
/// # Panics
/// If the run left no checkpoint.
pub fn adapter_digests_below(directory: &Path) -> BTreeMap<String, String> {
    let checkpoints = std::fs::read_dir(directory.join("checkpoints")).expect("there are checkpoints");
    // Damaged ones are set aside with an ending to their names.
    let is_checkpoint = |path: &PathBuf| path.is_dir() && path.extension().is_none();
    let newest = checkpoints.flatten().map(|entry| entry.path()).filter(is_checkpoint).max();
    let mut files = safetensors_below(&newest.expect("there is a checkpoint"));
    files.extend(safetensors_below(&directory.join("adapter")));
    let digests = files.into_iter().map(|path| {
        let bytes = std::fs::read(&path).expect("a readable file");
        let name = path.strip_prefix(directory).expect("a file of the run").display().to_string();
        (name, blake3::hash(&bytes).to_hex().to_string())
    });
    digests.collect()
}

fn safetensors_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => safetensors_below(&path),
            false if path.extension().is_some_and(|extension| extension == "safetensors") => vec![path],
            false => Vec::new(),
        })
        .collect()
}

impl Drop for Run {
    fn drop(&mut self) {
        let members = std::fs::read(self.directory().join("run.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .map(|record| record["members"].clone());
        if let Some(mut child) = self.child.take() {
            // The run may have ended already; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in members.iter().filter_map(Value::as_object).flat_map(|members| members.values()) {
            if let Some(pid) = pid.as_i64() {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
    }
}
