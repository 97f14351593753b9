//! What was trained, in the layouts that other tools load, one folder each: diffusers refuses a folder with two.
//!
//! Every folder says what it was made of, and one that was made of the same is left as it is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{AdapterMethod, RunConfig};
use models::adapter_file::SavedAdapter;
use models::{ModelError, weights};
use service::{OwnedDirectory, Provenance, ServiceError, durable};
use tch::Tensor;

use crate::error::LearnerError;

/// What `PeftModel.from_pretrained` loads.
const PEFT: &str = "peft";
/// What diffusers' `load_lora_weights` and ComfyUI load.
const DIFFUSERS: &str = "diffusers";
/// Folder of the network in a pipeline.
const TRANSFORMER: &str = "transformer";
const TRANSFORMER_TENSORS: &str = "diffusion_pytorch_model.safetensors";
const TRANSFORMER_CONFIG: &str = "config.json";

/// A folder that exports are written to.
pub enum Place<'a> {
    /// One in the directory of a run.
    OfRun(&'a OwnedDirectory, PathBuf),
    /// One that nobody else writes to.
    Apart(&'a Path),
}

impl Place<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::OfRun(_, path) => path,
            Self::Apart(path) => path,
        }
    }

    fn create(&self) -> Result<(), ServiceError> {
        match self {
            Self::OfRun(run, path) => run.create_directory(path),
            Self::Apart(path) => durable::create_directory(path),
        }
    }

    /// Writes one of the folders in it as a whole, unless what is there was made of the same.
    fn write_folder(
        &self,
        name: &str,
        provenance: &Provenance,
        fill: impl FnOnce(&Path) -> Result<(), LearnerError>,
    ) -> Result<(), LearnerError> {
        let folder = self.path().join(name);
        if Provenance::read(&folder).as_ref() == Some(provenance) {
            return Ok(());
        }
        let fill = |partial: &Path| -> Result<(), LearnerError> {
            fill(partial)?;
            Ok(provenance.write(partial)?)
        };
        match self {
            Self::OfRun(run, _) => run.write_directory(&folder, fill),
            Self::Apart(_) => durable::write_directory(&folder, fill),
        }
    }
}

/// Whether all that a run of this method exports was made of `provenance`.
pub fn is_current(method: AdapterMethod, provenance: &Provenance, directory: &Path) -> bool {
    let folders: &[&str] = match method {
        AdapterMethod::Lora => &[PEFT, DIFFUSERS],
        AdapterMethod::Full => &[TRANSFORMER],
    };
    folders.iter().all(|folder| Provenance::read(&directory.join(folder)).as_ref() == Some(provenance))
}

/// Writes `peft/` (`PeftModel.from_pretrained`) and `diffusers/` (`load_lora_weights`, ComfyUI) in a place.
///
/// # Errors
/// If the file system refuses; what stood there is then untouched.
pub fn write_adapter(
    config: &RunConfig,
    tensors: &[(String, Tensor)],
    provenance: &Provenance,
    place: &Place,
) -> Result<(), LearnerError> {
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
    let adapter = SavedAdapter::new(run_setup::lora_config(&config.adapter), tensors);
    place.create()?;
    let base_model = config.model.path.to_string_lossy();
    place.write_folder(PEFT, provenance, |folder| {
        adapter.write_peft(folder, Some(&base_model)).map_err(LearnerError::from)
    })?;
    place.write_folder(DIFFUSERS, provenance, |folder| {
        adapter.write_diffusers(folder).map_err(LearnerError::from)
    })
}

/// Writes `transformer/` in a place, which takes the place of the folder of that name in the `base` pipeline and
/// has its configuration: diffusers' `from_pretrained`.
///
/// # Errors
/// If the file system refuses; what stood there is then untouched.
pub fn write_transformer(
    base: &Path,
    tensors: &[(String, Tensor)],
    provenance: &Provenance,
    place: &Place,
) -> Result<(), LearnerError> {
    place.create()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    place.write_folder(TRANSFORMER, provenance, |folder| {
        weights::write(&folder.join(TRANSFORMER_TENSORS), tensors, &metadata)?;
        let config = base.join(TRANSFORMER).join(TRANSFORMER_CONFIG);
        let text = std::fs::read(&config).map_err(|problem| ModelError::io(&config, problem))?;
        durable::write_file(&folder.join(TRANSFORMER_CONFIG), &text).map_err(LearnerError::from)
    })
}
