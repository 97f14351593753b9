//! Cases of a whole model: its text encoders, its network with and without an adapter, its decoder, and all together.

use anyhow::{Context, ensure};
use flow::ode_step;
use models::reference_case::{
    NetworkQuery, RecordedLatents, ReferenceCase, adapter_outputs, guidance_scale, image_size, saved_adapter,
};
use models::{Activations, AdapterMode, Conditioning, Guidance, PromptTokens};
use tch::{Kind, Tensor};

use super::{Computed, LazyModel};

/// Picks one of a family's encoders.
type PickEncoder = fn(&[PromptTokens]) -> Option<&PromptTokens>;

/// What the cases call the ids of an encoder, and which one that is.
const TOKEN_IDS: [(&str, PickEncoder); 3] =
    [("clip_ids", |all| all.first()), ("clip_2_ids", |all| all.get(1)), ("t5_ids", |all| all.last())];

/// `prompts` → `prompt_embeds`, `pooled`, `mask`, each also with `negative_` before it, and the token ids.
pub(super) fn prompt_embeds(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let model = model.get()?;
    let prompts: Vec<String> = case.argument("prompts")?;
    let length: usize = case.argument("max_sequence_length")?;
    let positive = model.encode_prompts(&prompts, length)?;
    // The positions of text tokens, which families that have any put at the origin.
    let positions = Tensor::zeros([positive.text.size()[1], 3], (Kind::Float, positive.text.device()));
    let mut computed = vec![("txt_ids".to_owned(), positions)];
    computed.extend(named(positive, ""));
    if let Some(rows) = case.output_rows("negative_prompt_embeds") {
        let negative = vec![negative_prompt(case, "")?; rows];
        computed.extend(named(model.encode_prompts(&negative, length)?, "negative_"));
    }
    // The others need not be as long as each other, as a table has it.
    for (name, encoder) in TOKEN_IDS.into_iter().filter(|(name, _)| case.output_rows(name).is_some()) {
        let mut ids = Vec::new();
        for prompt in &prompts {
            let tokens = model.token_ids(prompt, length)?;
            ids.extend(encoder(&tokens).map(|own| Tensor::from_slice(&own.tokens.ids)));
        }
        if !ids.is_empty() {
            computed.push((name.to_owned(), Tensor::f_stack(&ids, 0)?));
        }
    }
    Ok(computed)
}

fn named(conditioning: Conditioning, prefix: &str) -> Vec<(String, Tensor)> {
    // Diffusers leaves out a mask of ones, too, but cases may have it.
    let mask = conditioning.mask();
    let Conditioning { text, pooled, .. } = conditioning;
    let all = [("prompt_embeds", Some(text)), ("pooled", pooled), ("mask", Some(mask))];
    all.into_iter().filter_map(|(name, tensor)| Some((format!("{prefix}{name}"), tensor?))).collect()
}

fn negative_prompt(case: &ReferenceCase, own: &str) -> anyhow::Result<String> {
    Ok(case.optional_argument("negative_prompt")?.unwrap_or_else(|| own.to_owned()))
}

/// The network's output for given inputs, without an adapter.
pub(super) fn transformer(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let model = model.get()?;
    let query = NetworkQuery::read(case, model)?;
    let sample = tch::no_grad(|| query.sample(model, AdapterMode::Off));
    Ok(vec![("sample".to_owned(), sample)])
}

/// The network's output with the adapter named in the case, as a rollout evaluates it, and the adapter's gradients.
pub(super) fn lora(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    // Not the other cases' model, which stays without an adapter.
    Ok(adapter_outputs(case, (&model.dir, &model.weights), AdapterMode::Frozen, Activations::Kept)?)
}

/// Latents of the diffusion space → `image`, black at -1 and white at 1.
pub(super) fn vae_decode(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let model = model.get()?;
    let recorded = RecordedLatents::read(case, "latents", model)?;
    Ok(vec![("image".to_owned(), model.decode_signed(&recorded.latents)?)])
}

/// `prompts` and initial latents → final `latents` and `image`, in `[0, 1]`; with the adapter that the case names, if any.
pub(super) fn pipeline(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let is_adapted = case.optional_argument::<String>("adapter")?.is_some();
    let adapted = is_adapted.then(|| model.open_with(&saved_adapter(case, "adapter")?)).transpose()?;
    let model = match &adapted {
        Some(adapted) => adapted.as_ref(),
        None => model.get()?,
    };
    let prompts: Vec<String> = case.argument("prompts")?;
    let guidance_scale = guidance_scale(case)?;
    let length: usize = case.argument("max_sequence_length")?;
    let positive = model.encode_prompts(&prompts, length)?;
    let negative = model.negative_prompt(guidance_scale).map(|own| negative_prompt(case, own)).transpose()?;
    let negative = negative.map(|prompt| model.encode_prompts(&[prompt], length)).transpose()?;
    let recorded = RecordedLatents::read(case, "latents", model)?;
    let initial = recorded.latents.shallow_clone();
    let n_latents = initial.size()[0];
    ensure!(
        n_latents == prompts.len() as i64,
        "in.latents has {n_latents} rows, but there are {} prompts",
        prompts.len()
    );
    model.check_inputs(&initial, &positive)?;
    let (height, width) = pixels(case)?;
    let sequence_length = model.image_sequence_length(height, width);
    let schedule = run_setup::NoiseLevels::of(model)?.schedule(case.argument("steps")?, sequence_length)?;
    let per_row = |value: f32| Tensor::from_slice(&vec![value; prompts.len()]).to_device(initial.device());
    let latents = tch::no_grad(|| {
        (0..schedule.steps()).fold(initial.shallow_clone(), |latents, step| {
            let sigmas = per_row(schedule.sigmas[step]);
            let guidance =
                Guidance { positive: &positive, negative: negative.as_ref(), scale: guidance_scale };
            let velocity = model.velocity(&latents, &sigmas, &guidance, AdapterMode::Frozen);
            ode_step(&latents, &velocity, &per_row(schedule.delta_sigma(step)))
        })
    });
    let image = model.decode(&latents)?;
    let latents = recorded.as_recorded(&latents, model);
    Ok(vec![("latents".to_owned(), latents), ("image".to_owned(), image)])
}

/// Height and width in pixels: the call's, or those of the recorded image.
fn pixels(case: &ReferenceCase) -> anyhow::Result<(i64, i64)> {
    if let Some(size) = image_size(case)? {
        return Ok(size);
    }
    let size = case
        .output("image")
        .context("without `height` and `width` in the call, out.image must tell them")?
        .size();
    ensure!(size.len() == 4, "out.image has shape {size:?}, expected [rows, 3, height, width]");
    Ok((size[2], size[3]))
}
