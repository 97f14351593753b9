//! What a process shows of itself to who only looks: metrics and health over plain HTTP, on a port of their own.
//!
//! A scraper or a kubelet has no certificate of the run, so nothing can be changed here and little be asked. Whatever asks,
//! and however often, costs the process next to nothing: requests are short, connections few and soon over, and a page is
//! written once a second at most.

mod counts;
mod endpoint;
mod exposition;
mod member;
mod process;

pub use counts::{Counts, Durations, Levels, Raised};
pub use endpoint::{Page, answer_connection, serve_page};
pub use exposition::Exposition;
pub use member::MemberMetrics;

/// Rows of the table in docs/monitoring.md that are under the heading of a process. For the tests of the programs.
pub fn table_of<'a>(document: &'a str, process: &str) -> Vec<&'a str> {
    let heading = format!("### `{process}`");
    let section = document.split(&heading).nth(1).and_then(|rest| rest.split("\n#").next());
    section.unwrap_or_default().lines().filter(|line| line.starts_with("| `tempflow_")).collect()
}
