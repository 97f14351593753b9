//! The rules of writing that a text search can hold without false alarms.

use std::path::Path;

use tests::{Source, sources};

/// Lines of code that a file has at most, blank lines, comments and its tests aside.
const MOST_LINES: usize = 400;

/// Files that are longer, and why.
const LONGER: [(&str, &str); 0] = [];

/// Names of modules that say nothing of what is in them.
const EMPTY_NAMES: [&str; 8] =
    ["utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"];

/// Whether a file is part of a library that others call, and so may not speak for itself.
fn is_library(source: &Source) -> bool {
    let apart = ["/main.rs", "/build.rs"].iter().any(|end| source.path.ends_with(end));
    source.path.contains("/src/") && !apart && !source.path.starts_with("tests/")
}

/// The Rust sources but this one, which names what it forbids.
fn rust() -> Vec<Source> {
    let mut found = sources("rs");
    found.retain(|source| source.path != "tests/tests/tidy.rs");
    assert!(found.len() > 300, "only {} files were looked at", found.len());
    found
}

/// Fails with every line that a rule forbids.
fn forbid(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn files_are_short() {
    let is_known = |path: &str| LONGER.iter().any(|(known, _)| *known == path);
    let length = |source: &Source| source.code().count();
    let is_test = |path: &str| path.contains("/tests/");
    let long = rust().into_iter().filter(|source| length(source) > MOST_LINES && !is_test(&source.path));
    let (known, new): (Vec<Source>, Vec<Source>) = long.partition(|source| is_known(&source.path));
    let told = new.iter().map(|source| format!("{} has {}", source.path, length(source))).collect();
    forbid("a file has at most 400 lines of code; divide it by what it does", told);
    assert_eq!(known.len(), LONGER.len(), "a file that was too long is not any more: take it off the list");
}

#[test]
fn modules_are_named_by_what_is_in_them() {
    let stem = |source: &Source| {
        let path = Path::new(&source.path);
        let named = if path.ends_with("mod.rs") { path.parent().expect("a folder") } else { path };
        named.file_stem().expect("a name").to_string_lossy().into_owned()
    };
    let found = rust().into_iter().filter(|source| EMPTY_NAMES.contains(&stem(source).as_str()));
    forbid("a module's name says what is in it", found.map(|source| source.path).collect());
}

#[test]
fn nothing_is_left_for_later_or_silenced() {
    let words = ["TODO", "FIXME", "todo!(", "unimplemented!(", "dbg!(", "#[ignore", "#[allow(", "#![allow("];
    let lines_of = |source: &Source| {
        let lines = source.text.lines().enumerate();
        let bad = lines.filter(|(_, line)| words.iter().any(|word| line.contains(word)));
        bad.map(|(idx, line)| format!("{}:{}: {}", source.path, idx + 1, line.trim())).collect::<Vec<_>>()
    };
    let found = rust().iter().chain(&sources("proto")).flat_map(lines_of).collect();
    forbid("finish it, or say with `#[expect(…, reason = …)]` why not", found);
}

#[test]
fn libraries_do_not_print() {
    let prints = |line: &str| ["println!(", "print!("].iter().any(|word| line.contains(word));
    let sources = rust();
    let libraries = sources.iter().filter(|source| is_library(source));
    let lines_of = |source: &Source| source.code().filter(|line| prints(line)).map(str::to_owned).collect();
    let told = |source: &Source| {
        let lines: Vec<String> = lines_of(source);
        lines.into_iter().map(|line| format!("{}: {line}", source.path)).collect::<Vec<_>>()
    };
    forbid("a library returns or traces; a program prints", libraries.flat_map(told).collect());
}

#[test]
fn every_package_holds_the_workspaces_lints() {
    let manifests = sources("toml").into_iter().filter(|source| source.path.ends_with("/Cargo.toml"));
    let lax = manifests.filter(|source| !source.text.contains("[lints]\nworkspace = true\n"));
    forbid("`[lints] workspace = true` is missing", lax.map(|source| source.path).collect());
}

#[test]
fn what_the_workspace_names_somebody_uses() {
    let root = std::fs::read_to_string(tests::repository().join("Cargo.toml")).expect("text");
    let (_, named) = root.split_once("[workspace.dependencies]\n").expect("a list");
    let names = named.lines().take_while(|line| !line.starts_with('[')).filter(|line| line.contains(" = "));
    let manifests = sources("toml");
    let is_used = |name: &str| {
        let line = format!("{name} = ");
        manifests.iter().any(|source| source.text.lines().any(|found| found.starts_with(&line)))
    };
    let names = names.filter_map(|line| line.split(' ').next());
    forbid("nobody uses these", names.filter(|name| !is_used(name)).map(str::to_owned).collect());
}

#[test]
fn every_call_of_the_wire_is_explained() {
    let mut found = Vec::new();
    for Source { path, text } in sources("proto") {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let bare = lines.windows(2).filter(|pair| pair[1].starts_with("rpc ") && !pair[0].starts_with("//"));
        found.extend(bare.map(|pair| format!("{path}: {}", pair[1])));
        assert!(text.starts_with("//"), "{path} does not begin with what it is for");
    }
    forbid("a call says what it does and whether it may be repeated", found);
}
