//! The device that tensors live on, as configs and command lines name it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where tensors live: `cpu`, `cuda` or `cuda:N`.
///
/// To a process, `cuda` is the first GPU that it sees. To a run, it is a GPU for each member, which its launcher gives it;
/// `cuda:N` is the same one for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ComputeDevice {
    /// Main memory.
    Cpu,
    /// A GPU, whichever is given.
    Cuda,
    /// A GPU by its position among those that are seen.
    CudaAt(usize),
}

impl ComputeDevice {
    /// Whether it is the CPU.
    pub fn is_cpu(self) -> bool {
        self == Self::Cpu
    }

    /// The position of the GPU among those that a process sees; `None` on the CPU.
    pub fn position(self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            Self::Cuda => Some(0),
            Self::CudaAt(position) => Some(position),
        }
    }
}

impl FromStr for ComputeDevice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown =
            || format!("unknown device `{name}`; write `cpu`, `cuda`, or `cuda:1` for the second GPU");
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => {
                let position = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                // Digits alone: `parse` takes a sign as well.
                let are_digits = position.bytes().all(|byte| byte.is_ascii_digit());
                position.parse().ok().filter(|_| are_digits).map(Self::CudaAt).ok_or_else(unknown)
            }
        }
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda => write!(f, "cuda"),
            Self::CudaAt(position) => write!(f, "cuda:{position}"),
        }
    }
}

impl TryFrom<String> for ComputeDevice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<ComputeDevice> for String {
    fn from(device: ComputeDevice) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (name, device) in [
            ("cpu", ComputeDevice::Cpu),
            ("cuda", ComputeDevice::Cuda),
            ("cuda:0", ComputeDevice::CudaAt(0)),
            ("cuda:7", ComputeDevice::CudaAt(7)),
        ] {
            assert_eq!((name.parse(), device.to_string()), (Ok(device), name.to_owned()));
        }
        for name in ["", "CPU", "cpu:0", "cuda:", "cuda:+1", "cuda:-1", "cuda:x", "cudax", "gpu"] {
            assert!(name.parse::<ComputeDevice>().unwrap_err().contains(&format!("`{name}`")), "{name}");
        }
    }
}
