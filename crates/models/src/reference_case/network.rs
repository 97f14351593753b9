//! Cases of a velocity network: what it is asked about, and the gradients of its adapter.

use std::path::Path;

use tch::{Kind, Tensor, no_grad};

use super::{RecordedLatents, ReferenceCase};
use crate::adapter_file::SavedAdapter;
use crate::weights::WeightOptions;
use crate::{
    Activations, AdapterMode, Conditioning, Guidance, LoadOptions, ModelError, TextToImageModel,
    TrainingVelocity, pipeline,
};

/// Computed outputs by the names under which cases record them.
pub type Outputs = Vec<(String, Tensor)>;

/// What the network is asked about in a case `transformer*` or `lora*`.
pub struct NetworkQuery {
    latents: RecordedLatents,
    sigmas: Tensor,
    conditioning: Conditioning,
    guidance_scale: f64,
}

impl NetworkQuery {
    /// Reads the inputs that diffusers' transformers have as arguments.
    ///
    /// # Errors
    /// If one is missing, or does not fit the model or the others.
    pub fn read(case: &ReferenceCase, model: &dyn TextToImageModel) -> Result<Self, ModelError> {
        let latents = RecordedLatents::read(case, "hidden_states", model)?;
        let (timestep, rows) = (case.input("timestep")?, latents.latents.size()[0]);
        if timestep.size() != [rows] {
            let found = timestep.size();
            let reason = format!("in.timestep has shape {found:?}, but in.hidden_states has {rows} rows");
            return Err(ModelError::damaged(case.path(), reason));
        }
        let names = ["encoder_hidden_states", "pooled_projections", "encoder_hidden_states_mask"];
        let conditioning = conditioning(case, names)?;
        model.check_inputs(&latents.latents, &conditioning)?;
        check_text_positions(case)?;
        let sigmas = timestep.to_kind(Kind::Float) / model.timestep_scale();
        Ok(Self { latents, sigmas, conditioning, guidance_scale: embedded_guidance(case)? })
    }

    /// The network's output in the layout of the case.
    pub fn sample(&self, model: &dyn TextToImageModel, mode: AdapterMode) -> Tensor {
        let velocity = model.velocity(&self.latents.latents, &self.sigmas, &self.guidance(), mode);
        self.latents.as_recorded(&velocity, model)
    }

    /// As [`Self::sample`] with an adapter in training, and what differentiates a loss formed from it.
    fn training_sample<'a>(
        &self,
        model: &'a dyn TextToImageModel,
        activations: Activations,
    ) -> (Tensor, TrainingVelocity<'a>) {
        let (latents, guidance) = (&self.latents.latents, self.guidance());
        let training = model.training_velocity(latents, &self.sigmas, &guidance, activations);
        (self.latents.as_recorded(training.velocity(), model), training)
    }

    fn guidance(&self) -> Guidance<'_> {
        Guidance { positive: &self.conditioning, negative: None, scale: self.guidance_scale }
    }
}

/// The embeddings that a case has under the names for tokens, pooled text and mask, the latter two where it has them.
///
/// # Errors
/// If there are no tokens.
pub fn conditioning(
    case: &ReferenceCase,
    [text, pooled, mask]: [&str; 3],
) -> Result<Conditioning, ModelError> {
    let optional = |name| case.has_input(name).then(|| case.input(name)).transpose();
    Ok(Conditioning { text: case.input(text)?, pooled: optional(pooled)?, text_mask: optional(mask)? })
}

/// The strength of guidance of a case that runs a sampler or a step of it, under the name that its pipeline has for it.
///
/// # Errors
/// If there is none.
pub fn guidance_scale(case: &ReferenceCase) -> Result<f64, ModelError> {
    match case.optional_argument("true_cfg_scale")? {
        Some(scale) => Ok(scale),
        None => case.argument("guidance_scale"),
    }
}

/// The guidance that the network itself applies: one number, though a case has it once per row.
fn embedded_guidance(case: &ReferenceCase) -> Result<f64, ModelError> {
    if !case.has_input("guidance") {
        return Ok(1.0);
    }
    let guidance = case.input("guidance")?.flatten(0, -1).to_kind(Kind::Double);
    let values: Vec<f64> = Vec::try_from(&guidance)
        .map_err(|error| ModelError::damaged(case.path(), format!("in.guidance: {error}")))?;
    match values.as_slice() {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => Ok(*first),
        _ => {
            let reason =
                format!("in.guidance is {values:?}; all rows must have the same, and at least one be there");
            Err(ModelError::damaged(case.path(), reason))
        }
    }
}

/// Families that give tokens positions put every token of the text at the origin, and so must a case.
fn check_text_positions(case: &ReferenceCase) -> Result<(), ModelError> {
    if !case.has_input("txt_ids") || !bool::try_from(case.input("txt_ids")?.any()).unwrap_or(true) {
        return Ok(());
    }
    Err(ModelError::damaged(case.path(), "in.txt_ids must be zero, which is where the text is to the model"))
}

/// The adapter in the folder, beside the case, that argument `key` of its call names.
///
/// # Errors
/// If the argument or the adapter is missing or damaged.
pub fn saved_adapter(case: &ReferenceCase, key: &str) -> Result<SavedAdapter, ModelError> {
    SavedAdapter::read(&case.path().with_file_name(case.argument::<String>(key)?))
}

/// Opens a model's network with an adapter in it.
///
/// # Errors
/// If the model cannot be opened or the adapter does not fit it.
pub fn open_with_adapter(
    model_dir: &Path,
    weights: &WeightOptions,
    adapter: &SavedAdapter,
) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let options = LoadOptions { weights: weights.clone(), text_encoders: false, decoder: None };
    let mut model = pipeline::open(model_dir, options)?;
    model.network_mut().attach_adapter(&adapter.config, &mut |_, length| vec![0.0; length])?;
    model.network_mut().load_adapter(&adapter.tensors)?;
    Ok(model)
}

/// What a case `lora*` records: the output with the adapter in `mode`, and the gradient of `Σ sample·cotangent` to each
/// of the adapter's tensors, by way of `activations`.
///
/// # Errors
/// If the case is malformed, or it, its adapter and the model do not fit each other.
pub fn adapter_outputs(
    case: &ReferenceCase,
    (model_dir, weights): (&Path, &WeightOptions),
    mode: AdapterMode,
    activations: Activations,
) -> Result<Outputs, ModelError> {
    let model = open_with_adapter(model_dir, weights, &saved_adapter(case, "adapter")?)?;
    let query = NetworkQuery::read(case, model.as_ref())?;
    let (trained, training) = query.training_sample(model.as_ref(), activations);
    let cotangent = case.input("cotangent")?;
    if cotangent.size() != trained.size() {
        let (found, expected) = (cotangent.size(), trained.size());
        let reason = format!("in.cotangent has shape {found:?}, but the network's output has {expected:?}");
        return Err(ModelError::damaged(case.path(), reason));
    }
    training.backward(&(&trained * cotangent).sum(Kind::Float));
    let sample = match mode {
        AdapterMode::Trainable => trained.detach(),
        _ => no_grad(|| query.sample(model.as_ref(), mode)),
    };
    let mut outputs = named_gradients(&model.network().adapter_parameters());
    outputs.push(("sample".to_owned(), sample));
    Ok(outputs)
}

/// Gradients under the names that cases have for them; zeros where nothing reached a tensor.
pub fn named_gradients(parameters: &[(String, Tensor)]) -> Outputs {
    let named = parameters.iter().map(|(name, parameter)| {
        let gradient = parameter.grad();
        let gradient = if gradient.defined() { gradient.copy() } else { parameter.zeros_like().detach() };
        (format!("grad.base_model.model.{name}"), gradient)
    });
    named.collect()
}
