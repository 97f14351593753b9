//! Cases `lora*`: the network with an adapter, and the gradient of its output's product with a given cotangent.

use std::path::Path;

use anyhow::ensure;
use models::reference_case::{ParityReport, ReferenceCase};
use models::{AdapterMode, Guidance};
use tch::Kind;

use super::{Outputs, adapter, conditioning, named_gradients, open_with_adapter};

pub(super) fn check(model_dir: &Path, case: &ReferenceCase, report: &mut ParityReport) -> anyhow::Result<()> {
    let model = open_with_adapter(model_dir, &adapter(case, "adapter")?)?;
    let conditioning = conditioning(case, "encoder_hidden_states", "pooled_projections")?;
    let (latents, sigmas) = (case.input("hidden_states")?, case.input("timestep")? / model.timestep_scale());
    let sample = model.velocity(&latents, &sigmas, &Guidance::none(&conditioning), AdapterMode::Trainable);

    let cotangent = case.input("cotangent")?;
    ensure!(
        cotangent.size() == sample.size(),
        "in.cotangent must be shaped like the sample, {:?}",
        sample.size()
    );
    (&sample * cotangent).sum(Kind::Float).backward();
    let mut outputs: Outputs = named_gradients(&model.network().adapter_parameters()).collect();
    outputs.push(("sample".to_owned(), sample.detach()));
    Ok(report.compare_case(case, &outputs)?)
}
