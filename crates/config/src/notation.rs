//! How branch steps, step weights and element types are written in configs and on command lines: as one short string each.

use crate::{BranchSteps, Dtype, StepWeight};
use std::fmt;
use std::str::FromStr;

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "float32" => Ok(Self::Float32),
            "bfloat16" => Ok(Self::Bfloat16),
            _ => Err(format!("unknown element type `{text}`; write `float32` or `bfloat16`")),
        }
    }
}

impl FromStr for BranchSteps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| unreadable_steps(text));
        let range = |part: &str| match part.split_once("..") {
            Some((from, to)) => Ok((number(from)?, number(to)?)),
            None => Err(unreadable_steps(text)),
        };
        if text == "all" {
            return Ok(Self::All);
        }
        let list = |part: &str| part.split(',').map(number).collect::<Result<Vec<_>, _>>();
        if let Some(draw) = text.strip_prefix("random:") {
            return match draw.split_once('@') {
                None => Ok(Self::Random { count: number(draw)? }),
                Some((count, among)) => Ok(Self::RandomAmong { count: number(count)?, among: list(among)? }),
            };
        }
        if let Some(window) = text.strip_prefix("window:") {
            let (size, bounds) = window.split_once('@').ok_or_else(|| unreadable_steps(text))?;
            let (from, to) = range(bounds)?;
            return Ok(Self::Window { size: number(size)?, from, to });
        }
        if text.contains("..") {
            let (from, to) = range(text)?;
            return Ok(Self::Range { from, to });
        }
        list(text).map(Self::List)
    }
}

fn unreadable_steps(text: &str) -> String {
    format!(
        "unreadable steps `{text}`; write `all`, `0..4`, `0,2,5`, `random:3`, `random:2@1,2,3` or `window:2@0..5`"
    )
}

fn joined(steps: &[usize]) -> String {
    steps.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Display for BranchSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "all"),
            Self::Range { from, to } => write!(f, "{from}..{to}"),
            Self::List(steps) => write!(f, "{}", joined(steps)),
            Self::Random { count } => write!(f, "random:{count}"),
            Self::RandomAmong { count, among } => write!(f, "random:{count}@{}", joined(among)),
            Self::Window { size, from, to } => write!(f, "window:{size}@{from}..{to}"),
        }
    }
}

impl TryFrom<String> for BranchSteps {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BranchSteps> for String {
    fn from(steps: BranchSteps) -> Self {
        steps.to_string()
    }
}

impl FromStr for StepWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = || {
            format!(
                "unreadable step weight `{text}`; write `noise`, `none`, `inverse-length` or `constant:2.25`"
            )
        };
        match text.trim() {
            "noise" => Ok(Self::Noise),
            "none" => Ok(Self::None),
            "inverse-length" => Ok(Self::InverseLength),
            other => {
                let factor = other.strip_prefix("constant:").ok_or_else(unreadable)?;
                factor.trim().parse().map(Self::Constant).map_err(|_| unreadable())
            }
        }
    }
}

impl fmt::Display for StepWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noise => write!(f, "noise"),
            Self::None => write!(f, "none"),
            Self::InverseLength => write!(f, "inverse-length"),
            Self::Constant(factor) => write!(f, "constant:{factor}"),
        }
    }
}

impl TryFrom<String> for StepWeight {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<StepWeight> for String {
    fn from(weight: StepWeight) -> Self {
        weight.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_they_are_written() {
        for text in ["all", "0..4", "0,2,5", "random:3", "random:2@1,2,3", "window:2@0..5"] {
            assert_eq!(text.parse::<BranchSteps>().expect("readable").to_string(), text);
        }
        for text in ["", "some", "3..", "random:", "random:2@", "window:2", "1,,2", "-1"] {
            assert!(text.parse::<BranchSteps>().is_err(), "{text}");
        }
    }

    #[test]
    fn weights_are_read_as_they_are_written() {
        for text in ["noise", "none", "inverse-length", "constant:2.25"] {
            assert_eq!(text.parse::<StepWeight>().expect("readable").to_string(), text);
        }
        assert!("constant:x".parse::<StepWeight>().is_err());
    }
}
