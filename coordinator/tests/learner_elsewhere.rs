//! A learner that shares no file system with its coordinator: hosts are network namespaces, the coordinator is the real program
//! and has no model, and members speak the real protocol without models. Skipped where hosts cannot be made, with why on
//! standard error.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../../tests/src/hosts.rs"]
mod hosts;

use hosts::{Host, Hosts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const BYTES: usize = 1_000_001;

/// A coordinator on the first host; what is started on the others has folders of its own.
struct Site {
    hosts: Hosts,
    home: tempfile::TempDir,
    up: Option<Child>,
    members: Vec<Child>,
}

impl Site {
    fn make() -> Option<Self> {
        let hosts = Hosts::make(3).map_err(|missing| eprintln!("skipped: {missing}")).ok()?;
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let site = Self { hosts, home, up: None, members: Vec::new() };
        let coordinator = Path::new(env!("CARGO_BIN_EXE_coordinator"));
        let member = coordinator.with_file_name("examples").join("member_without_models");
        ["bin", "two", "three", "start"]
            .iter()
            .for_each(|name| fs::create_dir(site.path(name)).expect("made"));
        for (from, to) in [(coordinator, "coordinator"), (&member, "learner"), (&member, "rollout-worker")] {
            fs::hard_link(from, site.path("bin").join(to)).expect("linked");
        }
        let text = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        let text = text.replace("name = \"shapes\"", "name = \"jpeg_compressibility\"");
        fs::write(site.path("run.toml"), text).expect("written");
        fs::write(site.path("start/adapter_model.safetensors"), vec![3; BYTES]).expect("written");
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn run(&self, name: &str) -> PathBuf {
        self.path("runs/tiny").join(name)
    }

    fn address(&self) -> String {
        format!("https://{}:7150", self.hosts.get(0).address())
    }

    /// A program on a host, whose standard error goes to a file.
    fn start(&self, host: &Host, program: &str, arguments: &[String], said: &str) -> Child {
        let mut command = Command::new(self.path("bin").join(program));
        command
            .args(arguments)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .stdin(Stdio::null());
        let file = File::options().create(true).append(true).open(self.path(said)).expect("opened");
        command.stdout(file.try_clone().expect("cloned")).stderr(file);
        host.run(move || command.spawn()).join().expect("no panic").expect("it starts")
    }

    fn bring_up(&mut self) {
        let mut words: Vec<String> = vec!["up".to_owned(), self.path("run.toml").display().to_string()];
        for setting in [
            format!("network.bind={}", self.hosts.get(0).address()),
            format!("run.directory={}", self.path("runs").display()),
            "run.name=tiny".to_owned(),
            "network.learner=by-hand".to_owned(),
            "model.path=/nowhere/on/this/host".to_owned(),
            format!("adapter.start_from={}", self.path("start").display()),
        ] {
            words.extend(["--set".to_owned(), setting]);
        }
        words.extend(["--workers", "0", "--port", "7150"].map(str::to_owned));
        self.up = Some(self.start(&self.hosts.get(0), "coordinator", &words, "console.txt"));
        self.wait_for("coordinator", || self.run("tls/learner.token").exists().then_some(()));
    }

    /// A member on a host, with a token in the host's folder.
    fn member(&self, (host, folder): (usize, &str), program: &str, more: &[&str]) -> Child {
        let role = if program == "learner" { "learner" } else { "worker" };
        let token = self.path(folder).join(format!("{role}.token"));
        self.copy_of(&format!("tls/{role}.token"), &token);
        let mut words =
            ["serve", "--coordinator", &self.address(), "--token-file"].map(str::to_owned).to_vec();
        words.push(token.display().to_string());
        words.extend(more.iter().map(|word| (*word).to_owned()));
        self.start(&self.hosts.get(host), program, &words, &format!("{folder}/said"))
    }

    /// Copies a file of the run once it is there.
    fn copy_of(&self, name: &str, to: &Path) {
        self.wait_for(name, || fs::copy(self.run(name), to).ok());
    }

    fn start_learner(&mut self) {
        let half = self.path("two/half").display().to_string();
        let advertise = self.hosts.get(1).address().to_string();
        let more = ["--member-id", "learner", "--advertise", &advertise, "--run-directory", &half];
        let child = self.member((1, "two"), "learner", &more);
        self.members.push(child);
    }

    /// The exit code of a command on a host, and what it says.
    fn told(&self, host: usize, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(self.path("bin/coordinator"));
        command.args(arguments).current_dir(self.path("three")).stdin(Stdio::null());
        let output =
            self.hosts.get(host).run(move || command.output()).join().expect("no panic").expect("it runs");
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().expect("not killed"), told.concat())
    }

    /// The same of an operator on the third host, who has a token and nothing else.
    fn asked(&self, command: &str, arguments: &[&str]) -> (i32, String) {
        self.copy_of("tls/admin.token", &self.path("three/admin.token"));
        let address = self.address();
        let by = [command, "--coordinator", &address, "--token-file", "admin.token"];
        self.told(2, &[&by, arguments].concat())
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.asked("status", &["--log-format", "json"]).1).ok()
    }

    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            let said = ["console.txt", "two/said", "three/said"]
                .map(|name| fs::read_to_string(self.path(name)).unwrap_or_default());
            assert!(Instant::now() < deadline, "no {what} in time:\n{}", said.concat());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_learner(&self) {
        self.wait_for("living learner", || {
            let members = self.status()?["members"].as_array()?.clone();
            let is_learner = |member: &Value| member["member_id"] == "learner" && member["state"] == "living";
            members.iter().any(is_learner).then_some(())
        });
    }

    fn exported(&self, place: &str) {
        for folder in ["peft", "diffusers"] {
            let weights = self.path(place).join(folder).join("weights.safetensors");
            assert!(fs::read(&weights).expect("copied") == vec![7; BYTES], "{} differs", weights.display());
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in self.members.iter_mut().chain(&mut self.up) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_learner_on_another_host_gets_what_it_reads_and_shows_what_it_trained_by_the_wire() {
    let Some(mut site) = Site::make() else { return };
    site.bring_up();
    site.start_learner();
    let worker = site.member((2, "three"), "rollout-worker", &["--member-id", "far-away"]);
    site.members.push(worker);
    site.wait_for_learner();

    for split in ["train", "test"] {
        let name = format!("prompts/{split}.jsonl");
        let copy = site.wait_for("prompts", || fs::read(site.path("two/half/inputs").join(&name)).ok());
        assert!(copy == fs::read(site.run(&name)).expect("there"), "{name}");
    }
    let start = site.path("two/half/inputs/start_from/adapter_model.safetensors");
    let start = site.wait_for("adapter to start from", || fs::read(&start).ok());
    assert!(start == vec![3; BYTES]);
    assert!(!site.run("adapter").exists(), "the coordinator has what it asks for, and no more");

    site.wait_for("export", || (site.asked("export", &["--to", "adapter"]).0 == 0).then_some(()));
    site.exported("three/adapter");
    let here = site.path("runs/tiny").display().to_string();
    let to = site.path("here").display().to_string();
    let (code, told) = site.told(0, &["export", &here, "--to", &to]);
    assert_eq!(code, 0, "{told}");
    site.exported("here");
    site.wait_for("held-out reward", || {
        (site.status()?["held_out_rewards"][0]["reward"] == 0.5).then_some(())
    });

    let logs: [&dyn Fn() -> (i32, String); 2] =
        [&|| site.asked("logs", &[]), &|| site.told(0, &["logs", &here])];
    for logs in logs {
        for member in ["learner      ", "far-away     ", "coordinator  "] {
            site.wait_for(&format!("line of {member}"), || {
                let (code, told) = logs();
                assert_eq!(code, 0, "{told}");
                let is_line = |line: &str| line.starts_with(member) && line.contains("joined");
                told.lines().any(is_line).then_some(())
            });
        }
    }
    let (code, told) = site.asked("logs", &["--tail", "2"]);
    assert!(code == 0 && told.lines().count() == 2, "{told}");
}

/// Those that come from a member of that name and have this in them.
fn lines_of(site: &Site, file: &str, member: &str, words: &str) -> usize {
    let said = fs::read_to_string(site.path(file)).unwrap_or_default();
    said.lines().filter(|line| line.starts_with(member) && line.contains(words)).count()
}

#[test]
fn logs_of_members_elsewhere_are_followed_through_their_lives_until_the_run_ends() {
    let Some(mut site) = Site::make() else { return };
    site.bring_up();
    site.start_learner();
    site.wait_for_learner();
    fs::copy(site.run("tls/admin.token"), site.path("three/admin.token")).expect("copied");
    let (token, here) = (site.path("three/admin.token"), site.path("runs/tiny").display().to_string());
    let address = site.address();
    let by_wire = ["logs", "-f", "--coordinator", &address, "--token-file"];
    let by_wire = [&by_wire.map(str::to_owned)[..], &[token.display().to_string()]].concat();
    let by_files = ["logs", "-f", &here].map(str::to_owned);
    let mut followers = [
        ("far", site.start(&site.hosts.get(2), "coordinator", &by_wire, "far")),
        ("near", site.start(&site.hosts.get(0), "coordinator", &by_files, "near")),
    ];
    let start = |site: &Site| site.member((2, "three"), "rollout-worker", &["--member-id", "far-away"]);
    for life in 1..=2 {
        let mut worker = start(&site);
        for file in ["far", "near"] {
            let has_joined = || lines_of(&site, file, "far-away     ", "joined the run") == life;
            site.wait_for("line of each life, once", || has_joined().then_some(()));
        }
        kill(Pid::from_raw(worker.id() as i32), Signal::SIGTERM).expect("it lives");
        worker.wait().expect("waited for");
    }
    let (code, told) = site.asked("down", &[]);
    assert_eq!(code, 0, "{told}");
    for (file, follower) in &mut followers {
        let code = site.wait_for("end of what follows", || follower.try_wait().expect("it can be asked"));
        let said = fs::read_to_string(site.path(file)).unwrap_or_default();
        assert!(code.success(), "{file}: {code}: {said}");
        assert_eq!(lines_of(&site, file, "far-away     ", "joined the run"), 2, "{said}");
        assert!(lines_of(&site, file, "coordinator  ", "") > 0, "{said}");
    }
}

#[test]
fn a_run_goes_on_with_the_half_that_has_its_checkpoints_and_with_no_other() {
    let Some(mut site) = Site::make() else { return };
    site.bring_up();
    site.start_learner();
    site.wait_for_learner();
    let run_id = site.status().expect("it lives")["run_id"].clone();
    let begun =
        || fs::read_to_string(site.run("run.json")).ok()?.contains("\"has_begun\": true").then_some(());
    site.wait_for("record of what has begun", begun);
    let mut up = site.up.take().expect("started");
    up.kill().expect("killed");
    up.wait().expect("waited for");
    site.bring_up();
    site.wait_for_learner();
    assert_eq!(
        site.status().expect("it lives")["run_id"],
        run_id,
        "the same run, though nothing of it is here"
    );

    let mut learner = site.members.pop().expect("started");
    kill(Pid::from_raw(learner.id() as i32), Signal::SIGTERM).expect("it lives");
    learner.wait().expect("waited for");
    let other = site.path("three/half").display().to_string();
    let more = ["--member-id", "learner", "--run-directory", &other];
    let code = site.member((2, "three"), "learner", &more).wait().expect("waited for").code();
    let said = fs::read_to_string(site.path("three/said")).expect("said");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("two/half on ") && said.contains("start the learner there"), "{said}");

    site.start_learner();
    site.wait_for_learner();
    let (code, told) = site.asked("down", &[]);
    assert_eq!(code, 0, "{told}");
    let (here, to) = (site.path("runs/tiny").display().to_string(), site.path("rests").display().to_string());
    let (code, told) = site.told(0, &["export", &here, "--to", &to]);
    assert_eq!(code, 0, "of a run that rests there is what the learner sent last: {told}");
    site.exported("rests");
}
