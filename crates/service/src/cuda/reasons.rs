//! Why CUDA does not work, in words: from what was found to what is said, without I/O.

use std::path::PathBuf;

/// How CUDA can be had where libtorch's half of it is missing or does not load.
const SETUP: &str = "`make build DEVICE=cuda` fetches the libraries that it needs";

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// libtorch's CPU half, which this process runs on.
    pub library: Option<PathBuf>,
    pub half: Half,
    /// The `version.py` of that libtorch.
    pub torch_version: Option<String>,
    /// Whether a driver of NVIDIA's shows itself.
    pub has_gpu: bool,
    /// What the driver says of its version.
    pub driver: Option<String>,
    /// The list of cards, if it hides them all.
    pub hidden_by: Option<String>,
    /// What is known of libraries that stand before libtorch's own.
    pub shadowed: Option<String>,
}

/// libtorch's CUDA half.
#[derive(Debug, Default)]
pub(super) enum Half {
    /// There is none.
    Absent,
    /// It loads.
    #[default]
    Loaded,
    /// It does not, in the loader's words.
    Refused(String),
}

/// All that is wrong, and what is to be done about it.
pub(super) fn reasons(facts: &Facts) -> Vec<String> {
    let hidden = facts.hidden_by.as_ref().map(|list| {
        format!(
            "CUDA_VISIBLE_DEVICES = `{list}` hides all cards from this process; unset it, or name cards in it"
        )
    });
    let reasons = [about_library(facts), about_driver(facts), hidden, facts.shadowed.clone()];
    reasons.into_iter().flatten().collect()
}

fn about_library(facts: &Facts) -> Option<String> {
    let place = facts.library.as_ref().and_then(|library| library.parent());
    let place = place.map(|place| format!(" in {}", place.display())).unwrap_or_default();
    let version = facts.torch_version.as_deref().and_then(|text| assigned(text, "__version__"));
    let libtorch = format!("libtorch {}{place}", version.unwrap_or("of unknown version"));
    match &facts.half {
        Half::Loaded => None,
        Half::Absent => Some(format!("{libtorch} has no CUDA half (libtorch_cuda.so); {SETUP}")),
        Half::Refused(words) => Some(format!("the CUDA half of {libtorch} does not load: {words}; {SETUP}")),
    }
}

fn about_driver(facts: &Facts) -> Option<String> {
    if !facts.has_gpu {
        return Some(
            "no NVIDIA driver is seen: neither /dev/nvidiactl nor /dev/dxg is there; install it, or give the container its \
             GPUs (`docker run --gpus all`)"
                .to_owned(),
        );
    }
    let driver = facts.driver.as_deref().and_then(driver_version)?;
    let toolkit = facts.torch_version.as_deref().and_then(|text| assigned(text, "cuda"))?;
    let needed = driver_for(toolkit)?;
    let is_older = driver.split('.').next()?.parse::<u32>().ok()? < needed;
    let otherwise = if needed > OLDEST_DRIVER {
        format!(
            ", or install PyTorch of the same version for CUDA 12 (https://download.pytorch.org/whl/cu128; driver \
             {OLDEST_DRIVER} or newer), then `make build DEVICE=cuda`"
        )
    } else {
        String::new()
    };
    is_older.then(|| {
        format!("the driver is {driver}, and this libtorch's CUDA {toolkit} needs {needed} or newer: update it{otherwise}")
    })
}

/// The driver that CUDA 12 needs.
const OLDEST_DRIVER: u32 = 525;

/// The oldest branch of the driver that runs a CUDA of that version.
///
/// Source: CUDA Toolkit release notes, "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
/// Compatibility".
fn driver_for(toolkit: &str) -> Option<u32> {
    match toolkit.split('.').next()? {
        "12" => Some(OLDEST_DRIVER),
        "13" => Some(580),
        _ => None,
    }
}

/// The version in what the driver says: the first word that is numbers with dots.
fn driver_version(text: &str) -> Option<&str> {
    let is_version =
        |word: &&str| word.contains('.') && word.starts_with(|letter: char| letter.is_ascii_digit());
    text.split_whitespace().find(is_version)
}

/// What a line of Python, `name = '…'` or `name: Optional[str] = '…'`, gives a name.
fn assigned<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', ':', '=']).then_some(rest)?.split_once('=')
    };
    let (_, value) = text.lines().find_map(value)?;
    value.trim().strip_prefix('\'')?.strip_suffix('\'')
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "from typing import Optional\n\n__all__ = ['__version__', 'debug', 'cuda']\n\
                           __version__ = '2.13.0+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\n";
    const DRIVER: &str = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Thu Feb 22 21:02:13 UTC 2024\n\
                          GCC version:  gcc version 12.3.0\n";
    const OPEN_DRIVER: &str =
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n";

    /// Where all is well.
    fn facts() -> Facts {
        Facts {
            library: Some("/opt/torch/lib/libtorch_cpu.so".into()),
            torch_version: Some(VERSION.to_owned()),
            has_gpu: true,
            driver: Some(OPEN_DRIVER.to_owned()),
            ..Facts::default()
        }
    }

    #[test]
    fn each_reason_is_told_with_its_remedy() {
        let words = "libcusparse.so.12: cannot open shared object file";
        for (facts, expected) in [
            (
                Facts { half: Half::Absent, ..facts() },
                "libtorch 2.13.0+cu130 in /opt/torch/lib has no CUDA half",
            ),
            (
                Facts { half: Half::Refused(words.to_owned()), ..facts() },
                "does not load: libcusparse.so.12: cannot",
            ),
            (Facts { has_gpu: false, ..facts() }, "no NVIDIA driver is seen"),
            (
                Facts { driver: Some(DRIVER.to_owned()), ..facts() },
                "the driver is 535.161.08, and this libtorch's CUDA 13.0 needs 580 or newer: update it, or install",
            ),
            (
                Facts { hidden_by: Some("-1".to_owned()), ..facts() },
                "CUDA_VISIBLE_DEVICES = `-1` hides all cards",
            ),
            (Facts { shadowed: Some("LD_LIBRARY_PATH".to_owned()), ..facts() }, "LD_LIBRARY_PATH"),
        ] {
            let told = reasons(&facts);
            assert!(told.len() == 1 && told[0].contains(expected), "{told:?}");
        }
        assert_eq!(reasons(&facts()), Vec::<String>::new());
    }

    #[test]
    fn an_old_driver_is_enough_for_an_old_cuda() {
        let version = "__version__ = '2.13.0+cu128'\ncuda: Optional[str] = '12.8'\n".to_owned();
        let facts = Facts { torch_version: Some(version), driver: Some(DRIVER.to_owned()), ..facts() };
        assert_eq!(reasons(&facts), Vec::<String>::new());
    }

    #[test]
    fn a_build_for_the_cpu_has_no_cuda() {
        assert_eq!(assigned("cuda: Optional[str] = None\n", "cuda"), None);
        assert_eq!(assigned(VERSION, "__version__"), Some("2.13.0+cu130"));
        assert_eq!(assigned("cuda = '12.6'\n", "cuda"), Some("12.6"));
    }
}
