//! Going on with a run: which keys of its config may change, those that decide nothing about the iterations done; and
//! what `coordinator resume` makes of the name of a run.

use crate::cli::{ConfigArgs, ResumeArgs, UpArgs};
use crate::error::CoordinatorError;
use crate::lost_files::config_file;
use crate::run_place::run_directory;
use crate::run_record::{RunRecord, find_run};
use config::RunConfig;
use service::RunDirectory;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// Keys that are a matter between the coordinator and its processes, which do not know them.
const KEYS_OF_THE_COORDINATOR: [&str; 4] =
    ["resources.workers", "resources.max_workers", "resources.mixed_devices", "run.max_hours"];

/// `coordinator resume RUN` as `coordinator up RUN/config.toml --resume`, wherever it is typed and wherever the run has
/// been moved to. Enters the directory that the run was started in, which relative paths of its config are relative to.
///
/// # Errors
/// A usage error if there is no such run, its config cannot be read, or the settings name another run.
pub fn arguments(args: ResumeArgs) -> Result<UpArgs, CoordinatorError> {
    let elsewhere =
        |setting: &&String| ["run.name=", "run.directory="].iter().any(|key| setting.starts_with(key));
    if let Some(setting) = args.settings.iter().find(elsewhere) {
        return Err(CoordinatorError::Usage(format!(
            "`--set {setting}` names another run than {}; a run is renamed by renaming its directory",
            args.run
        )));
    }
    let found = find_run(&args.run)?;
    let path = found.path();
    let failed = |action| move |source| CoordinatorError::File { action, path: path.to_owned(), source };
    let directory = RunDirectory::new(std::fs::canonicalize(path).map_err(failed("find"))?);
    let typed_in = std::env::current_dir().ok();
    if let Some(home) = RunRecord::read(&directory).ok().and_then(|record| record.working_directory) {
        // It may be gone; what is relative to it is then named where it is missing.
        let _ = std::env::set_current_dir(home);
    }
    let file = config_file(&directory)?;
    let mut settings = args.settings;
    settings.extend(new_place(&directory, &file)?);
    let config = ConfigArgs { file, settings };
    let accept_changed_data = args.accept_changed_data;
    Ok(UpArgs { config, resume: true, accept_changed_data, options: args.options, typed_in })
}

/// The settings that tell a run where it is, if it has been moved.
fn new_place(directory: &RunDirectory, file: &Path) -> Result<Vec<String>, CoordinatorError> {
    let path = file.to_owned();
    let text = config::read_settings(file).map_err(|source| CoordinatorError::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let stored =
        RunConfig::from_toml(&text).map_err(|problems| CoordinatorError::Config { path, problems })?;
    let stored = run_directory(&stored)?;
    if std::fs::canonicalize(stored.path()).is_ok_and(|stored| stored == directory.path()) {
        return Ok(Vec::new());
    }
    let text = |path: &Path| Value::String(path.display().to_string());
    let name = directory.path().file_name().unwrap_or_default();
    let parent = directory.path().parent().unwrap_or(Path::new("/"));
    Ok(vec![format!("run.name={}", text(name.as_ref())), format!("run.directory={}", text(parent))])
}

/// Keys that differ between two configs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// They may change; living members do not know the new values, though.
    pub allowed: Vec<String>,
    /// With these it would be another run.
    pub forbidden: Vec<String>,
}

/// Compares the config that a run was started with to the one that it is to go on with. Each difference reads
/// `key: old → new`.
pub fn compare(stored: &RunConfig, given: &RunConfig) -> Differences {
    let (stored, given) = (flatten(stored), flatten(given));
    let mut differences = Differences::default();
    let keys: std::collections::BTreeSet<&String> = stored.keys().chain(given.keys()).collect();
    for key in keys {
        let (old, new) = (stored.get(key), given.get(key));
        if old == new || KEYS_OF_THE_COORDINATOR.contains(&key.as_str()) || key.starts_with("hosts[") {
            continue;
        }
        let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
        let text = match key.ends_with("].url") {
            // It may have a password in it.
            true => format!("{key}: another address"),
            false => format!("{key}: {} → {}", show(old), show(new)),
        };
        match config::is_changeable(key) {
            true => differences.allowed.push(text),
            false => differences.forbidden.push(text),
        }
    }
    differences
}

/// Every value of a config by its dotted key.
fn flatten(config: &RunConfig) -> BTreeMap<String, Value> {
    let table: Table = config.to_toml().parse().expect("a config writes valid TOML; anything else is a bug");
    let mut flat = BTreeMap::new();
    for (section, value) in table {
        match value {
            Value::Table(keys) => {
                flat.extend(keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
            }
            Value::Array(entries) if entries.iter().all(Value::is_table) => {
                for (position, entry) in entries.into_iter().enumerate() {
                    let keys = entry.try_into::<Table>().unwrap_or_default().into_iter();
                    flat.extend(keys.map(|(key, value)| (format!("{section}[{position}].{key}"), value)));
                }
            }
            other => {
                flat.insert(section, other);
            }
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RunConfig {
        config::preset("tempflow-tiny-cpu").expect("a preset").config
    }

    #[test]
    fn equal_configs_have_no_differences() {
        assert_eq!(compare(&config(), &config()), Differences::default());
    }

    #[test]
    fn what_decides_the_outcome_may_not_change() {
        let mut given = config();
        given.run.seed += 1;
        given.training.learning_rate = 0.5;
        given.rewards[0].weight = 2.5;
        let differences = compare(&config(), &given);
        let keys: Vec<_> = differences.forbidden.iter().filter_map(|text| text.split(':').next()).collect();
        assert_eq!(keys, ["rewards[0].weight", "run.seed", "training.learning_rate"]);
        assert!(differences.forbidden[2].ends_with("→ 0.5"), "{differences:?}");
    }

    #[test]
    fn a_reward_server_may_move_and_its_password_is_not_shown() {
        let at = |url: &str, batch_size: i64| {
            let mut config = config();
            config.rewards = vec![config::RewardSection::new("geneval")];
            let options = &mut config.rewards[0].options;
            options.insert("url".to_owned(), Value::String(url.to_owned()));
            options.insert("batch_size".to_owned(), Value::Integer(batch_size));
            config
        };
        let differences = compare(&at("http://ada:secret@a:1", 8), &at("http://ada:secret@b:1", 8));
        assert_eq!(differences.allowed, ["rewards[0].url: another address"]);
        assert!(differences.forbidden.is_empty());
        let differences = compare(&at("http://a:1", 8), &at("http://a:1", 16));
        assert_eq!(differences.forbidden, ["rewards[0].batch_size: 8 → 16"]);
    }

    #[test]
    fn length_and_pace_may_change_but_not_what_decides_bits() {
        let mut given = config();
        given.run.iterations += 1;
        given.resources.workers += 1;
        given.resources.max_workers += 1;
        given.run.max_hours = 1.0;
        given.evaluation.every += 1;
        given.checkpoints.keep_last += 1;
        given.evaluation_rewards = vec![config::RewardSection::new("jpeg_compressibility")];
        let differences = compare(&config(), &given);
        assert!(differences.forbidden.is_empty());
        assert_eq!(
            differences.allowed.len(),
            5,
            "what only the coordinator knows is not even a difference: {differences:?}"
        );
        given.resources.worker_threads += 1;
        assert_eq!(compare(&config(), &given).forbidden.len(), 1, "threads round differently");
    }
}
