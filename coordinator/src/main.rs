//! The `coordinator` program.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use config::RunConfig;
use coordinator::branch::{Branching, branch};
use coordinator::catalog::PromptSource;
use coordinator::cli::{Cli, Command, Place, UpArgs};
use coordinator::display::Display;
use coordinator::error::CoordinatorError;
use coordinator::inspection::Servers;
use coordinator::placement::MembersHere;
use coordinator::remote_run::RemoteRun;
use coordinator::{admin, advice, config_file, examination, launch, logs, planning, resume, up};
use service::logging::LogFormat;
use service::output::{StandardOutput, print_error_line, print_line, print_text};
use service::{Hub, exit_code, logging};
use std::path::Path;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = service::parse_arguments();
    match run(cli).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.exit_code();
            print_error_line(format_args!("error: {:#}", anyhow::Error::from(error)));
            ExitCode::from(code)
        }
    }
}

async fn run(cli: Cli) -> Result<u8, CoordinatorError> {
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    match cli.command {
        Command::Up(args) => return bring_up(args, &hub, cli.log_format).await,
        Command::Resume(args) => return bring_up(resume::arguments(args)?, &hub, cli.log_format).await,
        Command::Status(run) => match RemoteRun::reach(&run.operator).await? {
            Some(remote) => remote.status(cli.log_format),
            None => admin::status(run.typed(), cli.log_format).await?,
        },
        Command::Scale { run, workers } => match RemoteRun::reach(&run.operator).await? {
            Some(remote) => remote.scale(workers).await?,
            None => admin::scale(run.typed(), workers).await?,
        },
        Command::Down(run) => match RemoteRun::reach(&run.operator).await? {
            Some(remote) => remote.down().await?,
            None => admin::down(run.typed()).await?,
        },
        Command::Rotate { run, role } => admin::rotate(&run, role).await?,
        Command::Logs { run, follow, tail } => match RemoteRun::reach(&run.operator).await? {
            Some(remote) => remote.logs(follow, tail, &mut StandardOutput).await?,
            None => logs::logs(run.typed(), follow, tail, &mut StandardOutput).await?,
        },
        Command::Init { preset, list, from, checkpoint, settings, file } => match (file, from) {
            (Some(file), Some(run)) => {
                let branching = Branching { run, checkpoint, settings };
                print_line(branch(&branching, &file, &launch::programs()?)?);
                say_written(&file, "up");
            }
            (Some(file), None) if !list => {
                config_file::init(&preset, &file)?;
                say_written(&file, "plan");
            }
            _ => print_line(config::preset_list()),
        },
        Command::Import { yaml, file } => {
            print_error_line(config_file::import(&yaml, &file)?.trim_end());
            say_written(&file, "validate");
        }
        Command::Validate(args) => {
            let (catalog, notes) = examination::everything(
                &args,
                &hub,
                &launch::programs()?,
                Servers { are_knocked_at: true, insecure: None },
                (PromptSource::Config, &|config: &RunConfig| MembersHere::of(Place::Local, config)),
            )?;
            let notes = notes.iter().chain(catalog.notes());
            notes.for_each(|note| print_error_line(format_args!("note: {note}")));
            print_line(format_args!("{} is valid", args.file.display()));
        }
        Command::Plan(args) => {
            let (plan, notes) = planning::plan(&args.config, &hub, &launch::programs()?)?;
            let time = planning::time(&args)?;
            notes.iter().for_each(|note| print_error_line(format_args!("note: {note}")));
            let seats = planning::seats(&args.config)?;
            print_text(format_args!("{plan}{seats}{time}"));
        }
        Command::Export { run, to } => match RemoteRun::reach(&run.operator).await? {
            Some(remote) => remote.export(&to).await?,
            None => admin::export(run.typed(), &to).await?,
        },
    }
    Ok(exit_code::DONE)
}

async fn bring_up(args: UpArgs, hub: &Hub, format: LogFormat) -> Result<u8, CoordinatorError> {
    let display = Display::new(format);
    logging::init_to(format, "info", display.log_writer())?;
    up::up(args, hub, display).await
}

fn say_written(file: &Path, next: &str) {
    print_line(format_args!("wrote {}; next: `{}`", file.display(), advice::on(next, file)));
}
