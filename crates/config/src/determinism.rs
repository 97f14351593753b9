//! Whether a run's bits can be had again, as configs and the environment of processes name it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What libtorch may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Determinism {
    /// Only what gives the same bits each time.
    Strict,
    /// Whatever is fastest: on a GPU, bits differ from run to run.
    Fast,
}

impl Determinism {
    /// The variable that tells a process, before it begins, how it is to compute: libtorch is set up by then. A process
    /// without it computes strictly.
    pub const VARIABLE: &str = "FLOW_RL_DETERMINISM";

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Fast => "fast",
        }
    }
}

impl fmt::Display for Determinism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_and_the_variable_have_the_same_words() {
        for known in [Determinism::Strict, Determinism::Fast] {
            assert_eq!(serde_json::to_value(known).expect("a text"), known.to_string());
        }
    }
}
