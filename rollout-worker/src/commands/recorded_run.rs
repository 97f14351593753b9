//! A run as its directory tells of it, for whoever wants to draw what the run draws.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use config::{AdapterMethod, PromptRecord, RunConfig, TaskKind};
use service::RunDirectory;

/// Where runs are that are given by name.
const RUNS: &str = "runs";

/// Which of a run's versions draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrainedVersion {
    /// The one with the best held-out reward.
    Best,
    /// The one of the newest checkpoint.
    Last,
    /// The model as it was before training.
    None,
}

/// The resolved config of a run, and where it was found.
#[derive(Debug)]
pub struct RecordedRun {
    directory: RunDirectory,
    config: RunConfig,
}

impl RecordedRun {
    /// Reads the config of the run in a directory, or of that name below `runs`.
    ///
    /// # Errors
    /// If there is no such run, or its config cannot be read.
    pub fn open(run: &Path) -> anyhow::Result<Self> {
        let run = &service::expand_path(run);
        let places = [run.to_owned(), Path::new(RUNS).join(run)].map(|path| std::path::absolute(&path));
        let places = places.into_iter().collect::<Result<Vec<_>, _>>().context("finding the run")?;
        let Some(directory) = places.iter().map(RunDirectory::new).find(|place| place.config().is_file())
        else {
            let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            bail!(
                "no run `{}`: neither {} has a config.toml; give the directory of a run",
                run.display(),
                looked.join(" nor ")
            );
        };
        let path = directory.config();
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        // Rewards that this build lacks do not matter to who only draws.
        let (config, _) = RunConfig::from_toml_to_plan(&text, &[])
            .with_context(|| format!("{} is no config of this version's runs", path.display()))?;
        Ok(Self { directory, config })
    }

    /// The resolved config.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Where the weights of a version are; the best one by default, or the last where none is known to be best. `None` for
    /// the model as it was.
    ///
    /// # Errors
    /// If the run has not written them.
    pub fn trained(&self, version: Option<TrainedVersion>) -> anyhow::Result<Option<PathBuf>> {
        let last = self.directory.adapter();
        let best = last.join("best");
        let [last_is_there, best_is_there] = [&last, &best].map(|folder| self.is_export(folder));
        Ok(match version {
            Some(TrainedVersion::None) => None,
            Some(TrainedVersion::Best) | None if best_is_there => Some(best),
            Some(TrainedVersion::Last) | None if last_is_there => Some(last),
            Some(TrainedVersion::Best) => bail!(
                "{} is not there: no version of the run is known to be best; draw with `--trained last`",
                best.display()
            ),
            Some(TrainedVersion::Last) | None => bail!(
                "{} holds nothing trained yet: a run writes it with its first checkpoint; draw with `--trained none` to \
                 see the model as it is before",
                last.display()
            ),
        })
    }

    fn is_export(&self, folder: &Path) -> bool {
        let parts = match self.config.adapter.method {
            AdapterMethod::Lora => ["peft", "diffusers"].as_slice(),
            AdapterMethod::Full => &["transformer"],
        };
        parts.iter().any(|part| folder.join(part).is_dir())
    }

    /// The prompts of the run's evaluations: its own copy, or what its config names where it has none.
    ///
    /// # Errors
    /// If their file cannot be read.
    pub fn evaluation_prompts(&self) -> anyhow::Result<Vec<PromptRecord>> {
        let data = &self.config.data;
        let split = data.split_of(TaskKind::Evaluate);
        let (copy, named) = (self.directory.prompts(split), data.path(split));
        let file = if copy.is_file() { Ok(copy) } else { config::prompt_file(named, split) };
        let prompts = file.and_then(|file| config::read_prompts(&file));
        let mut prompts = prompts.with_context(|| self.whose_path(&split.key(), named, "--prompts"))?;
        if self.config.evaluation.prompts > 0 {
            prompts.truncate(self.config.evaluation.prompts);
        }
        Ok(prompts)
    }

    /// What to say of a path in the config that leads nowhere.
    pub fn whose_path(&self, key: &str, path: &Path, flag: &str) -> String {
        let config = self.directory.config();
        let whose = format!("`{key}` of {} is {}", config.display(), path.display());
        match path.is_relative() {
            false => format!("{whose}; `{flag}` puts another in its place"),
            true => format!(
                "{whose}, which is looked for from the folder that a program is started in, as it was from the run's; \
                 start there, or give `{flag}`"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(folders: &[&str]) -> (tempfile::TempDir, RecordedRun) {
        let home = tempfile::tempdir().unwrap();
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        config.evaluation.prompts = 1;
        std::fs::write(home.path().join("config.toml"), config.to_toml()).unwrap();
        folders.iter().for_each(|folder| std::fs::create_dir_all(home.path().join(folder)).unwrap());
        let run = RecordedRun::open(home.path()).unwrap();
        (home, run)
    }

    fn chosen(folders: &[&str], version: Option<TrainedVersion>) -> Result<Option<String>, String> {
        let (home, run) = run_with(folders);
        let path = run.trained(version).map_err(|error| error.to_string())?;
        Ok(path.map(|path| path.strip_prefix(home.path()).unwrap().display().to_string()))
    }

    #[test]
    fn the_best_version_goes_before_the_last() {
        let both = ["adapter/peft", "adapter/best/peft"];
        let found = |path: &str| Ok(Some(path.to_owned()));
        assert_eq!(chosen(&both, None), found("adapter/best"));
        assert_eq!(chosen(&both, Some(TrainedVersion::Last)), found("adapter"));
        assert_eq!(chosen(&both, Some(TrainedVersion::None)), Ok(None));
        assert_eq!(chosen(&both[..1], None), found("adapter"));
        let told = chosen(&both[..1], Some(TrainedVersion::Best)).unwrap_err();
        assert!(told.contains("adapter/best is not there") && told.contains("--trained last"), "{told}");
        let told = chosen(&["adapter"], None).unwrap_err();
        assert!(told.contains("holds nothing trained yet") && told.contains("--trained none"), "{told}");
        // A transformer is nothing that a run of adapters has written.
        assert!(chosen(&["adapter/transformer"], None).is_err());
    }

    #[test]
    fn an_unknown_run_is_named_with_the_places_looked_at() {
        let told = RecordedRun::open(Path::new("no-such-run")).unwrap_err().to_string();
        assert!(told.contains("no run `no-such-run`") && told.contains("/runs/no-such-run"), "{told}");
    }

    #[test]
    fn a_config_that_is_none_is_named_with_what_is_wrong_in_it() {
        let (home, _) = run_with(&[]);
        std::fs::write(home.path().join("config.toml"), "[run]\nseeed = 1\n").unwrap();
        let told = format!("{:#}", RecordedRun::open(home.path()).unwrap_err());
        assert!(told.contains("config.toml") && told.contains("seeed"), "{told}");
    }

    #[test]
    fn a_relative_path_says_where_it_was_looked_for() {
        let (_home, run) = run_with(&[]);
        let told = run.whose_path("data.test", Path::new("a/b.txt"), "--prompts");
        assert!(
            told.contains("a/b.txt") && told.contains("start there") && told.contains("--prompts"),
            "{told}"
        );
        assert!(!run.whose_path("data.test", Path::new("/a/b.txt"), "--prompts").contains("start there"));
    }
}
