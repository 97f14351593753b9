//! Runs tests and programs on `tests/interposed/stand_in_card.cpp`, a device `cuda:0` that is not the host to libtorch.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::repository;

const SOURCE: &str = "tests/interposed/stand_in_card.cpp";
/// As libtorch's CUDA half is called, which our programs then take it for: they load no other, and keep it from children
/// that are not ours.
const LIBRARY: &str = "libtorch_cuda.so";
/// Says to a test that it has been started again, on the card.
const STARTED: &str = "STAND_IN_CARD_STARTED";

/// Runs `check` where the card is there: in this test, called `test` as libtest calls it, started again by itself.
///
/// # Panics
/// If the check fails, the card cannot be made, or there is no such test.
pub fn on_stand_in_card(test: &str, check: impl FnOnce()) {
    if std::env::var_os(STARTED).is_some() {
        return check();
    }
    let mut again = Command::new(std::env::current_exe().expect("a test has a path"));
    again.args([test, "--exact", "--nocapture"]).env(STARTED, "1");
    let output = with_stand_in_card(&mut again).output().expect("the test starts again");
    let [told, complaints] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let has_run = told.contains("test result: ok. 1 passed");
    assert!(output.status.success() && has_run, "on the card, {test} fails:\n{told}\n{complaints}");
}

/// What the host and the card did for each other in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardTraffic {
    /// Times that the host needed a value of the card before it could go on.
    pub waits: u64,
    /// Tensors that came from the host.
    pub uploads: u64,
}

/// Runs the test that calls it once more on the card, with a variable set that tells it what to do there, and counts.
///
/// # Panics
/// If that fails or does nothing on the card, or the card cannot be made.
pub fn traffic_on_stand_in_card(test: &str, variable: &str, value: &str) -> CardTraffic {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let counts = folder.path().join("counts");
    let mut again = Command::new(std::env::current_exe().expect("a test has a path"));
    again.args([test, "--exact", "--nocapture"]).env(variable, value).env("STAND_IN_CARD_COUNTS", &counts);
    let output = with_stand_in_card(&mut again).output().expect("the test starts again");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "on the card, {test} fails:\n{complaints}");
    let told = std::fs::read_to_string(&counts).expect("counts of what the card did");
    let words: Vec<&str> = told.split_whitespace().collect();
    let [_, "waits", waits, "uploads", uploads, ..] = words[..] else {
        panic!("{told:?} are no counts of one process");
    };
    let number = |word: &str| word.parse().expect("a number");
    CardTraffic { waits: number(waits), uploads: number(uploads) }
}

/// Puts the card before a program that links libtorch, and before all that it starts.
///
/// # Panics
/// If the card cannot be made.
pub fn with_stand_in_card(command: &mut Command) -> &mut Command {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    command.env("LD_PRELOAD", LIBRARY.get_or_init(library))
}

/// The compiled card, kept beside the test for as long as neither its source nor libtorch changes.
fn library() -> PathBuf {
    let source = repository().join(SOURCE);
    let libtorch = libtorch();
    let mut made_of = std::fs::read(&source).expect("the card's source");
    made_of.extend_from_slice(libtorch.as_os_str().as_encoded_bytes());
    let test = std::env::current_exe().expect("a test has a path");
    let name = format!("stand_in_card-{}", &blake3::hash(&made_of).to_hex()[..16]);
    let folder = test.parent().expect("a test is in a folder").join(name);
    let library = folder.join(LIBRARY);
    if !library.exists() {
        // Other tests may be at it as well: who is ready last replaces the same by the same.
        std::fs::create_dir_all(&folder).expect("a folder");
        let made = tempfile::Builder::new().suffix(".so").tempfile_in(&folder).expect("a temporary file");
        compile(&source, &libtorch, made.path());
        made.persist(&library).expect("the card is kept");
    }
    library
}

fn compile(source: &Path, libtorch: &Path, library: &Path) {
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(source);
    for headers in ["include", "include/torch/csrc/api/include"] {
        compiler.arg("-isystem").arg(libtorch.join(headers));
    }
    let libraries = libtorch.join("lib");
    compiler.arg("-L").arg(&libraries).args(["-ltorch_cpu", "-lc10"]);
    compiler.arg(format!("-Wl,-rpath,{}", libraries.display()));
    assert!(compiler.status().expect("a C++ compiler").success(), "{SOURCE} does not compile");
}

/// The libtorch that this program was linked with: `.cargo/config.toml` says it to the compiler, and a binary that is run
/// by hand knows it too.
fn libtorch() -> PathBuf {
    PathBuf::from(env!("LIBTORCH"))
}
