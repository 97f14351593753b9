//! What kind of device this process computes on. Kernels of different kinds add up in different orders, so a task has the
//! same bits on all devices of one kind, and may have others on another.

use crate::cuda;
use std::collections::BTreeSet;

/// What libtorch says of its kernels on this processor; `models::determinism.cpp` writes it as the program is loaded. Absent
/// in a program without libtorch.
const LIBTORCH_VARIABLE: &str = "FLOW_RL_LIBTORCH_KERNELS";
/// Keep oneDNN from what the processor has; the first that is set counts.
const ONEDNN_LIMITS: [&str; 2] = ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"];

/// What oneDNN chooses its kernels by, each with what the processor must have beyond what stands before it.
const ONEDNN_LEVELS: [(&str, &[&str]); 9] = [
    ("SSE41", &["sse4_1"]),
    ("AVX", &["avx"]),
    ("AVX2", &["avx2"]),
    ("AVX512_CORE", &["avx512f", "avx512bw", "avx512vl", "avx512dq"]),
    ("AVX512_CORE_VNNI", &["avx512_vnni"]),
    ("AVX512_CORE_BF16", &["avx512_bf16"]),
    ("AVX512_CORE_FP16", &["avx512_fp16"]),
    ("AVX512_CORE_AMX", &["amx_tile", "amx_int8", "amx_bf16"]),
    ("AVX512_CORE_AMX_FP16", &["amx_fp16"]),
];

/// The kind of this host's processor to libtorch, such as `libtorch 2.13.0, ATen AVX512, MKL 9, oneDNN AVX512_CORE_AMX`; empty
/// in a program without libtorch.
pub fn of_host() -> String {
    let kernels = std::env::var(LIBTORCH_VARIABLE).unwrap_or_default();
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let limit = ONEDNN_LIMITS.iter().find_map(|name| std::env::var(name).ok());
    host_kind(&kernels, &processor, limit.as_deref()).unwrap_or_default()
}

/// The kind of the cards that this process sees, such as `NVIDIA H200, libtorch 2.13.0`; empty where it is not known. A program
/// without libtorch, which computes nothing, does not look for them.
pub fn of_cards() -> String {
    let Ok(kernels) = std::env::var(LIBTORCH_VARIABLE) else { return String::new() };
    let models = cuda::visible_models().unwrap_or_default();
    card_kind(&kernels, &models).unwrap_or_default()
}

fn host_kind(kernels: &str, processor: &str, limit: Option<&str>) -> Option<String> {
    let [libtorch, aten, mkl] = ["libtorch", "aten", "mkl"].map(|name| told(kernels, name));
    let onednn = onednn_level(processor, limit);
    Some(format!("libtorch {}, ATen {}, MKL {}, oneDNN {onednn}", libtorch?, aten?, mkl?))
}

fn card_kind(kernels: &str, models: &BTreeSet<String>) -> Option<String> {
    let libtorch = told(kernels, "libtorch")?;
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    (!models.is_empty()).then(|| format!("{}, libtorch {libtorch}", models.join(" or ")))
}

fn told<'a>(kernels: &'a str, name: &str) -> Option<&'a str> {
    kernels.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The best of oneDNN's levels that a processor, as `/proc/cpuinfo` has it, reaches and a limit allows.
fn onednn_level(processor: &str, limit: Option<&str>) -> &'static str {
    let flags = processor.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let flags: BTreeSet<&str> = flags.split_whitespace().collect();
    let allowed = limit.and_then(|limit| ONEDNN_LEVELS.iter().position(|(name, _)| *name == limit));
    let allowed = allowed.unwrap_or(ONEDNN_LEVELS.len() - 1);
    let reached = ONEDNN_LEVELS[..=allowed]
        .iter()
        .take_while(|(_, needed)| needed.iter().all(|flag| flags.contains(flag)))
        .last();
    reached.map_or("reference", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNELS: &str = "libtorch=2.13.0 aten=AVX512 mkl=9";
    const WITHOUT_AMX: &str = "processor\t: 0\nflags\t\t: sse4_1 avx avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni \
                               avx512_bf16\nbugs\t\t:\n";

    #[test]
    fn a_host_is_known_by_what_its_libraries_choose() {
        for (limit, expected) in [
            (None, "AVX512_CORE_BF16"),
            (Some("AVX2"), "AVX2"),
            (Some("AVX512_CORE_AMX"), "AVX512_CORE_BF16"),
            (Some("no level"), "AVX512_CORE_BF16"),
        ] {
            let kind = host_kind(KERNELS, WITHOUT_AMX, limit);
            let expected = format!("libtorch 2.13.0, ATen AVX512, MKL 9, oneDNN {expected}");
            assert_eq!(kind.as_deref(), Some(expected.as_str()), "{limit:?}");
        }
        assert_eq!(onednn_level("", None), "reference");
        assert_eq!(host_kind("", WITHOUT_AMX, None), None, "a program without libtorch");
    }

    #[test]
    fn cards_are_known_by_their_models() {
        let kind =
            |models: &[&str]| card_kind(KERNELS, &models.iter().map(|&model| model.to_owned()).collect());
        assert_eq!(kind(&["NVIDIA H200"]).as_deref(), Some("NVIDIA H200, libtorch 2.13.0"));
        assert_eq!(kind(&["B", "A"]).as_deref(), Some("A or B, libtorch 2.13.0"));
        assert_eq!(kind(&[]), None);
    }
}
