//! What scorers may need beside their options.

use std::path::{Path, PathBuf};

use models::weights::TensorSource;
use service::Trust;
use tch::Device;

/// Where networks live, and how what options name is found.
pub struct Resources {
    /// Where networks live.
    pub device: Device,
    /// Where their tensors come from: files, or nowhere, to find out what is wrong without reading them.
    pub source: TensorSource,
    /// Finds the folder of a model: a path, or `org/name` in a cache.
    pub find_model: FindModel,
    /// Looks up a variable of the environment, where options name one that holds a secret.
    pub variable: LookUpVariable,
    /// What reward servers of the process's own run are shown.
    pub run: RunIdentity,
}

/// What a process shows to reward servers of its own run.
#[derive(Clone)]
pub enum RunIdentity {
    /// Nothing: it is of no run, or of one in plain text.
    None,
    /// A certificate, once the run has begun; options can be looked at before.
    ToBeCertified,
    /// The certificate of this trust.
    Certified(Trust),
}

impl From<&Trust> for RunIdentity {
    fn from(trust: &Trust) -> Self {
        if trust.is_mutual() { Self::Certified(trust.clone()) } else { Self::None }
    }
}

impl Resources {
    /// The CPU, models by their paths alone, no environment, and no run.
    pub fn local() -> Self {
        let find_model = Box::new(|model: &Path| Ok(model.to_owned()));
        let variable = Box::new(|_: &str| None);
        let run = RunIdentity::None;
        Self { device: Device::Cpu, source: TensorSource::Files, find_model, variable, run }
    }
}

/// The folder that a model's name stands for.
pub type FindModel = Box<dyn Fn(&Path) -> Result<PathBuf, ModelLookupError>>;

/// The value of a variable of the environment.
pub type LookUpVariable = Box<dyn Fn(&str) -> Option<String>>;

/// Why a model's folder is not found.
pub type ModelLookupError = Box<dyn std::error::Error + Send + Sync>;
