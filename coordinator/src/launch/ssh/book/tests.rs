use super::*;
use MemberName::Worker;

const REACH: Reach = Reach {
    pause: Duration::from_secs(1),
    answer: Duration::from_secs(20),
    start: Duration::from_secs(60),
    kill: Duration::from_secs(10),
};
const LIFE: &str = "worker-0.000001-000001";

fn launch() -> Launch {
    Launch {
        program: "/bin/rollout-worker".to_owned(),
        arguments: Vec::new(),
        environment: Vec::new(),
        folder: "/".to_owned(),
        input: "a token".to_owned(),
    }
}

/// A book with a worker that was just asked for.
fn asked(now: Instant) -> HostBook {
    let mut book = HostBook::new("gpu1", "run-a", REACH, now);
    book.start(Worker(0), LIFE.to_owned(), launch(), now);
    book
}

/// A book with a worker that runs.
fn running(now: Instant) -> HostBook {
    let mut book = asked(now);
    book.reached("node-1".to_owned());
    answer(&mut book, Standing::Running(7));
    book
}

fn answer(book: &mut HostBook, standing: Standing) {
    let order = book.orders().remove(0);
    book.answered(&order, vec![Answer::Life(LIFE.to_owned(), standing)]);
}

fn unreachable() -> Failure {
    Failure::Unreachable("No route to host".to_owned())
}

fn words(book: &HostBook) -> String {
    let words = book.observed().map(|(member, observed)| match observed {
        Observed::Pending(reason) => format!("{member} pending: {reason}"),
        Observed::Running => format!("{member} running"),
        Observed::Exited(report) => format!("{member} {:?}: {}", report.code, report.how),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_worker_is_pending_until_its_host_says_that_it_runs_and_then_its_end_is_told() {
    let now = Instant::now();
    let mut book = asked(now);
    assert_eq!(words(&book), "worker-0 pending: gpu1 is being reached");
    assert_eq!(book.orders(), [Order::Start(LIFE.to_owned(), Box::new(launch()))]);
    book.reached("node-1".to_owned());
    assert_eq!(words(&book), "worker-0 pending: gpu1 is starting it");
    answer(&mut book, Standing::Running(7));
    assert_eq!(words(&book), "worker-0 running");
    assert_eq!(book.orders(), [Order::Look(vec![LIFE.to_owned()])]);
    assert!(book.is_own(Worker(0), "node-1", 7));
    assert!(!book.is_own(Worker(0), "node-2", 7) && !book.is_own(Worker(0), "node-1", 8));
    let order = book.orders().remove(0);
    let lines = ["one", "two"].map(|line| Answer::Log(LIFE.to_owned(), line.to_owned()));
    let end = Answer::Life(LIFE.to_owned(), Standing::Ended(Some(137)));
    book.answered(&order, lines.into_iter().chain([end]).collect());
    assert_eq!(words(&book), "worker-0 None: ended on gpu1 by signal 9");
    let Some((_, Observed::Exited(report))) = book.observed().next() else { panic!("it has ended") };
    assert_eq!(report.last_lines, ["one", "two"]);
    assert_eq!(report.log.to_str(), Some("gpu1:~/.tempflow/runs/run-a/node-1/worker-0.log"));
    assert_eq!(book.orders(), [], "nothing is asked of the dead");
    book.forget(Worker(0));
    assert_eq!(book.starts(), []);
}

#[test]
fn every_standing_has_its_end_or_none() {
    for (standing, expected) in [
        (Standing::Beginning, "running"),
        (Standing::Ended(Some(0)), "Some(0): ended on gpu1 with exit status 0"),
        (Standing::Ended(None), "None: ended on gpu1, killed or with the host"),
        (Standing::Absent, "None: ended, and its files on gpu1 are gone"),
        (
            Standing::Missing("/bin/rollout-worker".to_owned()),
            "Some(2): cannot start: /bin/rollout-worker is no program on gpu1; install the programs there, or say by `programs`",
        ),
        (Standing::Missing("setsid".to_owned()), "Some(2): cannot start: gpu1 has no `setsid`"),
        (
            Standing::Refused("mkdir: No space left".to_owned()),
            "None: cannot start on gpu1: mkdir: No space left",
        ),
    ] {
        let mut book = asked(Instant::now());
        book.reached("node-1".to_owned());
        answer(&mut book, standing);
        assert!(words(&book).starts_with(&format!("worker-0 {expected}")), "{}", words(&book));
    }
}

#[test]
fn a_host_that_is_not_reached_is_told_and_ends_a_start_after_a_while() {
    let now = Instant::now();
    let mut book = asked(now);
    book.failed(unreachable(), now + seconds(5));
    assert_eq!(words(&book), "worker-0 pending: gpu1 is not reached by ssh: No route to host");
    assert_eq!(book.orders().len(), 1, "it is tried again");
    book.expire(now + seconds(59));
    assert!(words(&book).contains("pending"));
    book.expire(now + seconds(60));
    let told = words(&book);
    assert!(told.contains("None: cannot start: gpu1 was not reached for 60s: No route to host"), "{told}");
    assert!(told.contains("`ssh gpu1 true`"), "{told}");
    // The next life has as long.
    book.start(Worker(0), "worker-0.000001-000002".to_owned(), launch(), now + seconds(70));
    book.expire(now + seconds(129));
    assert!(words(&book).contains("pending"));
}

#[test]
fn a_start_that_waits_for_its_turn_on_a_host_that_answers_is_not_given_up() {
    let now = Instant::now();
    let mut book = asked(now);
    book.reached("node-1".to_owned());
    book.expire(now + seconds(3600));
    assert!(words(&book).contains("pending"), "{}", words(&book));
    book.failed(unreachable(), now + seconds(3601));
    assert!(words(&book).contains("pending"), "it has just stopped to answer");
}

#[test]
fn a_host_that_lets_nobody_in_ends_a_start_at_once_as_bad_input() {
    let now = Instant::now();
    let mut book = asked(now);
    book.failed(Failure::Refused("ada@gpu1: Permission denied (publickey).".to_owned()), now);
    let told = words(&book);
    assert!(
        told.contains("Some(2): cannot start: gpu1 does not let the coordinator in: ada@gpu1: Perm"),
        "{told}"
    );
    assert!(told.contains("`ssh gpu1 true` must work") && told.contains("authorized_keys"), "{told}");
}

#[test]
fn what_runs_on_a_host_that_is_gone_ends_only_once_it_is_to_be_killed() {
    let now = Instant::now();
    for failure in [unreachable(), Failure::Refused("Permission denied (publickey)".to_owned())] {
        let mut book = running(now);
        book.failed(failure, now);
        book.expire(now + seconds(3600));
        assert_eq!(words(&book), "worker-0 running", "it may be heard of otherwise");
        let then = now + seconds(3600);
        book.signal(Worker(0), Signal::Kill, then);
        // As the keeper does.
        book.signal(Worker(0), Signal::Kill, then + seconds(9));
        book.expire(then + seconds(9));
        assert_eq!(words(&book), "worker-0 running");
        book.expire(then + seconds(10));
        let told = words(&book);
        assert!(told.contains("None: is given up: gpu1 has not been reached to end it:"), "{told}");
        assert!(told.contains("`network.grace`"), "{told}");
    }
    let mut book = running(now);
    book.signal(Worker(0), Signal::Kill, now);
    book.expire(now + seconds(3600));
    assert_eq!(words(&book), "worker-0 running", "its host answers, and says when it has ended");
}

#[test]
fn a_worker_is_asked_to_end_once_and_killed_until_it_has_ended() {
    let now = Instant::now();
    let mut book = running(now);
    book.signal(Worker(0), Signal::Terminate, now);
    assert_eq!(book.orders(), [Order::Signal(LIFE.to_owned(), Signal::Terminate)]);
    answer(&mut book, Standing::Running(7));
    assert_eq!(book.orders(), [Order::Look(vec![LIFE.to_owned()])]);
    book.signal(Worker(0), Signal::Kill, now);
    book.signal(Worker(0), Signal::Terminate, now);
    for _ in 0..2 {
        assert_eq!(book.orders(), [Order::Signal(LIFE.to_owned(), Signal::Kill)]);
        answer(&mut book, Standing::Running(7));
    }
    answer(&mut book, Standing::Ended(None));
    assert_eq!(book.orders(), []);
    book.signal(Worker(0), Signal::Kill, now);
    assert_eq!(book.orders(), []);
}

#[test]
fn answers_about_an_earlier_life_change_nothing() {
    let now = Instant::now();
    let mut book = running(now);
    let order = Order::Look(vec![LIFE.to_owned()]);
    let stale = Answer::Life("worker-0.000001-000000".to_owned(), Standing::Ended(Some(1)));
    book.answered(&order, vec![stale]);
    assert_eq!(words(&book), "worker-0 running");
}

#[test]
fn a_worker_of_an_earlier_coordinator_is_looked_for_and_found_or_not() {
    let now = Instant::now();
    let mut book = HostBook::new("gpu1", "run-a", REACH, now);
    book.adopt(Worker(0), LIFE.to_owned(), Some(("node-1".to_owned(), 8)), now);
    assert!(book.is_own(Worker(0), "node-1", 8), "before its host answers");
    assert_eq!(
        (words(&book).as_str(), book.orders()),
        ("worker-0 running", vec![Order::Look(vec![LIFE.to_owned()])])
    );
    book.reached("node-1".to_owned());
    answer(&mut book, Standing::Running(9));
    assert!(book.is_own(Worker(0), "node-1", 9));
    let expected = Some(("node-1".to_owned(), 9));
    let [(_, RemoteStart { host, process, .. })] = &book.starts()[..] else { panic!("one was adopted") };
    assert_eq!((host.as_str(), process), ("gpu1", &expected));
    answer(&mut book, Standing::Absent);
    assert!(words(&book).contains("its files on gpu1 are gone"));
}
