//! `rollout-worker serve-reward`: hosts scorers for others, by `proto/reward.proto`.
//!
//! ```text
//! calls ── a place in the queue ──▶ pixels arrive ──▶ queue ──▶ the scorer's thread ──▶ replies
//! ```
//!
//! 1. A batch has its place before its pixels are taken, so that memory is bounded by the queue's length; and it has it
//!    only once pixels come, so that streams that stand still keep no places.
//! 2. One call is one batch: scores do not depend on who else asks.
//! 3. A batch whose call has ended, by its deadline or because the caller has gone, is not scored.

mod batch;
mod hosted;
mod replies;
mod service;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ::service::network::{self, ListenAddress};
use ::service::trust::plain_text_rewards;
use ::service::{Hub, PeerRole, Security, ServiceError, Trust, trust_by};
use anyhow::Context;
use config::{ComputeDevice, RewardSection};
use proto::reward_server::RewardServer;
use rewards::RunIdentity;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use crate::bad_input::BadInput;
use crate::scoring::reward_thread::{self, ThreadOptions};
use hosted::Hosted;
use service::RewardService;

/// How long batches in hand may take once the server was told to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// Longest call: a batch may wait for others, and scorers may be slow.
const LONGEST_CALL: Duration = Duration::from_secs(24 * 3600);

/// What is hosted, and how.
pub struct ServeRewardOptions {
    /// The scorers with their options.
    pub rewards: Vec<RewardSection>,
    /// Where to listen; port 0 takes a free one.
    pub listen: ListenAddress,
    /// What callers are told to reach it by; empty follows `listen`.
    pub advertise: String,
    /// `cpu` or `cuda`.
    pub device: ComputeDevice,
    /// CPU threads of each scorer's tensor operations.
    pub n_threads: usize,
    /// Batches of each scorer that may wait.
    pub max_queue: usize,
    /// Where models are found by name.
    pub hub: Hub,
    /// How this server shows who it is, and knows who calls.
    pub credentials: Security,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeEnd {
    /// Everything that was taken was answered.
    Drained,
    /// Something was still in hand at the end of the time to drain.
    CutOff,
}

/// The scorers called `names` with options as `KEY=VALUE`, or `NAME.KEY=VALUE` where there are several.
///
/// # Errors
/// If a name is given twice, or an option is not of that form.
pub fn choices(names: &[String], options: &[String]) -> anyhow::Result<Vec<RewardSection>> {
    if let Some(twice) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        anyhow::bail!("reward `{}` is given twice; host it by another process", twice.1);
    }
    let [_, _, ..] = names else {
        return names.iter().map(|name| Ok(config::reward_from_settings(name, options)?)).collect();
    };
    let mut own: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for option in options {
        // Names have dots in them, as `hpsv2.1`.
        let addressed = names.iter().find_map(|name| {
            let setting = option.strip_prefix(name.as_str())?.strip_prefix('.')?;
            Some((name.as_str(), setting.to_owned()))
        });
        let (name, setting) = addressed.with_context(|| {
            let example = format!("{}.KEY=VALUE", names[0]);
            format!("option `{option}` does not say of which reward it is; write `{example}`")
        })?;
        own.entry(name).or_default().push(setting);
    }
    let section = |name: &String| {
        let settings = own.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        Ok(config::reward_from_settings(name, settings)?)
    };
    names.iter().map(section).collect()
}

/// Serves until `shutdown`; calls `ready` with the URL once it can score.
///
/// # Errors
/// [`BadInput`] if a scorer cannot be built or the address cannot be listened at, [`ServiceError`] if this server cannot
/// show who it is or would speak plain text to others unwished; else if a scorer's thread dies.
pub async fn run(
    options: ServeRewardOptions,
    shutdown: CancellationToken,
    ready: impl FnOnce(&str),
) -> anyhow::Result<ServeEnd> {
    // Taken before models are loaded, to fail early, but not listened at: until then there is nobody to wait for.
    let socket = options.listen.take().map_err(BadInput::from_error)?;
    let bound = socket.local_addr().context("listening")?;
    let (credentials, grace, advertise) =
        (options.credentials.clone(), options.grace, options.advertise.clone());
    let started = async {
        let trust = trust_by(credentials, PeerRole::Reward, grace).await?;
        check_listening(&trust, bound)?;
        anyhow::Ok((open(options).await?, trust))
    };
    let Some((hosted, trust)) = shutdown.run_until_cancelled(started).await.transpose()? else {
        return Ok(ServeEnd::Drained);
    };
    let listener = socket.listen(network::BACKLOG).context("listening")?;
    let address = network::told_address(&listener, &advertise, None);
    ready(&format!("{}://{address}", trust.scheme()));
    serve((listener, trust), hosted, shutdown).await
}

/// Who listens for others in plain text has been told to, and says so once.
fn check_listening(trust: &Trust, listen: SocketAddr) -> Result<(), ServiceError> {
    trust.check_listening(listen.ip())?;
    if !trust.is_mutual() && !listen.ip().to_canonical().is_loopback() {
        tracing::warn!(
            "whoever reaches {listen} is served, in plain text: anybody on the way can read and change prompts, images and scores"
        );
    }
    Ok(())
}

async fn open(options: ServeRewardOptions) -> anyhow::Result<Vec<Hosted>> {
    let ServeRewardOptions { rewards, device, n_threads, max_queue, hub, .. } = options;
    let opened = run_setup::open_device(device).map_err(::service::cuda::explained);
    let device = opened.map_err(BadInput::from_error)?;
    if let Some(exposed) = plain_text_rewards(&rewards) {
        tracing::warn!("{exposed}");
    }
    let mut hosted = Vec::with_capacity(rewards.len());
    for section in rewards {
        let options = ThreadOptions { name: section.name.clone(), n_threads, max_queue };
        // No server of rewards may ask another one of its run.
        let build = reward_thread::build(section, device, hub.clone(), RunIdentity::None);
        hosted.push(Hosted::start(options, build).await?);
    }
    Ok(hosted)
}

async fn serve(
    (listener, trust): (TcpListener, Trust),
    hosted: Vec<Hosted>,
    shutdown: CancellationToken,
) -> anyhow::Result<ServeEnd> {
    let mut deaths: JoinSet<()> = hosted.iter().map(Hosted::died).collect();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<RewardServer<RewardService>>().await;
    let going_away = shutdown.clone();
    let stop = async move {
        going_away.cancelled().await;
        health.set_not_serving::<RewardServer<RewardService>>().await;
        // The process as a whole, which is what probes ask about by default.
        health.set_service_status("", ServingStatus::NotServing).await;
    };
    let service =
        RewardServer::new(RewardService::new(hosted)).max_decoding_message_size(::service::MESSAGE_LIMIT);
    let router = ::service::server(LONGEST_CALL).add_service(health_service).add_service(service);
    let server = ::service::serve(router, listener, trust, stop);
    let drained_too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        served = server => served.context("serving").map(|()| ServeEnd::Drained),
        Some(_) = deaths.join_next() => anyhow::bail!("a scorer's thread has died; its panic is above"),
        () = drained_too_long => Ok(ServeEnd::CutOff),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], options: &[&str]) -> Result<Vec<(String, String)>, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let sections = choices(&owned(names), &owned(options)).map_err(|error| error.to_string())?;
        Ok(sections
            .iter()
            .map(|reward| (reward.name.clone(), reward.options_as_json().to_string()))
            .collect())
    }

    #[test]
    fn options_go_to_the_only_scorer_or_to_the_one_they_name() {
        let of = |name: &str, options: &str| (name.to_owned(), options.to_owned());
        let one = chosen(&["deqa"], &["url=http://a.b:1", "batch_size=3"]).expect("well-formed");
        assert_eq!(one, [of("deqa", r#"{"batch_size":3,"url":"http://a.b:1"}"#)]);
        let two = chosen(&["shapes", "deqa"], &["deqa.url=http://a.b:1"]).expect("well-formed");
        assert_eq!(two, [of("shapes", "{}"), of("deqa", r#"{"url":"http://a.b:1"}"#)]);
        let dotted = chosen(&["shapes", "hpsv2.1"], &["hpsv2.1.batch_size=8"]).expect("well-formed");
        assert_eq!(dotted[1], of("hpsv2.1", r#"{"batch_size":8}"#));
    }

    #[test]
    fn options_of_nobody_and_names_given_twice_are_refused() {
        let told = chosen(&["shapes", "deqa"], &["url=http://a.b:1"]).unwrap_err();
        assert!(told.contains("does not say of which reward it is; write `shapes.KEY=VALUE`"), "{told}");
        let told = chosen(&["shapes", "deqa", "shapes"], &[]).unwrap_err();
        assert!(told.contains("reward `shapes` is given twice"), "{told}");
        assert!(chosen(&["deqa"], &["url"]).unwrap_err().contains("malformed option `url`"));
    }
}
