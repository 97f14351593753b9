//! What is written here is what Python reads, and reads back here.

use std::io::Write;
use std::process::{Command, Stdio};

use pickle::{Global, Limits, Value, read, write};

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn value() -> Value {
    let ints = [0, -1, 255, i64::from(i32::MIN), 1 << 31, i64::MIN, i64::MAX].map(Value::Int);
    Value::Dict(vec![
        (text("none"), Value::None),
        (text("truth"), Value::Tuple(vec![Value::Bool(true), Value::Bool(false)])),
        (text("ints"), Value::List(ints.into())),
        (text("floats"), Value::List([0.5, -1e-5, f64::INFINITY].map(Value::Float).into())),
        (text("café 猫"), text(&"é".repeat(200))),
        (text("bytes"), Value::List([0, 255, 256, 70_000].map(|n| Value::Bytes(vec![7; n])).into())),
        (text("empty"), Value::List(vec![Value::List(vec![]), Value::Tuple(vec![]), Value::Dict(vec![])])),
    ])
}

#[test]
fn python_reads_what_is_written() {
    let expected = r#"{
        "none": None, "truth": (True, False), "ints": [0, -1, 255, -2**31, 2**31, -2**63, 2**63 - 1],
        "floats": [0.5, -1e-5, float("inf")], "café 猫": "é" * 200,
        "bytes": [b"\x07" * n for n in (0, 255, 256, 70000)], "empty": [[], (), {}]}"#;
    let script = format!("import pickle, sys; assert pickle.load(sys.stdin.buffer) == {expected}");
    let mut python = Command::new("python3")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    let bytes = write(&value()).expect("plain values");
    python.stdin.take().expect("a pipe").write_all(&bytes).expect("Python reads");
    assert!(python.wait().expect("Python ends").success());
}

#[test]
fn what_is_written_reads_back() {
    let bytes = write(&value()).expect("plain values");
    assert_eq!(read(&bytes, &Limits::default()), Ok(value()));
}

#[test]
fn values_that_would_run_something_are_not_written() {
    let global = Global { module: "os".to_owned(), name: "system".to_owned() };
    let refused = write(&Value::List(vec![Value::Global(global)])).unwrap_err().to_string();
    assert_eq!(refused, "the global `os.system` is not written to a pickle; only plain values are");
}
