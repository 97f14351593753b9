//! Linear modules that read the same input, evaluated as one matrix product, each with its own optional adapter.
//!
//! Three calls for query, key and value become one; a checkpoint and an adapter still see three modules.

use tch::{Kind, Tensor, no_grad};

use crate::lora::{LoraConfig, LoraFactors, NormalSource, a_name, b_name};
use crate::weights::{Init, Scope};

/// Which weights a forward pass uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterMode {
    /// The network without its adapter.
    Off,
    /// The adapter as of the last refresh, without gradients to it.
    Frozen,
    /// The adapter as it is now, with gradients to it; the same effective weights as `Frozen` after a refresh.
    Trainable,
}

/// One or more linear modules over the same input; their outputs are concatenated.
pub struct Projection {
    parts: Vec<Part>,
    weight: Tensor,
    bias: Tensor,
    merged: Option<Tensor>,
}

struct Part {
    path: String,
    outputs: i64,
    adapter: Option<LoraFactors>,
}

impl Projection {
    /// Takes `weight` and `bias` of each module from its scope; `modules` pairs scopes with output widths.
    pub fn new(modules: &[(Scope, i64)], inputs: i64, init: Init) -> Self {
        let part = |(scope, outputs): &(Scope, i64)| Part {
            path: scope.path().to_owned(),
            outputs: *outputs,
            adapter: None,
        };
        Self {
            parts: modules.iter().map(part).collect(),
            weight: Scope::stacked(modules, "weight", &[inputs], init),
            bias: Scope::stacked(modules, "bias", &[], Init::Zeros),
            merged: None,
        }
    }

    /// One module alone.
    pub fn single(scope: &Scope, inputs: i64, outputs: i64) -> Self {
        Self::new(&[(scope.clone(), outputs)], inputs, Init::Xavier)
    }

    /// # Shapes
    /// `[..., inputs]` → `[..., sum of outputs]`.
    pub fn forward(&self, x: &Tensor, mode: AdapterMode) -> Tensor {
        if mode == AdapterMode::Off || !self.is_adapted() {
            return x.linear(&self.weight, Some(&self.bias));
        }
        match (&self.merged, mode) {
            (Some(merged), AdapterMode::Frozen) => x.linear(merged, Some(&self.bias)),
            (Some(_), _) => x.linear(&self.merge(), Some(&self.bias)),
            // A merged half-precision weight would round the adapter away, so its product is added to the output.
            (None, _) => self.add_deltas(x),
        }
    }

    fn is_adapted(&self) -> bool {
        self.parts.iter().any(|part| part.adapter.is_some())
    }

    fn merge(&self) -> Tensor {
        let rows: Vec<Tensor> = self
            .blocks(&self.weight, 0)
            .map(|(part, rows)| {
                part.adapter.as_ref().map_or_else(|| rows.shallow_clone(), |a| a.merged_into(&rows))
            })
            .collect();
        concatenated(rows, 0)
    }

    fn add_deltas(&self, x: &Tensor) -> Tensor {
        let y = x.linear(&self.weight, Some(&self.bias));
        let columns: Vec<Tensor> = self
            .blocks(&y, -1)
            .map(|(part, y)| part.adapter.as_ref().map_or_else(|| y.shallow_clone(), |a| &y + a.delta(x)))
            .collect();
        concatenated(columns, -1)
    }

    /// Each part with its slice of a tensor whose dimension `dim` runs over the outputs.
    fn blocks<'a>(&'a self, tensor: &'a Tensor, dim: i64) -> impl Iterator<Item = (&'a Part, Tensor)> {
        self.parts.iter().scan(0, move |start, part| {
            let slice = tensor.narrow(dim, *start, part.outputs);
            *start += part.outputs;
            Some((part, slice))
        })
    }

    /// Paths of the modules.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.path.as_str())
    }

    /// Names and shapes of the tensors that an adapter would have in each module that `config` targets.
    pub fn adapter_shapes(&self, config: &LoraConfig) -> Vec<(String, [i64; 2])> {
        let targeted = self.weight_shapes().filter(|(path, _)| config.targets_module(path));
        let named = |(path, shape)| {
            let [a, b] = config.factor_shapes(shape);
            [(a_name(path), a), (b_name(path), b)]
        };
        targeted.flat_map(named).collect()
    }

    /// Paths of the modules with the shapes of their weights, `[outputs, inputs]`.
    pub fn weight_shapes(&self) -> impl Iterator<Item = (&str, [i64; 2])> {
        let inputs = self.weight.size()[1];
        self.parts.iter().map(move |part| (part.path.as_str(), [part.outputs, inputs]))
    }

    /// Gives every module that `config` targets a fresh adapter, and takes it from the others.
    pub fn attach(&mut self, config: &LoraConfig, normal: &mut NormalSource) {
        let inputs = self.weight.size()[1];
        let device = self.weight.device();
        for part in &mut self.parts {
            part.adapter = config.targets_module(&part.path).then(|| {
                LoraFactors::new(&part.path, [part.outputs, inputs], config, normal).into_leaves(device)
            });
        }
        self.refresh();
    }

    /// Forms the effective weights that frozen forward passes use from the adapter as it is now.
    pub fn refresh(&mut self) {
        let mergeable = self.weight.kind() == Kind::Float && self.is_adapted();
        self.merged = mergeable.then(|| no_grad(|| self.merge()));
    }

    /// The adapter's tensors with their names.
    pub fn adapter_parameters(&self) -> Vec<(String, Tensor)> {
        let adapted =
            self.parts.iter().filter_map(|part| part.adapter.as_ref().map(|adapter| (part, adapter)));
        adapted
            .flat_map(|(part, adapter)| {
                [
                    (a_name(&part.path), adapter.a.shallow_clone()),
                    (b_name(&part.path), adapter.b.shallow_clone()),
                ]
            })
            .collect()
    }

    /// The tensors that full fine-tuning moves: one weight and one bias for all modules together.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let path = self.paths().collect::<Vec<_>>().join("+");
        vec![
            (format!("{path}.weight"), self.weight.shallow_clone()),
            (format!("{path}.bias"), self.bias.shallow_clone()),
        ]
    }

    /// The checkpoint's tensors, each module's own.
    pub fn checkpoint(&self) -> Vec<(String, Tensor)> {
        let weights =
            self.blocks(&self.weight, 0).map(|(part, t)| (format!("{}.weight", part.path), t.detach()));
        let biases = self.blocks(&self.bias, 0).map(|(part, t)| (format!("{}.bias", part.path), t.detach()));
        weights.chain(biases).collect()
    }
}

/// Concatenation that leaves a single tensor alone.
fn concatenated(mut parts: Vec<Tensor>, dim: i64) -> Tensor {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(&parts, dim),
    }
}
