//! Bounded runs of the decoders of a model's files, see docs/fuzzing.md. What libtorch holds is not counted.

use fuzzing::{CountingAllocator, INSTRUMENTED_SYSTEM, MemoryBound, Target, is_read, parts};
use models::ModelError;
use models::adapter_file::SavedAdapter;
use models::autoencoder_kl::AutoencoderKlConfig;
use models::autoencoder_kl_qwen_image::AutoencoderKlQwenImageConfig;
use models::clip_text::{ClipHead, ClipTextModel};
use models::clip_vision::ClipVisionModel;
use models::flux::FluxConfig;
use models::qwen_image::QwenImageConfig;
use models::qwen2_decoder::Qwen2Config;
use models::qwen2_vl::Qwen2VlConfig;
use models::safetensors_file::SafetensorsFile;
use models::sd3::Sd3Config;
use models::t5::T5Encoder;
use models::tokenizer::Tokenizer;
use models::torch_file::TorchFile;
use models::weights::WeightOptions;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: &CountingAllocator = &INSTRUMENTED_SYSTEM;

const FLOAT: WeightOptions = WeightOptions::new(Kind::Float, Device::Cpu);
/// Values of JSON take much more than their text.
const TREE: MemoryBound = MemoryBound { per_byte: 256, fixed: 4 << 20 };
/// Expressions that words are found by are compiled for every tokenizer.
const EXPRESSIONS: MemoryBound = MemoryBound { per_byte: 1024, fixed: 64 << 20 };
/// Elements of a tensor that is read though its file does not hold as many: one may be repeated.
const MOST_ELEMENTS: i64 = 1 << 20;
const CLASSES: [&str; 3] = ["CLIPTokenizer", "Qwen2Tokenizer", "T5TokenizerFast"];
const WORDS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<pad>",
"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,
"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
"model":{"type":"WordLevel","vocab":{"<pad>":0,"<unk>":1,"cat":2},"unk_token":"<unk>"}}"#;

/// Pairs whose second part begins with a prefix.
const PAIRS: &str = r###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":"##","end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"vocab":{"<pad>":0,"a":1,"##b":2,"ab":3},"merges":[["a","##b"]]}}"###;

const TARGETS: &[Target] = &[
    Target { name: "safetensors", examples: safetensors, check: check_safetensors, memory: TREE },
    Target { name: "torch_file", examples: torch_files, check: check_torch_file, memory: TREE },
    Target { name: "model_config", examples: configs, check: check_config, memory: TREE },
    Target { name: "tokenizer", examples: tokenizers, check: check_tokenizer, memory: EXPRESSIONS },
    Target { name: "adapter", examples: adapters, check: check_adapter, memory: TREE },
];

#[test]
fn no_file_of_a_model_makes_its_decoder_panic_hang_or_take_more_memory_than_its_bound() {
    fuzzing::run(TARGETS, ALLOCATOR, |line| eprintln!("{line}"));
}

/// A folder with these files, which is gone when this is dropped.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

fn safetensors() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../tests/golden/torch_file/expected.safetensors").to_vec()]
}

/// What is read has the shape that the header tells.
fn check_safetensors(bytes: &[u8]) -> bool {
    let folder = folder(&[("x.safetensors", bytes)]);
    let file = match SafetensorsFile::open(&folder.path().join("x.safetensors")) {
        Ok(file) => file,
        Err(error) => return is_read(Err::<(), _>(error)),
    };
    for name in file.names() {
        let shape = file.shape(&name);
        match file.read(&name) {
            Ok(tensor) => assert_eq!(Some(tensor.size()), shape, "it has another shape"),
            Err(error) => assert!(!error.to_string().is_empty(), "an error without a message"),
        }
    }
    let _ = file.metadata();
    true
}

fn torch_files() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../tests/golden/torch_file/plain.pt").to_vec(),
        include_bytes!("../../../tests/golden/torch_file/nested.pth").to_vec(),
        include_bytes!("../../../tests/golden/torch_file/double.pt").to_vec(),
    ]
}

/// Every tensor of a file that is opened can be made, and is filled or says why not.
fn check_torch_file(bytes: &[u8]) -> bool {
    let folder = folder(&[("x.pt", bytes)]);
    let file = match TorchFile::open(&folder.path().join("x.pt")) {
        Ok(file) => file,
        Err(error) => return is_read(Err::<(), _>(error)),
    };
    for name in file.names() {
        let (shape, kind) = (file.shape(&name).expect("it is named"), file.kind(&name).expect("it is named"));
        if shape.iter().product::<i64>() <= MOST_ELEMENTS {
            let target = Tensor::empty(&shape, (kind, Device::Cpu));
            is_read(file.read_into(&name, &target));
        }
    }
    true
}

/// The first byte chooses the reader.
fn configs() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 10] = [
        include_bytes!("../../../tests/golden/published/sd3.5-medium/transformer/config.json"),
        include_bytes!("../../../tests/golden/published/flux.1-dev/transformer/config.json"),
        include_bytes!("../../../tests/golden/published/qwen-image/transformer/config.json"),
        include_bytes!("../../../tests/golden/published/sd3.5-medium/vae/config.json"),
        include_bytes!("../../../tests/golden/published/qwen-image/vae/config.json"),
        include_bytes!("../../../tests/golden/published/qwen2-vl-7b-instruct/config.json"),
        include_bytes!("../../../tests/golden/published/qwen-image/text_encoder/config.json"),
        include_bytes!("../../../tests/golden/published/sd3.5-medium/text_encoder_3/config.json"),
        include_bytes!("../../../tests/golden/published/clip-vit-large-patch14/config.json"),
        include_bytes!("../../../tests/golden/published/sd3.5-medium/text_encoder/config.json"),
    ];
    texts.iter().enumerate().map(|(reader, text)| [&[reader as u8], *text].concat()).collect()
}

fn read_config(reader: u8, dir: &Path) -> Result<(), ModelError> {
    let path = dir.join("config.json");
    match reader % 10 {
        0 => Sd3Config::read(&path).map(drop),
        1 => FluxConfig::read(&path).map(drop),
        2 => QwenImageConfig::read(&path).map(drop),
        3 => AutoencoderKlConfig::open(dir).map(drop),
        4 => AutoencoderKlQwenImageConfig::open(dir).map(drop),
        5 => Qwen2VlConfig::read(&path).map(drop),
        6 => Qwen2Config::read(&path).map(drop),
        7 => T5Encoder::open(dir, &FLOAT).map(drop),
        8 => ClipVisionModel::open(dir, &FLOAT).map(drop),
        _ => ClipTextModel::open(dir, ClipHead::Projection, &FLOAT).map(drop),
    }
}

/// A config is good where nothing but the weights is missed.
fn check_config(bytes: &[u8]) -> bool {
    let Some((&reader, text)) = bytes.split_first() else { return false };
    let folder = folder(&[("config.json", text)]);
    match read_config(reader, folder.path()) {
        Err(ModelError::MissingFile { .. }) => true,
        read => is_read(read),
    }
}

/// The first byte chooses the class; vocabulary and merges, or the one file of newer ones, and settings follow.
fn tokenizers() -> Vec<Vec<u8>> {
    let clip: [&[u8]; 3] = [
        include_bytes!("../../../assets/tiny-sd3/tokenizer/vocab.json"),
        include_bytes!("../../../assets/tiny-sd3/tokenizer/merges.txt"),
        include_bytes!("../../../assets/tiny-sd3/tokenizer/tokenizer_config.json"),
    ];
    let qwen: [&[u8]; 3] = [
        include_bytes!("../../../tests/golden/tokenizers/qwen/vocab.json"),
        include_bytes!("../../../tests/golden/tokenizers/qwen/merges.txt"),
        include_bytes!("../../../tests/golden/tokenizers/qwen/tokenizer_config.json"),
    ];
    let settings = br#"{"pad_token": "<pad>", "model_max_length": 77}"#;
    let json = |text: &'static str| -> [&[u8]; 3] { [text.as_bytes(), b"", settings] };
    let all = [(0, clip), (1, qwen), (2, json(WORDS)), (2, json(PAIRS))];
    all.map(|(class, files)| [vec![class], files.join(&0xff)].concat()).to_vec()
}

/// A tokenizer that is opened gives a text as many ids as are asked for.
fn check_tokenizer(bytes: &[u8]) -> bool {
    let Some((&class, files)) = bytes.split_first() else { return false };
    let class = usize::from(class) % CLASSES.len();
    let [first, merges, settings] = parts(files);
    let folder = match class {
        2 => folder(&[("tokenizer.json", first), ("tokenizer_config.json", settings)]),
        _ => folder(&[("vocab.json", first), ("merges.txt", merges), ("tokenizer_config.json", settings)]),
    };
    let tokenizer = match Tokenizer::open(folder.path(), CLASSES[class]) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return is_read(Err::<(), _>(error)),
    };
    for text in ["two red cats, and 3 dögs!", "<|endoftext|> 猫"] {
        if let Ok(tokens) = tokenizer.encode(text, 20) {
            assert_eq!(tokens.ids.len(), 20, "another number of tokens than was asked for");
        }
        is_read(tokenizer.encode_unpadded(text, 20));
    }
    true
}

/// PEFT's settings, then its tensors.
fn adapters() -> Vec<Vec<u8>> {
    let files = |settings: &[u8], tensors: &[u8]| [settings, tensors].join(&0xff);
    vec![
        files(
            include_bytes!("../../../tests/golden/adapters/plain/adapter_config.json"),
            include_bytes!("../../../tests/golden/adapters/plain/adapter_model.safetensors"),
        ),
        files(
            include_bytes!("../../../tests/golden/adapters/use_rslora/adapter_config.json"),
            include_bytes!("../../../tests/golden/adapters/use_rslora/adapter_model.safetensors"),
        ),
    ]
}

fn check_adapter(bytes: &[u8]) -> bool {
    let [settings, tensors] = parts(bytes);
    let folder = folder(&[("adapter_config.json", settings), ("adapter_model.safetensors", tensors)]);
    is_read(SavedAdapter::read(folder.path()))
}
