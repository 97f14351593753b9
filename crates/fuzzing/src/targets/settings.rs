//! What a user writes: run configs, configs of another trainer, prompts, and short notations of arguments.

use crate::is_read;
use config::{BranchSteps, ComputeDevice, Dtype, PortRange, RunConfig, StepWeight, VisibleCards};
use coordinator::cards::Cpus;
use coordinator::checkpoint_list;
use coordinator::launch::ssh::SshCommand;
use coordinator::member_name::MemberName;
use service::Address;
use service::network::ListenAddress;
use service::trust::{JoinToken, PeerName};
use std::path::Path;

const PROMPT_FILES: [&str; 5] = ["p.txt", "p.jsonl", "p.json", "p.csv", "p.tsv"];

pub(super) fn run_configs() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../deploy/configs/tempflow-tiny-cpu.toml").to_vec(),
        include_bytes!("../../../../deploy/configs/flow-grpo-tiny-cpu.toml").to_vec(),
    ]
}

/// A config that holds is written and read again as the same; every problem says something.
pub(super) fn check_run_config(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (config, problems) = RunConfig::examine(&text, &[]);
    assert!(config.is_some() || !problems.is_empty(), "nothing is read and nothing is wrong");
    assert!(problems.iter().all(|problem| !problem.message.is_empty()), "a problem without a message");
    let Some(config) = config.filter(|_| problems.is_empty()) else { return false };
    let written = config.to_toml();
    let again = RunConfig::from_toml(&written).expect("what was written is read");
    assert_eq!(again.to_toml(), written, "it came back as another one");
    true
}

pub(super) fn imported_configs() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../config/tests/flow-factory/flux-full.yaml").to_vec(),
        include_bytes!("../../../config/tests/flow-factory/qwen-guard.yaml").to_vec(),
        include_bytes!("../../../config/tests/flow-factory/sd35-lora.yaml").to_vec(),
    ]
}

pub(super) fn check_imported_config(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    is_read(config::import_flow_factory(&text, "theirs.yaml"))
}

/// The first byte chooses the format.
pub(super) fn prompts() -> Vec<Vec<u8>> {
    let texts = [
        "a red cube\na blue ball\n",
        "{\"prompt\": \"a red cube\", \"count\": 2}\n{\"prompt\": \"two balls\"}\n",
        "[{\"prompt\": \"a red cube\"}, \"two balls\"]",
        "prompt,count\n\"a red, large cube\",2\n",
        "prompt\tcount\na red cube\t2\n",
    ];
    texts.iter().enumerate().map(|(format, text)| [&[format as u8], text.as_bytes()].concat()).collect()
}

/// Prompts that are read are numbered from zero, and there is at least one.
pub(super) fn check_prompts(bytes: &[u8]) -> bool {
    let Some((&format, bytes)) = bytes.split_first() else { return false };
    let path = Path::new(PROMPT_FILES[usize::from(format) % PROMPT_FILES.len()]);
    let records = config::parse_prompts(path, bytes);
    if let Ok(records) = &records {
        assert!(!records.is_empty(), "a file without prompts is read");
        assert!(records.iter().zip(0..).all(|(record, index)| record.index == index), "an index is off");
        let _ = config::unused_prompt_keys(path, records);
    }
    is_read(records)
}

pub(super) fn notations() -> Vec<Vec<u8>> {
    let texts = [
        "node-1:50051",
        "https://node-1.example:443",
        "[::1]:80",
        "127.0.0.1:0",
        "0.0.0.0:5000-5010",
        "5000-5010",
        "bfloat16",
        "all",
        "0,1,4",
        "random:2",
        "cuda:3",
        "cpu",
        "GPU-0123,MIG-4",
        "tempflow://tiny-0123/worker",
        "tempflow.worker.tiny.00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff",
        "1.5s",
        "10m",
        "worker-3",
        "0-3,8",
        "iteration-000012",
        "learner",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(super) fn check_notations(bytes: &[u8]) -> bool {
    let text = &String::from_utf8_lossy(bytes);
    let name = text.parse::<PeerName>();
    if let Ok(name) = &name {
        assert_eq!(name.to_string().parse().as_ref(), Ok(name), "a name is not read as it is shown");
    }
    if let Some(cpus) = Cpus::parse(text).filter(|cpus| *cpus != Cpus::default()) {
        assert_eq!(Cpus::parse(&cpus.to_string()), Some(cpus), "CPUs are not read as they are shown");
    }
    if let Ok(command) = text.parse::<SshCommand>() {
        assert_eq!(command.to_string().parse().as_ref(), Ok(&command), "it is not read as it is shown");
    }
    let are_read = [
        is_read(name),
        is_read(text.parse::<Dtype>()),
        is_read(text.parse::<BranchSteps>()),
        is_read(text.parse::<StepWeight>()),
        is_read(text.parse::<PortRange>()),
        is_read(text.parse::<ComputeDevice>()),
        is_read(text.parse::<VisibleCards>()),
        is_read(text.parse::<Address>()),
        is_read(text.parse::<ListenAddress>()),
        is_read(text.parse::<JoinToken>()),
        is_read(service::parse_seconds(text)),
        MemberName::parse(text).is_some(),
        Cpus::parse(text).is_some(),
        checkpoint_list::version_of(text).is_some(),
    ];
    are_read.contains(&true)
}
