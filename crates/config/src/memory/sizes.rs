//! Sizes of a model's components and of what is trained.

use crate::{AdapterMethod, Dtype, ModelInspection, RunConfig};

/// Bytes of a float32.
pub(crate) const FLOAT32: f64 = 4.0;

/// Bytes of an element.
pub(crate) fn dtype_bytes(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float32 => FLOAT32,
        Dtype::Bfloat16 => 2.0,
    }
}

/// Parameters that are trained.
pub fn trained_parameters(config: &RunConfig, model: &ModelInspection) -> f64 {
    match config.adapter.method {
        AdapterMethod::Full => component(model, |name| name == "transformer").0,
        AdapterMethod::Lora => model.adapter.as_ref().map_or(0.0, |adapter| adapter.parameters as f64),
    }
}

/// Bytes of one version of what is trained as workers get it: an adapter is float32 always, a whole network as it is
/// computed with.
pub(crate) fn version_bytes(config: &RunConfig, model: &ModelInspection) -> f64 {
    let element = match config.adapter.method {
        AdapterMethod::Lora => FLOAT32,
        AdapterMethod::Full => dtype_bytes(model.dtype),
    };
    element * trained_parameters(config, model)
}

/// Bytes of the components of some names.
pub(crate) fn component_bytes(model: &ModelInspection, is_meant: impl Fn(&str) -> bool) -> f64 {
    component(model, is_meant).1
}

/// Parameters and bytes of the components of some names.
fn component(model: &ModelInspection, is_meant: impl Fn(&str) -> bool) -> (f64, f64) {
    let meant = model.components.iter().filter(|component| is_meant(&component.name));
    meant.fold((0.0, 0.0), |sum, component| {
        (sum.0 + component.parameters as f64, sum.1 + component.bytes as f64)
    })
}
