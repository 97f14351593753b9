//! Telling a device that has no memory left, which can go on, from whatever else goes wrong in libtorch, which cannot.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What libtorch, its allocators and the libraries below it say when memory is short.
const WORDS: [&str; 5] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];
/// Bytes of what libtorch says that are told; its backtrace is of no help.
const LONGEST_WORDS: usize = 400;

/// There was not enough memory, on the device or beside it. Nothing else is wrong: the process can go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OutOfMemory(String);

impl OutOfMemory {
    /// Whether these are the words of memory that is short, from its first line.
    pub fn in_words(words: &str) -> Option<Self> {
        // What is unwrapped is told as Rust writes it: with the kind of error around it, and line ends as letters.
        let told = words.split_once("Torch(\"").map_or(words, |(_, told)| told);
        let told = told.split("\\n").next().unwrap_or(told);
        let first = told.lines().find(|line| WORDS.iter().any(|word| line.contains(word)))?;
        let end = first.char_indices().map(|(at, _)| at).find(|at| *at >= LONGEST_WORDS);
        Some(Self(first[..end.unwrap_or(first.len())].to_owned()))
    }
}

/// Does work that panics where memory is short; any other panic goes on.
///
/// What the work was changing may be half changed: the caller makes it anew.
///
/// # Errors
/// If memory was short.
///
/// # Panics
/// As the work does. After any other failure of a device its context is broken, so the process must end.
pub fn catch_out_of_memory<T>(work: impl FnOnce() -> T) -> Result<T, OutOfMemory> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let words = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        OutOfMemory::in_words(words).unwrap_or_else(|| resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_tensor_too_large_for_the_machine_is_an_error_and_the_next_is_made() {
        let huge = || Tensor::zeros([1 << 20, 1 << 26], (Kind::Float, Device::Cpu));
        let told = catch_out_of_memory(huge).expect_err("256 TiB").to_string();
        assert!(told.contains("allocate") && told.len() <= LONGEST_WORDS, "{told}");
        assert!(!told.contains("unwrap") && !told.contains("frame #"), "{told}");
        let small = catch_out_of_memory(|| Tensor::ones([2], (Kind::Float, Device::Cpu)));
        assert_eq!(small.expect("two numbers").sum(Kind::Float).double_value(&[]), 2.0);
    }

    #[test]
    fn memory_is_told_from_other_failures() {
        for words in [
            "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 2.00 GiB.\")",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ] {
            assert!(OutOfMemory::in_words(words).is_some(), "{words}");
        }
        for words in ["CUDA error: an illegal memory access was encountered", "index out of range", ""] {
            assert_eq!(OutOfMemory::in_words(words), None, "{words}");
        }
        let other =
            catch_unwind(|| catch_out_of_memory(|| panic!("CUDA error: device-side assert triggered")));
        assert!(other.is_err(), "it goes on");
    }
}
