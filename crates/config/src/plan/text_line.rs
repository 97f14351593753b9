//! One line of a plan.

use std::fmt;

/// Writes a name, its value and what there is to say of it.
pub(super) fn line(f: &mut fmt::Formatter<'_>, name: &str, value: &str, remark: &str) -> fmt::Result {
    let text = format!("  {name:<34} {value:>14}  {remark}");
    writeln!(f, "{}", text.trim_end())
}
