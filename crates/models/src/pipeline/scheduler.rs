//! What a family needs to know of its scheduler; the schedule itself is not this crate's business.

use std::path::Path;

use serde_json::Value;

use super::model_index::ModelIndex;
use crate::{ModelError, json_file};

/// Time steps of the scheduler that FLUX and Qwen-Image count as 1, whatever its own number.
const TIMESTEPS_AT_ONE: f64 = 1000.0;

/// `scheduler/scheduler_config.json` of a folder.
pub(super) struct Scheduler {
    config: Value,
    num_train_timesteps: f64,
}

impl Scheduler {
    /// # Errors
    /// If the folder has another scheduler than all families are made for, or its file is missing or damaged.
    pub(super) fn open(dir: &Path, index: &ModelIndex) -> Result<Self, ModelError> {
        index.require("scheduler", "FlowMatchEulerDiscreteScheduler")?;
        let path = dir.join("scheduler/scheduler_config.json");
        let config: Value = json_file::read(&path)?;
        let (key, default) = ("num_train_timesteps", Value::from(1000));
        let value = config.get(key).unwrap_or(&default);
        let num_train_timesteps = value
            .as_f64()
            .ok_or_else(|| ModelError::config(&path, key, format!("{value} is not supported; write 1000")))?;
        Ok(Self { config, num_train_timesteps })
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// The time step at noise level 1, as SD3's network takes it.
    pub(super) fn num_train_timesteps(&self) -> f64 {
        self.num_train_timesteps
    }

    /// The same in thousands, as the networks of FLUX and Qwen-Image take it.
    pub(super) fn thousands_of_timesteps(&self) -> f64 {
        self.num_train_timesteps / TIMESTEPS_AT_ONE
    }
}
