//! The commands about run configs: read and check one, write a new one, count what it costs.

use crate::catalog::Catalog;
use crate::cli::ConfigArgs;
use crate::error::CoordinatorError;
use config::RunConfig;
use service::Hub;
use std::io::Write;
use std::path::Path;

/// Reads a config with the settings on top.
///
/// # Errors
/// If the file cannot be read (a usage error) or is not valid.
pub fn read(args: &ConfigArgs) -> Result<RunConfig, CoordinatorError> {
    let path = &args.file;
    let text = std::fs::read_to_string(path).map_err(|error| {
        CoordinatorError::Usage(format!(
            "cannot read the run config {}: {error}; write one with `coordinator init {}`",
            path.display(),
            path.display()
        ))
    })?;
    RunConfig::from_toml_with(&text, &args.settings)
        .map_err(|problems| CoordinatorError::Config { path: path.clone(), problems })
}

/// Reads a config and what it points to.
///
/// # Errors
/// As [`read`], and if a prompt file or the model is missing or malformed: both are named at once.
pub fn open(args: &ConfigArgs, hub: &Hub) -> Result<Catalog, CoordinatorError> {
    let config = read(args)?;
    let missing = missing_model(&config.model.path, hub);
    match (Catalog::open(config), missing) {
        (Ok(catalog), None) => Ok(catalog),
        (Ok(_), Some(missing)) => Err(CoordinatorError::Usage(missing)),
        (Err(error), None) => Err(error.into()),
        (Err(error), Some(missing)) => Err(CoordinatorError::Usage(format!("{missing}\n{error}"))),
    }
}

fn missing_model(model: &Path, hub: &Hub) -> Option<String> {
    let index = match hub.resolve(model) {
        Ok(folder) => folder.join("model_index.json"),
        Err(error) => return Some(format!("`model.path`: {error}")),
    };
    (!index.is_file()).then(|| {
        format!(
            "`model.path`: {} is missing; give the folder of a pipeline in the diffusers layout, or a repository \
             `org/name`",
            index.display()
        )
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
    let failed = |source| CoordinatorError::File { action: "write", path: path.to_owned(), source };
    match std::fs::File::create_new(path) {
        Ok(mut file) => file.write_all(preset.text.as_bytes()).map_err(failed),
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
    fn an_unknown_preset_is_answered_with_the_known_ones() {
        let error = init("unheard-of", Path::new("unused")).expect_err("unknown").to_string();
        assert!(error.contains(config::preset_names()[0]), "{error}");
    }

    #[test]
    fn missing_files_are_named_at_once() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("run.toml");
        init(config::preset_names()[0], &path).expect("written");
        let settings = ["model.path=./no/model", "data.train=no/prompts.txt"];
        let error = open(&args(path, &settings), &Hub::at("no/cache")).expect_err("missing");
        let message = error.to_string();
        assert!(
            message.contains("no/model/model_index.json") && message.contains("no/prompts.txt"),
            "{message}"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
