//! What libtorch was told, when this program was loaded, of bits that can be had again.
//!
//! `determinism.cpp` tells it, by a variable of the environment, before `main`; the bindings cannot. So a process computes
//! strictly or fast for all its life, and whoever starts it says which.

/// Where libtorch's answer stands, written by `determinism.cpp` as the program is loaded.
pub const FLAGS_VARIABLE: &str = "FLOW_RL_LIBTORCH_FLAGS";

/// What libtorch held true when the program was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibtorchFlags {
    /// Operations with a deterministic way take it, and those without one fail.
    pub deterministic_algorithms: bool,
    /// Memory is filled before it is handed out, at the cost of time.
    pub fill_uninitialized_memory: bool,
    /// cuDNN's convolutions are deterministic.
    pub deterministic_cudnn: bool,
    /// cuDNN may compute attention.
    pub cudnn_attention: bool,
    /// cuBLAS may add up products of bfloat16 in bfloat16.
    pub bf16_reduction: bool,
}

impl LibtorchFlags {
    /// What is told a process that is to give the same bits each time.
    pub const STRICT: Self = Self {
        deterministic_algorithms: true,
        fill_uninitialized_memory: false,
        deterministic_cudnn: true,
        cudnn_attention: false,
        bf16_reduction: false,
    };

    /// libtorch's own.
    pub const FAST: Self = Self {
        deterministic_algorithms: false,
        fill_uninitialized_memory: true,
        deterministic_cudnn: false,
        cudnn_attention: true,
        bf16_reduction: true,
    };

    /// Those of this process; `None` if nothing was told, as where the program was linked without `determinism.cpp`.
    pub fn of_process() -> Option<Self> {
        Self::read(&std::env::var(FLAGS_VARIABLE).ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        let flag = |name: &str| {
            let value = text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
            Some(value == "1")
        };
        Some(Self {
            deterministic_algorithms: flag("deterministic_algorithms")?,
            fill_uninitialized_memory: flag("fill_uninitialized_memory")?,
            deterministic_cudnn: flag("deterministic_cudnn")?,
            cudnn_attention: flag("cudnn_attention")?,
            bf16_reduction: flag("bf16_reduction")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use tch::{Device, Kind, Tensor};

    const ASKED: &str = "FLOW_RL_DETERMINISM";
    /// What the child that tells is called with.
    const TELLS: &str = "determinism::tests::tells";

    #[test]
    fn a_text_that_lacks_a_flag_says_nothing() {
        let whole = "deterministic_algorithms=1 fill_uninitialized_memory=0 deterministic_cudnn=1 cudnn_attention=0 \
                     bf16_reduction=0";
        assert_eq!(LibtorchFlags::read(whole), Some(LibtorchFlags::STRICT));
        assert_eq!(LibtorchFlags::read(whole.trim_end_matches(" bf16_reduction=0")), None);
    }

    /// What libtorch does, beside what it says: this has no deterministic way.
    fn is_refused() -> bool {
        let (index, value) = (Tensor::from_slice(&[0_i64]), Tensor::from_slice(&[1.0_f32]));
        Tensor::zeros([2], (Kind::Float, Device::Cpu)).f_put_(&index, &value, false).is_err()
    }

    /// Run as a child by [`flags_are_set_as_the_environment_asks_before_main`], and by itself with every other test.
    #[test]
    fn tells() {
        let expected = match std::env::var(ASKED).as_deref() {
            Ok("fast") => LibtorchFlags::FAST,
            _ => LibtorchFlags::STRICT,
        };
        assert_eq!(LibtorchFlags::of_process(), Some(expected));
        assert_eq!(is_refused(), expected.deterministic_algorithms);
    }

    fn child(asked: Option<&str>) -> std::process::Output {
        let mut child = Command::new(std::env::current_exe().unwrap());
        // A parent's flags are not taken for the child's own.
        child.args(["--exact", TELLS]).env_remove(ASKED).env(FLAGS_VARIABLE, "");
        child.envs(asked.map(|asked| (ASKED, asked))).output().unwrap()
    }

    #[test]
    fn what_is_neither_is_refused_before_main() {
        let output = child(Some("Fast"));
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("FLOW_RL_DETERMINISM is `Fast`; write `strict` or `fast`"), "{told}");
    }

    #[test]
    fn flags_are_set_as_the_environment_asks_before_main() {
        for asked in [None, Some(""), Some("strict"), Some("fast")] {
            let output = child(asked);
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && told.contains("1 passed"), "{asked:?}: {told}");
        }
    }
}
