//! What scorers get from this machine.

use std::path::Path;

use models::weights::TensorSource;
use rewards::{Resources, RunIdentity};
use service::Hub;
use tch::Device;

/// What scorers may need on this machine, of a process that shows `run` to reward servers of its run.
pub fn reward_resources(device: Device, hub: Hub, run: RunIdentity) -> Resources {
    let find_model = Box::new(move |model: &Path| Ok(hub.resolve(model)?));
    let variable = Box::new(|name: &str| std::env::var(name).ok());
    Resources { device, source: TensorSource::Files, find_model, variable, run }
}
