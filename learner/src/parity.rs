//! Our gradients and updates against recorded ones: `learner parity`.
//!
//! What is run here is what training runs; what a case is, [`models::reference_case`] says.

mod lora;
mod rl_step;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use models::adapter_file::SavedAdapter;
pub use models::reference_case::ParityOutcome;
use models::reference_case::{ParityReport, ReferenceCase};
use models::weights::WeightOptions;
use models::{Activations, Conditioning, LoadOptions, TextToImageModel};
use tch::{Device, Kind, Tensor};

/// A computed output by the name under which cases record it.
type Outputs = Vec<(String, Tensor)>;

/// What the name of a kind of case starts with, and what runs it.
type Check = fn(&Path, &ReferenceCase, Activations, &mut ParityReport) -> anyhow::Result<()>;
const KINDS: [(&str, Check); 2] = [("lora", lora::check), ("rl_step", rl_step::check)];

/// Runs the case files `lora*` and `rl_step*` of a folder, by default `cases` in the model's, and writes a line per
/// output and a line of counts. An output agrees if `‖ours − reference‖ ≤ rtol·‖reference‖`. `activations` says how the
/// gradients are computed.
///
/// # Errors
/// If there is no such case, or a case or the model cannot be read or do not fit each other.
pub fn run(
    model_dir: &Path,
    cases: Option<&Path>,
    rtol: f64,
    activations: Activations,
    out: &mut dyn Write,
) -> anyhow::Result<ParityOutcome> {
    let folder = cases.map_or_else(|| model_dir.join("cases"), Path::to_owned);
    let files = case_files(&folder)?;
    let mut report = ParityReport::new(out, rtol)?;
    for (path, check) in files {
        let case = ReferenceCase::open(&path)?;
        // libtorch's bindings tell shapes that do not fit by panicking.
        match catch_unwind(AssertUnwindSafe(|| check(model_dir, &case, activations, &mut report))) {
            Ok(checked) => checked.with_context(|| format!("cannot run {}", path.display()))?,
            Err(_) => bail!("{} does not fit the model in {}", path.display(), model_dir.display()),
        }
    }
    Ok(report.finish()?)
}

fn case_files(folder: &Path) -> anyhow::Result<Vec<(PathBuf, Check)>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the cases in {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = KINDS.iter().find(|(start, _)| name.starts_with(start) && name.ends_with(".safetensors"));
        found.extend(kind.map(|(_, check)| (path, *check)));
    }
    if found.is_empty() {
        bail!("{} has no case file lora*.safetensors or rl_step*.safetensors", folder.display());
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Embeddings that a case has under these two names.
fn conditioning(case: &ReferenceCase, text: &str, pooled: &str) -> anyhow::Result<Conditioning> {
    Ok(Conditioning { text: case.input(text)?, pooled: Some(case.input(pooled)?), text_mask: None })
}

/// The adapter in the folder, beside the case, that argument `key` of its call names.
fn adapter(case: &ReferenceCase, key: &str) -> anyhow::Result<SavedAdapter> {
    let folder: String = case.argument(key)?;
    Ok(SavedAdapter::read(&case.path().with_file_name(folder))?)
}

/// The model with an adapter in it, as training opens it.
fn open_with_adapter(model_dir: &Path, adapter: &SavedAdapter) -> anyhow::Result<Box<dyn TextToImageModel>> {
    let options = LoadOptions {
        weights: WeightOptions::new(Kind::Float, Device::Cpu),
        text_encoders: false,
        decoder: None,
    };
    let mut model = models::pipeline::open(model_dir, options)?;
    model.network_mut().attach_adapter(&adapter.config, &mut |_, length| vec![0.0; length])?;
    model.network_mut().load_adapter(&adapter.tensors)?;
    Ok(model)
}

/// Gradients under the names that cases have for them.
fn named_gradients(parameters: &[(String, Tensor)]) -> impl Iterator<Item = (String, Tensor)> {
    parameters.iter().map(|(name, parameter)| {
        let gradient = parameter.grad();
        let gradient = if gradient.defined() { gradient.copy() } else { parameter.zeros_like().detach() };
        (format!("grad.base_model.model.{name}"), gradient)
    })
}
