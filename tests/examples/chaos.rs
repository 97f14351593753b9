//! Real processes and random faults: `cargo run --release -p tests --example chaos -- --seeds 10` (as root). Prints each
//! seed's schedule, by which `--seed N --seeds 1` does the same again, and ends with what was done in all.

use std::collections::BTreeMap;

use clap::Parser;
use tests::chaos::schedule::{FAULTS, Fault, Schedule};
use tests::chaos::{disturb, undisturbed};

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
    let mut done: BTreeMap<Fault, usize> = BTreeMap::new();
    let mut references = BTreeMap::new();
    for seed in args.seed..args.seed + args.seeds {
        let schedule = Schedule::of(seed, args.faults, &FAULTS);
        println!("seed {seed}: {schedule:?}");
        let key = (schedule.lag, schedule.group);
        let expected = references.entry(key).or_insert_with(|| undisturbed(&schedule));
        let outcome = disturb(&schedule, expected).map_err(anyhow::Error::msg)?;
        println!("seed {seed}: the same bits after {:.0} s", outcome.took.as_secs_f64());
        println!(
            "seconds: task elsewhere {:.2?}, tickets flow {:.2?}, first task {:.2?}; events: {:?}",
            outcome.tasks_elsewhere, outcome.tickets_flow, outcome.first_tasks, outcome.events
        );
        for planned in &schedule.faults {
            *done.entry(planned.fault).or_default() += 1;
        }
    }
    println!("{} runs with the same bits; faults: {done:?}", args.seeds);
    Ok(())
}
