//! What a run is told to do: the run config, its validation, the prompts, the tasks and their cost. Never links libtorch.

mod commented;
mod cost;
mod identity;
mod importer;
mod memory;
mod model_inspection;
mod notation;
mod parse;
mod paths;
mod plan;
mod presets;
mod prompts;
mod rewards;
mod run_config;
mod tasks;
mod validate;

pub use cost::*;
pub use identity::*;
pub use importer::{Fate, Import, ImportEntry, ImportError, ImportReport, import_flow_factory};
pub use memory::*;
pub use model_inspection::*;
pub use parse::*;
pub use paths::{Lookup, expand, place, unexpanded};
pub use plan::*;
pub use presets::*;
pub use prompts::*;
pub use rewards::CONNECTION_OPTIONS;
pub use run_config::*;
pub use tasks::*;
pub use validate::validate;
