//! Cases of a whole model: its text encoders, its network with and without an adapter, its decoder, and all together.

use anyhow::{Context, ensure};
use flow::{Schedule, SchedulerConfig, ode_step};
use models::adapter_file::SavedAdapter;
use models::reference_case::ReferenceCase;
use models::{AdapterMode, Conditioning, Guidance, TextToImageModel};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{Computed, LazyModel};

/// Diffusers names each encoder's tokenizer so in `model_index.json`; the cases name their ids so.
const TOKEN_IDS: [(&str, &str); 3] =
    [("tokenizer", "clip_ids"), ("tokenizer_2", "clip_2_ids"), ("tokenizer_3", "t5_ids")];

/// `prompts` → `prompt_embeds`, `pooled`, `mask`, each also with `negative_` before it, and the token ids.
pub(super) fn prompt_embeds(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let model = model.get()?;
    let prompts: Vec<String> = case.argument("prompts")?;
    let length: usize = case.argument("max_sequence_length")?;
    let mut computed = named(model.encode_prompts(&prompts, length)?, "");
    let negative = model.encode_prompts(&vec![negative_prompt(case, "")?; prompts.len()], length)?;
    computed.extend(named(negative, "negative_"));
    for (tokenizer, name) in TOKEN_IDS {
        let mut ids = Vec::new();
        for prompt in &prompts {
            let tokens = model.token_ids(prompt, length)?;
            let own = tokens.into_iter().find(|encoder| encoder.tokenizer == tokenizer);
            ids.extend(own.map(|encoder| Tensor::from_slice(&encoder.tokens.ids)));
        }
        if !ids.is_empty() {
            computed.push((name.to_owned(), Tensor::stack(&ids, 0)));
        }
    }
    Ok(computed)
}

fn named(conditioning: Conditioning, prefix: &str) -> Vec<(String, Tensor)> {
    let Conditioning { text, pooled, text_mask } = conditioning;
    let all = [("prompt_embeds", Some(text)), ("pooled", pooled), ("mask", text_mask)];
    all.into_iter().filter_map(|(name, tensor)| Some((format!("{prefix}{name}"), tensor?))).collect()
}

fn negative_prompt(case: &ReferenceCase, own: &str) -> anyhow::Result<String> {
    Ok(case.optional_argument("negative_prompt")?.unwrap_or_else(|| own.to_owned()))
}

/// What the network is asked about in a `transformer` or `lora` case.
struct Query {
    latents: Tensor,
    sigmas: Tensor,
    conditioning: Conditioning,
}

impl Query {
    fn read(case: &ReferenceCase, model: &dyn TextToImageModel) -> anyhow::Result<Self> {
        let latents = case.input("hidden_states")?;
        let timestep = case.input("timestep")?;
        ensure!(
            timestep.dim() == 1 && timestep.size()[0] == latents.size()[0],
            "in.timestep has shape {:?}, but in.hidden_states has {} rows",
            timestep.size(),
            latents.size()[0]
        );
        let optional = |name| case.has_input(name).then(|| case.input(name)).transpose();
        let conditioning = Conditioning {
            text: case.input("encoder_hidden_states")?,
            pooled: optional("pooled_projections")?,
            text_mask: optional("encoder_hidden_states_mask")?,
        };
        model.check_inputs(&latents, &conditioning)?;
        let sigmas = timestep.to_kind(Kind::Float) / model.timestep_scale();
        Ok(Self { latents, sigmas, conditioning })
    }

    fn velocity(&self, model: &dyn TextToImageModel, mode: AdapterMode) -> Tensor {
        model.velocity(&self.latents, &self.sigmas, &Guidance::none(&self.conditioning), mode)
    }
}

fn scheduler(model: &dyn TextToImageModel) -> anyhow::Result<SchedulerConfig> {
    serde_json::from_value::<SchedulerConfig>(model.scheduler_config().clone())
        .context("reading scheduler/scheduler_config.json")
}

/// The network's output for given inputs, without an adapter.
pub(super) fn transformer(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let model = model.get()?;
    let query = Query::read(case, model)?;
    let sample = tch::no_grad(|| query.velocity(model, AdapterMode::Off));
    Ok(vec![("sample".to_owned(), sample)])
}

/// The network's output with the adapter named in the case, and the gradient of `Σ sample·cotangent` to each factor.
pub(super) fn lora(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let folder = case.path().with_file_name(case.argument::<String>("adapter")?);
    let adapter = SavedAdapter::read(&folder)?;
    // Not the other cases' model, which stays without an adapter.
    let mut model = super::open(&model.dir, false)?;
    model.network_mut().attach_adapter(&adapter.config, &mut |_, length| vec![0.0; length])?;
    model.network_mut().load_adapter(&adapter.tensors)?;
    let query = Query::read(case, model.as_ref())?;
    let sample = tch::no_grad(|| query.velocity(model.as_ref(), AdapterMode::Frozen));
    let cotangent = case.input("cotangent")?;
    ensure!(
        cotangent.size() == sample.size(),
        "in.cotangent has shape {:?}, but the network's output has {:?}",
        cotangent.size(),
        sample.size()
    );
    let trained = query.velocity(model.as_ref(), AdapterMode::Trainable);
    (trained * cotangent).sum(Kind::Float).backward();
    let gradients = model.network().adapter_parameters().into_iter().map(|(name, parameter)| {
        let gradient = parameter.grad();
        let gradient = if gradient.defined() { gradient } else { parameter.zeros_like() };
        (format!("grad.base_model.model.{name}"), gradient)
    });
    Ok(std::iter::once(("sample".to_owned(), sample)).chain(gradients).collect())
}

/// Latents of the diffusion space → `image`, black at -1 and white at 1.
pub(super) fn vae_decode(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    Ok(vec![("image".to_owned(), model.get()?.decode_signed(&case.input("latents")?)?)])
}

/// `prompts` and initial latents → final `latents` and `image`, in `[0, 1]`.
pub(super) fn pipeline(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let model = model.get()?;
    let prompts: Vec<String> = case.argument("prompts")?;
    let guidance_scale: f64 = case.argument("guidance_scale")?;
    let length: usize = case.argument("max_sequence_length")?;
    let positive = model.encode_prompts(&prompts, length)?;
    let negative = model.negative_prompt(guidance_scale).map(|own| negative_prompt(case, own)).transpose()?;
    let negative = negative.map(|prompt| model.encode_prompts(&[prompt], length)).transpose()?;
    let initial = case.input("latents")?;
    let n_latents = initial.size().first().copied().unwrap_or_default();
    ensure!(
        n_latents == prompts.len() as i64,
        "in.latents has {n_latents} rows, but there are {} prompts",
        prompts.len()
    );
    model.check_inputs(&initial, &positive)?;
    let (height, width) = image_size(case)?;
    let sequence_length = model.image_sequence_length(height, width);
    let schedule = Schedule::new(&scheduler(model)?, case.argument("steps")?, sequence_length)?;
    let per_row = |value: f32| Tensor::from_slice(&vec![value; prompts.len()]);
    let latents = tch::no_grad(|| {
        (0..schedule.steps()).fold(initial, |latents, step| {
            let sigmas = per_row(schedule.sigmas[step]);
            let guidance =
                Guidance { positive: &positive, negative: negative.as_ref(), scale: guidance_scale };
            let velocity = model.velocity(&latents, &sigmas, &guidance, AdapterMode::Off);
            ode_step(&latents, &velocity, &per_row(schedule.delta_sigma(step)))
        })
    });
    let image = model.decode(&latents)?;
    Ok(vec![("latents".to_owned(), latents), ("image".to_owned(), image)])
}

/// Height and width in pixels: the call's, or those of the recorded image.
fn image_size(case: &ReferenceCase) -> anyhow::Result<(i64, i64)> {
    let side = |key| case.optional_argument::<Value>(key).map(|value| value.as_ref().and_then(Value::as_i64));
    if let (Some(height), Some(width)) = (side("height")?, side("width")?) {
        return Ok((height, width));
    }
    let size = case
        .output("image")
        .context("without `height` and `width` in the call, out.image must tell them")?
        .size();
    ensure!(size.len() == 4, "out.image has shape {size:?}, expected [rows, 3, height, width]");
    Ok((size[2], size[3]))
}
