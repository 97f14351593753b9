//! A bounded run of every target: some thousand inputs each, the same ones every time, or as many as `INPUTS` says.

use fuzzing::{Mutator, TARGETS, Target};
use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};
use std::alloc::System;
use std::fmt::Write;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: &PeakMemAlloc<System> = &INSTRUMENTED_SYSTEM;

const SEED: u64 = 1;
const INPUTS: usize = 2_000;
/// Far beyond what any input of a few kilobytes takes, also on a machine that does other things.
const LONGEST: Duration = Duration::from_secs(10);

fn n_inputs() -> usize {
    match std::env::var("INPUTS") {
        Ok(count) => count.parse().expect("INPUTS is a number of inputs"),
        Err(_) => INPUTS,
    }
}

/// What is wrong with how a target takes an input.
fn fault(target: &Target, input: &[u8]) -> Option<String> {
    ALLOCATOR.reset_peak_memory();
    let start = Instant::now();
    let outcome = catch_unwind(|| (target.check)(input));
    let (took, peak) = (start.elapsed(), ALLOCATOR.get_peak_memory());
    let most = target.memory.of(input.len());
    match outcome {
        Err(_) => Some("it panicked, see above".to_owned()),
        Ok(_) if took > LONGEST => Some(format!("it took {took:?}")),
        Ok(_) if peak > most => Some(format!("it held {peak} bytes, where {most} are the most")),
        Ok(_) => None,
    }
}

fn shown(input: &[u8]) -> String {
    input.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// One test for all, since memory is counted for the whole process.
#[test]
fn no_input_makes_a_decoder_panic_hang_or_take_more_memory_than_its_bound() {
    let only = std::env::var("TARGET").ok();
    let mut faults = Vec::new();
    for target in TARGETS.iter().filter(|target| only.as_deref().is_none_or(|name| name == target.name)) {
        let examples = (target.examples)();
        // Otherwise damaged ones would try nothing but a decoder's first complaint.
        let refused = examples.iter().filter(|example| !(target.check)(example));
        faults.extend(
            refused.map(|example| format!("{}: an example is refused\n{}", target.name, shown(example))),
        );
        let start = Instant::now();
        let mut mutator = Mutator::new(examples.clone(), SEED);
        let damaged = (0..n_inputs()).map(|_| mutator.next_input());
        let found = examples.into_iter().chain(damaged).enumerate().find_map(|(number, input)| {
            let fault = fault(target, &input)?;
            Some(format!("{}: input {number}: {fault}\n{}", target.name, shown(&input)))
        });
        eprintln!("{}: {} inputs in {:.1?}", target.name, n_inputs(), start.elapsed());
        faults.extend(found);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
