//! `learner export`: what a run has trained by one of its checkpoints, in the layouts that other tools load.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use config::{AdapterMethod, RunConfig};
use service::{Hub, Provenance, RunDirectory, durable};

use crate::run::checkpoint::Checkpoints;
use crate::run::export::{self, Place};
use crate::run::saved_state::CONFIG_FILE;
use crate::training::policy::{self, AVERAGE_FILE};

/// Exports the average of the checkpoint of `version`, or of the newest that is intact, to a folder that is not there yet;
/// returns the version. The run may live meanwhile.
///
/// # Errors
/// If the run has no such checkpoint, it is damaged, or the folder is there or cannot be written.
pub fn run(run: &Path, version: Option<u32>, to: &Path, hub: &Hub) -> anyhow::Result<u32> {
    if to.exists() {
        bail!("{} exists; remove it or choose another name", to.display());
    }
    let checkpoints = Checkpoints::of_run(&RunDirectory::new(run).checkpoints());
    let version = match version {
        Some(version) => version,
        None => newest(&checkpoints, run)?,
    };
    let checkpoint = checkpoints.intact(version).map_err(|error| {
        let known = checkpoints.versions().unwrap_or_default();
        let known: Vec<String> = known.iter().map(u32::to_string).collect();
        anyhow!("checkpoint {version} cannot be used: {error}; there are {}", known.join(", "))
    })?;
    let config = read_config(&checkpoint)?;
    let average = policy::read_average(&checkpoint)?;
    let provenance = Provenance { version, average: checkpoints.digest(version, AVERAGE_FILE)? };
    durable::write_directory(to, |folder| match config.adapter.method {
        AdapterMethod::Lora => {
            let place = Place::Apart(folder);
            export::write_adapter(&config, &average, &provenance, &place).map_err(anyhow::Error::from)
        }
        AdapterMethod::Full => {
            let base = hub.resolve(&config.model.path)?;
            Ok(export::write_transformer(&base, &average, &provenance, &Place::Apart(folder))?)
        }
    })?;
    Ok(version)
}

/// The run config that a checkpoint was written under.
fn read_config(checkpoint: &Path) -> anyhow::Result<RunConfig> {
    let path = checkpoint.join(CONFIG_FILE);
    let text = config::read_settings(&path).with_context(|| format!("cannot read {}", path.display()))?;
    RunConfig::from_toml(&text).with_context(|| format!("{} is not a valid run config", path.display()))
}

fn newest(checkpoints: &Checkpoints, run: &Path) -> anyhow::Result<u32> {
    let newest = checkpoints.newest_intact()?.checkpoint;
    let (version, _) = newest.ok_or_else(|| anyhow!("{} has no checkpoint yet", run.display()))?;
    Ok(version)
}
