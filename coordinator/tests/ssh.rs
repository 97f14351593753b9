//! Runs on hosts that are reached by `ssh`: network namespaces with real servers of OpenSSH, the real coordinator, and members
//! that speak the real protocol without models. Skipped where hosts cannot be made, with what is missing on standard error.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../../tests/src/hosts.rs"]
mod hosts;

use hosts::{Host, Hosts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const SSHD: &str = "/usr/sbin/sshd";

/// A coordinator's host and others with servers, a key that opens them, and a folder that all see.
struct Site {
    hosts: Hosts,
    servers: Vec<Child>,
    home: tempfile::TempDir,
}

impl Site {
    /// With so many hosts besides the coordinator's, or a word why the test is skipped.
    fn make(n: usize) -> Option<Self> {
        let skipped = |missing: String| eprintln!("skipped: {missing}");
        if !Path::new(SSHD).exists() {
            skipped(format!("{SSHD} is missing: install openssh-server"));
            return None;
        }
        let hosts = Hosts::make(n + 1).map_err(skipped).ok()?;
        // Beside the programs, so that they can be linked.
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let mut site = Self { hosts, servers: Vec::new(), home };
        site.put_programs();
        for name in ["key", "stranger", "host-key"] {
            let file = site.path(name);
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file);
            assert!(command.status().expect("ssh-keygen is there").success());
        }
        fs::copy(site.path("key.pub"), site.path("authorized_keys")).expect("copied");
        fs::create_dir_all("/run/sshd").expect("created");
        let mut clients =
            "IdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
                .to_owned();
        for number in 1..=n {
            site.start_server(number);
            // The last one by IPv6.
            let host = site.hosts.get(number);
            let address = if number == n { host.address_v6() } else { host.address() };
            clients.push_str(&format!("Host gpu{number}\n  HostName {address}\n  Port 2222\n  User root\n"));
        }
        for (file, key) in [("ssh.conf", "key"), ("stranger.conf", "stranger")] {
            let text = format!("IdentityFile {}\n{clients}", site.path(key).display());
            fs::write(site.path(file), text).expect("written");
        }
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Home of who logs in on a host.
    fn home_of(&self, number: usize) -> PathBuf {
        self.path(&format!("home{number}"))
    }

    fn put_programs(&self) {
        let coordinator = Path::new(env!("CARGO_BIN_EXE_coordinator"));
        let member = coordinator.with_file_name("examples").join("member_without_models");
        assert!(member.exists(), "{} is missing: `cargo test -p coordinator` builds it", member.display());
        fs::create_dir(self.path("bin")).expect("created");
        for (from, to) in [
            (coordinator, "coordinator"),
            (member.as_path(), "learner"),
            (member.as_path(), "rollout-worker"),
        ] {
            fs::hard_link(from, self.path("bin").join(to)).expect("linked");
        }
    }

    fn start_server(&mut self, number: usize) {
        let (host, home) = (self.hosts.get(number), self.home_of(number));
        fs::create_dir(&home).expect("created");
        let config = self.path(&format!("sshd{number}.conf"));
        let [key, authorized] =
            ["host-key", "authorized_keys"].map(|name| self.path(name).display().to_string());
        let text = format!(
            "Port 2222\nHostKey {key}\nAuthorizedKeysFile {authorized}\nStrictModes no\nPermitRootLogin yes\nUsePAM no\n\
             PidFile none\nSetEnv HOME={}\n",
            home.display()
        );
        fs::write(&config, text).expect("written");
        let log = File::create(self.path(&format!("sshd{number}.log"))).expect("created");
        let server = host.run(move || {
            Command::new(SSHD).args(["-D", "-e", "-f"]).arg(config).stdin(Stdio::null()).stderr(log).spawn()
        });
        self.servers.push(server.join().expect("no panic").expect("it starts"));
        let address = (host.address(), 2222);
        let reached = self.hosts.get(0).run(move || {
            wait_for("a server of ssh", || std::net::TcpStream::connect(address).ok());
        });
        reached.join().expect("it answers");
    }

    /// The coordinator's program, to be run on its host.
    fn coordinator(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/coordinator"));
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        command.current_dir(repository).args(arguments).stdin(Stdio::null());
        command.env("FLOW_RL_SSH", format!("ssh -F {}", self.path("ssh.conf").display()));
        command
    }

    /// Runs it to its end.
    fn output(&self, arguments: &[&str]) -> Output {
        let mut command = self.coordinator(arguments);
        let output =
            self.hosts.get(0).run(move || command.stdout(Stdio::piped()).stderr(Stdio::piped()).output());
        output.join().expect("no panic").expect("it runs")
    }

    /// What it says, and its exit code.
    fn told(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.output(arguments);
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().expect("not killed"), told.concat())
    }

    /// A config of a run on these hosts.
    fn config(&self, hosts: &str) -> String {
        let text = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        let text = text.replace("name = \"shapes\"", "name = \"jpeg_compressibility\"");
        let file = self.path("run.toml");
        fs::write(&file, format!("{text}\n{hosts}")).expect("written");
        file.display().to_string()
    }

    fn run(&self) -> PathBuf {
        self.path("runs/tiny")
    }

    /// Starts or resumes the run.
    fn bring_up(&self, arguments: &[&str]) -> Child {
        let mut command = self.coordinator(arguments);
        let log = File::options().create(true).append(true).open(self.path("console.txt")).expect("opened");
        command.stdout(log.try_clone().expect("cloned")).stderr(log);
        self.hosts.get(0).run(move || command.spawn()).join().expect("no panic").expect("it starts")
    }

    fn console(&self) -> String {
        fs::read_to_string(self.path("console.txt")).unwrap_or_default()
    }

    /// What `status` says of a member.
    fn member(&self, member_id: &str) -> Option<Value> {
        let run = self.run().display().to_string();
        let output = self.output(&["status", &run, "--log-format", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        status["members"].as_array()?.iter().find(|member| member["member_id"] == member_id).cloned()
    }

    /// Waits until a member lives that is not this process, and returns its process id.
    fn living(&self, member_id: &str, before: Option<u64>) -> u64 {
        self.wait_for(&format!("{member_id} that lives"), || {
            let member = self.member(member_id)?;
            let pid = member["pid"].as_u64()?;
            (member["state"] == "living" && before != Some(pid)).then_some(pid)
        })
    }

    fn tasks_done(&self, member_id: &str) -> u64 {
        self.member(member_id).and_then(|member| member["tasks_done"].as_u64()).unwrap_or(0)
    }

    fn wait_for<T>(&self, what: &str, found: impl FnMut() -> Option<T>) -> T {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, found)));
        found.unwrap_or_else(|_| panic!("no {what}; the coordinator said:\n{}", self.console()))
    }

    /// The exit codes that a host has noted of lives of a member.
    fn exit_codes(&self, number: usize, member_id: &str) -> Vec<String> {
        let runs = fs::read_dir(self.home_of(number).join(".tempflow/runs")).into_iter().flatten().flatten();
        let folders = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
        let lives = folders.flat_map(|host| fs::read_dir(host.path()).into_iter().flatten().flatten());
        let own =
            lives.filter(|life| life.file_name().to_string_lossy().starts_with(&format!("{member_id}.")));
        let codes = own.filter_map(|life| fs::read_to_string(life.path().join("exit")).ok());
        codes.map(|code| code.trim().to_owned()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        // What a test that failed has left: only its own members have its folder in their words.
        let own = self.home.path().display().to_string();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_string_lossy().parse::<i32>();
            if let (true, Ok(pid)) = (String::from_utf8_lossy(&words).contains(&own), pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{PATIENCE:?} have passed without {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn set_link(host: &Host, state: &'static str) {
    let set = host.run(move || Command::new("ip").args(["link", "set", "eth0", state]).status());
    assert!(set.join().expect("no panic").expect("`ip` runs").success());
}

fn kill_now(pid: u64) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("it lives");
}

const THREE: &str = "[[hosts]]\naddress = \"gpu1\"\nslots = 1\n[[hosts]]\naddress = \"gpu2\"\nslots = 1\n[[hosts]]\n\
                     address = \"gpu3\"\nslots = 1\n";

/// Settings of a run that does not end by itself, and whose members wait for it however long a busy machine takes.
fn up<'a>(config: &'a str, home: &'a str) -> Vec<&'a str> {
    let settings = [
        "run.name=tiny",
        home,
        "run.iterations=1000000",
        "resources.workers=1",
        "network.bind=eth0",
        "network.grace=600",
    ];
    let settings = settings.into_iter().flat_map(|setting| ["--set", setting]);
    ["up", config, "--on", "ssh"].into_iter().chain(settings).collect()
}

#[test]
fn a_run_on_hosts_outlives_its_workers_its_coordinator_and_a_host() {
    let Some(site) = Site::make(3) else { return };
    let config = site.config(THREE);
    let runs = format!("run.directory={}", site.path("runs").display());
    let run = site.run().display().to_string();
    let mut coordinator = site.bring_up(&[up(&config, &runs), vec!["--workers", "2"]].concat());
    let [first, other] = ["worker-0", "worker-1"].map(|member_id| site.living(member_id, None));
    site.wait_for("tasks", || {
        (site.tasks_done("worker-0").min(site.tasks_done("worker-1")) > 0).then_some(())
    });

    // A worker that is killed is started again, on its own host.
    kill_now(first);
    let again = site.living("worker-0", Some(first));
    assert_eq!(site.exit_codes(1, "worker-0"), ["137"]);
    let own = fs::read_to_string(format!("/proc/{again}/environ")).expect("it lives");
    assert!(own.contains(&format!("HOME={}", site.home_of(1).display())), "{own}");
    let words = fs::read_to_string(format!("/proc/{again}/cmdline")).expect("it lives");
    let token = fs::read_to_string(site.run().join("tls/worker.token")).expect("a token");
    let secret = token.lines().find(|line| line.starts_with("tempflow.")).expect("a token");
    assert!(
        !words.contains(secret) && !own.contains(secret) && words.contains("--token-file\0-\0"),
        "{words}"
    );

    // A coordinator that is killed leaves them alone, and the next one finds them.
    kill_now(coordinator.id().into());
    coordinator.wait().expect("buried");
    let mut coordinator = site.bring_up(&["resume", &run, "--workers", "2"]);
    site.wait_for("the next coordinator", || {
        site.console().contains("still living: learner, worker-0, worker-1").then_some(())
    });
    assert_eq!((site.living("worker-0", None), site.living("worker-1", None)), (again, other));
    let before = site.tasks_done("worker-0");
    site.wait_for("more tasks", || (site.tasks_done("worker-0") > before).then_some(()));

    // Up to the slots that there are, and down again in good order.
    let (code, told) = site.told(&["scale", &run, "--workers", "4"]);
    assert!(
        code == 2 && told.contains("4 workers are more than the 3 slot(s) of `[[hosts]]`"),
        "{code}: {told}"
    );
    assert_eq!(site.told(&["scale", &run, "--workers", "3"]).0, 0);
    let third = site.living("worker-2", None);
    assert_eq!(site.told(&["scale", &run, "--workers", "2"]).0, 0);
    site.wait_for("an end in good order", || (site.exit_codes(3, "worker-2") == ["0"]).then_some(()));
    assert!(!Path::new(&format!("/proc/{third}")).exists());

    // A host that is cut off is missed, and the others go on.
    set_link(&site.hosts.get(2), "down");
    site.wait_for("a loss", || (site.member("worker-1")?["state"] == "silent").then_some(()));
    let before = site.tasks_done("worker-0");
    site.wait_for("more tasks", || (site.tasks_done("worker-0") > before + 10).then_some(()));
    site.wait_for("a word of it", || site.console().contains("gpu2 is not reached by ssh").then_some(()));
    // It comes back as it was.
    set_link(&site.hosts.get(2), "up");
    assert_eq!(site.living("worker-1", None), other);

    assert_eq!(site.told(&["down", &run]).0, 0);
    assert_eq!(coordinator.wait().expect("buried").code(), Some(75), "{}", site.console());
    assert_eq!(site.exit_codes(2, "worker-1"), ["0"]);
    let record: Value =
        serde_json::from_slice(&fs::read(site.run().join("run.json")).expect("read")).expect("JSON");
    assert_eq!((&record["place"], &record["members"]), (&Value::from("ssh"), &serde_json::json!({})));
}

#[test]
fn a_host_that_cannot_be_used_is_set_aside_with_its_reason_while_the_others_go_on() {
    let Some(site) = Site::make(2) else { return };
    let hosts = "[[hosts]]\naddress = \"gpu1\"\nslots = 1\n[[hosts]]\naddress = \"gpu2\"\nslots = 1\nprograms = \"/no/such\"\n";
    let config = site.config(hosts);
    let runs = format!("run.directory={}", site.path("runs").display());
    let mut coordinator = site.bring_up(&[up(&config, &runs), vec!["--workers", "2"]].concat());
    site.living("worker-0", None);
    site.wait_for("a notice", || {
        let words = "cannot start: /no/such/rollout-worker is no program on gpu2; install the programs there, or say by \
                     `programs`";
        let console = site.console();
        (console.contains("worker-1 is set aside: ") && console.contains(words)).then_some(())
    });
    let before = site.tasks_done("worker-0");
    site.wait_for("more tasks", || (site.tasks_done("worker-0") > before).then_some(()));
    kill(Pid::from_raw(coordinator.id() as i32), Signal::SIGTERM).expect("it lives");
    assert_eq!(coordinator.wait().expect("buried").code(), Some(75), "{}", site.console());
}

#[test]
fn what_is_wrong_with_hosts_is_told_by_the_program_itself() {
    let Some(site) = Site::make(1) else { return };
    let one = "[[hosts]]\naddress = \"gpu1\"\nslots = 1\n";
    let runs = format!("run.directory={}", site.path("runs").display());
    let stranger = format!("ssh -F {}", site.path("stranger.conf").display());
    let cases: [(&str, &[&str], &str); 7] = [
        (
            "",
            &[],
            "`--on ssh` starts workers on the hosts that the config lists, and it lists none; write `[[hosts]]`",
        ),
        (
            one,
            &["--set", "network.bind=127.0.0.1"],
            "`network.bind` is 127.0.0.1, which only this host reaches",
        ),
        (one, &["--workers", "2"], "2 workers are more than the 1 slot(s) of `[[hosts]]`"),
        (one, &["--ssh", "/no/such/ssh"], "`/no/such/ssh` does not start on this machine"),
        (one, &["--ssh", &stranger], "gpu1 does not let the coordinator in: root@"),
        ("[[hosts]]\naddress = \"gpu1\"\nslots = 0\n", &[], "`hosts[0].slots`: are 0"),
        (
            "[[hosts]]\naddress = \"gpu1\"\nslots = 1\nprograms = \"/no/such\"\n",
            &[],
            "/no/such/rollout-worker is no program on gpu1",
        ),
    ];
    for (hosts, arguments, words) in cases {
        let config = site.config(hosts);
        let (code, told) = site.told(&[up(&config, &runs), arguments.to_vec()].concat());
        assert!(code == 2 && told.contains(words), "{hosts}{arguments:?}: {code}: {told}");
    }
    let config = site.config(one);
    let (code, told) = site.told(&[up(&config, &runs), vec!["--dry-run"]].concat());
    assert!(
        code == 0 && told.contains("on gpu1 by `ssh -F ") && told.contains("--token-file -"),
        "{code}: {told}"
    );
}
