//! Cases `lora*`: the network with an adapter, and the gradient of its output's product with a given cotangent.

use std::path::Path;

use anyhow::ensure;
use models::reference_case::{ParityReport, ReferenceCase};
use models::{Activations, Guidance};
use tch::Kind;

use super::{Outputs, adapter, conditioning, named_gradients, open_with_adapter};

pub(super) fn check(
    model_dir: &Path,
    case: &ReferenceCase,
    activations: Activations,
    report: &mut ParityReport,
) -> anyhow::Result<()> {
    let model = open_with_adapter(model_dir, &adapter(case, "adapter")?)?;
    let conditioning = conditioning(case, "encoder_hidden_states", "pooled_projections")?;
    let (latents, sigmas) = (case.input("hidden_states")?, case.input("timestep")? / model.timestep_scale());
    let training = model.training_velocity(&latents, &sigmas, &Guidance::none(&conditioning), activations);
    let sample = training.velocity().detach();

    let cotangent = case.input("cotangent")?;
    ensure!(
        cotangent.size() == sample.size(),
        "in.cotangent must be shaped like the sample, {:?}",
        sample.size()
    );
    let product = (training.velocity() * cotangent).sum(Kind::Float);
    training.backward(&product);
    let mut outputs: Outputs = named_gradients(&model.network().adapter_parameters()).collect();
    outputs.push(("sample".to_owned(), sample));
    Ok(report.compare_case(case, &outputs)?)
}
