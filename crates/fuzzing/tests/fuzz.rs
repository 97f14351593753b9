//! A bounded run of every target of this crate, and what such a run finds fault with.

use fuzzing::{CountingAllocator, INSTRUMENTED_SYSTEM, MemoryBound, TARGETS, Target};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static ALLOCATOR: &CountingAllocator = &INSTRUMENTED_SYSTEM;

/// Memory is counted for the whole process, so one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn no_input_makes_a_decoder_panic_hang_or_take_more_memory_than_its_bound() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    fuzzing::run(TARGETS, ALLOCATOR, |line| eprintln!("{line}"));
}

/// The one fault of a target that checks so; its examples are accepted by `check` or not.
fn fault(check: fn(&[u8]) -> bool, memory: MemoryBound) -> Option<String> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = Target { name: "mine", examples: || vec![b"abc".to_vec()], check, memory };
    fuzzing::fault_of(&target, ALLOCATOR, 200)
}

#[test]
fn a_target_that_does_not_hold_is_reported_with_its_input() {
    let bound = MemoryBound { per_byte: 0, fixed: 1000 };
    assert_eq!(fault(|_| true, bound), None);
    let refused = fault(|_| false, bound).expect("its example is refused");
    assert!(refused.contains("mine: an example is refused\n616263"), "{refused}");
    let panicked = fault(|bytes| bytes.starts_with(b"abc") || panic!("not this one"), bound);
    assert!(panicked.expect("damaged inputs differ").contains("it panicked"));
    let large = fault(|bytes| std::hint::black_box(vec![0_u8; 2000]).len() > bytes.len(), bound);
    assert!(large.expect("too large").contains("where 1000 are the most"));
}

#[test]
fn every_target_has_a_program_that_is_guided_by_coverage() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let package = include_str!("../../../fuzz/Cargo.toml");
    for Target { name, .. } in TARGETS {
        let file = format!("fuzz_targets/{name}.rs");
        assert!(
            package.contains(&format!("name = \"{name}\"\npath = \"{file}\"")),
            "{name} is not in fuzz/Cargo.toml"
        );
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(file);
        let program = std::fs::read_to_string(&path).expect("a program");
        assert!(program.contains(&format!("named(\"{name}\")")), "{} tries another target", path.display());
    }
}
