//! The trained adapter in the layouts that other tools load, one folder each: diffusers refuses a folder with two.

use std::path::Path;

use config::RunConfig;
use models::adapter_file::SavedAdapter;
use models::lora::LoraConfig;
use service::durable;
use tch::Tensor;

use crate::error::LearnerError;

/// Writes `peft/` (`PeftModel.from_pretrained`) and `diffusers/` (`load_lora_weights`, ComfyUI) below `directory`.
///
/// # Errors
/// If the file system refuses; what stood there is then untouched.
pub fn write(config: &RunConfig, tensors: &[(String, Tensor)], directory: &Path) -> Result<(), LearnerError> {
    let settings = &config.adapter;
    let lora = LoraConfig { rank: settings.rank, alpha: settings.alpha, targets: settings.targets.clone() };
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
    let adapter = SavedAdapter { config: lora, tensors };
    durable::create_directory(directory)?;
    let base_model = config.model.path.to_string_lossy();
    durable::write_directory(&directory.join("peft"), |folder| {
        adapter.write_peft(folder, Some(&base_model)).map_err(LearnerError::from)
    })?;
    durable::write_directory(&directory.join("diffusers"), |folder| {
        adapter.write_diffusers(folder).map_err(LearnerError::from)
    })
}
