//! A run whose learner shares no file system with its coordinator, by the real programs on hosts of network namespaces: the same
//! bytes as on one host, what is exported from the coordinator's, and who is told where a model is missing. Skipped where hosts
//! cannot be made, with what is missing on standard error.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::hosts::{Host, Hosts};
use tests::{Run, adapter_digests_below, binary, coordinator, repository};

const PATIENCE: Duration = Duration::from_secs(240);
/// What the config calls the model, relative to where a member is started: only some hosts have it there.
const MODEL: &str = "\"./the-model\"";

/// What is started on the hosts, ended when this is dropped.
struct Site {
    hosts: Hosts,
    home: tempfile::TempDir,
    run: Run,
    children: Vec<Child>,
}

impl Site {
    /// A coordinator on the first host, which has no model; members are to be started by hand.
    fn up(changes: &[(&str, &str)]) -> Option<Self> {
        let hosts = Hosts::make(3).inspect_err(|missing| eprintln!("skipped: {missing}")).ok()?;
        let home = tempfile::tempdir().expect("a folder");
        for name in ["one", "two", "three", "without"] {
            fs::create_dir(home.path().join(name)).expect("made");
        }
        for name in ["two", "three"] {
            let model = repository().join("assets/tiny-sd3");
            symlink(model, home.path().join(name).join("the-model")).expect("linked");
        }
        let address = format!("{:?}", hosts.get(0).address().to_string());
        let elsewhere =
            [("model.path", MODEL), ("network.learner", "\"by-hand\""), ("network.bind", &address)];
        let run = Run::new(&[changes, &elsewhere].concat());
        let mut site = Self { hosts, home, run, children: Vec::new() };
        let config = site.run.config().display().to_string();
        let words = ["up", &config, "--workers", "0", "--port", "7160"];
        let up = site.start(0, "one", &coordinator(), &words);
        site.children.push(up);
        site.wait_for("tokens", |site| {
            let tokens = site.run.directory().join("tls");
            ["learner.token", "worker.token"].iter().all(|name| tokens.join(name).exists())
        });
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn start(&self, host: usize, folder: &str, program: &Path, words: &[&str]) -> Child {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.path(folder)).stdin(Stdio::null());
        let said = File::options().create(true).append(true).open(self.path(folder).join("said"));
        let said = said.expect("opened");
        command.stdout(said.try_clone().expect("cloned")).stderr(said);
        let host: Host = self.hosts.get(host);
        host.run(move || command.spawn()).join().expect("no panic").expect("it starts")
    }

    /// A member on a host, which has a token and what is in its folder.
    fn member(&self, host: usize, folder: &str, program: &str, more: &[&str]) -> Child {
        let role = if program == "learner" { "learner" } else { "worker" };
        let token = self.path(folder).join(format!("{role}.token"));
        fs::copy(self.run.directory().join(format!("tls/{role}.token")), &token).expect("copied");
        let (address, token) =
            (format!("https://{}:7160", self.hosts.get(0).address()), token.display().to_string());
        let words = ["serve", "--coordinator", &address, "--token-file", &token];
        self.start(host, folder, &binary(program), &[&words, more].concat())
    }

    fn learner(&self, folder: &str) -> Child {
        self.member(1, folder, "learner", &["--listen", "eth0:0", "--run-directory", "half"])
    }

    fn worker(&self, folder: &str) -> Child {
        self.member(2, folder, "rollout-worker", &["--member-id", "far-away"])
    }

    fn said(&self, folder: &str) -> String {
        fs::read_to_string(self.path(folder).join("said")).unwrap_or_default()
    }

    fn all_said(&self) -> String {
        ["one", "two", "three", "without"]
            .map(|folder| format!("── {folder}\n{}", self.said(folder)))
            .concat()
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "no {what} in time:\n{}", self.all_said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The exit code of a process, by its position among the children.
    fn end(&mut self, position: usize) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.children[position].try_wait().expect("waited for") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "process {position} lives on:\n{}", self.all_said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn export(&self, to: &str) -> i32 {
        let (directory, to) =
            (self.run.directory().display().to_string(), self.path(to).display().to_string());
        let words = ["export", &directory, "--to", &to];
        self.start(0, "one", &coordinator(), &words).wait().expect("waited for").code().expect("not killed")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Digests of what is exported, whatever folder it is in.
fn exported(digests: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let below = digests.iter().filter_map(|(name, digest)| Some((name.strip_prefix("adapter/")?, digest)));
    below.map(|(name, digest)| (name.to_owned(), digest.clone())).collect()
}

#[test]
fn a_run_whose_hosts_share_nothing_trains_the_same_bytes_and_is_exported_where_it_was_started() {
    let mut first = Run::new(&[("run.iterations", "1")]);
    first.complete(&["--workers", "1"]);
    let start_from = format!("{:?}", first.directory().join("adapter/peft").display().to_string());
    let changes = [("run.iterations", "3"), ("adapter.start_from", start_from.as_str())];
    let Some(mut site) = Site::up(&changes) else { return };
    let mut local = Run::new(&changes);
    local.complete(&["--workers", "1"]);
    let digests = local.adapter_digests();

    let (learner, worker) = (site.learner("two"), site.worker("three"));
    site.children.extend([learner, worker]);
    site.wait_for("export of a living run", |site| {
        site.export("living") == 0 || site.run.directory().join("results/adapter").exists()
    });
    assert_eq!(site.end(0), Some(0), "{}", site.all_said());
    assert_eq!(site.end(1), Some(0), "{}", site.all_said());
    assert_eq!(adapter_digests_below(&site.path("two/half")), digests);
    assert!(
        !site.run.directory().join("adapter").exists() && site.said("one").contains("no model ./the-model")
    );

    assert_eq!(site.export("ended/adapter"), 0, "{}", site.all_said());
    fs::create_dir_all(site.path("ended/checkpoints/iteration-000000")).expect("made");
    assert_eq!(exported(&adapter_digests_below(&site.path("ended"))), exported(&digests));
}

#[test]
fn a_member_whose_host_lacks_the_model_says_so_with_host_and_path() {
    let Some(mut site) = Site::up(&[("run.iterations", "1")]) else { return };
    let worker = site.worker("without");
    site.children.push(worker);
    assert_eq!(site.end(1), Some(2), "{}", site.all_said());
    let host = service::host_name();
    let expected =
        format!("this worker cannot open the model ./the-model on {host}; paths are looked up on each host");
    assert!(site.said("without").contains(&expected), "{}", site.all_said());

    let learner = site.learner("without");
    site.children.push(learner);
    assert_eq!((site.end(2), site.end(0)), (Some(2), Some(2)), "{}", site.all_said());
    let expected =
        format!("the learner cannot open the model ./the-model on {host}; paths are looked up on each host");
    assert!(
        site.said("one").contains(&expected) && site.said("without").contains(&expected),
        "{}",
        site.all_said()
    );
}
