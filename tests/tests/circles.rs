//! No two modules of a crate import each other, by whatever way round: each can be read after those that it knows.

use std::collections::{BTreeMap, BTreeSet};
use tests::{Source, sources};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Crate and module of a source file; none for roots of crates, tests and what is no module.
fn module(path: &str) -> Option<(String, String)> {
    let (package, file) = path.split_once("/src/")?;
    let module = file.strip_suffix(".rs")?;
    let module = module.strip_suffix("/mod").unwrap_or(module);
    let is_one = !["lib", "main", "tests"].contains(&module) && !module.ends_with("/tests");
    is_one.then(|| (package.to_owned(), module.replace('/', "::")))
}

/// What follows `crate::` in a text: paths, those in braces one by one.
fn imported(text: &str) -> Vec<String> {
    text.match_indices("crate::").flat_map(|(at, word)| paths("", &text[at + word.len()..]).0).collect()
}

/// The paths at the start of a text below a prefix, and how many bytes they take.
fn paths(prefix: &str, text: &str) -> (Vec<String>, usize) {
    let length = text.find(|letter: char| !(letter.is_alphanumeric() || "_:".contains(letter)));
    let length = length.unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..length]);
    if !text[length..].starts_with('{') {
        return (vec![path], length);
    }
    let (mut found, mut at) = (Vec::new(), length + 1);
    while at < text.len() && !text[at..].starts_with('}') {
        let (inner, taken) = paths(&path, &text[at..]);
        found.extend(inner);
        at += taken;
        at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
        at += text[at..].find(|letter: char| letter != ',' && letter != ' ').unwrap_or(text.len() - at);
    }
    (found, at + 1)
}

/// Whom each module of a crate imports.
fn imports(modules: &BTreeMap<String, String>) -> Graph {
    let longest = |path: &str| {
        let ends = path.match_indices("::").map(|(end, _)| end).chain([path.len()]);
        ends.map(|end| &path[..end]).filter(|name| modules.contains_key(*name)).last().map(str::to_owned)
    };
    let of = |(module, text): (&String, &String)| {
        let known =
            imported(text).iter().filter_map(|path| longest(path)).filter(|other| other != module).collect();
        (module.clone(), known)
    };
    modules.iter().map(of).collect()
}

/// Modules that import themselves by way of others.
fn in_circles(graph: &Graph) -> Vec<&String> {
    let returns = |start: &&String| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&String> = graph[*start].iter().collect();
        while let Some(next) = open.pop() {
            if seen.insert(next) {
                open.extend(&graph[next]);
            }
        }
        seen.contains(start)
    };
    graph.keys().filter(returns).collect()
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let mut crates: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for source in sources("rs") {
        if let Some((package, module)) = module(&source.path) {
            let text = source.code().collect::<Vec<_>>().join(" ");
            crates.entry(package).or_default().insert(module, text);
        }
    }
    assert!(crates.len() > 10, "only {} crates were looked at", crates.len());
    for (package, modules) in &crates {
        let graph = imports(modules);
        let circles = in_circles(&graph);
        assert!(circles.is_empty(), "in {package}, these import each other: {circles:?}");
    }
    let n_imports: usize =
        crates.values().map(|modules| imports(modules).values().map(BTreeSet::len).sum::<usize>()).sum();
    assert!(n_imports > 300, "only {n_imports} imports were found");
}

#[test]
fn a_circle_is_found_and_paths_in_braces_are_read() {
    let text = "use crate::{a::{B, c::D}, e}; fn f() { crate::g::h(); }";
    assert_eq!(imported(text), ["a::B", "a::c::D", "e", "g::h"]);
    let modules =
        [("a", "use crate::b::{C, d};"), ("b::d", "crate::e::f()"), ("e", "use crate::a::A;"), ("z", "")];
    let modules = modules.map(|(module, text)| (module.to_owned(), text.to_owned())).into();
    assert_eq!(in_circles(&imports(&modules)), ["a", "b::d", "e"]);
    let source = Source { path: "learner/src/run/saving.rs".to_owned(), text: String::new() };
    assert_eq!(module(&source.path), Some(("learner".to_owned(), "run::saving".to_owned())));
}
