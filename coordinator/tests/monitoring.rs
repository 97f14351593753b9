//! Documents, dashboard and alerts against what processes show, and the page itself over real connections.

use config::RunConfig;
use coordinator::catalog::Catalog;
use coordinator::events::{CAUSES, EventLog};
use coordinator::membership::{Members, Patience};
use coordinator::metrics::{RunPage, show_run};
use coordinator::run_state::RunState;
use coordinator::server::{Asked, ControlPlane};
use proto::{
    Blame, FinishTaskRequest, HeartbeatRequest, JoinRequest, NextTaskRequest, ReportRequest, Role, TaskKind,
    Wanted,
};
use serde_json::Value;
use service::metrics::{Exposition, serve_page, table_of};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PROCESSES: [&str; 4] = ["process", "coordinator", "learner", "worker"];
const LONG: Duration = Duration::from_secs(20);
/// How long anything here may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is below the root").to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn document() -> String {
    read("docs/monitoring.md")
}

fn config(home: &Path) -> RunConfig {
    let file = home.join("prompts.txt");
    std::fs::write(&file, "a scene\nanother\n").expect("written");
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    (config.data.train, config.data.validation, config.data.test) = (file.clone(), file.clone(), file);
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config
}

fn state(home: &Path) -> RunState {
    let patience = Patience { lease: LONG, opening_deadline: LONG, task_deadline: LONG, drain: LONG };
    let members = Members::new("run-a".to_owned(), 1, patience);
    let catalog = Catalog::open(config(home)).expect("prompts");
    RunState::new(members, catalog, String::new(), Instant::now())
}

fn plane(home: &Path) -> ControlPlane {
    ControlPlane::new(state(home))
}

#[test]
fn the_table_of_metrics_has_all_of_a_coordinators_and_no_other() {
    let home = tempfile::tempdir().expect("a directory");
    let mut exposition = Exposition::default();
    show_run(&mut exposition, &plane(home.path()).view());
    let rows = exposition.rows();
    assert_eq!(table_of(&document(), "coordinator"), rows, "it should be\n{}", rows.join("\n"));
}

#[test]
fn the_table_of_events_has_all_of_them_with_their_causes() {
    let row = |(event, causes): &(&str, &[&str])| {
        let causes: Vec<String> =
            causes.iter().filter(|cause| !cause.is_empty()).map(|cause| format!("`{cause}`")).collect();
        format!("| `{event}` | {} |", causes.join(", "))
    };
    let document = document();
    for row in CAUSES.iter().map(row) {
        assert!(document.lines().any(|line| line.starts_with(&row)), "{row} is not in docs/monitoring.md");
    }
}

/// Names of metrics in a query, those of a histogram without their endings.
fn names_in(query: &str) -> BTreeSet<String> {
    let is_in_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = query.split(|letter| !is_in_name(letter)).filter(|word| word.starts_with("tempflow_"));
    let bare = |word: &str| {
        let endings = ["_bucket", "_sum", "_count"];
        endings.iter().find_map(|ending| word.strip_suffix(ending)).unwrap_or(word).to_owned()
    };
    words.map(bare).collect()
}

fn check(what: &str, queries: &[String]) {
    let document = document();
    let rows = PROCESSES.iter().flat_map(|process| table_of(&document, process));
    let known: BTreeSet<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert!(known.len() > 40 && queries.len() > 10, "{} metrics, {} queries", known.len(), queries.len());
    for query in queries {
        let names = names_in(query);
        let is_about_scraping = query.starts_with("up{");
        assert!(!names.is_empty() || is_about_scraping, "{what} asks for nothing: {query}");
        let unknown: Vec<_> = names.iter().filter(|name| !known.contains(name.as_str())).collect();
        assert!(unknown.is_empty(), "{what} asks for {unknown:?}, which no process shows: {query}");
    }
    for (event, cause) in queries.iter().flat_map(|query| selected(query)) {
        let pattern = |value: &str, pattern: &str| {
            pattern.split('|').any(|word| {
                word == value || word.strip_suffix(".*").is_some_and(|start| value.starts_with(start))
            })
        };
        let is_known = CAUSES.iter().any(|(name, causes)| {
            pattern(name, &event)
                && cause.as_ref().is_none_or(|cause| causes.iter().any(|known| pattern(known, cause)))
        });
        assert!(is_known, "{what} asks for the event {event} {cause:?}, which there is not");
    }
}

/// What a query says of `event` and `cause`.
fn selected(query: &str) -> Option<(String, Option<String>)> {
    let value = |label: &str| {
        let after = query.split([',', '{']).find_map(|part| part.trim().strip_prefix(label))?;
        Some(after.trim_start_matches(['=', '~']).split('"').nth(1)?.to_owned())
    };
    Some((value("event=")?, value("cause=")))
}

#[test]
fn every_query_of_the_dashboard_asks_for_what_there_is() {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/monitoring/grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("queries"));
    let mut queries: Vec<String> =
        targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect();
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    queries.extend(variables.iter().map(|variable| variable["query"].as_str().expect("a query").to_owned()));
    check("the dashboard", &queries);
    promtool_takes(
        "the dashboard",
        &queries.iter().filter(|query| !query.starts_with("label_values")).cloned().collect::<Vec<_>>(),
    );
}

#[test]
fn every_alert_asks_for_what_there_is() {
    let text = read("deploy/monitoring/alerts.yml");
    let rules: Vec<&str> = text.split("- alert: ").skip(1).collect();
    let query = |rule: &&str| {
        let after = rule.split("expr:").nth(1).expect("a query").trim_start().trim_start_matches(">-");
        let end = ["        for:", "        labels:"].iter().filter_map(|key| after.find(key)).min();
        after[..end.expect("more keys")].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    check("an alert", &rules.iter().map(query).collect::<Vec<_>>());
}

/// `promtool`, or a word that a test is skipped without it.
fn promtool(arguments: &[&str]) -> Option<Command> {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped: promtool is not here; it comes with Prometheus (`apt-get install prometheus`)");
        return None;
    }
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(repository());
    Some(command)
}

fn succeeds(mut command: Command) {
    let output = command.output().expect("it runs");
    let told = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{told}");
}

#[test]
fn promtool_takes_rules_and_settings() {
    promtool(&["check", "rules", "deploy/monitoring/alerts.yml"]).into_iter().for_each(succeeds);
    promtool(&["check", "config", "deploy/monitoring/prometheus.yml"]).into_iter().for_each(succeeds);
}

/// Queries as rules that record them, which `promtool` parses.
fn promtool_takes(what: &str, queries: &[String]) {
    let Some(mut command) = promtool(&["check", "rules", "--lint=none"]) else { return };
    let home = tempfile::tempdir().expect("a directory");
    let rule = |query: &String| {
        let query = serde_json::to_string(&query.replace("$run", ".*")).expect("JSON");
        format!("      - {{ record: \"a:b\", expr: {query} }}\n")
    };
    let rules: String = queries.iter().map(rule).collect();
    let path = home.path().join("rules.yml");
    std::fs::write(&path, format!("groups:\n  - name: {what}\n    rules:\n{rules}")).expect("written");
    command.arg(&path);
    succeeds(command);
}

/// A coordinator that shows its page, and where.
async fn shown(home: &Path) -> (ControlPlane, String) {
    let plane = plane(home);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    plane.show_metrics_address(address.clone());
    tokio::spawn(serve_page(listener, Arc::new(RunPage::new(plane.clone()))));
    (plane, address)
}

/// All that is answered to what is sent.
async fn say(address: &str, request: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        // Who is refused early may be cut off while he still talks.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("in time")
}

async fn get(address: &str, path: &str) -> String {
    say(address, &format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_shows_its_run_its_health_and_whom_to_scrape() {
    let home = tempfile::tempdir().expect("a directory");
    let (plane, address) = shown(home.path()).await;
    let process = protocol::process([7; protocol::NONCE_BYTES], "here", 7);
    let process = Some(proto::Process { metrics_address: "10.0.0.2:9401".to_owned(), ..process });
    let member_id = "learner".to_owned();
    let join = JoinRequest { role: Role::Learner.into(), member_id, process, ..JoinRequest::default() };
    plane.admit(&join).expect("joined");
    let page = get(&address, "/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("text/plain; version=0.0.4"), "{page}");
    for line in [
        "tempflow_run_info{run_id=\"run-a\"",
        "tempflow_members{role=\"learner\",state=\"living\"} 1.0",
        "tempflow_events_total{event=\"member_joined\",cause=\"new\"} 1",
        "tempflow_process_resident_memory_bytes{role=\"coordinator\"}",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    for path in ["/healthz", "/readyz"] {
        assert!(get(&address, path).await.ends_with("\r\n\r\nok\n"), "{path}");
    }
    let targets = get(&address, "/targets").await;
    assert!(targets.contains("\"10.0.0.2:9401\"") && targets.contains(&address), "{targets}");
    if let Some(mut command) = promtool(&["check", "metrics"]) {
        let body = page.split_once("\r\n\r\n").expect("a body").1;
        let file = home.path().join("page");
        std::fs::write(&file, body).expect("written");
        command.stdin(std::fs::File::open(&file).expect("there"));
        succeeds(command);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_changed_and_nonsense_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let (_plane, address) = shown(home.path()).await;
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n".to_owned(), "405"),
        ("DELETE / HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), "405"),
        ("GET /secrets HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), "404"),
        ("this is no request\r\n\r\n".to_owned(), "400"),
        (format!("GET /{} HTTP/1.1\r\nHost: here\r\n\r\n", "x".repeat(20_000)), "4"),
    ] {
        let answer = say(&address, &request).await;
        let is_so = answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(is_so || answer.is_empty() && status == "4", "{status}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_asks_all_the_time_keeps_nobody_out_for_long() {
    let home = tempfile::tempdir().expect("a directory");
    let (_plane, address) = shown(home.path()).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        stream.write_all(b"GET /met").await.expect("sent");
        silent.push(stream);
    }
    assert!(get(&address, "/metrics").await.starts_with("HTTP/1.1 200"), "the silent are given up in time");
    // Processor time is never the same twice, unless the page was not written anew.
    let text = |answer: String| answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    let deadline = Instant::now() + PATIENCE;
    while text(get(&address, "/metrics").await) != text(get(&address, "/metrics").await) {
        assert!(Instant::now() < deadline, "a page is written as often as it is asked for");
    }
}

/// A process that asks to be a member.
fn joining(role: Role, member_id: &str, nonce: u8) -> JoinRequest {
    let process = Some(protocol::process([nonce; protocol::NONCE_BYTES], "here", nonce.into()));
    JoinRequest { role: role.into(), member_id: member_id.to_owned(), process, ..JoinRequest::default() }
}

/// Has a learner that wants the first iteration, and a worker that asks, fails, asks again and is silent for a minute.
fn life_of_a_worker(plane: &ControlPlane, pass_a_minute: impl Fn()) {
    let learner = plane.admit(&joining(Role::Learner, "learner", 1)).expect("joined").identity;
    let worker = plane.admit(&joining(Role::RolloutWorker, "a", 2)).expect("joined").identity;
    let wanted = vec![Wanted { kind: TaskKind::Train.into(), ..Wanted::default() }];
    let report = ReportRequest { caller: learner.clone(), wanted, ..ReportRequest::default() };
    plane.update(|state, now| state.report(report, now)).expect("taken");
    let ask = || match plane.ask(&NextTaskRequest { caller: worker.clone(), ..NextTaskRequest::default() }) {
        Ok(Asked::Granted(task)) => task.id,
        other => panic!("no task: {other:?}"),
    };
    let failure = "a NaN".to_owned();
    let failed = FinishTaskRequest {
        caller: worker.clone(),
        task: ask(),
        failure,
        blame: Blame::Task.into(),
        given_back: false,
    };
    plane.update(|state, now| state.finish_task(&failed, now)).expect("taken");
    ask();
    pass_a_minute();
    let heartbeat = HeartbeatRequest { caller: learner, ..HeartbeatRequest::default() };
    plane.update(|state, now| state.heartbeat(heartbeat, now)).expect("taken");
    plane.update(RunState::expire);
}

#[test]
fn what_is_decided_is_written_in_order_with_its_cause() {
    let home = tempfile::tempdir().expect("a directory");
    let (start, passed) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let told = passed.clone();
    let clock = Arc::new(move || start + Duration::from_secs(told.load(Ordering::Relaxed)));
    let plane = ControlPlane::with_clock(state(home.path()), clock);
    let owner =
        service::Ownership::claim(&service::RunDirectory::new(home.path()), 0, None).expect("claimed");
    let (log, path) = (EventLog::start(owner.directory().clone()), home.path().join("events.jsonl"));
    plane.write_events(log);
    life_of_a_worker(&plane, || passed.store(60, Ordering::Relaxed));
    plane.admit(&joining(Role::RolloutWorker, "a", 3)).expect("in its place");
    for _ in 0..3 {
        plane.admit(&joining(Role::Learner, "a", 4)).expect_err("it is a worker's name");
    }
    plane.update(|state, _| state.scale(7));
    plane.update(|state, _| state.drain());
    plane.finish_events();
    let written = || std::fs::read_to_string(&path).unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;
    while !written().contains("run_drained") {
        assert!(Instant::now() < deadline, "the last event is not written");
    }
    let text = written();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let found: Vec<String> =
        rows.iter().map(|row| format!("{} {}", word(row, "event"), word(row, "cause"))).collect();
    let expected = [
        "member_joined new",
        "member_joined new",
        "task_granted ",
        "task_failed task",
        "task_granted ",
        "member_lost silent",
        "task_returned member_lost",
        "member_joined replaced",
        "member_refused other_role",
        "workers_scaled ",
        "run_drained ",
    ];
    assert_eq!(found, expected, "{text}");
    assert_eq!((&rows[3]["reason"], &rows[3]["is_given_up"]), (&"a NaN".into(), &false.into()));
    assert!(word(&rows[5], "reason").contains("no sign of life for more than 20 s"), "{text}");
    let counted = plane.view().events.into_iter().filter(|count| count.count > 0).map(|count| count.count);
    assert_eq!(counted.sum::<u64>(), expected.len() as u64, "what is counted is what is written");
}
