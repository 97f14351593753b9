//! How a member ended.

use crate::member_name::MemberName;
use std::fmt;
use std::path::PathBuf;

/// How a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// Who.
    pub member: MemberName,
    /// Its exit code; `None` where there was none, or nobody could tell.
    pub code: Option<i32>,
    /// How it ended, in words.
    pub how: String,
    /// Where it wrote what it had to say.
    pub log: PathBuf,
    /// The last lines of its log.
    pub last_lines: Vec<String>,
}

impl ExitReport {
    /// Whether the exit code says that the process was given bad input.
    pub fn is_bad_input(&self) -> bool {
        self.code == Some(service::exit_code::BAD_USAGE.into())
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; the end of its log, {}:", self.member, self.how, self.log.display())?;
        self.last_lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
