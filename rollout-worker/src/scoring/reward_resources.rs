//! What scorers get from this machine.

use std::path::Path;

use models::weights::TensorSource;
use rewards::Resources;
use service::Hub;
use tch::Device;

/// What scorers may need on this machine.
pub fn reward_resources(device: Device, hub: Hub) -> Resources {
    let find_model = Box::new(move |model: &Path| Ok(hub.resolve(model)?));
    let variable = Box::new(|name: &str| std::env::var(name).ok());
    Resources { device, source: TensorSource::Files, find_model, variable }
}
