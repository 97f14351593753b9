//! The commands about run configs: read and check one, write a new one, count what it costs.

use crate::catalog::Catalog;
use crate::cli::ConfigArgs;
use crate::error::CoordinatorError;
use config::RunConfig;
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
/// As [`read`], and if a prompt file or the model is missing or malformed, or there are fewer prompts than asked for: all of
/// it is named at once.
pub fn open(args: &ConfigArgs) -> Result<Catalog, CoordinatorError> {
    let config = read(args)?;
    let model = config.model.path.join("model_index.json");
    let missing = (!model.is_file()).then(|| {
        format!(
            "`model.path`: {} is missing; give the folder of a pipeline in the diffusers layout",
            model.display()
        )
    });
    let catalog = Catalog::open(config).map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    let catalog = catalog.and_then(|catalog| match too_few_prompts(&catalog) {
        Some(problem) => Err(problem),
        None => Ok(catalog),
    });
    match (catalog, missing) {
        (Ok(catalog), None) => Ok(catalog),
        (Err(problem), None) | (Ok(_), Some(problem)) => Err(CoordinatorError::Usage(problem)),
        (Err(problem), Some(missing)) => Err(CoordinatorError::Usage(format!("{missing}\n{problem}"))),
    }
}

/// An evaluation of fewer prompts than asked for would not be the one that was meant.
fn too_few_prompts(catalog: &Catalog) -> Option<String> {
    let config = catalog.config();
    let (wanted, found) = (config.evaluation.prompts, catalog.n_test_prompts());
    (wanted > found).then(|| {
        let file = config.data.test.display();
        format!("`evaluation.prompts` is {wanted}, but {file} holds {found} prompts; write 0 for all of them")
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
                format!("data.test={file}"),
                format!("evaluation.prompts={wanted}"),
            ];
            let mut args = args(path.clone(), &[]);
            args.settings = settings.into();
            // Plain text has none of the metadata that `shapes` looks at.
            let text = std::fs::read_to_string(&path).expect("readable");
            std::fs::write(&path, text.replace("\"shapes\"", "\"jpeg_compressibility\"")).expect("written");
            open(&args).map(|_| ()).map_err(|error| (error.exit_code(), error.to_string()))
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
    fn missing_files_are_named_at_once() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("run.toml");
        init(config::preset_names()[0], &path).expect("written");
        let settings = ["model.path=no/model", "data.train=no/prompts.txt"];
        let error = open(&args(path, &settings)).expect_err("missing");
        let message = error.to_string();
        assert!(
            message.contains("no/model/model_index.json") && message.contains("no/prompts.txt"),
            "{message}"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
