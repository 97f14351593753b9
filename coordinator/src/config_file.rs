//! The commands about run configs: read and check one, write a new one, count what it costs.

use crate::advice;
use crate::catalog::{Catalog, PromptSource};
use crate::cli::ConfigArgs;
use crate::error::CoordinatorError;
use crate::kept_inputs::KeptInputs;
use crate::run_place;
use crate::run_place::run_directory;
use crate::run_record::is_run;
use config::{ConfigErrors, ConfigProblem, RunConfig, TaskKind};
use protocol::with_causes;
use service::Hub;
use std::io::Write;
use std::path::Path;

/// Reads a config with the settings on top.
///
/// # Errors
/// If the file cannot be read (a usage error) or is not valid.
pub fn read(args: &ConfigArgs) -> Result<RunConfig, CoordinatorError> {
    let mut config = RunConfig::from_toml_with(&text(args)?, &args.settings)
        .map_err(|problems| invalid(args, problems))?;
    config.expand_paths(service::expand_path);
    Ok(config)
}

/// Reads a config to see what it would cost, and what it lacks before it can run.
///
/// # Errors
/// As [`read`], but for rewards that this build lacks.
pub fn read_to_plan(args: &ConfigArgs) -> Result<(RunConfig, Vec<ConfigProblem>), CoordinatorError> {
    let (mut config, lacking) = RunConfig::from_toml_to_plan(&text(args)?, &args.settings)
        .map_err(|problems| invalid(args, problems))?;
    config.expand_paths(service::expand_path);
    Ok((config, lacking))
}

pub(crate) fn text(args: &ConfigArgs) -> Result<String, CoordinatorError> {
    config::read_settings(&args.file).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::NotFound => format!("; write one with `{}`", advice::on("init", &args.file)),
            _ => String::new(),
        };
        CoordinatorError::Usage(format!(
            "cannot read the run config {}: {error}{advice}",
            config::place(&args.file)
        ))
    })
}

pub(crate) fn invalid(args: &ConfigArgs, problems: ConfigErrors) -> CoordinatorError {
    CoordinatorError::Config { path: args.file.clone(), problems }
}

/// Reads a config and what it points to.
///
/// # Errors
/// As [`read`], and if a prompt file or the model is missing or malformed, or there are fewer prompts than asked for: all of
/// it is named at once, beside rewards that this build lacks.
pub fn open(
    args: &ConfigArgs,
    hub: &Hub,
    (source, has_members_here): (PromptSource, &dyn Fn(&RunConfig) -> bool),
) -> Result<Catalog, CoordinatorError> {
    let (config, unavailable) = read_to_plan(args)?;
    let missing = missing_model(&config.model.path, hub).filter(|_| has_members_here(&config));
    let mut problems: Vec<String> = missing.into_iter().collect();
    problems.extend(unset_variables(&config));
    problems.extend(run_place::check(&config).err().map(|error| with_causes(&error)));
    let origin = origin_of_paths(&config);
    match prompts(config, source) {
        Ok(catalog) if problems.is_empty() && unavailable.is_empty() => return Ok(catalog),
        Ok(_) if problems.is_empty() => return Err(invalid(args, ConfigErrors(unavailable))),
        Ok(_) => {}
        Err(of_prompts) => problems.extend(of_prompts),
    }
    problems.extend(unavailable.iter().map(|problem| format!("`{}`: {}", problem.key, problem.message)));
    problems.extend(origin);
    Err(CoordinatorError::Usage(problems.join("\n")))
}

/// What relative paths of a config are relative to, where one of them leads nowhere.
pub(crate) fn origin_of_paths(config: &RunConfig) -> Option<String> {
    let prompts = config.data.splits().into_iter().map(|split| config.data.path(split));
    let mut paths = std::iter::once(config.model.path.as_path()).chain(prompts);
    let leads_nowhere = paths.any(|path| path.is_relative() && !path.exists());
    let here = std::env::current_dir().ok().filter(|_| leads_nowhere)?;
    Some(format!("relative paths are taken from {}, where this was started", here.display()))
}

/// The config with its prompts, or all that is wrong with these.
pub(crate) fn prompts(config: RunConfig, source: PromptSource) -> Result<Catalog, Vec<String>> {
    let run = run_directory(&config).ok().filter(|run| source == PromptSource::Run && is_run(run));
    let opened = match run {
        Some(run) => Catalog::open_again(config, &KeptInputs::of(&run)),
        None => Catalog::open(config),
    };
    let catalog = opened.map_err(|errors| vec![errors.to_string()])?;
    match too_few_prompts(&catalog) {
        Some(problem) => Err(vec![problem]),
        None => Ok(catalog),
    }
}

/// Paths that are opened or made by others than this process, and have a variable in them that is not set. Those of model
/// and prompts say so where they are found missing.
pub(crate) fn unset_variables(config: &RunConfig) -> Vec<String> {
    let is_opened_here = |key: &str| key == "model.path" || key.starts_with("data.");
    let paths =
        config.unexpanded_paths().into_iter().filter(|(key, path)| !is_opened_here(key) && !path.exists());
    paths.map(|(key, path)| format!("`{key}`: there is no {}", config::place(&path))).collect()
}

/// What is said where this machine has no model and needs none.
pub(crate) fn model_elsewhere(config: &RunConfig) -> String {
    format!(
        "there is no model {} on this host, and no member of the run either: each looks it up on its own host",
        config.model.path.display()
    )
}

/// Why there is no model at a path; `None` where there is one.
pub(crate) fn missing_model(model: &Path, hub: &Hub) -> Option<String> {
    let index = match hub.resolve(model) {
        Ok(folder) => folder.join("model_index.json"),
        Err(error) => return Some(format!("`model.path`: {error}")),
    };
    (!index.is_file()).then(|| {
        format!(
            "`model.path`: {} is missing; give the folder of a pipeline in the diffusers layout, or a repository \
             `org/name`",
            config::place(&index)
        )
    })
}

/// An evaluation of fewer prompts than asked for would not be the one that was meant.
fn too_few_prompts(catalog: &Catalog) -> Option<String> {
    let config = catalog.config();
    let wanted = config.evaluation.prompts;
    let evaluated = if config.data.has_validation() { &config.data.validation } else { &config.data.test };
    [(TaskKind::Evaluate, evaluated), (TaskKind::Test, &config.data.test)].into_iter().find_map(|(kind, file)| {
        let found = catalog.n_prompts(kind);
        let file = file.display();
        (wanted > found).then(|| {
            format!("`evaluation.prompts` is {wanted}, but {file} holds {found} prompts; write 0 for all of them")
        })
    })
}

/// Writes a commented config.
///
/// # Errors
/// A usage error if there is no such preset or the file exists.
pub fn init(preset: &str, path: &Path) -> Result<(), CoordinatorError> {
    let preset = config::preset(preset).ok_or_else(|| {
        CoordinatorError::Usage(format!(
            "unknown preset `{preset}`; known: {}",
            config::preset_names().join(", ")
        ))
    })?;
    create(path, &preset.text)
}

/// Makes a run config of a Flow-Factory YAML, and returns what became of its keys and what stands in the run's way.
///
/// # Errors
/// A usage error if the YAML cannot be read or imported, or the file exists.
pub fn import(yaml: &Path, path: &Path) -> Result<String, CoordinatorError> {
    let name = yaml.display().to_string();
    let text = config::read_settings(yaml)
        .map_err(|error| CoordinatorError::Usage(format!("cannot read {name}: {error}")))?;
    let import = config::import_flow_factory(&text, &name)
        .map_err(|error| CoordinatorError::Usage(error.to_string()))?;
    create(path, &import.text)?;
    let problems = config::validate(&import.config);
    let mut report = import.report.to_string();
    if !problems.is_empty() {
        report.push_str(&format!("to be mended before it runs\n{}\n", ConfigErrors(problems)));
    }
    Ok(report)
}

/// Writes a file that must not exist yet.
pub(crate) fn create(path: &Path, text: &str) -> Result<(), CoordinatorError> {
    let failed = |source| CoordinatorError::File { action: "write", path: path.to_owned(), source };
    match std::fs::File::create_new(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(CoordinatorError::Usage(
            format!("{} exists; remove it or choose another name", path.display()),
        )),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: std::path::PathBuf, settings: &[&str]) -> ConfigArgs {
        ConfigArgs { file, settings: settings.iter().map(|&setting| setting.to_owned()).collect() }
    }

    #[test]
    fn a_written_preset_is_read_back_and_not_overwritten() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("run.toml");
        let preset = config::preset_names()[0];
        init(preset, &path).expect("written");
        let config = read(&args(path.clone(), &["run.seed=7"])).expect("valid");
        assert_eq!(config.run.seed, 7);
        let error = init(preset, &path).expect_err("exists");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("run.toml exists"), "{error}");
    }

    #[test]
    fn a_config_that_is_no_file_is_refused_at_once() {
        for read in [
            |path: &Path| read(&args(path.to_owned(), &[])).map(drop),
            |path: &Path| import(path, Path::new("unused")).map(drop),
        ] {
            let error = read(Path::new("/dev/zero")).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            let told = error.to_string();
            assert!(told.contains("/dev/zero: it is a device, no file") && !told.contains("init"), "{told}");
        }
    }

    #[test]
    fn an_unknown_preset_is_answered_with_the_known_ones() {
        let error = init("unheard-of", Path::new("unused")).expect_err("unknown").to_string();
        assert!(error.contains(config::preset_names()[0]), "{error}");
    }

    #[test]
    fn an_imported_run_is_written_with_a_report_and_never_over_another() {
        let home = tempfile::tempdir().expect("a directory");
        let (yaml, path) = (home.path().join("theirs.yaml"), home.path().join("run.toml"));
        let text = "model: {model_type: sd3-5}\ndata: {dataset_dir: prompts}\ntrain: {group_size: 8, odd: 1}\n\
                    rewards: [{name: size, reward_model: jpeg_compressibility}, {name: b, reward_model: ImageReward}]\n";
        std::fs::write(&yaml, text).expect("writable");
        let report = import(&yaml, &path).expect("imported");
        assert!(report.contains("sampling.seeds_per_prompt ← train.group_size = 8"), "{report}");
        assert!(report.contains("train.odd = 1: nothing here corresponds to it"), "{report}");
        assert!(
            report.contains("to be mended before it runs\n`rewards[1].name`: reward `imagereward`"),
            "{report}"
        );
        let error = read(&args(path.clone(), &[])).expect_err("no such reward").to_string();
        assert!(error.contains("reward `imagereward` is not available in this build"), "{error}");
        assert!(import(&yaml, &path).expect_err("exists").to_string().contains("run.toml exists"));
        std::fs::write(&yaml, "train: [\n").expect("writable");
        let error = import(&yaml, &path).expect_err("malformed");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("theirs.yaml:"), "{error}");
    }

    #[test]
    fn more_prompts_than_the_file_holds_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let (path, prompts) = (home.path().join("run.toml"), home.path().join("prompts.txt"));
        init(config::preset_names()[0], &path).expect("written");
        std::fs::write(&prompts, "a cat\na dog\n").expect("written");
        std::fs::write(home.path().join("model_index.json"), "{}").expect("written");
        let file = prompts.display().to_string();
        let open_with = |wanted: u32| {
            let settings = [
                format!("model.path={}", home.path().display()),
                format!("data.train={file}"),
                format!("data.validation={file}"),
                format!("data.test={file}"),
                format!("evaluation.prompts={wanted}"),
            ];
            let mut args = args(path.clone(), &[]);
            args.settings = settings.into();
            // Plain text has none of the metadata that `shapes` looks at.
            let text = std::fs::read_to_string(&path).expect("readable");
            std::fs::write(&path, text.replace("\"shapes\"", "\"jpeg_compressibility\"")).expect("written");
            open(&args, &Hub::at("no/cache"), (PromptSource::Config, &|_| true))
                .map(|_| ())
                .map_err(|error| (error.exit_code(), error.to_string()))
        };
        assert_eq!(open_with(2), Ok(()));
        assert_eq!(open_with(0), Ok(()));
        let (code, message) = open_with(3).expect_err("too many");
        assert_eq!(code, 2);
        assert!(
            message.contains("`evaluation.prompts` is 3") && message.contains("holds 2 prompts"),
            "{message}"
        );
    }

    #[test]
    fn a_reward_that_is_not_available_hides_no_missing_file() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("run.toml");
        init("dgx-geneval-sd3-pr", &path).expect("written");
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, text.replace("name = \"geneval\"", "name = \"nobody\"")).expect("written");
        let settings = ["model.path=./no/model", "data.train=no/prompts.txt"];
        let error = open(&args(path, &settings), &Hub::at("no/cache"), (PromptSource::Config, &|_| true))
            .expect_err("missing");
        let message = error.to_string();
        for word in ["no/model/model_index.json", "no/prompts.txt", "`nobody` is not available"] {
            assert!(message.contains(word), "{word} is not in {message}");
        }
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn missing_files_are_named_at_once() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("run.toml");
        init(config::preset_names()[0], &path).expect("written");
        let settings = ["model.path=./no/model", "data.train=no/prompts.txt"];
        let error = open(&args(path, &settings), &Hub::at("no/cache"), (PromptSource::Config, &|_| true))
            .expect_err("missing");
        let message = error.to_string();
        assert!(
            message.contains("no/model/model_index.json")
                && message.contains("no/prompts.txt")
                && message.contains("relative paths are taken from /"),
            "{message}"
        );
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn all_that_is_wrong_with_files_and_prompts_is_named_at_once() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("run.toml");
        init(config::preset_names()[0], &path).expect("written");
        let prompts = |name: &str, text: &str| {
            std::fs::write(home.path().join(name), text).expect("written");
            home.path().join(name).display().to_string()
        };
        let settings = [
            "model.path=no/model/at/all".to_owned(),
            "adapter.start_from=$NOT_SET_BY_ANYBODY/adapter".to_owned(),
            "run.directory=${NOT_SET_BY_ANYBODY}/runs".to_owned(),
            format!("data.train={}", prompts("train.jsonl", "{\"prompt\": 3}\n")),
            format!("data.test={}", prompts("test.csv", "text\na cat\n")),
        ];
        let mut args = args(path, &[]);
        args.settings = settings.into();
        let message = open(&args, &Hub::at("no/cache"), (PromptSource::Config, &|_| true))
            .expect_err("faulty")
            .to_string();
        let here = std::env::current_dir().expect("a folder").display().to_string();
        for expected in [
            format!("`model.path`: no/model/at/all/model_index.json (relative to {here}) is missing"),
            "`adapter.start_from`: there is no $NOT_SET_BY_ANYBODY/adapter (the environment variable \
             `NOT_SET_BY_ANYBODY` is not set)"
                .to_owned(),
            "`run.directory`: there is no ${NOT_SET_BY_ANYBODY}/runs (the env".to_owned(),
            "train.jsonl is malformed: line 1: `prompt` is not a string".to_owned(),
            "test.csv is malformed: line 1: names no column `prompt`".to_owned(),
        ] {
            assert!(message.contains(&expected), "`{expected}` is not in\n{message}");
        }
        args.settings = vec!["data.test=$NOT_SET_BY_ANYBODY/test.txt".to_owned()];
        let message = open(&args, &Hub::at("no/cache"), (PromptSource::Config, &|_| true))
            .expect_err("not set")
            .to_string();
        let expected = "`data.test`: cannot read the prompt file $NOT_SET_BY_ANYBODY/test.txt (the environment variable \
                        `NOT_SET_BY_ANYBODY` is not set): No such file";
        assert!(message.contains(expected), "{message}");
    }
}
