//! How many kernels a block of each transformer would launch on a card in bfloat16, counted on the CPU.
//!
//! A test starts this very program again with `tests/interposed/kernel_count.cpp` between it and libtorch; what the child
//! measures lies between two operators that nothing else uses. A block's share is what a network with one block more launches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use models::flux::FluxTransformer;
use models::lora::LoraConfig;
use models::network::Query;
use models::qwen_image::QwenImageTransformer;
use models::sd3::Sd3Transformer;
use models::weights::Weights;
use models::{AdapterMode, Network};
use serde_json::Value;
use tch::{Device, Kind, Tensor, no_grad};

const BFLOAT16: (Kind, Device) = (Kind::BFloat16, Device::Cpu);
/// Tells the child where the counts go.
const COUNTS: &str = "KERNEL_COUNT";
/// Attention's linear layers, which published recipes adapt.
const TARGETS: [&str; 8] =
    ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
/// Networks that are counted, each with what is changed in the recorded config of its family.
const NETWORKS: [(&str, &str, &str); 8] = [
    ("sd3", "dual and last", r#"{"num_layers": 2, "dual_attention_layers": [0]}"#),
    ("sd3", "dual, plain and last", r#"{"num_layers": 3, "dual_attention_layers": [0]}"#),
    ("sd3", "two dual and last", r#"{"num_layers": 3, "dual_attention_layers": [0, 1]}"#),
    ("flux", "joint and single", r#"{"num_layers": 1, "num_single_layers": 1}"#),
    ("flux", "two joint and single", r#"{"num_layers": 2, "num_single_layers": 1}"#),
    ("flux", "joint and two single", r#"{"num_layers": 1, "num_single_layers": 2}"#),
    ("qwen-image", "one", r#"{"num_layers": 1}"#),
    ("qwen-image", "two", r#"{"num_layers": 2}"#),
];
/// Blocks: the name, the network with one of them more and the one without, and what a forward pass may launch for one to sample
/// and to train.
const BLOCKS: [(&str, [usize; 2], [i64; 2]); 5] = [
    ("SD3.5, plain", [1, 0], [43, 67]),
    ("SD3.5, with the second attention", [2, 0], [50, 74]),
    ("FLUX.1, joint", [4, 3], [53, 77]),
    ("FLUX.1, single", [5, 3], [19, 28]),
    ("Qwen-Image", [7, 6], [53, 77]),
];

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family)
}

/// A network with random weights and an adapter, and the shape of its latents.
fn network(family: &str, changes: &str) -> (Box<dyn Network>, [i64; 4], Value) {
    let text = std::fs::read_to_string(golden(family).join("transformer/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let changes: Value = serde_json::from_str(changes).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let weights = Weights::random(7, BFLOAT16.0, BFLOAT16.1);
    let scope = weights.scope("");
    let mut network: Box<dyn Network> = match family {
        "sd3" => Box::new(Sd3Transformer::new(&scope, &serde_json::from_value(config.clone()).unwrap())),
        "flux" => Box::new(FluxTransformer::new(&scope, &serde_json::from_value(config.clone()).unwrap())),
        _ => Box::new(QwenImageTransformer::new(&scope, &serde_json::from_value(config.clone()).unwrap())),
    };
    weights.finish().unwrap();
    let targets = TARGETS.map(|target| format!("attn.{target}"));
    let config_of_adapter = LoraConfig { rank: 4, alpha: 8.0, targets: targets.to_vec().into() };
    network.attach_adapter(&config_of_adapter, &mut |_, n| vec![0.1; n]).unwrap();
    let features = config["in_channels"].as_i64().unwrap();
    // FLUX's and Qwen-Image's configs count the channels of a patch of four latents.
    let channels = if family == "sd3" { features } else { features / 4 };
    (network, [2, channels, 8, 8], config)
}

/// Runs forward passes between operators that end a segment: each network's in both modes, with two rows.
fn run_every_network() {
    for (family, _, changes) in NETWORKS {
        let (network, latents, config) = network(family, changes);
        let features = |key: &str| config[key].as_i64().unwrap_or(1);
        let random = |shape: &[i64]| Tensor::randn(shape, BFLOAT16);
        let pooled = random(&[2, features("pooled_projection_dim")]);
        let query = Query {
            latents: &random(&latents),
            timestep: &Tensor::from_slice(&[700.0_f32, 300.0]),
            text: &random(&[2, 5, features("joint_attention_dim")]),
            pooled: (family != "qwen-image").then_some(&pooled),
            text_mask: None,
            guidance_scale: 3.5,
        };
        let border = Tensor::ones([1], (Kind::Float, Device::Cpu));
        for mode in [AdapterMode::Frozen, AdapterMode::Trainable] {
            let forward = || network.forward(&query, mode);
            let forward = || if mode == AdapterMode::Frozen { no_grad(forward) } else { forward() };
            // The first pass in a mode makes what later ones find.
            let _ = forward();
            let _ = border.lgamma();
            let _ = forward();
            let _ = border.lgamma();
        }
    }
}

fn counter(folder: &Path) -> PathBuf {
    let library = folder.join("kernel_count.so");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let include = Path::new(env!("LIBTORCH")).join("include");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"]).arg(&library);
    compiler.arg("-I").arg(&include).arg("-I").arg(include.join("torch/csrc/api/include"));
    compiler.arg(root.join("tests/interposed/kernel_count.cpp"));
    assert!(compiler.status().expect("a C++ compiler").success(), "the library cannot be made");
    library
}

/// Operators by segment.
fn counted() -> BTreeMap<usize, BTreeMap<String, i64>> {
    let folder = tempfile::tempdir().unwrap();
    let counts = folder.path().join("counts");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_block_launches_few_kernels", "--test-threads", "1"])
        .env("LD_PRELOAD", counter(folder.path()))
        .env(COUNTS, &counts)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let mut segments: BTreeMap<usize, BTreeMap<String, i64>> = BTreeMap::new();
    for line in std::fs::read_to_string(&counts).expect("the child has counted").lines() {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("a line is a segment, a name and a count");
        let (segment, name, count) = (word().parse().unwrap(), word().to_owned(), word().parse().unwrap());
        segments.entry(segment).or_default().insert(name, count);
    }
    segments
}

/// What a block launches: the difference of two networks, by operator, where there is one.
fn difference(more: &BTreeMap<String, i64>, less: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let names = more.keys().chain(less.keys());
    let of = |counts: &BTreeMap<String, i64>, name: &String| counts.get(name).copied().unwrap_or(0);
    let differences = names.map(|name| (name.clone(), of(more, name) - of(less, name)));
    differences.filter(|(_, count)| *count != 0).collect()
}

#[test]
fn a_block_launches_few_kernels() {
    if std::env::var_os(COUNTS).is_some() {
        return run_every_network();
    }
    let segments = counted();
    assert_eq!(segments.keys().filter(|segment| *segment % 2 == 1).count(), 2 * NETWORKS.len());
    for (block, [more, less], most) in BLOCKS {
        for (mode, most) in most.into_iter().enumerate() {
            let of = |network: usize| &segments[&(4 * network + 2 * mode + 1)];
            let launched = difference(of(more), of(less));
            let total: i64 = launched.values().sum();
            println!("{block}, {}: {total} of {launched:?}", ["to sample", "to train"][mode]);
            assert!(total <= most, "{block} launches {total}, which were {most}: {launched:?}");
            assert!(launched["scaled_dot_product_attention"] > 0 && launched["addmm"] > 0);
        }
    }
}
