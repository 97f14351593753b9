//! What a certificate calls its holder.

use crate::shown;
use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "tempflow://";

/// What a process may be in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerRole {
    /// Hands out tasks and certificates.
    Coordinator,
    /// Trains.
    Learner,
    /// Samples.
    Worker,
    /// An operator's command.
    Admin,
    /// Scores images for workers.
    Reward,
}

impl PeerRole {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Coordinator, Self::Learner, Self::Worker, Self::Admin, Self::Reward];

    /// As it stands in certificates, tokens and names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Learner => "learner",
            Self::Worker => "worker",
            Self::Admin => "admin",
            Self::Reward => "reward",
        }
    }

    /// Whether others connect to it.
    pub(super) fn serves(self) -> bool {
        matches!(self, Self::Coordinator | Self::Learner | Self::Worker | Self::Reward)
    }
}

/// Characters of a name that are shown: certificates are read before it is known who signed them.
const LONGEST_NAME: usize = 100;

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PeerRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| {
            let found = shown(text, LONGEST_NAME);
            format!("unknown role `{found}`; it is one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// A role in a domain; the URI `tempflow://DOMAIN/ROLE` among a certificate's alternative names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName {
    /// The id of the run where the run has an authority of its own, else what the user's certificates say.
    pub domain: String,
    /// What the holder may be.
    pub role: PeerRole,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.domain, self.role)
    }
}

impl FromStr for PeerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not `{SCHEME}DOMAIN/ROLE`", shown(text, LONGEST_NAME));
        let (domain, role) =
            text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(malformed)?;
        if domain.is_empty() {
            return Err(malformed());
        }
        Ok(Self { domain: domain.to_owned(), role: role.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_others_are_refused() {
        for role in PeerRole::ALL {
            let name = PeerName { domain: "tiny-0123".to_owned(), role };
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for odd in ["", "tempflow://", "tempflow:///worker", "tempflow://run", "https://run/worker"] {
            let told = odd.parse::<PeerName>().expect_err("refused");
            assert!(told.contains("is not `tempflow://DOMAIN/ROLE`"), "{told}");
        }
        let told = "tempflow://run/king".parse::<PeerName>().expect_err("refused");
        assert!(told.contains("unknown role `king`"), "{told}");
        assert!("tempflow://run/worker/more".parse::<PeerName>().is_err());
    }

    #[test]
    fn of_a_name_that_anybody_may_have_written_little_is_shown_and_nothing_that_a_terminal_obeys() {
        for rude in
            [format!("tempflow://run/{}\u{1b}[2J\n", "x".repeat(10_000)), "\u{1b}[2J\n".repeat(10_000)]
        {
            let told = rude.parse::<PeerName>().expect_err("refused");
            assert!(told.len() < 1000 && !told.contains(['\u{1b}', '\n']), "{told:?}");
        }
    }
}
