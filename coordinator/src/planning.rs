//! `coordinator plan`, and what `validate` asks about a model: the counting is the config crate's; what the model is, the rollout worker tells.

use crate::cli::ConfigArgs;
use crate::config_file;
use crate::error::CoordinatorError;
use config::{AdapterMethod, Dtype, ModelInspection, Plan, RunConfig};
use service::Hub;
use std::path::Path;
use std::process::Command;

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
        None => Some(inspect(&config, programs)?),
        Some(missing) => {
            notes.push(format!("memory and bytes stay unknown without the model; {missing}"));
            None
        }
    };
    Ok((config::plan(&config, model), notes))
}

/// Asks the rollout worker, which knows the networks and is among `programs`, about the model under the run's settings.
///
/// # Errors
/// If the model's folder, the size of the images or the adapter's targets cannot be used, or the worker cannot be asked.
pub fn inspect(config: &RunConfig, programs: &Path) -> Result<ModelInspection, CoordinatorError> {
    let program = programs.join("rollout-worker");
    let output = Command::new(&program)
        .args(arguments(config))
        .output()
        .map_err(|source| CoordinatorError::Spawn { program: program.clone(), source })?;
    let problem = String::from_utf8_lossy(&output.stderr);
    let problem = problem.trim().trim_start_matches("error: ");
    match output.status.code() {
        Some(0) => serde_json::from_slice(&output.stdout).map_err(|error| {
            CoordinatorError::Usage(format!(
                "{} answers in another tongue ({error}); build both programs together",
                program.display()
            ))
        }),
        Some(2) => Err(CoordinatorError::Usage(format!("the model cannot be used: {problem}"))),
        _ => Err(CoordinatorError::Inspection {
            program,
            status: output.status.to_string(),
            output: problem.to_owned(),
        }),
    }
}

/// How the rollout worker is asked about the model under the run's settings.
fn arguments(config: &RunConfig) -> Vec<String> {
    let (model, sampling, adapter) = (&config.model, &config.sampling, &config.adapter);
    let dtype = match model.dtype {
        Dtype::Float32 => "float32",
        Dtype::Bfloat16 => "bfloat16",
    };
    let mut arguments = vec!["inspect".to_owned(), model.path.display().to_string(), "--json".to_owned()];
    let mut option = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
    option("dtype", dtype.to_owned());
    option("height", sampling.height.to_string());
    option("width", sampling.width.to_string());
    option("guidance", sampling.guidance_scale.to_string());
    option("max-sequence-length", model.max_sequence_length.to_string());
    if !model.variant.is_empty() {
        option("variant", model.variant.clone());
    }
    if adapter.method == AdapterMethod::Lora {
        option("rank", adapter.rank.to_string());
        adapter.targets.iter().for_each(|target| option("target", target.clone()));
    }
    if model.random_weights {
        arguments.push("--random-weights".to_owned());
    }
    arguments
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
    fn the_worker_is_asked_about_the_model_under_the_settings_of_the_run() {
        let config = config::preset("dgx-flux-pr").expect("a preset").config;
        let asked = arguments(&config).join(" ");
        for part in [
            "inspect black-forest-labs/FLUX.1-dev --json",
            "--dtype=bfloat16 --height=1024 --width=1024 --guidance=3.5 --max-sequence-length=128 --rank=32",
            "--target=ff_context.net.2",
        ] {
            assert!(asked.contains(part), "{part} is not in {asked}");
        }
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
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (plan, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        assert!(plan.to_string().contains("53568") && !plan.to_string().contains("memory"), "{plan}");
        assert!(notes[0].contains("`geneval` is not available"), "{notes:?}");
        assert!(notes[1].contains("no/model/model_index.json"), "{notes:?}");
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
