//! Real processes and random faults: `cargo run --release -p tests --example chaos -- --seeds 10` (as root). Prints each
//! seed's schedule, by which `--seed N --seeds 1` does the same again, and a line of a table for each that has passed.

use std::collections::BTreeMap;

use clap::Parser;
use tests::chaos::schedule::{FAULTS, Fault, Schedule};
use tests::chaos::{disturb, enclosure, report, undisturbed};

/// Disturbs runs and holds them to the bits of undisturbed ones.
#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Faults of each run.
    #[arg(long, default_value_t = FAULTS.len())]
    faults: usize,
}

fn main() -> anyhow::Result<()> {
    let args: Args = service::parse_arguments();
    enclosure::enter().map_err(anyhow::Error::msg)?;
    let mut done: BTreeMap<Fault, usize> = BTreeMap::new();
    let (mut references, mut lines) = (BTreeMap::new(), Vec::new());
    for seed in args.seed..args.seed + args.seeds {
        let schedule = Schedule::of(seed, args.faults, &FAULTS);
        println!("seed {seed}: {schedule:?}");
        let key = (schedule.lag, schedule.group);
        let expected = references.entry(key).or_insert_with(|| undisturbed(&schedule));
        let outcome = disturb(&schedule, expected).map_err(anyhow::Error::msg)?;
        println!("events: {:?}", outcome.events);
        lines.push(report::line(seed, &schedule, &outcome));
        println!("{}\n{}", report::HEAD, lines.join("\n"));
        for planned in &schedule.faults {
            *done.entry(planned.fault).or_default() += 1;
        }
    }
    println!("{} runs with the same bits; faults: {done:?}", args.seeds);
    Ok(())
}
