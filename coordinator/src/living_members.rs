//! Members of a run whose processes live, whether it has a coordinator or not.

mod look;

use std::collections::BTreeSet;
use std::fmt;

/// Members by their ids, and their process ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LivingMembers {
    here: BTreeSet<(String, u32)>,
    elsewhere: Vec<LivingElsewhere>,
}

impl LivingMembers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty() && self.elsewhere.is_empty()
    }

    /// The command that ends them in good order; on other hosts those whose processes are known.
    pub fn end_command(&self) -> String {
        let pids: Vec<String> = self.here.iter().map(|(_, pid)| pid.to_string()).collect();
        let here = (!pids.is_empty()).then(|| format!("kill {}", pids.join(" ")));
        let elsewhere = self.elsewhere.iter().map(|member| match &member.process {
            Ok(pid) => format!("ssh {} kill {pid}", member.host),
            Err(_) => format!("ssh {} kill PID", member.host),
        });
        here.into_iter().chain(elsewhere).collect::<Vec<_>>().join("; ")
    }

    /// What is added to the word that a run has no coordinator; nothing where it has no members either.
    pub fn left_behind(&self) -> String {
        match self.is_empty() {
            true => String::new(),
            false => {
                format!(
                    ", which takes over what lives on: {self}; `{}` ends that instead",
                    self.end_command()
                )
            }
        }
    }
}

impl fmt::Display for LivingMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> =
            self.here.iter().map(|(member_id, pid)| format!("{member_id} (process {pid})")).collect();
        let elsewhere = self.elsewhere.iter().map(ToString::to_string);
        f.write_str(&shown.into_iter().chain(elsewhere).collect::<Vec<_>>().join(", "))
    }
}

/// A member that lives on another host, or may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LivingElsewhere {
    /// Its id.
    pub member_id: String,
    /// Its host, as `ssh` takes it.
    pub host: String,
    /// Its process there, or why the host does not tell.
    pub process: Result<u32, String>,
}

impl fmt::Display for LivingElsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member_id, host, process } = self;
        match process {
            Ok(pid) => write!(f, "{member_id} (process {pid} on {host})"),
            Err(reason) => write!(f, "{member_id} (on {host}, which does not tell: {reason})"),
        }
    }
}
