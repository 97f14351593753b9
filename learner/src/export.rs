//! What was trained, in the layouts that other tools load, one folder each: diffusers refuses a folder with two.

use std::collections::HashMap;
use std::path::Path;

use config::RunConfig;
use models::adapter_file::SavedAdapter;
use models::{ModelError, weights};
use service::durable;
use tch::Tensor;

use crate::error::LearnerError;
use crate::trained_tensors::lora_config;

/// Folder of the network in a pipeline.
const TRANSFORMER: &str = "transformer";
const TRANSFORMER_TENSORS: &str = "diffusion_pytorch_model.safetensors";
const TRANSFORMER_CONFIG: &str = "config.json";

/// Writes `peft/` (`PeftModel.from_pretrained`) and `diffusers/` (`load_lora_weights`, ComfyUI) below `directory`.
///
/// # Errors
/// If the file system refuses; what stood there is then untouched.
pub fn write_adapter(
    config: &RunConfig,
    tensors: &[(String, Tensor)],
    directory: &Path,
) -> Result<(), LearnerError> {
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
    let adapter = SavedAdapter::new(lora_config(config), tensors);
    durable::create_directory(directory)?;
    let base_model = config.model.path.to_string_lossy();
    durable::write_directory(&directory.join("peft"), |folder| {
        adapter.write_peft(folder, Some(&base_model)).map_err(LearnerError::from)
    })?;
    durable::write_directory(&directory.join("diffusers"), |folder| {
        adapter.write_diffusers(folder).map_err(LearnerError::from)
    })
}

/// Writes `transformer/` below `directory`, which takes the place of the folder of that name in the `base` pipeline and
/// has its configuration: diffusers' `from_pretrained`.
///
/// # Errors
/// If the file system refuses; what stood there is then untouched.
pub fn write_transformer(
    base: &Path,
    tensors: &[(String, Tensor)],
    directory: &Path,
) -> Result<(), LearnerError> {
    durable::create_directory(directory)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    durable::write_directory(&directory.join(TRANSFORMER), |folder| {
        weights::write(&folder.join(TRANSFORMER_TENSORS), tensors, &metadata)?;
        let config = base.join(TRANSFORMER).join(TRANSFORMER_CONFIG);
        let text = std::fs::read(&config).map_err(|problem| ModelError::io(&config, problem))?;
        durable::write_file(&folder.join(TRANSFORMER_CONFIG), &text).map_err(LearnerError::from)
    })
}
