//! Our numbers against recorded reference cases, for the user's own checkpoint as for the repository's.
//!
//! What a case is called decides how it is computed; see `KINDS`. A folder of cases need not belong to a model:
//! schedules and steps (`sigmas*`, `flow_sde*`) and tokenizers (`cases.json` beside a vocabulary) work by themselves.

mod flow_cases;
mod hpsv3_cases;
mod model_cases;
mod score_cases;
mod token_cases;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use models::adapter_file::SavedAdapter;
use models::pipeline::{self, LoadOptions};
use models::reference_case::{
    Outputs, ParityOptions, ParityReport, ReferenceCase, case_folder, how_to_record,
};
use models::weights::WeightOptions;
use models::{DecoderOptions, ModelError, TextToImageModel};

pub use models::reference_case::ParityOutcome;

/// A case's outputs as we compute them, by the names under which the case records them.
type Computed = anyhow::Result<Outputs>;
type Compute = fn(&ReferenceCase, &mut LazyModel) -> Computed;

/// How a case's name begins, and what computes it.
const KINDS: &[(&str, Compute)] = &[
    ("prompt_embeds", model_cases::prompt_embeds),
    ("transformer", model_cases::transformer),
    ("vae_decode", model_cases::vae_decode),
    ("pipeline", model_cases::pipeline),
    ("lora", model_cases::lora),
    ("flow_sde", flow_cases::flow_sde),
    ("sigmas", flow_cases::sigmas),
    ("score", score_cases::score),
];

/// The model of the cases, opened when the first of them needs it.
struct LazyModel {
    dir: PathBuf,
    weights: WeightOptions,
    model: Option<Box<dyn TextToImageModel>>,
}

impl LazyModel {
    fn get(&mut self) -> Result<&dyn TextToImageModel, ModelError> {
        if self.model.is_none() {
            self.model = Some(self.open()?);
        }
        Ok(self.model.as_deref().expect("the model was just opened; else this is a bug"))
    }

    /// Another one with an adapter in it.
    fn open_with(&self, adapter: &SavedAdapter) -> Result<Box<dyn TextToImageModel>, ModelError> {
        let mut model = self.open()?;
        model.network_mut().attach_adapter(&adapter.config, &mut |_, length| vec![0.0; length])?;
        model.network_mut().load_adapter(&adapter.tensors)?;
        Ok(model)
    }

    /// Opens the whole pipeline; images are decoded in float32, as they are by default.
    fn open(&self) -> Result<Box<dyn TextToImageModel>, ModelError> {
        let (weights, decoder) = (self.weights.clone(), Some(DecoderOptions::WHOLE));
        let options = LoadOptions { weights, text_encoders: true, decoder };
        pipeline::open(&self.dir, options)
    }
}

/// Runs every case in the folder of cases, by default `cases` in the model's or, where there is none, that itself, and
/// writes a line per output and the count to `out`.
///
/// # Errors
/// If a folder is missing or holds no case, a case is malformed, the model cannot be opened, or `out` cannot be written to.
pub fn run(options: &ParityOptions, out: &mut dyn Write) -> anyhow::Result<ParityOutcome> {
    let &ParityOptions { model: model_dir, cases, rtol, ref weights } = options;
    let case_dir = case_folder(model_dir, cases)?;
    let found = find(&case_dir)?;
    let token_cases = Some(case_dir.join(token_cases::FILE)).filter(|path| path.is_file());
    if found.is_empty() && token_cases.is_none() {
        let kinds: Vec<String> = KINDS.iter().map(|(prefix, _)| format!("{prefix}*.safetensors")).collect();
        bail!(
            "0 cases in {}: looked for {} and {}; {}",
            case_dir.display(),
            kinds.join(", "),
            token_cases::FILE,
            how_to_record(model_dir, cases)
        );
    }
    let mut report = ParityReport::new(out, rtol);
    let mut model = LazyModel { dir: model_dir.to_owned(), weights: weights.clone(), model: None };
    for (path, compute) in found {
        let run = || -> anyhow::Result<()> {
            let case = ReferenceCase::open(&path, weights.device)?;
            let computed = compute(&case, &mut model)?;
            Ok(report.compare_case(&case, &computed)?)
        };
        run_named(&path, run)?;
    }
    if let Some(path) = token_cases {
        run_named(&path, || token_cases::compare(&path, model_dir, &mut report))?;
    }
    Ok(report.finish()?)
}

fn run_named(path: &Path, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    run().with_context(|| format!("running case {}", path.display()))
}

/// The case files in a folder by name, each with what computes it.
fn find(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Compute)>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind =
            KINDS.iter().find(|(prefix, _)| name.starts_with(prefix) && name.ends_with(".safetensors"));
        if let Some((_, compute)) = kind.filter(|_| path.is_file()) {
            found.push((path, *compute));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}
