//! A member of a run without models, for tests of how members are started: the real protocol, and tasks that take a moment.
//! What it is follows from the name that it is called by, `learner` or `rollout-worker`.

use clap::Parser;
use proto::{JoinReply, Progress, Role, TaskKind, Wanted};
use service::output::print_line;
use service::{
    JoinDetails, MemberArguments, Membership, OwnedDirectory, PeerRole, Provenance, RecentLog, RunDirectory,
    ServiceError, durable, exit_code, logging, shutdown, trust_by,
};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time that a task takes, and that an iteration does.
const TASK: Duration = Duration::from_millis(50);
const ITERATION: Duration = Duration::from_millis(200);

#[derive(Parser)]
struct ServeArguments {
    #[command(flatten)]
    member: MemberArguments,
    #[arg(long)]
    member_id: String,
    #[arg(long, default_value = "")]
    listen: String,
    #[arg(long, default_value = "nowhere")]
    advertise: String,
    /// Of a learner, its half of the run; it keeps what it got, and makes up something to show.
    #[arg(long)]
    run_directory: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let role = match Path::new(&words[0]).file_name().and_then(|name| name.to_str()) {
        Some("learner") => PeerRole::Learner,
        _ => PeerRole::Worker,
    };
    match words.get(1).map(String::as_str) {
        Some("serve") => {
            let words = words.iter().take(1).chain(&words[2..]);
            serve(ServeArguments::parse_from(words), role)
        }
        Some("inspect-rewards") => {
            print_line("[]");
            ExitCode::SUCCESS
        }
        _ => {
            print_line(INSPECTION);
            ExitCode::SUCCESS
        }
    }
}

/// What is said of any model.
const INSPECTION: &str = r#"{"folder": "/", "class": "none", "dtype": "float32", "components": [], "n_blocks": 0, "width": 0,
"decoder_width": 0, "image": {"height": 0, "width": 0, "latent_shape": [], "tokens": 0}, "text_tokens": 0, "embedding_widths": [0, 0],
"rows_per_evaluation": 1, "rows_per_held_out_evaluation": 1, "adapter": null, "steps": []}"#;

fn serve(arguments: ServeArguments, role: PeerRole) -> ExitCode {
    let logs = logging::init(arguments.member.log_format, "info");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (Ok(log), Ok(runtime)) = (logs, runtime) else { return ExitCode::from(exit_code::FAILED) };
    let code = match runtime.block_on(take_part(arguments, role, log)) {
        Ok(()) => exit_code::DONE,
        Err(error) => {
            print_line(format_args!("error: {error}"));
            error.exit_code()
        }
    };
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Works until it is told to leave, is asked to end, or loses the coordinator.
async fn take_part(arguments: ServeArguments, role: PeerRole, log: RecentLog) -> Result<(), ServiceError> {
    let signals = shutdown::on_signals()?;
    let ServeArguments { member, member_id, listen: _, advertise, run_directory } = arguments;
    let own_directory = run_directory.map(RunDirectory::new);
    let grace = member.coordinator_grace;
    let trust = trust_by(member.credentials()?, role, grace).await?;
    let details = match role {
        // Nobody asks it anything.
        PeerRole::Learner => JoinDetails {
            role: Role::Learner,
            member_id,
            rank: 0,
            address: format!("{advertise}:1"),
            metrics_address: String::new(),
            grace,
            own_directory: own_directory.clone(),
        },
        _ => JoinDetails {
            role: Role::RolloutWorker,
            member_id,
            rank: 0,
            address: String::new(),
            metrics_address: String::new(),
            grace,
            own_directory: None,
        },
    };
    let (membership, reply) = Membership::join(&member.coordinator, &trust, details).await?;
    membership.shows_log(log);
    let half = match own_directory {
        Some(own) => Some(own_half(own, &membership, &reply).await?),
        None => None,
    };
    let outcome = match role {
        PeerRole::Learner => learn(&membership, &signals, half.as_ref()).await,
        _ => sample(&membership, &signals).await,
    };
    if let Some(half) = half {
        membership.send_results(&half, 0).await?;
    }
    membership.leave().await;
    outcome
}

/// A half with what there is to read, a checkpoint and something to show.
async fn own_half(
    own: RunDirectory,
    membership: &Membership,
    reply: &JoinReply,
) -> Result<OwnedDirectory, ServiceError> {
    let half = OwnedDirectory::of_own_half(own, &membership.caller().run_id, &reply.config)?;
    membership.fetch_inputs(&half).await?;
    half.create_directory(&half.checkpoints().join("iteration-000001"))?;
    half.create_directory(&half.adapter())?;
    for folder in ["peft", "diffusers"] {
        half.write_directory(&half.adapter().join(folder), |partial| {
            Provenance { version: 1, average: "a".to_owned() }.write(partial)?;
            durable::write_file(&partial.join("weights.safetensors"), &vec![7; 1_000_001])
        })?;
    }
    let row =
        r#"{"version": 1, "reward": 0.5, "standard_error": 0.1, "network_evaluations": 60, "seconds": 3.0}"#;
    half.write_file(&half.evaluations(), format!("{row}\n").as_bytes())?;
    Ok(half)
}

/// Wants the tasks of one iteration after the other, whether they were done or not.
async fn learn(
    membership: &Membership,
    signals: &CancellationToken,
    half: Option<&OwnedDirectory>,
) -> Result<(), ServiceError> {
    let start = Instant::now();
    while !signals.is_cancelled() {
        let asked = membership.standing().borrow().results_asked;
        if let (Some(asked), Some(half)) = (asked, half) {
            membership.send_results(half, asked.number).await?;
        }
        let iteration = (start.elapsed().as_millis() / ITERATION.as_millis()) as u32;
        let kind = TaskKind::Train.into();
        let wanted = Wanted { kind, iteration, version: iteration, ..Wanted::default() };
        let progress = Progress { iteration, phase: "sampling".to_owned(), ..Progress::default() };
        if membership.report(vec![wanted], progress, Vec::new()).await?.drain {
            break;
        }
        tokio::time::sleep(ITERATION).await;
    }
    Ok(())
}

/// Does tasks in no time.
async fn sample(membership: &Membership, signals: &CancellationToken) -> Result<(), ServiceError> {
    let is_told = || membership.standing().borrow().drain.is_some() || signals.is_cancelled();
    while !is_told() {
        if let Some(task) = membership.next_task(&[], TASK).await? {
            tokio::time::sleep(TASK).await;
            if let Some(id) = task.id {
                membership.task_held(id).await?;
            }
        }
    }
    Ok(())
}
