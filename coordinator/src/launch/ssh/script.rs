//! What is said to a host, in the language of its shell, and what it answers.

use crate::advice::quoted;
use std::path::Path;

/// The functions that orders call.
const FUNCTIONS: &str = include_str!("remote.sh");
/// Where the files of a run are on a host, below the home of who logs in; a folder for each host follows, since homes may
/// be shared.
pub(super) const FOLDER: &str = "~/.tempflow/runs";

/// What is said first: how answers begin, of which run it is, and what orders call.
pub(super) fn greeting(mark: &str, run_id: &str) -> String {
    format!("mark={mark}\nrun={}\n{FUNCTIONS}\n{}", quoted(run_id), closing(0))
}

/// What a member is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    /// Its program, as the host's shell takes it.
    pub program: String,
    /// Words after it.
    pub arguments: Vec<String>,
    /// What its environment has besides.
    pub environment: Vec<(String, String)>,
    /// Where it is started, if that is there; else in the home.
    pub folder: String,
    /// What it reads on standard input: a token, which stands neither among words nor in an environment.
    pub input: String,
}

/// Begins a life, unless it has begun.
pub(super) fn start(life: &str, launch: &Launch, mark: &str) -> String {
    let unset = service::MEMBER_VARIABLES.join(" ");
    let exports: String = launch
        .environment
        .iter()
        .map(|(name, value)| format!("  export {name}={}\n", always_quoted(value)))
        .collect();
    let words: String = launch.arguments.iter().map(|word| format!(" {}", quoted(word))).collect();
    let (program, folder) = (&launch.program, quoted(&launch.folder));
    let log = format!("\"$folder/{}.log\"", member_of(life));
    // The end of the input: nothing that is read has such a line.
    let (end, input) = (format!("end-{mark}"), launch.input.trim_end_matches('\n'));
    // Two shells deep, so that the one that takes orders does not wait for it.
    format!(
        "begin {life} {program}\ncase $? in\n0)\n(\n(\n  cd {folder} 2>/dev/null || cd\n  unset {unset}\n{exports}  exec setsid sh -c \
         \"$keeper\" tempflow \"$folder/{life}\" {program}{words}\n) >>{log} 2>&1 <<'{end}' &\n{input}\n{end}\n)\nsettle {life}\n;;\n\
         2) look {life} ;;\nesac\n"
    )
}

/// Looks at a life.
pub(super) fn look(life: &str) -> String {
    format!("look {life}\n")
}

/// Sends a signal to a life, `TERM` or `KILL`, then looks at it.
pub(super) fn end(life: &str, signal: &str) -> String {
    format!("end {signal} {life}\nlook {life}\n")
}

/// Has the host say that it is done with all before.
pub(super) fn closing(number: u64) -> String {
    format!("say \"done {number}\"\n")
}

/// The path of a program on a host as its shell takes it; `~/` is the home there.
pub(super) fn program(folder: &Path, name: &str) -> String {
    match folder.strip_prefix("~") {
        Ok(below) => format!("\"$HOME\"/{}", quoted(&below.join(name).display().to_string())),
        Err(_) => quoted(&folder.join(name).display().to_string()),
    }
}

fn always_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// The member that a life is of.
pub(super) fn member_of(life: &str) -> &str {
    life.rsplit_once('.').map_or(life, |(member, _)| member)
}

/// What a host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its name.
    Host(String),
    /// How a life stands.
    Life(String, Standing),
    /// A line of the log of a life that has ended; what follows says that it has.
    Log(String, String),
    /// All before an order's number is done.
    Done(u64),
}

/// How a life stands on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is there of it.
    Absent,
    /// It is about to have a process.
    Beginning,
    /// Its process.
    Running(u32),
    /// Its exit code, as a shell tells it, if anybody knows.
    Ended(Option<i32>),
    /// A program that it needs is not there.
    Missing(String),
    /// It cannot begin, and why.
    Refused(String),
}

impl Answer {
    /// Reads a line; `None` for what is not meant for the coordinator, such as greetings of the host.
    pub fn read(line: &str, mark: &str) -> Option<Self> {
        let told = line.strip_prefix(mark)?.strip_prefix(' ')?;
        let (subject, told) = told.split_once(' ').unwrap_or((told, ""));
        let (word, rest) = told.split_once(' ').unwrap_or((told, ""));
        let standing = match (subject, word) {
            ("host", _) => return Some(Self::Host(told.to_owned())),
            ("done", number) => return Some(Self::Done(number.parse().ok()?)),
            (life, "log") => return Some(Self::Log(life.to_owned(), rest.to_owned())),
            (_, "absent") => Standing::Absent,
            (_, "beginning") => Standing::Beginning,
            (_, "running") => Standing::Running(rest.parse().ok()?),
            (_, "ended") => Standing::Ended(rest.parse().ok()),
            (_, "missing") => Standing::Missing(rest.to_owned()),
            (_, "refused") => Standing::Refused(rest.to_owned()),
            _ => return None,
        };
        Some(Self::Life(subject.to_owned(), standing))
    }
}
