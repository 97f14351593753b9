//! What real processes show while they run, and what the coordinator wrote of its decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Run, coordinator_output, repository};

/// What a process answers to a path.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

/// Rows of the document's table by the process that shows them.
fn documented(process: &str) -> BTreeSet<String> {
    let document = std::fs::read_to_string(repository().join("docs/monitoring.md")).expect("there");
    let rows = service::metrics::table_of(&document, process);
    rows.into_iter().filter_map(|row| Some(row.split('`').nth(1)?.to_owned())).collect()
}

/// Names that a page has numbers of, those of histograms without their endings.
fn shown(page: &str) -> BTreeSet<String> {
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    kinds.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok())
}

/// The page of a process once each of these series is above a number: what is counted comes after what it counts.
#[track_caller]
fn page_with(address: &str, series: &[(&str, f64)]) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let page = get(address, "/metrics");
        let is_low =
            |(series, least): &&(&str, f64)| value(&page, series).is_none_or(|value| value <= *least);
        match series.iter().find(is_low) {
            None => return page,
            Some(low) => assert!(Instant::now() < deadline, "{low:?} is not passed in\n{page}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Addresses by member, as the living run tells them.
fn addresses(run: &Run) -> BTreeMap<String, String> {
    let status: Value = serde_json::from_str(&run.status(&["--log-format", "json"])).expect("JSON");
    let own = status["metrics_address"].as_str().expect("a text").to_owned();
    let members = status["members"].as_array().expect("members").iter();
    let of = |key: &str, member: &Value| member[key].as_str().expect("a text").to_owned();
    let members = members.map(|member| (of("member_id", member), of("metrics_address", member)));
    members.chain([("coordinator".to_owned(), own)]).collect()
}

fn promtool_takes(page: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), page.split_once("\r\n\r\n").expect("a body").1).expect("written");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(std::fs::File::open(file.path()).expect("there"));
    match command.output() {
        Ok(output) => assert!(output.status.success(), "{}\n{page}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("skipped: promtool is not here; it comes with Prometheus"),
    }
}

#[test]
fn every_process_of_a_run_shows_what_the_document_says_and_decisions_are_written_down() {
    let mut run = Run::new(&[("run.iterations", "500")]);
    run.start(&["--workers", "1", "--set", "network.metrics=127.0.0.1:0"]);
    run.wait_for_iterations(1);
    let addresses = addresses(&run);
    let page = |member: &str| get(&addresses[member], "/metrics");
    for (member, process) in [("coordinator", "coordinator"), ("learner", "learner"), ("worker-0", "worker")]
    {
        let page = page(member);
        let known: BTreeSet<String> = documented(process).union(&documented("process")).cloned().collect();
        let unknown: Vec<_> = shown(&page).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{member} shows {unknown:?}, of which docs/monitoring.md does not tell");
        assert!(get(&addresses[member], "/readyz").starts_with("HTTP/1.1 200"), "{member} works");
        promtool_takes(&page);
    }
    let of_learner = [
        ("tempflow_learner_phase_seconds_total{phase=\"training\"}", 0.0),
        ("tempflow_learner_pushes_total{outcome=\"held\"}", 0.0),
        ("tempflow_learner_received_bytes_total", 1000.0),
        ("tempflow_learner_weight_sync_seconds_count{phase=\"publish\"}", 0.0),
    ];
    let learner = page_with(&addresses["learner"], &of_learner);
    assert_eq!(value(&learner, "tempflow_learner_version_lag"), Some(0.0), "{learner}");
    let of_worker = [
        "tempflow_worker_tasks_total{kind=\"train\",outcome=\"held\"}",
        "tempflow_worker_hand_seconds_total{hand=\"sampling\",doing=\"draw\"}",
        "tempflow_worker_reward_seconds_count{reward=\"shapes\"}",
        "tempflow_worker_weight_sync_seconds_count{phase=\"fetch\"}",
        "tempflow_worker_weight_sync_seconds_count{phase=\"load\"}",
    ];
    page_with(&addresses["worker-0"], &of_worker.map(|series| (series, 0.0)));
    let targets = get(&addresses["coordinator"], "/targets");
    assert!(addresses.values().all(|address| targets.contains(address.as_str())), "{targets}");
    let directory = run.directory().display().to_string();
    assert!(coordinator_output(&["down", &directory]).status.success(), "{}", run.output());
    assert_eq!(run.wait(), Some(75), "{}", run.output());

    let events = run.rows("events.jsonl");
    let count = |event: &str| events.iter().filter(|row| row["event"] == event).count();
    assert!(count("task_granted") >= count("task_finished") && count("task_finished") > 6, "{events:?}");
    // Who is too slow for a lease is lost, and joins again.
    let n_joined = count("member_joined") - count("member_lost");
    assert_eq!((count("process_started"), n_joined, count("run_drained")), (2, 2, 1));
    assert_eq!(
        events.iter().filter(|row| row["event"] == "run_ended" && row["cause"] == "stopped").count(),
        1
    );
    assert!(events.iter().all(|row| row["recorded_at"].is_number()), "{events:?}");
}

#[test]
fn a_port_for_metrics_that_is_taken_is_told_before_anything_starts() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let mut run = Run::new(&[]);
    run.start(&["--set", &format!("network.metrics={address}")]);
    assert_eq!(run.wait(), Some(2), "{}", run.output());
    let said = run.said();
    assert!(said.contains(&format!("`network.metrics`: cannot listen at {address}")), "{said}");
    assert!(!run.directory().exists(), "nothing is left behind");
}
