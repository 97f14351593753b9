//! What the velocity networks of all families have in common: blocks over an image and a text stream, linear modules that
//! can carry an adapter, and tensors that can be trained or saved.
//!
//! A family gives the parts ([`Network::begin`], [`Network::block`], [`Network::end`], its linear modules and its other
//! tensors); running them and handling the adapter is written once, here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Tensor, no_grad};

use crate::error::ModelError;
use crate::lora::{LoraConfig, NormalSource};
use crate::projection::{AdapterMode, Projection};

/// Tensors of an adapter in each module.
const FACTORS: usize = 2;

/// What a network is asked about; B rows.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Latent images as the family's pipeline has them, `[B, channels, height, width]`.
    pub latents: &'a Tensor,
    /// Time in the network's own units, `[B]`, f32.
    pub timestep: &'a Tensor,
    /// Features of each text token, `[B, tokens, features]`.
    pub text: &'a Tensor,
    /// Features of the whole text, `[B, features]`, where the family has them.
    pub pooled: Option<&'a Tensor>,
    /// Which text tokens count, 1 or 0, `[B, tokens]`; all do where it is absent.
    pub text_mask: Option<&'a Tensor>,
    /// Strength of guidance that the network itself applies, where it was distilled to.
    pub guidance_scale: f64,
}

/// Tokens between two blocks, batch first. A network that joins both streams keeps the joint one in `image`.
#[derive(Debug)]
pub struct Streams {
    /// Image tokens, `[B, tokens, width]`.
    pub image: Tensor,
    /// Text tokens, `[B, tokens, width]`.
    pub text: Tensor,
}

impl Streams {
    /// The same tensors under other handles.
    pub fn shallow_clone(&self) -> Self {
        Self { image: self.image.shallow_clone(), text: self.text.shallow_clone() }
    }
}

/// A tensor of a network outside its linear modules.
pub struct OtherTensor {
    /// What training the whole network moves, in place; `None` for a table that stays as it is. Modules that share
    /// one tensor join their names with `+`.
    pub parameter: Option<(String, Tensor)>,
    /// The checkpoint's tensors, which may be slices of the parameter.
    pub checkpoint: Vec<(String, Tensor)>,
}

impl OtherTensor {
    /// A trained tensor that the checkpoint holds as it is.
    pub fn trained(name: String, tensor: &Tensor) -> Self {
        Self {
            parameter: Some((name.clone(), tensor.shallow_clone())),
            checkpoint: vec![(name, tensor.detach())],
        }
    }
}

/// A velocity network with an optional adapter.
pub trait Network {
    /// Makes the tokens that enter the first block, and the tensors that every block reads besides.
    fn begin(&self, query: &Query, mode: AdapterMode) -> (Streams, Vec<Tensor>);

    /// Number of blocks.
    fn n_blocks(&self) -> usize;

    /// Features of a token between two blocks.
    fn width(&self) -> i64;

    /// Runs one block on the tokens; `shared` is what [`Self::begin`] made for all of them.
    fn block(&self, block_idx: usize, streams: Streams, shared: &[Tensor], mode: AdapterMode) -> Streams;

    /// Makes the velocity, shaped like the query's latents, of what the last block gave.
    fn end(&self, streams: Streams, shared: &[Tensor], query: &Query, mode: AdapterMode) -> Tensor;

    /// The linear modules, in an order that depends on the network alone.
    fn projections(&self) -> Vec<&Projection>;

    /// As [`Self::projections`].
    fn projections_mut(&mut self) -> Vec<&mut Projection>;

    /// All tensors outside the linear modules.
    fn other_tensors(&self) -> Vec<OtherTensor>;

    /// Checks that the network can work on latent images of this size, in latent pixels.
    ///
    /// # Errors
    /// If a side is not a multiple of the patch, or has more patches than there are positions.
    fn check_size(&self, height: i64, width: i64) -> Result<(), ModelError>;

    /// Predicts the velocity; `mode` says what the adapter has to do with it.
    ///
    /// Right after a refresh, frozen and trainable adapters give the same bits.
    ///
    /// # Panics
    /// If the shapes do not fit each other or the network.
    fn forward(&self, query: &Query, mode: AdapterMode) -> Tensor {
        let (streams, shared) = self.begin(query, mode);
        let streams =
            (0..self.n_blocks()).fold(streams, |streams, idx| self.block(idx, streams, &shared, mode));
        self.end(streams, &shared, query, mode)
    }

    /// How many numbers an adapter would have in each module that gets one, without attaching it.
    ///
    /// # Errors
    /// As [`Self::attach_adapter`].
    fn adapter_sizes(&self, config: &LoraConfig) -> Result<Vec<i64>, ModelError> {
        let shapes = self.adapter_shapes(config)?;
        let numbers = |factors: &[(String, [i64; 2])]| {
            factors.iter().map(|(_, [rows, columns])| rows * columns).sum::<i64>()
        };
        Ok(shapes.chunks(FACTORS).map(numbers).collect())
    }

    /// Names and shapes of the tensors that an adapter would have, in the order of [`Self::adapter_parameters`], without
    /// attaching it.
    ///
    /// # Errors
    /// As [`Self::attach_adapter`].
    fn adapter_shapes(&self, config: &LoraConfig) -> Result<Vec<(String, [i64; 2])>, ModelError> {
        let projections = self.projections();
        let paths: Vec<&str> = projections.iter().flat_map(|projection| projection.paths()).collect();
        config.check(paths.into_iter())?;
        config.check_rank(projections.iter().flat_map(|projection| projection.weight_shapes()))?;
        Ok(projections.iter().flat_map(|projection| projection.adapter_shapes(config)).collect())
    }

    /// Attaches a fresh adapter in place of any other; until trained or loaded it changes nothing.
    ///
    /// `normal` gives standard normal numbers for the tensor of a name, so the start depends on its seed and the names
    /// alone.
    ///
    /// # Errors
    /// If rank or alpha is not positive, or a target names no linear module.
    fn attach_adapter(&mut self, config: &LoraConfig, normal: &mut NormalSource) -> Result<(), ModelError> {
        self.adapter_shapes(config)?;
        self.projections_mut().into_iter().for_each(|projection| projection.attach(config, normal));
        Ok(())
    }

    /// The adapter's tensors, such as `transformer_blocks.0.attn.to_q.lora_A.weight`: float32 leaves that require
    /// gradients, in an order that depends on the network alone. To be changed in place, then
    /// [`Self::refresh_adapter`].
    fn adapter_parameters(&self) -> Vec<(String, Tensor)> {
        self.projections().into_iter().flat_map(Projection::adapter_parameters).collect()
    }

    /// Copies values into the attached adapter, all or none, and refreshes.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; all of them are told.
    fn load_adapter(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        copy_values(&self.adapter_parameters(), tensors)?;
        self.refresh_adapter();
        Ok(())
    }

    /// Makes forward passes with a frozen adapter use it as it is now; call it after every change.
    fn refresh_adapter(&mut self) {
        self.projections_mut().into_iter().for_each(Projection::refresh);
    }

    /// The tensors that training the whole network moves, in place; modules evaluated together share one, whose name
    /// joins theirs with `+`. They require gradients once the caller says so on the returned handles.
    fn parameters(&self) -> Vec<(String, Tensor)> {
        let others = self.other_tensors().into_iter().filter_map(|other| other.parameter);
        self.projections().into_iter().flat_map(Projection::parameters).chain(others).collect()
    }

    /// Copies values into [`Self::parameters`], all or none, and refreshes.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; all of them are told.
    fn load_parameters(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        copy_values(&self.parameters(), tensors)?;
        self.refresh_adapter();
        Ok(())
    }

    /// The tensors of the network by their names in a checkpoint, without the adapter. They are the network's own, not
    /// copies.
    fn checkpoint(&self) -> Vec<(String, Tensor)> {
        let others = self.other_tensors().into_iter().flat_map(|other| other.checkpoint);
        self.projections().into_iter().flat_map(Projection::checkpoint).chain(others).collect()
    }

    /// Copies values into the tensors of [`Self::checkpoint`], all or none, and refreshes.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; all of them are told.
    fn load_checkpoint(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        copy_values(&self.checkpoint(), tensors)?;
        self.refresh_adapter();
        Ok(())
    }
}

/// Copies values into parameters of the same names, all or none; element types and devices may differ.
///
/// # Errors
/// If a name is missing, unexpected or of another shape; all of them are told.
pub fn copy_values(parameters: &[(String, Tensor)], values: &[(String, Tensor)]) -> Result<(), ModelError> {
    let pairs = matched(parameters, values)?;
    no_grad(|| pairs.into_iter().for_each(|(parameter, value)| parameter.shallow_clone().copy_(value)));
    Ok(())
}

/// Each parameter with the given value of its name.
fn matched<'a>(
    parameters: &'a [(String, Tensor)],
    tensors: &'a [(String, Tensor)],
) -> Result<Vec<(&'a Tensor, &'a Tensor)>, ModelError> {
    let mut given: BTreeMap<&str, &Tensor> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let (mut missing, mut misshaped, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for (name, parameter) in parameters {
        match given.remove(name.as_str()) {
            None => missing.push(name.clone()),
            Some(value) if value.size() != parameter.size() => {
                misshaped.push(format!(
                    "{name} has shape {:?}, expected {:?}",
                    value.size(),
                    parameter.size()
                ));
            }
            Some(value) => pairs.push((parameter, value)),
        }
    }
    if missing.is_empty() && misshaped.is_empty() && given.is_empty() {
        return Ok(pairs);
    }
    let unexpected = given.into_keys().map(str::to_owned).collect();
    Err(ModelError::Tensors { path: PathBuf::from("the trained weights"), missing, unexpected, misshaped })
}
