//! Our gradients and updates against recorded ones: `learner parity`.
//!
//! What is run here is what training runs; what a case is, [`models::reference_case`] says.

mod rl_step;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
pub use models::reference_case::ParityOutcome;
use models::reference_case::{
    ParityOptions, ParityReport, ReferenceCase, adapter_outputs, case_folder, how_to_record,
};
use models::{Activations, AdapterMode};

/// What the name of a kind of case starts with, and what runs it.
type Check = fn(&ParityOptions, &ReferenceCase, Activations, &mut ParityReport) -> anyhow::Result<()>;
const KINDS: [(&str, Check); 2] = [("lora", lora), ("rl_step", rl_step::check)];

/// Runs the case files `lora*` and `rl_step*` of a folder, by default `cases` in the model's or that itself, and writes a line per
/// output and a line of counts. An output agrees if `‖ours − reference‖ ≤ rtol·‖reference‖`. `activations` says how the
/// gradients are computed.
///
/// # Errors
/// If there is no such case, or a case or the model cannot be read or do not fit each other.
pub fn run(
    options: &ParityOptions,
    activations: Activations,
    out: &mut dyn Write,
) -> anyhow::Result<ParityOutcome> {
    let &ParityOptions { model: model_dir, cases, rtol, .. } = options;
    let folder = case_folder(model_dir, cases)?;
    let files = case_files(&folder)?;
    if files.is_empty() {
        bail!(
            "0 cases in {}: looked for lora*.safetensors and rl_step*.safetensors; {}",
            folder.display(),
            how_to_record(model_dir, cases)
        );
    }
    let mut report = ParityReport::new(out, rtol);
    for (path, check) in files {
        let case = ReferenceCase::open(&path, options.weights.device)?;
        // libtorch's bindings tell shapes that do not fit by panicking.
        match catch_unwind(AssertUnwindSafe(|| check(options, &case, activations, &mut report))) {
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
        found.extend(kind.filter(|_| path.is_file()).map(|(_, check)| (path.clone(), *check)));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The network with an adapter, as training evaluates it, and the gradient of its output's product with a cotangent.
fn lora(
    options: &ParityOptions,
    case: &ReferenceCase,
    activations: Activations,
    report: &mut ParityReport,
) -> anyhow::Result<()> {
    let outputs =
        adapter_outputs(case, (options.model, &options.weights), AdapterMode::Trainable, activations)?;
    Ok(report.compare_case(case, &outputs)?)
}
