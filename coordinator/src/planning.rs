//! `coordinator plan`: the counting is the config crate's; what model and rewards are, the rollout worker tells.

use crate::cli::ConfigArgs;
use crate::config_file;
use crate::error::CoordinatorError;
use crate::inspection;
use config::{Plan, RewardSection, RunConfig};
use service::Hub;
use std::path::Path;

/// Works out what a run will cost, and what there is to say beside it. `programs` is the folder of the rollout worker.
///
/// A model that is not there yet leaves the plan without memory and bytes.
///
/// # Errors
/// If the config cannot be read, or there is something wrong with the model.
pub fn plan(args: &ConfigArgs, hub: &Hub, programs: &Path) -> Result<(Plan, Vec<String>), CoordinatorError> {
    let (config, lacking) = config_file::read_to_plan(args)?;
    let mut notes: Vec<String> =
        lacking.iter().map(|problem| format!("`{}`: {}", problem.key, problem.message)).collect();
    let model = match config_file::missing_model(&config.model.path, hub) {
        None => Some(inspection::model(&config, programs)?),
        Some(missing) => {
            notes.push(format!(
                "memory, bytes and the weights of steps stay unknown without the model; {missing}"
            ));
            None
        }
    };
    notes.extend(model.iter().flat_map(|model| inspection::start_notes(&config, model)));
    notes.extend(reward_notes(&config, programs));
    notes.extend(repeated_evaluations(&config));
    notes.extend(config.rewards.iter().filter(|reward| reward.is_judge()).map(judge_note));
    Ok((config::plan(&config, model), notes))
}

/// Evaluations look at averaged weights, which move every so many updates only.
fn repeated_evaluations(config: &RunConfig) -> Option<String> {
    let between = config.evaluation.every as u64 * config.training.updates_per_iteration as u64;
    let interval = config.ema.interval;
    (between < interval).then(|| {
        format!(
            "there are {between} updates between two evaluations, but averaged weights move every {interval} (`ema.interval`), \
             so some evaluations see the same weights twice; raise `evaluation.every`"
        )
    })
}

fn judge_note(reward: &RewardSection) -> String {
    format!(
        "reward `{}` is a language model that is asked in words: a run can be repeated to the last bit only as far as its \
         answers can",
        reward.name
    )
}

/// What rewards take on each worker besides, or why they cannot be built; a plan needs none of them.
fn reward_notes(config: &RunConfig, programs: &Path) -> Vec<String> {
    let rewards = match inspection::rewards(config, programs) {
        Ok(rewards) => rewards,
        Err(error) => return vec![format!("rewards are not looked at: {error}")],
    };
    let gigabytes = |reward: &config::RewardInspection| reward.bytes as f64 / 1e9;
    let note = |reward: &config::RewardInspection| match inspection::reward_problem(reward) {
        Some(problem) => Some(problem),
        None => (reward.bytes > 0).then(|| {
            format!(
                "reward `{}` takes {:.2} GB of each worker's memory besides",
                reward.name,
                gigabytes(reward)
            )
        }),
    };
    rewards.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// A folder with a config, a model that has nothing but its index, and a worker that runs a script.
    fn home(script: &str) -> (tempfile::TempDir, ConfigArgs) {
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        config_file::init("dgx-geneval-sd3-pr", &path("run.toml")).expect("written");
        fs::create_dir(path("model")).expect("created");
        fs::write(path("model/model_index.json"), "{}").expect("written");
        fs::write(path("rollout-worker"), format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(path("rollout-worker"), fs::Permissions::from_mode(0o755)).expect("set");
        let model = format!("model.path={}", path("model").display());
        let args = ConfigArgs { file: path("run.toml"), settings: vec![model] };
        (home, args)
    }

    #[test]
    fn what_is_wrong_with_a_model_is_passed_on() {
        let (home, args) = home("echo 'error: transformer/config.json is damaged' >&2; exit 2");
        let error = plan(&args, &Hub::at("no/cache"), home.path()).expect_err("damaged");
        assert_eq!(error.exit_code(), 2);
        let expected = "the model cannot be used: transformer/config.json is damaged";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_model_that_is_not_there_yet_leaves_the_counts() {
        let (home, mut args) = home("exit 1");
        let text = fs::read_to_string(&args.file).expect("readable");
        fs::write(&args.file, text.replace("name = \"geneval\"", "name = \"nobody\"")).expect("written");
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (plan, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        assert!(plan.to_string().contains("53568") && !plan.to_string().contains("memory"), "{plan}");
        assert!(notes[0].contains("`nobody` is not available"), "{notes:?}");
        assert!(notes[1].contains("no/model/model_index.json"), "{notes:?}");
    }

    #[test]
    fn rewards_are_looked_at_beside_the_model() {
        let inspection = r#"[{"key": "rewards[0]", "name": "geneval", "bytes": 3900000000, "problem": null},
            {"key": "rewards[1]", "name": "ocr", "bytes": 0, "problem": "no `tesseract`"}]"#;
        let (home, mut args) = home(&format!("echo '{inspection}'"));
        let text = fs::read_to_string(&args.file).expect("readable");
        let text = text.replace("name = \"geneval\"", "name = \"shapes\"");
        fs::write(&args.file, text).expect("written");
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        let expected = [
            "reward `geneval` takes 3.90 GB of each worker's memory besides",
            "`rewards[1]`: no `tesseract`",
        ];
        assert_eq!(notes[1..], expected, "{notes:?}");
    }

    #[test]
    fn evaluations_that_see_the_same_weights_twice_are_said() {
        let (home, mut args) = home("echo '[]'");
        let rare = |every: u32| {
            let settings = ["model.path=./no/model", "ema.interval=8", "training.updates_per_iteration=2"];
            let settings = settings.map(str::to_owned).into_iter();
            args.settings = settings.chain([format!("evaluation.every={every}")]).collect();
            let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
            notes.iter().any(|note| note.contains("see the same weights twice"))
        };
        assert_eq!([3, 4].map(rare), [true, false]);
    }

    #[test]
    fn a_judge_is_said_to_leave_the_last_bit_open() {
        let (home, mut args) = home("echo '[]'");
        let text = fs::read_to_string(&args.file).expect("readable");
        fs::write(&args.file, text.replace("name = \"geneval\"", "name = \"unifiedreward\""))
            .expect("written");
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        let note = notes.last().expect("a note");
        assert!(
            note.starts_with("reward `unifiedreward` is a language model") && note.contains("last bit"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_worker_of_another_build_is_told() {
        let (home, args) = home("echo '{}'");
        let error = plan(&args, &Hub::at("no/cache"), home.path()).expect_err("no inspection").to_string();
        assert!(error.contains("build both programs together"), "{error}");
    }

    #[test]
    fn a_missing_worker_is_named() {
        let (_home, args) = home("");
        let nowhere = PathBuf::from("/no/programs");
        let error = plan(&args, &Hub::at("no/cache"), &nowhere).expect_err("missing").to_string();
        assert!(error.contains("/no/programs/rollout-worker"), "{error}");
    }
}
