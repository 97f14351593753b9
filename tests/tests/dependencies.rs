//! Who may depend on whom: the shape of the workspace, held by `cargo metadata`.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use tests::{Source, sources};

const SERVICES: [&str; 3] = ["coordinator", "learner", "rollout-worker"];
const WITHOUT_LIBTORCH: [&str; 11] = [
    "coordinator",
    "collective",
    "proto",
    "protocol",
    "config",
    "noise",
    "service",
    "pickle",
    "scenes",
    "simulation",
    "fuzzing",
];

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Names of the direct dependencies of every package that ends up in a binary; build and test dependencies aside.
fn dependencies() -> Graph {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(tests::repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeMap<&str, &str> = packages
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a resolved graph");
    let of_node = |node: &Value| {
        let links = node["deps"].as_array().expect("dependencies").iter();
        let in_binary = links.filter(|link| {
            link["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        });
        let name = names[node["id"].as_str().expect("an id")].to_owned();
        (name, in_binary.map(|link| names[link["pkg"].as_str().expect("an id")].to_owned()).collect())
    };
    nodes.iter().map(of_node).collect()
}

/// Everything a package links, itself included.
fn reach<'a>(graph: &'a Graph, package: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open = vec![package];
    while let Some(next) = open.pop() {
        if found.insert(next) {
            open.extend(graph.get(next).into_iter().flatten().map(String::as_str));
        }
    }
    found
}

#[test]
fn services_do_not_depend_on_services() {
    let graph = dependencies();
    for service in SERVICES {
        let others = SERVICES.iter().filter(|&&other| other != service);
        let found: Vec<_> = others.filter(|&&other| reach(&graph, service).contains(other)).collect();
        assert!(found.is_empty(), "{service} depends on {found:?}");
    }
}

#[test]
fn the_control_plane_never_links_libtorch() {
    let graph = dependencies();
    assert!(reach(&graph, "learner").contains("torch-sys"), "the check would not see libtorch");
    for package in WITHOUT_LIBTORCH {
        assert!(!reach(&graph, package).contains("torch-sys"), "{package} links libtorch");
    }
}

#[test]
fn the_maths_and_the_networks_do_not_know_each_other() {
    let graph = dependencies();
    assert!(!reach(&graph, "flow").contains("models"));
    assert!(!reach(&graph, "models").contains("flow"));
}

/// The simulator is to run the machines of the protocol without a runtime: they never wait, send or sample.
#[test]
fn the_protocol_neither_waits_nor_sends() {
    let graph = dependencies();
    for package in ["tokio", "tokio-util", "tokio-stream", "tonic", "service", "tch", "models", "flow"] {
        assert!(!graph["protocol"].contains(package), "protocol depends on {package}");
    }
}

/// Sources of the services and crates.
fn rust() -> Vec<Source> {
    let mut found = sources("rs");
    found.retain(|source| !source.path.starts_with("tests/"));
    assert!(found.len() > 100, "only {} files were looked at", found.len());
    found
}

/// Two derivations of one thing that differ by a bit would break the first law in silence.
#[test]
fn what_processes_must_derive_alike_is_said_once() {
    let once = [
        // The log-probability of a random move: the constant of its Gaussian.
        ("fn log_probability", &["crates/flow/src/step.rs"][..]),
        // Which noise a seed of a task has.
        ("Purpose::Rollout", &["crates/run-setup/src/noise_keys.rs"]),
        ("Purpose::Evaluation", &["crates/run-setup/src/noise_keys.rs"]),
        // Which steps are trained.
        ("BranchSteps::Window {", &["crates/config/src/step_draw.rs"]),
        // What a name of a device means.
        ("Cuda::is_available", &["crates/run-setup/src/device.rs"]),
    ];
    for (words, places) in once {
        let is_shipped = |path: &str| path.contains("/src/") && !path.ends_with("tests.rs");
        let says =
            |source: &Source| is_shipped(&source.path) && source.code().any(|line| line.contains(words));
        let found: Vec<String> = rust().into_iter().filter(says).map(|source| source.path).collect();
        assert!(!found.is_empty(), "`{words}` is nowhere any more; this test must follow it");
        let others: Vec<_> = found.iter().filter(|name| !places.contains(&name.as_str())).collect();
        assert!(others.is_empty(), "`{words}` stands in {others:?} besides {places:?}");
    }
}

/// What a server does by itself, it may forget: to turn off Nagle's delay, or to pause when there are no more descriptors.
#[test]
fn connections_are_accepted_in_one_place() {
    for Source { path, text } in rust() {
        let accepts = ["serve_with_incoming", "TcpListenerStream", "TcpIncoming"];
        let is_the_place = path == "crates/service/src/incoming/mod.rs";
        assert!(
            is_the_place || !accepts.iter().any(|word| text.contains(word)),
            "{path} accepts connections by itself; use `service::serve`"
        );
    }
}

/// What a client does by itself, it may forget: limits, keep-alive, and to ask who is at the other end.
#[test]
fn connections_are_made_in_one_place() {
    for Source { path, text } in rust() {
        let connects = ["Endpoint::from", "connect_with_connector", "Channel::from", "TlsConnector"];
        let is_the_place = path.starts_with("crates/service/src/connect/");
        assert!(
            is_the_place || !connects.iter().any(|word| text.contains(word)),
            "{path} connects by itself; use `service::connect`"
        );
    }
}

/// A process that changes a run directory without asking may overwrite what its next owner wrote.
#[test]
fn a_run_directory_is_changed_through_its_owner_alone() {
    let changes =
        ["durable::", "fs::write(", "fs::rename(", "fs::remove_", "fs::create_dir", "File::create("];
    let harmless = ["durable::flush_file", "durable::sync_directory"];
    let elsewhere = [
        // Files below the temporary name of a checkpoint or an export, and exports to a folder of the user's.
        "learner/src/run/checkpoint.rs",
        "learner/src/run/saving.rs",
        "learner/src/run/export.rs",
        "learner/src/run/export_checkpoint.rs",
        "learner/src/pretrain",
        "coordinator/src/admin.rs",
        "coordinator/src/export_stream.rs",
        // What tests of the coordinator start in place of members.
        "coordinator/src/stand_ins.rs",
        // A directory that is there for a moment, to see whether one can be made.
        "coordinator/src/run_place.rs",
    ];
    let is_meant = |path: &str| {
        let is_process = ["learner/src/", "coordinator/src/"].iter().any(|folder| path.starts_with(folder));
        is_process && !path.ends_with("tests.rs") && !elsewhere.iter().any(|place| path.starts_with(place))
    };
    for source in rust().into_iter().filter(|source| is_meant(&source.path)) {
        let is_one = |line: &&str| {
            changes.iter().any(|word| line.contains(word)) && !harmless.iter().any(|word| line.contains(word))
        };
        let found: Vec<&str> = source.code().filter(is_one).collect();
        assert!(found.is_empty(), "{}: use `service::OwnedDirectory` for {found:?}", source.path);
    }
}
