//! Everything that a run needs, looked at in one go: its config and what that names.

use crate::cards::Places;
use crate::catalog::{Catalog, PromptSource};
use crate::cli::ConfigArgs;
use crate::config_file::{
    invalid, missing_model, model_elsewhere, origin_of_paths, prompts, text, unset_variables,
};
use crate::error::CoordinatorError;
use crate::inspection::{self, Servers};
use crate::placement::MembersHere;
use crate::run_place;
use config::{ConfigErrors, ConfigProblem, RewardInspection, RunConfig};
use protocol::with_causes;
use service::Hub;
use std::path::Path;

/// Reads a config and looks at model, prompts, rewards and device; `programs` is the folder of the rollout worker, which
/// knows networks. What of model, device and rewards is not here is wrong only where members of the run that need it are on this
/// machine, by its config; else it is said, and looked at where these are. Returns what there is to say of them beside the prompts, too.
///
/// # Errors
/// All that is wrong, in the order of this list: keys and values of the config, then what only looking at things tells. What
/// a faulty section says is not looked at. Or if the rollout worker cannot be asked.
pub fn everything(
    args: &ConfigArgs,
    hub: &Hub,
    programs: &Path,
    servers: Servers,
    (prompts, members_here): (PromptSource, &dyn Fn(&RunConfig) -> MembersHere),
) -> Result<(Catalog, Vec<String>), CoordinatorError> {
    let (mut config, faults) = RunConfig::examine(&text(args)?, &args.settings);
    let Some(config) = config.as_mut() else { return Err(invalid(args, ConfigErrors(faults))) };
    config.expand_paths(service::expand_path);
    let config = &*config;
    let here = members_here(config);
    let mut findings = Findings { faults, ..Findings::default() };
    match here.any() || missing_model(&config.model.path, hub).is_none() {
        true => findings.look_at_model(config, hub, programs),
        false => findings.notes.push(model_elsewhere(config)),
    }
    let catalog = findings.read_prompts(config, prompts);
    findings.found.extend(unset_variables(config));
    if findings.are_sound(&["run.name", "run.directory"]) {
        run_place::check(config).unwrap_or_else(|error| findings.take(error));
    }
    findings.notes.extend(inspection::plain_text_note(config));
    match inspection::rewards(config, programs, servers) {
        Ok(rewards) => findings.judge_rewards(config, &rewards, here),
        Err(error) => findings.take(error),
    }
    if here.any() && findings.are_sound(&["resources."]) {
        findings.look_at_cards(config, programs);
    }
    if !findings.found.is_empty() {
        findings.found.extend(origin_of_paths(config));
    }
    let notes = std::mem::take(&mut findings.notes);
    match (findings.into_error(args), catalog) {
        (None, Some(catalog)) => Ok((catalog, notes)),
        (Some(error), _) => Err(error),
        (None, None) => unreachable!("prompts that cannot be read are a finding; anything else is a bug"),
    }
}

fn notes_on_libraries(config: &RunConfig) -> Option<String> {
    if config.resources.device.is_cpu() { None } else { service::cuda::shadowed_cudnn() }
}

/// What has been found so far.
#[derive(Default)]
struct Findings {
    /// Of the config itself.
    faults: Vec<ConfigProblem>,
    /// Of what it names.
    found: Vec<String>,
    /// What is not wrong.
    notes: Vec<String>,
    /// Why the rollout worker could not be asked.
    broken: Option<CoordinatorError>,
}

impl Findings {
    /// Whether nothing is wrong with keys that begin so.
    fn are_sound(&self, keys: &[&str]) -> bool {
        !self.faults.iter().any(|fault| keys.iter().any(|key| fault.key.starts_with(key)))
    }

    fn take(&mut self, error: CoordinatorError) {
        match error {
            CoordinatorError::Usage(problem) => self.found.push(problem),
            error => self.broken = Some(self.broken.take().unwrap_or(error)),
        }
    }

    fn look_at_model(&mut self, config: &RunConfig, hub: &Hub, programs: &Path) {
        if !self.are_sound(&["model.path"]) {
            return;
        }
        if let Some(missing) = missing_model(&config.model.path, hub) {
            self.found.push(missing);
        } else if self.are_sound(&["model.", "sampling.", "adapter."]) {
            match inspection::model(config, programs) {
                Ok(model) => self.notes.extend(inspection::start_notes(config, &model)),
                Err(error) => self.take(error),
            }
        }
    }

    fn judge_rewards(&mut self, config: &RunConfig, rewards: &[RewardInspection], here: MembersHere) {
        let problems = inspection::reward_problems(config, rewards, here);
        self.found.extend(problems.here);
        self.notes.extend(problems.elsewhere);
    }

    fn look_at_cards(&mut self, config: &RunConfig, programs: &Path) {
        match Places::look(config) {
            Ok(places) => {
                self.notes.extend(places.notes());
                self.notes.extend(notes_on_libraries(config));
                inspection::device(config, programs).unwrap_or_else(|error| self.take(error));
            }
            Err(error) => self.found.push(with_causes(&error)),
        }
    }

    fn read_prompts(&mut self, config: &RunConfig, source: PromptSource) -> Option<Catalog> {
        if !self.are_sound(&["data.", "rewards", "evaluation_rewards"]) {
            return None;
        }
        prompts(config.clone(), source).map_err(|problems| self.found.extend(problems)).ok()
    }

    fn into_error(self, args: &ConfigArgs) -> Option<CoordinatorError> {
        let Self { mut faults, mut found, broken, notes: _ } = self;
        if faults.is_empty() && found.is_empty() {
            return broken;
        }
        found.extend(broken.map(|error| with_causes(&error)));
        if faults.is_empty() {
            return Some(CoordinatorError::Usage(found.join("\n")));
        }
        faults.extend(found.into_iter().map(|problem| ConfigProblem::new("", problem)));
        Some(invalid(args, ConfigErrors(faults)))
    }
}
