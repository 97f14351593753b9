//! A bounded run of targets: some thousand inputs each, the same ones every time, or as many as `INPUTS` says.

use crate::{Mutator, Target};
use peakmem_alloc::{PeakMemAlloc, PeakMemAllocTrait};
use std::alloc::System;
use std::fmt::Write;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

/// What counts live bytes where it is the global allocator of a program; what libraries in C take is not counted.
pub type CountingAllocator = PeakMemAlloc<System>;

/// The longest that an input may take: far beyond what any of a few kilobytes does, also on a machine that does other things.
const LONGEST: Duration = Duration::from_secs(10);

const SEED: u64 = 1;
const INPUTS: usize = 2_000;

/// Tries targets with examples and damaged inputs: as many as the variable `INPUTS` says, and the one alone that `TARGET`
/// names, if it is set. `allocator` is the global one of the program; `tell` is given what there is to say on the way.
///
/// # Panics
/// If targets do not hold what they promise, with the first such input of each.
pub fn run(targets: &[Target], allocator: &CountingAllocator, tell: impl Fn(String)) {
    let n_inputs = std::env::var("INPUTS").map_or(INPUTS, |count| {
        count.parse().unwrap_or_else(|_| panic!("INPUTS is `{count}`, which is no number of inputs"))
    });
    let only = std::env::var("TARGET").ok();
    let is_meant = |target: &&Target| only.as_deref().is_none_or(|name| name == target.name);
    if let Some(name) = only.as_deref().filter(|_| !targets.iter().any(|target| is_meant(&target))) {
        // It may be another crate's.
        let names: Vec<&str> = targets.iter().map(|target| target.name).collect();
        tell(format!("no target is called `{name}` here; there are {}", names.join(", ")));
    }
    let mut faults = Vec::new();
    for target in targets.iter().filter(is_meant) {
        let start = Instant::now();
        faults.extend(fault_of(target, allocator, n_inputs));
        tell(format!("{}: {n_inputs} inputs in {:.1?}", target.name, start.elapsed()));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The first fault of a target among its examples and so many damaged inputs, with the input in hexadecimal.
///
/// # Panics
/// If `allocator` is not the global one, which would let every bound of memory pass.
pub fn fault_of(target: &Target, allocator: &CountingAllocator, n_inputs: usize) -> Option<String> {
    assert!(counts(allocator), "memory is not counted: make this allocator the global one");
    let examples = (target.examples)();
    let told = |input: &[u8], fault: &str| format!("{}: {fault}\n{}", target.name, shown(input));
    // Damaged ones would try nothing but a decoder's first complaint.
    if let Some(refused) = examples.iter().find(|example| !(target.check)(example)) {
        return Some(told(refused, "an example is refused"));
    }
    let mut mutator = Mutator::new(examples.clone(), SEED);
    let damaged = (0..n_inputs).map(|_| mutator.next_input());
    examples.into_iter().chain(damaged).enumerate().find_map(|(number, input)| {
        let fault = fault(target, allocator, &input)?;
        Some(told(&input, &format!("input {number}: {fault}")))
    })
}

/// Whether an allocator sees what is allocated.
fn counts(allocator: &CountingAllocator) -> bool {
    allocator.reset_peak_memory();
    drop(std::hint::black_box(vec![0_u8; 1000]));
    allocator.get_peak_memory() >= 1000
}

/// What is wrong with how a target takes an input.
fn fault(target: &Target, allocator: &CountingAllocator, input: &[u8]) -> Option<String> {
    allocator.reset_peak_memory();
    let start = Instant::now();
    let outcome = catch_unwind(|| (target.check)(input));
    let (took, peak) = (start.elapsed(), allocator.get_peak_memory());
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
