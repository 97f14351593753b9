//! What the files of a run, its programs and its hosts tell the coordinator, and what is shown of that.

use crate::{is_read, parts};
use config::{ModelInspection, RewardInquiry, RewardInspection, TaskKind, preset};
use coordinator::account::{Room, progress_line};
use coordinator::branch::ExportedCheckpoint;
use coordinator::history::History;
use coordinator::launch::MemberName;
use coordinator::launch::ssh::{Answer, is_life_of};
use coordinator::metrics::{show_run, targets};
use coordinator::run_files::RunFiles;
use coordinator::run_record::RunRecord;
use coordinator::status;
use coordinator::view::{EndedRun, LivingRun, RunView, Stage};
use prost::Message;
use protocol::TaskName;
use serde::de::DeserializeOwned;
use service::RunDirectory;
use service::metrics::Exposition;
use std::time::Duration;

const MARK: &str = "@0123456789abcdef";
const METRICS: &str = r#"{"iteration": 0, "cost": {"network_evaluations": 100}, "time": {"iteration": 4.5}}"#;
const EVALUATIONS: &str = r#"{"version": 0, "reward": 0.5, "standard_error": 0.1, "network_evaluations": 60, "seconds": 3.0}
{"version": 4, "reward": 0.75, "standard_error": 0.1, "network_evaluations": 60, "seconds": 26.5}"#;
const MODEL: &str = r#"{"folder":"models/x","class":"StableDiffusion3Pipeline","dtype":"bfloat16",
"components":[{"name":"transformer","parameters":1048576,"bytes":2097152,"largest_tensor_bytes":512}],
"n_blocks":24,"width":1536,"decoder_width":256,"image":{"height":512,"width":256,"latent_shape":[16,64,32],"tokens":512},
"text_tokens":205,"embedding_widths":[4096,2048],"rows_per_evaluation":2,"rows_per_held_out_evaluation":1,
"adapter":{"rank":32,"modules":8,"parameters":9,"left_out":[]},"steps":[{"step":3,"sigma":0.75,"weight":1.5}]}"#;
const REWARDS: &str = r#"[{"key":"rewards[0]","name":"ocr","bytes":7,"problem":null},
{"key":"rewards[1]","name":"far","bytes":0,"problem":"it asks for TLS"}]"#;
const INQUIRY: &str = r#"{"device":"cuda:1","knock":true,"is_secure":true,
"rewards":[["rewards[0]",{"name":"grpc","weight":0.5,"url":"https://gpu-7:443"}]]}"#;

/// Metrics, evaluations and tests.
pub(super) fn histories() -> Vec<Vec<u8>> {
    vec![[METRICS, EVALUATIONS, EVALUATIONS].map(str::as_bytes).join(&0xff)]
}

/// A rate is a number, and there are no more rewards than lines.
pub(super) fn check_history(bytes: &[u8]) -> bool {
    let texts = parts::<3>(bytes).map(|text| String::from_utf8_lossy(text).into_owned());
    let n_lines = texts[1].lines().count();
    let history = History::of_texts(texts);
    let rate = history.evaluations_per_second();
    assert!(rate.is_none_or(|rate| rate >= 0.0), "a rate of {rate:?}");
    assert!(history.held_out().len() <= n_lines, "more evaluations than lines");
    rate.is_some()
}

pub(super) fn answers() -> Vec<Vec<u8>> {
    [MODEL, REWARDS, INQUIRY, r#"{"version": 3}"#].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Whatever a model or its rewards are said to be, a run of them can be planned and shown.
pub(super) fn check_answers(bytes: &[u8]) -> bool {
    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        let answer = serde_json::from_slice(bytes);
        is_read(answer.as_ref());
        answer.ok()
    }
    let config = preset("tempflow-tiny-cpu").expect("a preset").config;
    let (model, rewards) = (read::<ModelInspection>(bytes), read::<Vec<RewardInspection>>(bytes));
    let is_answer = model.is_some() || rewards.is_some();
    if is_answer {
        let shown = model.as_ref().map(ToString::to_string).unwrap_or_default();
        let plan = config::plan(&config, model, rewards.unwrap_or_default()).to_string();
        assert!(shown.len() + plan.len() > 0, "nothing is planned");
    }
    is_answer || read::<RewardInquiry>(bytes).is_some() || read::<ExportedCheckpoint>(bytes).is_some()
}

/// Lines as a host writes them.
pub(super) fn host_answers() -> Vec<Vec<u8>> {
    let told = [
        "host node-1",
        "worker-0.000001-000002 running 4711",
        "worker-0.000001-000002 ended 137",
        "worker-0.000001-000002 log a line of its log",
        "worker-1.000001-000003 missing rollout-worker",
        "done 3",
    ];
    let told: String = told.iter().map(|line| format!("{MARK} {line}\n")).collect();
    vec![told.into_bytes(), b"worker-0.000001-000002\n".to_vec()]
}

/// Only what begins with the mark is an answer; what is taken for the name of a life is one plain word of a shell.
pub(super) fn check_host_answers(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let mut n_read = 0;
    for line in text.lines() {
        let answer = Answer::read(line, MARK);
        assert!(answer.is_none() || line.starts_with(MARK), "a line without the mark is an answer");
        let is_life = is_life_of(line, MemberName::Worker(0));
        assert!(!is_life || line.chars().all(is_plain), "`{line}` would become more than a word of a shell");
        n_read += usize::from(answer.is_some() || is_life);
    }
    n_read > 0
}

/// A status as it comes over the wire, and records of runs that have ended.
pub(super) fn runs() -> Vec<Vec<u8>> {
    let member = proto::Member {
        member_id: "worker-0".to_owned(),
        state: "living".to_owned(),
        device: "cuda:0".to_owned(),
        card: "GPU-1".to_owned(),
        device_kind: "NVIDIA H200".to_owned(),
        metrics_address: "node-1:9400".to_owned(),
        running: vec![TaskName { iteration: 3, kind: TaskKind::Train, index: 1 }.into()],
        speed: Some(0.25),
        is_slow: true,
        ..Default::default()
    };
    let held_out = proto::HeldOut { version: 2, reward: 0.5, standard_error: 0.01 };
    let progress = proto::Progress {
        iterations: 10,
        phase: "sampling".to_owned(),
        reward: Some(0.25),
        held_out: Some(held_out),
        ..Default::default()
    };
    let reply = proto::StatusReply {
        run_id: "tiny-0123".to_owned(),
        progress: Some(progress),
        members: vec![member],
        notices: vec!["a prompt was cut".to_owned()],
        seconds_left: Some(60.0),
        ..Default::default()
    };
    let failed = RunRecord {
        ended: serde_json::from_str(
            r#"{"how":"failed","reason":"a NaN","summary":{"gain":0.5,"scores":[{"name":"ocr"},{"name":"b"}]}}"#,
        )
        .expect("an ending"),
        ..RunRecord::new("tiny")
    };
    vec![reply.encode_to_vec(), serde_json::to_vec(&failed).expect("a record has a JSON form")]
}

/// Whatever is told of a run can be shown and scraped, and tells a terminal nothing.
pub(super) fn check_runs(bytes: &[u8]) -> bool {
    let show = |stage: Stage| {
        let files = RunFiles { directory: RunDirectory::new("runs/tiny"), half: None };
        let shown = status::text(&RunView { stage, held_out_rewards: Vec::new(), files });
        assert_eq!(service::visible(&shown), shown, "a terminal would obey it");
    };
    let living = proto::StatusReply::decode(bytes).map(LivingRun::from);
    if let Ok(run) = &living {
        assert!(!progress_line(&run.overview, Room::Narrow).is_empty(), "nothing is shown");
        let mut exposition = Exposition::default();
        show_run(&mut exposition, run);
        let is_line = |line: &str| line.is_empty() || line.starts_with("# ") || line.starts_with("tempflow_");
        assert!(exposition.text().lines().all(is_line), "a name makes lines of its own");
        assert!(targets(run).is_array(), "targets are a list");
        show(Stage::Living(Box::new(run.clone())));
    }
    let ended = serde_json::from_slice::<RunRecord>(bytes).ok().and_then(|record| {
        Some(EndedRun { run_id: record.run_id, ended: record.ended?, ago: Duration::from_secs(60) })
    });
    let has_ended = ended.is_some();
    ended.into_iter().for_each(|run| show(Stage::Ended(run)));
    living.is_ok() || has_ended
}
