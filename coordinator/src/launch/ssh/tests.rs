//! The launcher with a shell of this machine in place of `ssh`; `coordinator/tests/ssh.rs` has real ones.

use super::*;
use crate::cards::Places;
use crate::launch::Contact;
use crate::stand_ins::install_program;
use config::{HostSection, Slots};
use service::RunDirectory;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

const WORKER: MemberName = MemberName::Worker(0);
const REACH: Reach = Reach {
    pause: Duration::from_millis(20),
    answer: Duration::from_secs(20),
    start: Duration::from_secs(20),
    kill: Duration::from_millis(500),
};

/// A machine that is a host to itself, with a home of its own.
struct Host {
    home: tempfile::TempDir,
    generation: u64,
}

impl Host {
    /// With a program that does this in place of the worker.
    fn new(worker: &str) -> Self {
        let host = Self { home: tempfile::tempdir().expect("a folder"), generation: 1 };
        let home = host.home.path();
        for folder in ["bin", "run"] {
            fs::create_dir(home.join(folder)).expect("created");
        }
        host.write("bin/rollout-worker", worker);
        host.write("bin/learner", "exit 0");
        host.write("token", "");
        fs::write(home.join("token"), "a secret\nof two lines\n").expect("written");
        // The words before the last are for `ssh`, and the last is for the shell of the host.
        host.write(
            "ssh",
            "for last; do :; done\nexport HOME=\"${0%/*}\"\necho 'Welcome!'\nexec sh -c \"$last\"",
        );
        host
    }

    fn write(&self, name: &str, script: &str) {
        install_program(&self.home.path().join(name), script);
    }

    fn launcher(&mut self) -> SshLauncher {
        let home = self.home.path();
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        config.hosts = vec![HostSection {
            address: "gpu1".to_owned(),
            slots: Slots::Count(2),
            programs: "~/bin".into(),
            environment: BTreeMap::from([("GREETING".to_owned(), "it's $HOME".to_owned())]),
        }];
        let nobody = Contact { learner: Vec::new(), worker: Vec::new() };
        let directory = RunDirectory::new(home.join("run"));
        let places = Places::look(&config).expect("no cards");
        let here =
            LocalLauncher::with_programs(home.join("bin"), nobody, directory, places).expect("programs");
        let ssh = home.join("ssh").display().to_string().parse().expect("a command");
        let run = RemoteRun { ssh, run_id: "run-a".to_owned(), generation: self.generation, reach: REACH };
        self.generation += 1;
        let contact = RemoteContact {
            arguments: vec!["--coordinator".to_owned(), "https://a b".to_owned()],
            token_file: Some(home.join("token")),
            programs: "/nowhere".into(),
            working_directory: home.join("run"),
        };
        SshLauncher::new(here, run, contact, &config)
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join(".tempflow/runs/run-a").join(service::host_name())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder().join("worker-0.log")).unwrap_or_default()
    }
}

/// Waits until something holds.
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "two minutes have passed without {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn running_pid(launcher: &mut SshLauncher, host: &Host) -> u32 {
    wait_for("a worker that runs", || {
        (launcher.observe().get(&WORKER)? == &Observed::Running).then_some(())?;
        let Handle::Remote(start) = launcher.handles().remove(&WORKER)? else { panic!("it is elsewhere") };
        let process = fs::read_to_string(host.folder().join(start.life).join("process")).ok()?;
        process.split(' ').next()?.parse().ok()
    })
}

fn end_of(launcher: &mut SshLauncher) -> crate::launch::ExitReport {
    wait_for("an end", || match launcher.observe().remove(&WORKER)? {
        Observed::Exited(report) => Some(report),
        _ => None,
    })
}

fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[test]
fn a_worker_gets_words_environment_and_folder_as_they_are_and_its_token_on_standard_input() {
    let mut host = Host::new("echo \"$GREETING|$CUDA_VISIBLE_DEVICES|$PWD|$*\"\ncat\nenv\nexit 3");
    let mut launcher = host.launcher();
    launcher.start(WORKER);
    let report = end_of(&mut launcher);
    assert_eq!((report.code, report.how.as_str()), (Some(3), "ended on gpu1 with exit status 3"));
    let log = host.log();
    let folder = host.home.path().join("run");
    let told =
        format!("it's $HOME||{}|serve --coordinator https://a b --member-id worker-0\n", folder.display());
    assert!(log.starts_with(&format!("{told}a secret\nof two lines\n")), "{log}");
    assert_eq!(log.matches("a secret").count(), 1, "not in the environment");
    assert!(
        !report.last_lines.is_empty() && report.log.display().to_string().ends_with("worker-0.log"),
        "{report:?}"
    );
    launcher.forget(WORKER);
    assert!(launcher.handles().is_empty() && launcher.observe().is_empty());
}

#[test]
fn a_worker_outlives_its_coordinator_and_is_found_again_by_the_next() {
    let mut host = Host::new("exec sleep 100");
    let mut first = host.launcher();
    first.start(WORKER);
    let pid = running_pid(&mut first, &host);
    let handle = first.handles().remove(&WORKER).expect("started");
    let members = BTreeMap::from([("worker-0".to_owned(), handle.clone())]);
    let ssh = first.run.ssh.clone();
    drop(first);
    let told: Vec<String> = living(&ssh, "run-a", &members).iter().map(ToString::to_string).collect();
    assert_eq!(told, [format!("worker-0 (process {pid} on gpu1)")]);
    let mut second = host.launcher();
    let Handle::Remote(start) = &handle else { panic!("{handle:?}") };
    for life in ["worker-1.1", "worker-0.", "worker-0.$(reboot)", "worker-0.1/../x"] {
        let odd = Handle::Remote(RemoteStart { life: life.to_owned(), ..start.clone() });
        assert!(!second.adopt(WORKER, odd), "{life}");
    }
    assert!(second.adopt(WORKER, handle.clone()));
    let applicant = |pid| Applicant {
        role: proto::Role::RolloutWorker,
        member_id: "worker-0".to_owned(),
        run_id: String::new(),
        rank: 0,
        address: String::new(),
        process: protocol::process([0; 16], &service::host_name(), pid),
    };
    wait_for("its process", || second.is_own(WORKER, &applicant(pid)).then_some(()));
    assert!(!second.is_own(WORKER, &applicant(pid + 1)));
    second.signal(WORKER, Signal::Kill);
    assert_eq!(end_of(&mut second).code, None);
    assert!(!is_alive(pid));
    assert_eq!(living(&ssh, "run-a", &members), []);
    let nobody = "false".parse().expect("a command");
    let told = living(&nobody, "run-a", &members)[0].to_string();
    assert_eq!(told, "worker-0 (on gpu1, which does not tell: the connection ended)");
    let mut third = host.launcher();
    assert!(third.adopt(WORKER, handle), "that it has ended is seen later");
    assert!(end_of(&mut third).how.contains("ended on gpu1"));
}

#[test]
fn a_new_life_ends_an_earlier_one_that_nobody_knows_of() {
    let mut host = Host::new("exec sleep 100");
    let mut first = host.launcher();
    first.start(WORKER);
    let lost = running_pid(&mut first, &host);
    drop(first);
    let mut second = host.launcher();
    second.start(WORKER);
    let pid = running_pid(&mut second, &host);
    assert!(pid != lost && !is_alive(lost) && is_alive(pid));
    second.signal(WORKER, Signal::Kill);
    end_of(&mut second);
}

#[test]
fn an_order_that_comes_late_starts_nothing() {
    let host = Host::new("exec sleep 100");
    let line = Line {
        ssh: host.home.path().join("ssh").display().to_string().parse().expect("a command"),
        address: "gpu1".to_owned(),
        run_id: "run-a".to_owned(),
        reach: REACH,
    };
    let (mut session, name) = line.open().expect("a shell");
    assert_eq!(name, service::host_name());
    let launch = Launch {
        program: script::program("~/bin".as_ref(), "rollout-worker"),
        arguments: Vec::new(),
        environment: Vec::new(),
        folder: "/".to_owned(),
        input: String::new(),
    };
    let mark = session.mark().to_owned();
    let mut ask = |order: String| session.ask(&order, REACH.answer).expect("answered");
    let standing = |life: &str, standing| Answer::Life(life.to_owned(), standing);
    let (early, late) = ("worker-0.000001-000001", "worker-0.000001-000002");
    // Killed before it came to be.
    assert_eq!(ask(script::end(early, "KILL")), [standing(early, Standing::Ended(None))]);
    assert_eq!(ask(script::start(early, &launch, &mark)), [standing(early, Standing::Ended(None))]);
    // Or overtaken by its successor.
    let [Answer::Life(_, Standing::Running(pid))] = ask(script::start(late, &launch, &mark))[..] else {
        panic!("it runs")
    };
    let again = ask(script::start(late, &launch, &mark));
    assert_eq!(
        again,
        [standing(late, Standing::Running(pid))],
        "an order that is repeated starts nothing twice"
    );
    fs::remove_dir_all(host.folder().join(early)).expect("removed");
    assert_eq!(ask(script::start(early, &launch, &mark)), [standing(early, Standing::Ended(None))]);
    assert!(is_alive(pid));
    let ended = wait_for("its end", || {
        let told = ask(script::end(late, "TERM"));
        matches!(told.last(), Some(Answer::Life(_, Standing::Ended(_)))).then_some(told)
    });
    assert_eq!(ended.last(), Some(&standing(late, Standing::Ended(Some(143)))));
    assert_eq!(
        ask(script::look("worker-7.000001-000001")),
        [standing("worker-7.000001-000001", Standing::Absent)]
    );
}

/// The end of a worker that cannot be started, as it `is_told`. On a busy machine the time for a start may be over before it is
/// known why it fails; then it is tried with more of it.
#[track_caller]
fn fails_to_start(ssh: &str, answer: Duration, is_told: impl Fn(&crate::launch::ExitReport) -> bool) {
    let mut told = Vec::new();
    for start in [100, 2_000, 20_000].map(Duration::from_millis) {
        let mut host = Host::new("exit 0");
        host.write("ssh", ssh);
        let mut launcher = host.launcher();
        launcher.run.reach = Reach { answer, start, ..REACH };
        launcher.start(WORKER);
        let report = end_of(&mut launcher);
        if is_told(&report) {
            return;
        }
        told.push(report);
    }
    panic!("{told:?}")
}

#[test]
fn what_is_wrong_with_a_host_is_told_with_the_remedy() {
    for (ssh, code, words) in [
        (
            "echo 'gpu1: Permission denied (publickey).' >&2; exit 255",
            Some(2),
            "gpu1 does not let the coordinator in: gpu1: Permission",
        ),
        ("exec 2>&-; exit 255", None, "gpu1 was not reached for"),
        (
            "echo 'ssh: connect to host gpu1 port 22: No route to host' >&2; exit 255",
            None,
            "No route to host; is it up",
        ),
    ] {
        fails_to_start(ssh, REACH.answer, |report| report.code == code && report.how.contains(words));
    }
    let mut host = Host::new("exit 0");
    let mut launcher = host.launcher();
    fs::remove_file(host.home.path().join("bin/rollout-worker")).expect("removed");
    launcher.start(WORKER);
    let report = end_of(&mut launcher);
    let expected =
        format!("cannot start: {}/bin/rollout-worker is no program on gpu1", host.home.path().display());
    assert!(report.is_bad_input() && report.how.starts_with(&expected), "{report:?}");
    let missing: SshCommand = "/no/such/ssh -F x".parse().expect("a command");
    let told = missing.check().expect_err("missing");
    assert!(
        told.starts_with("`/no/such/ssh` does not start on this machine") && told.contains("`--ssh`"),
        "{told}"
    );
    assert!("  ".parse::<SshCommand>().is_err());
}

#[test]
fn a_host_that_does_not_answer_holds_nobody_up() {
    let mut host = Host::new("exit 0");
    host.write("ssh", "exec sleep 100");
    let mut launcher = host.launcher();
    // Far more than what follows takes, which waits for nobody.
    launcher.run.reach = Reach { answer: Duration::from_secs(60), start: Duration::from_secs(60), ..REACH };
    let start = Instant::now();
    launcher.start(WORKER);
    assert!(matches!(launcher.observe()[&WORKER], Observed::Pending(_)));
    launcher.signal(WORKER, Signal::Terminate);
    assert!(start.elapsed() < Duration::from_secs(50), "nothing of that waits for the host");
    drop(launcher);
    fails_to_start("exec sleep 100", Duration::from_millis(100), |report| {
        report.how.contains("it did not answer within 100ms")
    });
}

#[test]
fn what_would_be_started_is_described_with_its_host() {
    let mut host = Host::new("exit 0");
    let launcher = host.launcher();
    let told = launcher.describe(MemberName::Worker(1));
    assert!(
        told.starts_with(
            "\"$HOME\"/bin/rollout-worker serve --coordinator 'https://a b' --member-id worker-1\n"
        ),
        "{told}"
    );
    assert!(told.contains("on gpu1 by `") && told.contains("log: gpu1:~/.tempflow/runs/"), "{told}");
    assert!(launcher.describe(MemberName::Learner(0)).contains("bin/learner serve"));
}
