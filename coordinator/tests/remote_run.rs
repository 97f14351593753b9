//! Commands against a run from a host that has none of its files: hosts are network namespaces, the coordinator is the real
//! program, and members speak the real protocol without models. Skipped where hosts cannot be made, with why on standard error.

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

/// A run on the first host, and an operator on the second who has a token and nothing else of it.
struct Site {
    hosts: Hosts,
    home: tempfile::TempDir,
    up: Option<Child>,
}

impl Site {
    fn make() -> Option<Self> {
        let hosts = Hosts::make(2).map_err(|missing| eprintln!("skipped: {missing}")).ok()?;
        // Beside the programs, so that they can be linked.
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let mut site = Self { hosts, home, up: None };
        let coordinator = Path::new(env!("CARGO_BIN_EXE_coordinator"));
        let member = coordinator.with_file_name("examples").join("member_without_models");
        for folder in ["bin", "elsewhere"] {
            fs::create_dir(site.path(folder)).expect("created");
        }
        for (from, to) in [(coordinator, "coordinator"), (&member, "learner"), (&member, "rollout-worker")] {
            fs::hard_link(from, site.path("bin").join(to)).expect("linked");
        }
        let text = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        let text = text.replace("name = \"shapes\"", "name = \"jpeg_compressibility\"");
        fs::write(site.path("run.toml"), text).expect("written");
        site.bring_up();
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

    fn bring_up(&mut self) {
        let mut command = Command::new(self.path("bin/coordinator"));
        command
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .arg("up")
            .arg(self.path("run.toml"));
        let bind = format!("network.bind={}", self.hosts.get(0).address());
        let directory = format!("run.directory={}", self.path("runs").display());
        command.args(["--set", &bind, "--set", &directory, "--set", "run.name=tiny", "--workers", "1"]);
        command.args(["--port", "7150"]).stdin(Stdio::null());
        let console = File::create(self.path("console.txt")).expect("created");
        command.stdout(console.try_clone().expect("cloned")).stderr(console);
        let started = self.hosts.get(0).run(move || command.spawn()).join().expect("no panic");
        self.up = Some(started.expect("it starts"));
        self.wait_for("worker that lives", || {
            let run = self.path("runs/tiny").display().to_string();
            let (_, told) = self.told(&self.hosts.get(0), &["status", &run, "--log-format", "json"]);
            let status: Value = serde_json::from_str(&told).ok()?;
            (status["workers"] == 1).then_some(())
        });
        fs::copy(self.run("tls/admin.token"), self.path("elsewhere/admin.token")).expect("copied");
        fs::copy(self.run("tls/worker.token"), self.path("elsewhere/worker.token")).expect("copied");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/coordinator"));
        command.args(arguments).current_dir(self.path("elsewhere")).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The exit code of a command on a host, and what it says.
    fn told(&self, host: &Host, arguments: &[&str]) -> (i32, String) {
        let mut command = self.command(arguments);
        let output = host.run(move || command.output()).join().expect("no panic").expect("it runs");
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().expect("not killed"), told.concat())
    }

    /// The same for the operator.
    fn asked(&self, command: &str, arguments: &[&str]) -> (i32, String) {
        let address = self.address();
        let by = [command, "--coordinator", &address, "--token-file", "admin.token"];
        self.told(&self.hosts.get(1), &[&by, arguments].concat())
    }

    fn console(&self) -> String {
        fs::read_to_string(self.path("console.txt")).unwrap_or_default()
    }

    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "no {what} in time; the coordinator said:\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            // Twice, so that it ends its members at once and then itself.
            for _ in 0..2 {
                let _ = kill(Pid::from_raw(up.id() as i32), Signal::SIGTERM);
            }
            let _ = up.wait();
        }
    }
}

#[test]
fn a_run_is_watched_steered_and_taken_home_from_a_host_without_its_directory() {
    let Some(mut site) = Site::make() else { return };

    let (code, told) = site.asked("status", &["--log-format", "json"]);
    let status: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {code} {told}"));
    assert_eq!(status["files"]["directory"], site.path("runs/tiny").display().to_string());
    assert_eq!(status["run_name"], "tiny");

    let (code, told) = site.asked("scale", &["--workers", "2"]);
    assert!(code == 0 && told.contains("2 workers wanted"), "{code}: {told}");
    site.wait_for("second worker's log", || site.run("logs/worker-1.log").exists().then_some(()));

    let (code, told) = site.asked("export", &["--to", "adapter"]);
    assert!(code == 2 && told.contains("does not exist yet"), "{code}: {told}");
    let weights: Vec<u8> = (0..3 * 1024 * 1024 + 5).map(|position| (position % 251) as u8).collect();
    for folder in ["adapter/peft", "adapter/diffusers", "adapter/.partial"] {
        fs::create_dir_all(site.run(folder)).expect("created");
        fs::write(site.run(folder).join("weights.safetensors"), &weights).expect("written");
        fs::write(site.run(folder).join("empty.json"), "").expect("written");
    }
    let (code, told) = site.asked("export", &["--to", "adapter"]);
    assert_eq!(code, 0, "{told}");
    for folder in ["peft", "diffusers"] {
        let copy = site.path("elsewhere/adapter").join(folder);
        assert!(fs::read(copy.join("weights.safetensors")).expect("copied") == weights, "{folder} differs");
        assert_eq!(fs::read(copy.join("empty.json")).expect("copied"), b"");
    }
    assert!(!site.path("elsewhere/adapter/.partial").exists(), "what is not finished is not copied");
    let (code, told) = site.asked("export", &["--to", "adapter"]);
    assert!(code == 2 && told.contains("adapter exists"), "{code}: {told}");

    let (code, told) = site.asked("down", &[]);
    assert!(code == 0 && told.contains("stopped"), "{code}: {told}");
    let code = site.up.take().expect("started").wait().expect("waited for").code();
    assert_eq!(code, Some(75), "{}", site.console());
    let (code, told) = site.asked("status", &[]);
    assert!(code != 0 && told.contains(&site.address()), "{code}: {told}");
}

#[test]
fn logs_are_read_and_followed_from_a_host_that_has_none_of_them() {
    let Some(site) = Site::make() else { return };
    let line = "2000-01-01T00:00:00.000000Z  INFO an early line";
    fs::write(site.run("logs/worker-9.log"), format!("{line}\n{}\n", "x".repeat(200_000))).expect("written");
    let (code, told) = site.asked("logs", &[]);
    assert!(code == 0 && told.starts_with(&format!("worker-9     {line}\n")), "{code}");
    assert!(told.contains(&format!("{}\n", "x".repeat(200_000))), "a line longer than a part is whole");
    let (code, told) = site.asked("logs", &["--tail", "1"]);
    assert!(code == 0 && told.lines().count() == 1, "{code}: {told}");
    let (code, told) = site.asked("logs", &["--tail", "1000000"]);
    assert!(code == 2 && told.contains("10000"), "{code}: {told}");

    let address = site.address();
    let follow = ["logs", "-f", "-n", "0", "--coordinator", &address, "--token-file", "admin.token"];
    let mut command = site.command(&follow);
    let file = File::create(site.path("followed")).expect("created");
    command.stdout(file);
    let child = site.hosts.get(1).run(move || command.spawn()).join().expect("no panic");
    let mut follower = child.expect("it starts");
    let mut count = 0;
    site.wait_for("line that was written after the command began", || {
        count += 1;
        fs::write(site.run(&format!("logs/late-{count}.log")), "a late line\n").expect("written");
        fs::read_to_string(site.path("followed")).expect("there").contains("a late line").then_some(())
    });
    follower.kill().expect("it lives");
    follower.wait().expect("waited for");
}

#[test]
fn who_is_no_operator_is_told_which_file_and_what_is_missing() {
    let Some(site) = Site::make() else { return };
    let (address, operator) = (site.address(), site.hosts.get(1));
    for (arguments, words) in [
        (&["--token-file", "worker.token"][..], "worker"),
        (&["--token-file", "nowhere.token"], "nowhere.token"),
        (&[], "--token-file"),
    ] {
        for command in
            [&["down"][..], &["logs"], &["export", "--to", "adapter"], &["scale", "--workers", "0"]]
        {
            let line = [command, &["--coordinator", &address], arguments].concat();
            let (code, told) = site.told(&operator, &line);
            assert!(code != 0 && told.contains(words), "{line:?}: {code}: {told}");
        }
    }
    let status = site.asked("status", &[]);
    assert!(status.0 == 0, "nothing of that did anything: {status:?}");
}
