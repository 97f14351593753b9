//! `simulation`: runs worlds by their seeds, or tells the story of one.

use clap::Parser;
use simulation::{Bug, Outcome, run};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Runs simulated worlds.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// One seed, whose story is told.
    #[arg(long)]
    seed: Option<u64>,
    /// A deliberate bug.
    #[arg(long)]
    bug: Option<Bug>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => tell(seed, args.bug),
        None => sweep(&args),
    }
}

fn tell(seed: u64, bug: Option<Bug>) -> ExitCode {
    let outcome = run(seed, bug, true);
    outcome.story.iter().for_each(|line| println!("{line}"));
    match outcome.violation {
        Some(violation) => {
            println!("seed {seed}: VIOLATION: {violation}");
            ExitCode::FAILURE
        }
        None => {
            println!(
                "seed {seed}: {} events in {:.1} s of its time",
                outcome.events,
                outcome.took.as_secs_f64()
            );
            ExitCode::SUCCESS
        }
    }
}

fn sweep(args: &Args) -> ExitCode {
    let (start, next) = (Instant::now(), AtomicU64::new(args.from));
    let end = args.from + args.seeds;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut outcomes = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return outcomes;
            }
            outcomes.insert(seed, run(seed, args.bug, false));
        }
    };
    let outcomes: BTreeMap<u64, Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a world does not panic")).collect()
    });
    summarize(&outcomes, start.elapsed().as_secs_f64());
    match outcomes.values().all(|outcome| outcome.violation.is_none()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn summarize(outcomes: &BTreeMap<u64, Outcome>, seconds: f64) {
    let violations: Vec<_> =
        outcomes.iter().filter_map(|(seed, outcome)| Some((seed, outcome.violation.as_ref()?))).collect();
    for (seed, violation) in violations.iter().take(20) {
        println!("seed {seed}: {violation}\n  replay: make sim SEED={seed}");
    }
    let events: u64 = outcomes.values().map(|outcome| outcome.events).sum();
    let n_failed = outcomes.values().filter(|outcome| !outcome.failures.is_empty()).count();
    let hours: f64 = outcomes.values().map(|outcome| outcome.took.as_secs_f64()).sum::<f64>() / 3600.0;
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for (what, count) in outcomes.values().flat_map(|outcome| &outcome.seen) {
        *seen.entry(what).or_default() += count;
    }
    println!("  {seen:?}");
    if let Some((seed, outcome)) = outcomes.iter().max_by_key(|(_, outcome)| outcome.longest_standstill) {
        println!("  longest standstill {:?}, seed {seed}", outcome.longest_standstill);
    }
    let most_outcomes = outcomes.values().map(|outcome| outcome.most_held.outcomes).max().unwrap_or(0);
    let most_bytes = outcomes.values().map(|outcome| outcome.most_held.bytes).max().unwrap_or(0);
    println!(
        "  where room is limited, at most {most_outcomes} outcomes and {most_bytes} bytes waited for training"
    );
    println!(
        "{} seeds, {} violations; {events} events, {hours:.0} hours of their time, {n_failed} with a run that had to be resumed after a \
         failure; {seconds:.1} s, {:.0} seeds a minute",
        outcomes.len(),
        violations.len(),
        60.0 * outcomes.len() as f64 / seconds
    );
}
