//! What waits for a learner that is ten times too slow for its workers, with and without a limit, simulated with measured times:
//! `cargo run --release -p simulation --example back_pressure -- --lag 1 --workers 16 --outcomes 32`. Its gradient takes ten times as
//! long as the workers take for a task, all together; `--gradient` is passed over.

use clap::Parser;
use protocol::HoldLimit;
use service::output::{print_error_line, print_line};
use simulation::pace::{Moment, Pace, Paced};
use std::process::ExitCode;

/// Lines of the table.
const N_LINES: usize = 16;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    pace: Pace,
    /// Number of workers.
    #[arg(long, default_value_t = 16)]
    workers: u32,
    /// Times that the learner is slower than its workers.
    #[arg(long, default_value_t = 10.0)]
    slowness: f64,
    /// Outcomes that the learner has room for, and as many times an outcome's bytes.
    #[arg(long, default_value_t = 32)]
    outcomes: u64,
}

fn main() -> ExitCode {
    match table(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            print_error_line(problem);
            ExitCode::from(2)
        }
    }
}

fn table(Arguments { pace, workers, slowness, outcomes }: &Arguments) -> Result<(), String> {
    let gradient = slowness * pace.sampling / f64::from(*workers);
    let pace = Pace { gradient, ..pace.clone() };
    let bytes = outcomes * (pace.outcome_mb * 1e6) as u64;
    let limited = pace.run(*workers, HoldLimit { outcomes: *outcomes, bytes })?;
    let unlimited = pace.run(*workers, HoldLimit::NONE)?;
    print_line(format_args!(
        "Simulated: {workers} workers, {pace:?}. The most that waited for training: {} with room for {outcomes} outcomes, {} with \
         room for all that is wanted; an iteration takes {:.1} s and {:.1} s.\n",
        held(&limited.most_held),
        held(&unlimited.most_held),
        limited.seconds_per_iteration,
        unlimited.seconds_per_iteration
    ));
    print_line(
        "| s | with a limit: wait for training | workers that draw | that wait for the learner | without: wait for training |",
    );
    print_line("|---|---|---|---|---|");
    let n_moments = limited.moments.len().min(unlimited.moments.len());
    for position in (0..n_moments).step_by(n_moments.div_ceil(N_LINES).max(1)) {
        let moment = |paced: &Paced| -> Moment { paced.moments[position] };
        let (with, without) = (moment(&limited), moment(&unlimited));
        print_line(format_args!(
            "| {} | {} | {} | {} | {} |",
            with.at.as_secs(),
            held(&with.holds),
            with.n_drawing,
            with.n_waiting,
            held(&without.holds)
        ));
    }
    Ok(())
}

fn held(holds: &HoldLimit) -> String {
    format!("{} outcomes, {:.0} MB", holds.outcomes, holds.bytes as f64 / 1e6)
}
