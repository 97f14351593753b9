//! The adapter of an SD3 transformer: attached fresh, loaded by name, listed for the optimiser.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Tensor, no_grad};

use super::Sd3Transformer;
use crate::error::ModelError;
use crate::lora::{LoraConfig, NormalSource};
use crate::projection::Projection;

impl Sd3Transformer {
    /// Attaches a fresh adapter in place of any other; until trained or loaded it changes nothing.
    ///
    /// `normal` gives standard normal numbers for the tensor of a name, so the start depends on its seed and the names
    /// alone.
    ///
    /// # Errors
    /// If rank or alpha is not positive, or a target names no linear module.
    pub fn attach_adapter(
        &mut self,
        config: &LoraConfig,
        normal: &mut NormalSource,
    ) -> Result<(), ModelError> {
        let paths: Vec<String> = self.projections().flat_map(Projection::paths).map(str::to_owned).collect();
        config.check(paths.iter().map(String::as_str))?;
        self.projections_mut().for_each(|projection| projection.attach(config, normal));
        Ok(())
    }

    /// The adapter's tensors, such as `transformer_blocks.0.attn.to_q.lora_A.weight`: float32 leaves that require
    /// gradients, in an order that depends on the network alone. To be changed in place, then
    /// [`Sd3Transformer::refresh_adapter`].
    pub fn adapter_parameters(&self) -> Vec<(String, Tensor)> {
        self.projections().flat_map(Projection::adapter_parameters).collect()
    }

    /// Copies values into the attached adapter, all or none, and refreshes.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; all of them are told.
    pub fn load_adapter(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        let mut given: BTreeMap<&str, &Tensor> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let (mut missing, mut misshaped, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
        for (name, parameter) in self.adapter_parameters() {
            match given.remove(name.as_str()) {
                None => missing.push(name),
                Some(value) if value.size() != parameter.size() => {
                    misshaped.push(format!(
                        "{name} has shape {:?}, expected {:?}",
                        value.size(),
                        parameter.size()
                    ));
                }
                Some(value) => pairs.push((parameter, value)),
            }
        }
        if !(missing.is_empty() && misshaped.is_empty() && given.is_empty()) {
            let unexpected = given.into_keys().map(str::to_owned).collect();
            return Err(ModelError::Tensors {
                path: PathBuf::from("adapter"),
                missing,
                unexpected,
                misshaped,
            });
        }
        no_grad(|| pairs.into_iter().for_each(|(mut parameter, value)| parameter.copy_(value)));
        self.refresh_adapter();
        Ok(())
    }

    /// Makes [`Sd3Transformer::forward`] use the adapter as it is now; call it after every change.
    pub fn refresh_adapter(&mut self) {
        self.projections_mut().for_each(Projection::refresh);
    }
}
