//! What the coordinator, which links no networks, asks the rollout worker about a run's model and rewards before it starts.

use crate::entrance;
use crate::error::CoordinatorError;
use crate::placement::MembersHere;
use config::{
    AdapterMethod, Dtype, ModelInspection, REWARD_NAMES, RewardInquiry, RewardInspection, RewardSection,
    RunConfig, StepRule,
};
use protocol::with_causes;
use serde::de::DeserializeOwned;
use service::Insecure;
use service::trust::plain_text_rewards;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Asks the rollout worker, which is among `programs`, about the model under the run's settings.
///
/// # Errors
/// If the model's folder, the size of the images or the adapter's targets cannot be used, or the worker cannot be asked.
pub fn model(config: &RunConfig, programs: &Path) -> Result<ModelInspection, CoordinatorError> {
    let (program, output) = ask(programs, &model_arguments(config), &[])?;
    match output.status.code() {
        Some(0) => understand(&program, &output),
        Some(2) => Err(CoordinatorError::Usage(format!("the model cannot be used: {}", complaint(&output)))),
        _ => Err(broken(program, &output)),
    }
}

/// What is looked at of the servers of rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// Whether it is found out who is at their addresses; else they may come up later.
    pub are_knocked_at: bool,
    /// How far plain text was asked for, which leaves workers without certificates to show.
    pub insecure: Option<Insecure>,
}

/// Asks the rollout worker about the rewards that this build has, once about those that share a scorer. It makes them of
/// the headers of their files; no weight is read, and servers are at most knocked at.
///
/// # Errors
/// If the worker cannot be asked; what is wrong with a reward stands in its inspection.
pub fn rewards(
    config: &RunConfig,
    programs: &Path,
    servers: Servers,
) -> Result<Vec<RewardInspection>, CoordinatorError> {
    let mut rewards: Vec<(String, RewardSection)> = Vec::new();
    for (key, reward) in config.all_rewards() {
        let is_known = REWARD_NAMES.contains(&reward.scorer());
        if is_known && !rewards.iter().any(|(_, earlier)| earlier.is_built_as(reward)) {
            rewards.push((key, reward.clone()));
        }
    }
    if rewards.is_empty() {
        return Ok(Vec::new());
    }
    let inquiry = RewardInquiry {
        device: config.resources.device,
        knock: servers.are_knocked_at,
        is_secure: entrance::will_be_secure(&config.network, servers.insecure),
        rewards,
    };
    let inquiry = serde_json::to_vec(&inquiry).expect("an inquiry has a JSON form; else this is a bug");
    let (program, output) = ask(programs, &["inspect-rewards".to_owned()], &inquiry)?;
    match output.status.success() {
        true => understand(&program, &output),
        false => Err(broken(program, &output)),
    }
}

/// What of the adapter that a run goes on from is not trained.
pub fn start_notes(config: &RunConfig, model: &ModelInspection) -> Vec<String> {
    let path = config.adapter.start_from.display();
    let left_out = model.adapter.iter().flat_map(|adapter| &adapter.left_out);
    left_out.map(|part| format!("{part} in {path} are left out; only the transformer is trained")).collect()
}

/// Asks the rollout worker whether the run's device is here.
///
/// # Errors
/// If it is not, or the worker cannot be asked.
pub fn device(config: &RunConfig, programs: &Path) -> Result<(), CoordinatorError> {
    let device = config.resources.device;
    if device.is_cpu() {
        return Ok(());
    }
    let (program, output) = ask(programs, &["inspect-device".to_owned(), device.to_string()], &[])?;
    match output.status.code() {
        Some(0) => Ok(()),
        Some(2) => Err(CoordinatorError::Usage(format!("`resources.device`: {}", complaint(&output)))),
        _ => Err(broken(program, &output)),
    }
}

/// Why a run that is only shown would not be started here, where it has these members.
pub fn refusals(config: &RunConfig, programs: &Path, servers: Servers, here: MembersHere) -> Vec<String> {
    let device = device(config, programs).err().map(|error| error.to_string());
    let rewards = match rewards(config, programs, servers) {
        Ok(rewards) => reward_problems(config, &rewards, here).here,
        Err(error) => vec![with_causes(&error)],
    };
    device.into_iter().chain(rewards).collect()
}

/// What there is to say of servers of rewards that are spoken to in plain text.
pub fn plain_text_note(config: &RunConfig) -> Option<String> {
    plain_text_rewards(config.all_rewards().map(|(_, reward)| reward))
}

/// What is wrong with a reward, with its place.
pub fn reward_problem(reward: &RewardInspection) -> Option<String> {
    reward.problem.as_ref().map(|problem| format!("`{}`: {problem}", reward.key))
}

/// What is wrong with rewards, each with its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewardProblems {
    /// Keeps the run from being started here.
    pub here: Vec<String>,
    /// What this host lacks and no worker on it needs.
    pub elsewhere: Vec<String>,
}

/// Sorts what is wrong with rewards by whether it is wrong for a run that has these members here.
pub fn reward_problems(
    config: &RunConfig,
    rewards: &[RewardInspection],
    here: MembersHere,
) -> RewardProblems {
    let absent = config.connection_paths().into_iter().filter(|(_, path)| !path.exists());
    let absent: Vec<String> = absent.map(|(key, _)| key).collect();
    let lacks_files = |reward: &RewardInspection| {
        absent.iter().any(|key| key.strip_prefix(&reward.key).is_some_and(|rest| rest.starts_with('.')))
    };
    let mut problems = RewardProblems::default();
    for reward in rewards {
        let Some(problem) = reward_problem(reward) else { continue };
        match here.workers || !reward.is_of_host && !lacks_files(reward) {
            true => problems.here.push(problem),
            false => problems.elsewhere.push(format!(
                "{problem}; no worker of the run is on this host, and each looks for it on its own host"
            )),
        }
    }
    problems
}

/// Runs the rollout worker to its end with `input` on its standard input.
fn ask(programs: &Path, arguments: &[String], input: &[u8]) -> Result<(PathBuf, Output), CoordinatorError> {
    let program = programs.join("rollout-worker");
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.spawn().and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            // A child that ends without reading breaks the pipe, and says itself what is wrong.
            let _ = stdin.write_all(input);
        }
        child.wait_with_output()
    });
    match output {
        Ok(output) => Ok((program, output)),
        Err(source) => Err(CoordinatorError::Spawn { program, source }),
    }
}

fn understand<T: DeserializeOwned>(program: &Path, output: &Output) -> Result<T, CoordinatorError> {
    serde_json::from_slice(&output.stdout).map_err(|error| {
        CoordinatorError::Usage(format!(
            "{} answers in another tongue ({error}); build both programs together",
            program.display()
        ))
    })
}

fn broken(program: PathBuf, output: &Output) -> CoordinatorError {
    CoordinatorError::Inspection { program, status: output.status.to_string(), output: complaint(output) }
}

fn complaint(output: &Output) -> String {
    let problem = String::from_utf8_lossy(&output.stderr);
    problem.trim().trim_start_matches("error: ").to_owned()
}

/// How the rollout worker is asked about the model under the run's settings.
fn model_arguments(config: &RunConfig) -> Vec<String> {
    let (model, sampling, adapter) = (&config.model, &config.sampling, &config.adapter);
    let dtype = match model.dtype {
        Dtype::Float32 => "float32",
        Dtype::Bfloat16 => "bfloat16",
    };
    let step_rule = match sampling.step_rule {
        StepRule::FlowSde => "flow-sde",
        StepRule::Cps => "cps",
    };
    let mut arguments = vec!["inspect".to_owned(), model.path.display().to_string(), "--json".to_owned()];
    let mut option = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
    for steps in [sampling.steps, config.evaluation.steps] {
        option("schedule-steps", steps.to_string());
    }
    option("dtype", dtype.to_owned());
    option("height", sampling.height.to_string());
    option("width", sampling.width.to_string());
    option("guidance", sampling.guidance_scale.to_string());
    option("evaluation-guidance", config.evaluation.guidance_scale.to_string());
    option("steps", sampling.steps.to_string());
    option("step-rule", step_rule.to_owned());
    option("noise-level", sampling.noise_level.to_string());
    option("branch-steps", sampling.branch_steps.to_string());
    option("step-weight", config.training.step_weight.to_string());
    option("max-sequence-length", model.max_sequence_length.to_string());
    if !model.variant.is_empty() {
        option("variant", model.variant.clone());
    }
    if adapter.method == AdapterMethod::Lora {
        option("rank", adapter.rank.to_string());
        option("alpha", adapter.alpha.to_string());
        adapter.targets.iter().for_each(|target| option("target", target.clone()));
        if !adapter.start_from.as_os_str().is_empty() {
            option("start-from", adapter.start_from.display().to_string());
        }
    }
    if sampling.vae_tile > 0 {
        option("vae-tile", sampling.vae_tile.to_string());
    }
    if model.random_weights {
        arguments.push("--random-weights".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stand_ins::install_program;

    /// Rewards are built as the run's workers would build them, who have certificates where it is secured.
    #[test]
    fn the_worker_is_told_whether_the_run_will_be_secured() {
        let home = tempfile::tempdir().expect("a folder");
        let asked = home.path().join("asked");
        install_program(
            &home.path().join("rollout-worker"),
            &format!("cat > '{}'; echo '[]'", asked.display()),
        );
        let base = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        for (setting, insecure, is_secure) in [
            ("run.lag=0", None, false),
            ("network.tls.mode=always", None, true),
            ("network.bind=0.0.0.0", None, true),
            ("network.bind=0.0.0.0", Some(Insecure::Anywhere), false),
            // Others refuse it.
            ("network.bind=no-such-interface", None, true),
        ] {
            let config = RunConfig::from_toml_with(&base, &[setting.to_owned()]).expect("valid");
            let servers = Servers { are_knocked_at: true, insecure };
            assert_eq!(rewards(&config, home.path(), servers).expect("answered"), []);
            let inquiry = std::fs::read_to_string(&asked).expect("asked");
            let inquiry: RewardInquiry = serde_json::from_str(&inquiry).expect("an inquiry");
            assert_eq!((inquiry.knock, inquiry.is_secure), (true, is_secure), "{setting} {insecure:?}");
        }
    }

    #[test]
    fn a_run_that_is_only_shown_says_which_rewards_would_be_refused() {
        let home = tempfile::tempdir().expect("a folder");
        let problem = "option `url` of reward `grpc`: it asks for TLS";
        let inspection =
            format!(r#"[{{"key": "rewards[0]", "name": "far", "bytes": 0, "problem": "{problem}"}}]"#);
        install_program(
            &home.path().join("rollout-worker"),
            &format!("cat > /dev/null\ncat <<'END'\n{inspection}\nEND"),
        );
        let config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        let here = MembersHere { learner: true, workers: true };
        let refused = refusals(&config, home.path(), Servers::default(), here);
        assert_eq!(refused, [format!("`rewards[0]`: {problem}")]);
        let absent = refusals(&config, Path::new("/nowhere"), Servers::default(), here);
        assert!(absent[0].contains("/nowhere/rollout-worker"), "{absent:?}");
    }

    #[test]
    fn what_rewards_lack_here_is_wrong_only_where_workers_run_here() {
        let base = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        let reward = "scorer = \"grpc\"\nurl = \"grpcs://far:1\"\ntls_ca = \"/nowhere/ca.pem\"";
        let text = base.replace("name = \"shapes\"", &format!("name = \"shapes\"\n{reward}"));
        let config = RunConfig::from_toml(&text).expect("valid");
        let reward = |key: &str, is_of_host| RewardInspection {
            key: key.to_owned(),
            name: "a".to_owned(),
            bytes: 0,
            problem: Some("bad".to_owned()),
            is_of_host,
        };
        let rewards = [reward("rewards[0]", false), reward("rewards[1]", true), reward("rewards[2]", false)];
        let sorted = |workers| reward_problems(&config, &rewards, MembersHere { learner: true, workers });
        assert_eq!(sorted(true).here.len(), 3);
        let RewardProblems { here, elsewhere } = sorted(false);
        assert_eq!(here, ["`rewards[2]`: bad"], "it is wrong everywhere");
        assert!(elsewhere[0].starts_with("`rewards[0]`: bad; no worker of the run is on this host"));
        assert!(elsewhere.len() == 2 && elsewhere[1].starts_with("`rewards[1]`"), "{elsewhere:?}");
    }

    #[test]
    fn the_worker_is_asked_about_the_model_under_the_settings_of_the_run() {
        let config = config::preset("dgx-flux-pr").expect("a preset").config;
        let asked = model_arguments(&config).join(" ");
        for part in [
            "inspect black-forest-labs/FLUX.1-dev --json --schedule-steps=10 --schedule-steps=50",
            "--dtype=bfloat16 --height=1024 --width=1024 --guidance=3.5 --evaluation-guidance=3.5",
            "--steps=10 --step-rule=flow-sde --noise-level=0.9 --branch-steps=all --step-weight=noise",
            "--max-sequence-length=128 --rank=32",
            "--target=ff_context.net.2",
        ] {
            assert!(asked.contains(part), "{part} is not in {asked}");
        }
    }
}
