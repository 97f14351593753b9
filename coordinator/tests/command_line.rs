//! The program itself, as a shell starts it: what it prints where, and its exit code.

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn coordinator(arguments: &[&str], output: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.args(arguments).stdout(output).stderr(Stdio::piped());
    command.spawn().and_then(|child| child.wait_with_output()).expect("it runs")
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    for asked in [&["--help"][..], &["up", "--help"], &["--version"]] {
        let full = File::options().write(true).open("/dev/full").expect("it is always there");
        let output = coordinator(asked, full);
        assert_eq!(output.status.code(), Some(1), "{asked:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cannot write to standard output"), "{said}");
        assert_eq!(coordinator(asked, Stdio::piped()).status.code(), Some(0), "{asked:?}");
    }
    assert_eq!(coordinator(&["no-such-command"], Stdio::piped()).status.code(), Some(2));
}

#[test]
fn what_was_typed_does_not_steer_the_terminal() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("run.toml").display().to_string();
    assert_eq!(coordinator(&["init", &file], Stdio::piped()).status.code(), Some(0));
    let output = coordinator(&["validate", &file, "--set", "run.name=\u{1b}[31mred"], Stdio::piped());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`run.name`: is `\\u{1b}[31mred`") && !said.contains('\u{1b}'), "{said}");
}
