//! The `coordinator` program.

use clap::Parser;
use coordinator::cli::{Cli, Command};
use coordinator::display::Display;
use coordinator::error::CoordinatorError;
use coordinator::{admin, config_file, inspection, launch, planning, up};
use service::{Hub, exit_code, logging};
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.exit_code();
            eprintln!("error: {:#}", anyhow::Error::from(error));
            ExitCode::from(code)
        }
    }
}

async fn run(cli: Cli) -> Result<u8, CoordinatorError> {
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    match cli.command {
        Command::Up(args) => {
            let display = Display::new(cli.log_format);
            logging::init_to(cli.log_format, "info", display.log_writer())?;
            return up::up(args, &hub, display).await;
        }
        Command::Status { run } => admin::status(&run, cli.log_format).await?,
        Command::Scale { run, workers } => admin::scale(&run, workers).await?,
        Command::Down { run } => admin::down(&run).await?,
        Command::Logs { run, follow } => admin::logs(&run, follow).await?,
        Command::Init { preset, list, file } => match file {
            Some(file) if !list => {
                config_file::init(&preset, &file)?;
                println!("wrote {}; next: `coordinator plan {}`", file.display(), file.display());
            }
            _ => println!("{}", config::preset_list()),
        },
        Command::Import { yaml, file } => {
            eprint!("{}", config_file::import(&yaml, &file)?);
            println!("wrote {}; next: `coordinator validate {}`", file.display(), file.display());
        }
        Command::Validate(args) => {
            let catalog = config_file::open(&args, &hub)?;
            let notes = inspection::everything(catalog.config(), &launch::programs()?)?;
            notes.iter().for_each(|note| eprintln!("note: {note}"));
            catalog.notes().iter().for_each(|note| eprintln!("note: {note}"));
            println!("{} is valid", args.file.display());
        }
        Command::Plan(args) => {
            let (plan, notes) = planning::plan(&args, &hub, &launch::programs()?)?;
            notes.iter().for_each(|note| eprintln!("note: {note}"));
            print!("{plan}");
        }
        Command::Export { run, to } => admin::export(&run, &to)?,
    }
    Ok(exit_code::DONE)
}
