//! How much faster more workers are at a fixed batch, simulated with measured times:
//! `cargo run --release -p simulation --example worker_scaling -- --lag 1 --tasks 256 --sampling 10 --gradient 0.05 --update 1`.
//! `--help` names all times; what is simulated and what is real stands in `simulation::pace`.

use clap::Parser;
use protocol::HoldLimit;
use service::output::{print_error_line, print_line};
use simulation::pace::Pace;
use std::process::ExitCode;

/// A run is efficient as long as its workers do so much of what as many single ones would.
const EFFICIENT: f64 = 0.9;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    pace: Pace,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64")]
    workers: Vec<u32>,
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

fn table(Arguments { pace, workers }: &Arguments) -> Result<(), String> {
    let alone = pace.run(1, HoldLimit::NONE)?;
    print_line(format_args!("Simulated: {pace:?}. Shares of the workers' time.\n"));
    print_line(
        "| workers | s/iteration | tasks/s | efficiency | at most, by whole tasks | draw | fetch weights | score and push | wait \
         for the learner | wait for others | learner busy |",
    );
    print_line("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut bend = None;
    for &n_workers in workers {
        let paced = pace.run(n_workers, HoldLimit::NONE)?;
        let shares = paced.shares;
        let efficiency = alone.seconds_per_iteration / (paced.seconds_per_iteration * f64::from(n_workers));
        if efficiency < EFFICIENT && bend.is_none() {
            bend = Some((n_workers, shares.reason()));
        }
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let cells = [
            n_workers.to_string(),
            format!("{:.2}", paced.seconds_per_iteration),
            format!("{:.2}", f64::from(pace.tasks) / paced.seconds_per_iteration),
            format!("{efficiency:.3}"),
            format!("{:.3}", pace.bound_by_tasks(n_workers)),
            percent(shares.drawing),
            percent(shares.fetching),
            percent(shares.delivering),
            percent(shares.learner),
            percent(shares.others),
            percent(paced.learner_busy),
        ];
        print_line(format_args!("| {} |", cells.join(" | ")));
    }
    match bend {
        Some((n_workers, reason)) => print_line(format_args!(
            "\nBelow {EFFICIENT} from {n_workers} workers on; most of their time is lost by {reason}."
        )),
        None => print_line(format_args!("\nNever below {EFFICIENT}.")),
    }
    Ok(())
}
