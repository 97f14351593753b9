//! Cases `rl_step*`: the loss of some transitions at one step, its gradients, and the adapter after the update.

use anyhow::ensure;
use config::{KlDenominator, StepRule, StepWeight};
use flow::{
    AdamW, AdamWSettings, ClippedObjective, Schedule, TransitionCoefficients, TransitionRows,
    clip_gradient_norm, kl_divergence, log_probability, step_weights, transition_mean,
};
use models::reference_case::{
    Outputs, ParityOptions, ParityReport, RecordedLatents, ReferenceCase, conditioning, guidance_scale,
    named_gradients, open_with_adapter, saved_adapter,
};
use models::{Activations, AdapterMode, Conditioning, Guidance, TextToImageModel};
use tch::{Kind, Tensor, no_grad};

pub(super) fn check(
    options: &ParityOptions,
    case: &ReferenceCase,
    activations: Activations,
    report: &mut ParityReport,
) -> anyhow::Result<()> {
    let model = open_with_adapter(options.model, &options.weights, &saved_adapter(case, "adapter_before")?)?;
    let mut outputs = backward(model.as_ref(), case, activations)?;
    let parameters = model.network().adapter_parameters();
    outputs.extend(named_gradients(&parameters));
    let norm = clip_gradient_norm(&parameters, case.argument("max_grad_norm")?)?;
    outputs.push(("grad_norm".to_owned(), Tensor::from_slice(&[norm])));
    report.compare_case(case, &outputs)?;

    AdamW::new(&parameters, optimizer(case)?).step();
    for (name, reference) in saved_adapter(case, "adapter_after")?.tensors {
        let parameter = parameters.iter().find(|(known, _)| *known == name);
        let (_, parameter) =
            parameter.ok_or_else(|| anyhow::anyhow!("adapter_after has {name}, adapter_before not"))?;
        report.compare(&case.name(), &format!("adapter_after.{name}"), &parameter.detach(), &reference)?;
    }
    Ok(())
}

fn optimizer(case: &ReferenceCase) -> anyhow::Result<AdamWSettings> {
    Ok(AdamWSettings {
        lr: case.argument("lr")?,
        beta1: case.optional_argument("adam_beta1")?.unwrap_or(0.9),
        beta2: case.optional_argument("adam_beta2")?.unwrap_or(0.999),
        epsilon: case.argument("adam_eps")?,
        weight_decay: case.argument("weight_decay")?,
    })
}

/// Computes the loss and its gradients.
fn backward(
    model: &dyn TextToImageModel,
    case: &ReferenceCase,
    activations: Activations,
) -> anyhow::Result<Outputs> {
    let question = Question::read(case, model)?;
    let rows = question.latents.size()[0];
    let (coefficients, weight) = transition(case)?;
    let coefficients = vec![coefficients; rows as usize];
    let transition_rows = TransitionRows::new(&coefficients, question.latents.device());
    let (latents, sigmas, guidance) = (&question.latents, &question.sigmas, question.guidance());
    let training = model.training_velocity(latents, sigmas, &guidance, activations);
    let mean = transition_mean(latents, training.velocity(), &transition_rows);
    let reference = no_grad(|| model.velocity(latents, sigmas, &guidance, AdapterMode::Off));
    let reference = transition_mean(latents, &reference, &transition_rows);

    let next = RecordedLatents::read(case, "next_latents", model)?.latents;
    let log_prob = log_probability(&next, &mean, &transition_rows);
    let clip_range = case.argument("clip_range")?;
    let objective = ClippedObjective {
        clip_below: clip_range,
        clip_above: clip_range,
        advantage_clip: case.argument("adv_clip_max")?,
    };
    let weights = Tensor::full([rows], weight, (Kind::Float, log_prob.device()));
    let log_ratio = &log_prob - case.input("log_prob_old")?;
    let policy = objective.policy_loss(&log_ratio, &case.input("advantages")?, &weights);
    let kl = kl_divergence(&mean, &reference, &coefficients, KlDenominator::Std).mean(Kind::Float);
    let loss = &policy.loss + &kl * case.argument::<f64>("beta")?;
    training.backward(&loss);
    let one = |scalar: &Tensor| scalar.detach().view([1]);
    let outputs = [
        ("log_prob", log_prob.detach()),
        ("ratio", policy.ratio),
        ("policy_loss", one(&policy.loss)),
        ("kl_loss", one(&kl)),
        ("loss", one(&loss)),
        ("weight", weights.narrow(0, 0, 1)),
    ];
    Ok(outputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
}

/// The random move at the case's step, and the step's weight among all steps but the last.
fn transition(case: &ReferenceCase) -> anyhow::Result<(TransitionCoefficients, f64)> {
    let (step, noise_level): (usize, f64) = (case.argument("step")?, case.argument("noise_level")?);
    let schedule =
        Schedule { sigmas: values(&case.input("sigmas")?)?, timesteps: values(&case.input("timesteps")?)? };
    let steps = schedule.timesteps.len();
    ensure!(schedule.sigmas.len() == steps + 1, "in.sigmas must have one entry more than in.timesteps");
    ensure!(step + 1 < steps, "step {step} must be below {}, the last of {steps}", steps.saturating_sub(1));
    let all: Vec<TransitionCoefficients> = (0..steps - 1)
        .map(|step| TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, noise_level))
        .collect::<Result<_, _>>()?;
    Ok((all[step], step_weights(StepWeight::Noise, &all, &all)[step]))
}

fn values(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(Vec::try_from(&tensor.to_kind(Kind::Float))?)
}

/// What the guided velocity is asked about.
struct Question {
    latents: Tensor,
    sigmas: Tensor,
    positive: Conditioning,
    negative: Option<Conditioning>,
    guidance_scale: f64,
}

impl Question {
    fn read(case: &ReferenceCase, model: &dyn TextToImageModel) -> anyhow::Result<Self> {
        let latents = RecordedLatents::read(case, "latents", model)?.latents;
        let guidance_scale = guidance_scale(case)?;
        let negative = ["negative_prompt_embeds", "negative_pooled", "negative_mask"];
        let guided = model.negative_prompt(guidance_scale).is_some();
        Ok(Self {
            sigmas: case.input("sigmas")?.f_narrow(0, case.argument("step")?, 1)?.repeat([latents.size()[0]]),
            positive: conditioning(case, ["prompt_embeds", "pooled", "mask"])?,
            negative: guided.then(|| conditioning(case, negative)).transpose()?,
            guidance_scale,
            latents,
        })
    }

    fn guidance(&self) -> Guidance<'_> {
        let negative = self.negative.as_ref();
        Guidance { positive: &self.positive, negative, scale: self.guidance_scale }
    }
}
