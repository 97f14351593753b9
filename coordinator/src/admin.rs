//! Commands against a run: status, scale, down, export.

use crate::advice;
use crate::cards::Inventory;
use crate::entrance::operator_trust;
use crate::error::CoordinatorError;
use crate::export_stream::{export_by, prepare_destination};
use crate::exported;
use crate::launch::{MemberName, set_aside_notice};
use crate::learner_half::shown_directory;
use crate::living_members::LivingMembers;
use crate::logs_elsewhere::TellsLogs;
use crate::membership::Presence;
use crate::run_record::{RunRecord, find_run, loopback};
use crate::server::connect_admin;
use crate::status;
use crate::tenancy::{Tenancy, elsewhere, wait_for_end, wait_for_vacancy};
use crate::view::{EndedRun, LivingRun, RunView, Stage, to_json};
use proto::admin_client::AdminClient;
use proto::{DownRequest, MemberLog, MemberLogsRequest, ScaleRequest, StatusReply, StatusRequest};
use protocol::{PROGRAM_VERSION, PROTOCOL_VERSION};
use service::logging::LogFormat;
use service::output::print_line;
use service::trust::{Authority, Tokens};
use service::{PeerRole, Provenance, RunDirectory, ServiceError, durable};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;
use tonic::Code;
use tonic::transport::Channel;

pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Shows how a run is doing, or how it ended.
///
/// # Errors
/// If the run is unknown, or does not live and was killed before it could note how it ended.
pub async fn status(run: &str, format: LogFormat) -> Result<(), CoordinatorError> {
    let directory = absolute(find_run(run)?);
    let stage = match client_of(run).await {
        Ok((_, reply)) => Stage::Living(Box::new(with_cards(reply.into()))),
        Err(CoordinatorError::NotLiving { .. } | CoordinatorError::Finished(_)) => {
            let ended = EndedRun::of(RunRecord::read(&directory)?, &directory);
            Stage::Ended(ended.ok_or_else(|| killed(&directory))?)
        }
        Err(error) => return Err(error),
    };
    show(&RunView::with_files(stage, directory), format);
    Ok(())
}

pub(crate) fn show(view: &RunView, format: LogFormat) {
    print_line(match format {
        LogFormat::Text => status::text(view),
        LogFormat::Json => to_json(view).to_string(),
    });
}

fn killed(directory: &RunDirectory) -> CoordinatorError {
    CoordinatorError::Killed { run: directory.path().to_owned(), living: LivingMembers::of(directory) }
}

/// Adds what this machine tells of its cards, if any member has one.
pub(crate) fn with_cards(run: LivingRun) -> LivingRun {
    let named: Vec<String> =
        run.members.iter().filter_map(|member| Some(member.card.as_ref()?.name.clone())).collect();
    let Ok(host) = nix::unistd::gethostname() else { return run };
    if named.is_empty() {
        return run;
    }
    let cards = Inventory::look(&named, std::env::var("CUDA_DEVICE_ORDER").ok().as_deref());
    run.with_cards(&host.to_string_lossy(), |name| cards.find(name))
}

/// What is shown of a run holds in any directory.
fn absolute(run: RunDirectory) -> RunDirectory {
    std::path::absolute(run.path()).map_or(run, RunDirectory::new)
}

/// Sets the number of rollout workers of a living run.
///
/// # Errors
/// If the run is unknown or does not live; a usage error if config or machine do not take so many.
pub async fn scale(run: &str, workers: u32) -> Result<(), CoordinatorError> {
    let (client, reply) = client_of(run).await?;
    scale_by(client, reply, workers).await
}

/// The same, by a coordinator that has been reached.
pub(crate) async fn scale_by(
    mut client: AdminClient<Channel>,
    reply: StatusReply,
    workers: u32,
) -> Result<(), CoordinatorError> {
    let scaled = client.scale(service::request(ScaleRequest { workers }, DEADLINE)).await;
    scaled.map_err(|status| match status.code() {
        Code::ResourceExhausted => CoordinatorError::Usage(status.message().to_owned()),
        _ => status.into(),
    })?;
    print_line(match reply.workers_wanted == workers {
        true => still_wanted(&reply.into()),
        false => format!("{workers} workers wanted"),
    });
    Ok(())
}

/// What is said where the number of workers stays what it was: a place that is set aside stays so for now.
fn still_wanted(run: &LivingRun) -> String {
    let wanted = run.overview.workers_wanted;
    let is_living = |name: &str| {
        run.members.iter().any(|member| member.member_id == name && member.state == Presence::Living.as_str())
    };
    let set_aside = |position: &u32| {
        let name = MemberName::Worker(*position).to_string();
        let notice = set_aside_notice(&name);
        !is_living(&name) && run.notices.iter().any(|said| said.starts_with(&notice))
    };
    let names: Vec<String> =
        (0..wanted).filter(set_aside).map(|position| MemberName::Worker(position).to_string()).collect();
    let same = format!("{wanted} workers are wanted already; nothing changes");
    match names.is_empty() {
        true => same,
        false => format!(
            "{same}: {} stays set aside until it is tried again after a while, or at once where you scale to another number and \
             back (`coordinator status` says why)",
            names.join(", ")
        ),
    }
}

/// Stops a living run after what is in flight, and waits for its coordinator to end.
///
/// # Errors
/// If the run is unknown or does not live.
pub async fn down(run: &str) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let (mut client, _) = client_of(run).await?;
    client.down(service::request(DownRequest {}, DEADLINE)).await?;
    print_line(format_args!("stopping {run}: what is in flight is finished first"));
    wait_for_end(&directory).await;
    print_line("stopped");
    Ok(())
}

/// Draws a new token for a role.
///
/// # Errors
/// If the run is unknown, lives on another host or has no tokens of its own.
pub async fn rotate(run: &str, role: PeerRole) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    check_own_host(&directory, &format!("rotate --role {role}")).await?;
    let (record, secrets) = (RunRecord::read(&directory)?, directory.secrets());
    let path = Tokens::path(&secrets, role);
    let is_there = path.try_exists();
    if !is_there.map_err(|source| CoordinatorError::File { action: "look for", path, source })? {
        return Err(CoordinatorError::Usage(format!(
            "{} has no token for the role `{role}`: the run is not secured, or by certificates of your own",
            secrets.display()
        )));
    }
    let tokens = Tokens::of(&secrets, &Authority::read(&secrets, &record.run_id)?);
    print_line(format_args!(
        "{} is new; give it to members elsewhere: those that have the one before can stay until their certificates end, a day \
         at most",
        tokens.rotate(role)?.display()
    ));
    Ok(())
}

/// Refuses a command that changes the directory of a run which lives on another host.
async fn check_own_host(directory: &RunDirectory, command: &str) -> Result<(), CoordinatorError> {
    let Tenancy::Elsewhere(owner) = Tenancy::of(directory) else { return Ok(()) };
    wait_for_vacancy(directory).await.map(drop).map_err(|error| match error {
        CoordinatorError::Usage(_) => CoordinatorError::Usage(format!(
            "{} lives on another host: {}; type `{}` there",
            directory.path().display(),
            owner.whereabouts(),
            advice::on(command, directory.path())
        )),
        error => error,
    })
}

/// The coordinator of a run, and what it says of itself. Its port may have passed to that of another run, which must not hear
/// what is not meant for it.
async fn client_of(run: &str) -> Result<(AdminClient<Channel>, StatusReply), CoordinatorError> {
    let directory = find_run(run)?;
    let mut record = RunRecord::read(&directory)?;
    let is_done = record.is_done();
    let tenancy = Tenancy::of(&directory);
    let not_living = || match (&tenancy, is_done) {
        (Tenancy::Elsewhere(owner), _) => CoordinatorError::Usage(elsewhere(&directory, owner)),
        (_, true) => CoordinatorError::Finished(directory.path().to_owned()),
        (_, false) => {
            let (run, living) = (directory.path().to_owned(), LivingMembers::of(&directory));
            CoordinatorError::NotLiving { run, living }
        }
    };
    match &tenancy {
        Tenancy::Nowhere => return Err(not_living()),
        Tenancy::Here => {}
        Tenancy::Elsewhere(_) => {
            let address = advertised_address(&directory).filter(|address| *address != loopback(record.port));
            record.address = Some(address.ok_or_else(not_living)?);
        }
    }
    let unreachable = |error| match error {
        CoordinatorError::Service(ServiceError::Unreachable { .. }) => not_living(),
        other => other,
    };
    let trust = operator_trust(&record, &directory).await.map_err(unreachable)?;
    let client = connect_admin(&record.coordinator_address(), &trust).await;
    let mut client = client.map_err(|error| unreachable(error.into()))?;
    let reply = client.status(service::request(StatusRequest::default(), DEADLINE)).await?.into_inner();
    if reply.run_id != record.run_id {
        return Err(not_living());
    }
    check_version(run, &reply)?;
    Ok((client, reply))
}

/// Whether this program and a coordinator understand each other; `run` is what the user calls it.
pub(crate) fn check_version(run: &str, reply: &StatusReply) -> Result<(), CoordinatorError> {
    match reply.protocol_version == PROTOCOL_VERSION {
        true => Ok(()),
        false => Err(CoordinatorError::Usage(format!(
            "the coordinator of {run} is version {} and speaks protocol {}; this program is version {PROGRAM_VERSION} and speaks \
             {PROTOCOL_VERSION}: use the programs that the run was started with",
            reply.program_version, reply.protocol_version
        ))),
    }
}

/// Where the coordinator of a run is reached from other hosts.
fn advertised_address(directory: &RunDirectory) -> Option<String> {
    let bytes = config::read_whole(&directory.address_file(), config::MOST_SETTINGS_BYTES).ok()?;
    Some(String::from_utf8(bytes).ok()?.trim().to_owned())
}

/// What members log whose logs are not in a run's directory, as its coordinator tells it.
pub(crate) struct MemberLogs {
    run: String,
    /// Once it has been reached.
    client: Option<AdminClient<Channel>>,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl MemberLogs {
    /// Those of a run, which the user calls so.
    pub(crate) fn of(run: &str, directory: &RunDirectory) -> Self {
        let directory = directory.clone();
        let end = Box::pin(async move { wait_for_end(&directory).await });
        Self { run: run.to_owned(), client: None, end }
    }

    /// What is wanted of them; nothing where the run does not live or its coordinator does not answer.
    pub(crate) async fn ask(&mut self, request: MemberLogsRequest) -> Vec<MemberLog> {
        ask_logs(&self.run, &mut self.client, request).await
    }
}

impl TellsLogs for MemberLogs {
    async fn tell(&mut self, request: MemberLogsRequest) -> Option<Vec<MemberLog>> {
        let Self { run, client, end } = self;
        tokio::select! {
            biased;
            () = end => None,
            logs = ask_logs(run, client, request) => Some(logs),
        }
    }
}

async fn ask_logs(
    run: &str,
    client: &mut Option<AdminClient<Channel>>,
    request: MemberLogsRequest,
) -> Vec<MemberLog> {
    if client.is_none() {
        *client = client_of(run).await.ok().map(|(client, _)| client);
    }
    let Some(reached) = client else { return Vec::new() };
    match reached.member_logs(service::request(request, DEADLINE)).await {
        Ok(reply) => reply.into_inner().logs,
        Err(status) => {
            tracing::warn!("logs of members elsewhere: {}", status.message());
            // It may come back at another address.
            *client = None;
            Vec::new()
        }
    }
}

/// Copies the adapter of a run; of a living one whose learner has a directory of its own, by way of its coordinator.
///
/// # Errors
/// A usage error if the run has none yet or the destination exists; another if the run was interrupted at exporting.
pub async fn export(run: &str, to: &Path) -> Result<(), CoordinatorError> {
    let half = RunRecord::read(&find_run(run)?).ok().and_then(|record| record.learner_half);
    if half.is_some()
        && let Ok((client, _)) = client_of(run).await
    {
        return export_by(client, run.to_owned(), to).await;
    }
    export_from(&shown_directory(&find_run(run)?, half.as_ref()), to)
}

fn export_from(directory: &RunDirectory, to: &Path) -> Result<(), CoordinatorError> {
    let adapter = directory.adapter();
    if !adapter.is_dir() {
        return Err(CoordinatorError::Usage(format!(
            "{} does not exist yet; the learner writes it with its first checkpoint",
            adapter.display()
        )));
    }
    prepare_destination(to)?;
    // First, so that an export that begins between the two is noticed.
    let before = Provenance::of_exports(directory);
    exported::check(directory, Tenancy::of(directory) != Tenancy::Nowhere)?;
    durable::write_directory(to, |partial| {
        copy_files(&adapter, partial)?;
        match Provenance::of_exports(directory) == before {
            true => Ok(()),
            false => Err(CoordinatorError::NotExported(format!(
                "{} changed while it was copied; try again",
                adapter.display()
            ))),
        }
    })?;
    print_line(to.display());
    Ok(())
}

/// Copies what is exported into a folder that is there.
fn copy_files(from: &Path, to: &Path) -> Result<(), CoordinatorError> {
    for name in service::files_below(from)? {
        let (path, copy) = (from.join(&name), to.join(&name));
        let folder = copy.parent().map_or(Ok(()), std::fs::create_dir_all);
        let copied = folder.and_then(|()| std::fs::copy(&path, &copy));
        copied.map_err(|source| CoordinatorError::File { action: "copy", path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stand_ins::StandIn;
    use crate::view::tests::living_run;
    use service::Ownership;

    fn run_with_record() -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("a directory");
        write(&RunRecord::new("demo"), home.path());
        home
    }

    fn write(record: &RunRecord, run: &Path) {
        let owner = Ownership::claim(&RunDirectory::new(run), 0, None).expect("claimed");
        record.write(owner.directory()).expect("written");
    }

    #[tokio::test]
    async fn a_run_that_is_done_is_not_told_to_go_on_as_if_it_had_stopped() {
        let home = run_with_record();
        let directory = RunDirectory::new(home.path());
        let run = home.path().to_str().expect("text");
        let told = down(run).await.expect_err("nobody lives").to_string();
        assert!(told.contains("does not live; go on with it by `coordinator resume"), "{told}");
        let mut record = RunRecord::read(&directory).expect("readable");
        record.ended = Some(crate::run_record::RunEnding::Done { summary: Box::default() });
        write(&record, home.path());
        for told in [down(run).await, scale(run, 2).await] {
            let told = told.expect_err("nobody lives").to_string();
            assert!(
                told.contains("is done; `coordinator status") && told.contains("run.iterations=N"),
                "{told}"
            );
        }
        status(run, LogFormat::Json).await.expect("it is shown how it ended");
    }

    #[test]
    fn a_place_that_is_set_aside_is_named_where_the_number_of_workers_stays_the_same() {
        let mut run = living_run();
        run.overview.workers_wanted = 3;
        assert_eq!(still_wanted(&run), "3 workers are wanted already; nothing changes");
        let notice = |name: &str| format!("{} again and again it ended", set_aside_notice(name));
        // The first came back by itself since, and the last is wanted no more.
        run.members.truncate(1);
        run.members[0].member_id = "worker-0".to_owned();
        run.members[0].state = "living".to_owned();
        run.notices = ["worker-0", "worker-2", "worker-7"].map(notice).to_vec();
        let told = still_wanted(&run);
        assert!(told.contains("nothing changes: worker-2 stays set aside"), "{told}");
    }

    #[tokio::test]
    async fn members_of_a_killed_coordinator_are_named_with_what_ends_them() {
        let home = run_with_record();
        let directory = RunDirectory::new(home.path());
        let run = home.path().to_str().expect("text");
        let member = StandIn::start("worker-0");
        member.record(&directory, "worker-0");
        let status = status(run, LogFormat::Text).await.expect_err("killed").to_string();
        for told in [status, down(run).await.expect_err("nobody lives").to_string()] {
            let words = [format!("worker-0 (process {})", member.pid()), format!("`kill {}`", member.pid())];
            assert!(words.iter().all(|words| told.contains(words)), "{told}");
            assert!(told.contains("coordinator resume"), "{told}");
        }
    }

    #[tokio::test]
    async fn tokens_of_a_run_that_lives_on_another_host_are_drawn_there() {
        let home = run_with_record();
        let directory = RunDirectory::new(home.path());
        let owner = Ownership::claim(&directory, 1, None).expect("claimed");
        let text = std::fs::read_to_string(directory.owner_file()).expect("readable");
        let far = text.replace(&format!("\"{}\"", service::host_name()), "\"far-away\"");
        std::fs::write(directory.owner_file(), far).expect("written");
        let run = home.path().to_str().expect("text");
        // The second is polled once the first has begun to watch.
        let (refused, ()) = tokio::join!(biased; rotate(run, PeerRole::Worker), async {
            owner.beat().expect("it lives");
        });
        let error = refused.expect_err("it lives there");
        let told = error.to_string();
        assert!(error.exit_code() == 2 && told.contains("on far-away"), "{told}");
        assert!(told.contains(&format!("type `coordinator rotate --role worker {run}` there")), "{told}");
        owner.release().expect("it ends");
        let told = rotate(run, PeerRole::Worker).await.expect_err("it has none").to_string();
        assert!(told.contains("no token for the role `worker`"), "{told}");
    }

    #[tokio::test]
    async fn export_copies_the_adapter_once_there_is_one() {
        let home = run_with_record();
        let run = home.path().to_str().expect("text");
        let to = home.path().join("out/adapter");
        assert_eq!(export(run, &to).await.expect_err("none yet").exit_code(), 2);
        for folder in ["peft", "diffusers", ".peft.partial"] {
            std::fs::create_dir_all(home.path().join("adapter").join(folder)).expect("created");
        }
        std::fs::write(home.path().join("adapter/peft/adapter_config.json"), "{}").expect("written");
        export(run, &to).await.expect("copied");
        assert_eq!(std::fs::read_to_string(to.join("peft/adapter_config.json")).expect("readable"), "{}");
        assert!(!to.join(".peft.partial").exists(), "what is not finished is not copied");
        assert_eq!(export(run, &to).await.expect_err("exists").exit_code(), 2);
    }
}
