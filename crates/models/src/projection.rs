//! Linear modules that read the same input, evaluated as one matrix product, each with its own optional adapter.
//!
//! Three calls for query, key and value become one; a checkpoint and an adapter still see three modules.

use std::cell::OnceCell;

use tch::{Kind, Tensor, no_grad};

use crate::layers::linear;
use crate::lora::{LoraConfig, LoraFactors, NormalSource, a_name, b_name};
use crate::weights::{Init, Scope};

/// Which weights a forward pass uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterMode {
    /// The network without its adapter.
    Off,
    /// The adapter as it was at the first such pass after the last refresh, without gradients to it.
    Frozen,
    /// The adapter as it is now, with gradients to it; the same effective weights as `Frozen` after a refresh.
    Trainable,
}

/// One or more linear modules over the same input; their outputs are concatenated.
pub struct Projection {
    parts: Vec<Part>,
    weight: Tensor,
    bias: Tensor,
    /// Made where a frozen forward pass first needs it: a learner has none, and its memory is the weight's.
    frozen: OnceCell<FrozenAdapters>,
}

/// The adapters of all modules, in the form in which forward passes without gradients take them.
enum FrozenAdapters {
    /// `weight + scale·B·A`.
    Merged(Tensor),
    /// Beside a half-precision weight, into which a merge would round the adapter away.
    Apart(Factors),
}

/// The factors of all adapted modules in the element type of the weight.
struct Factors {
    /// The first factors, one below the other, transposed: `[inputs, modules · rank]`.
    a: Tensor,
    /// `scale·B` of each module, transposed: `[rank, outputs]`.
    b: Vec<Tensor>,
}

impl Factors {
    /// `x·Aᵀ` of each module, `[rows, rank]`, by one product for all.
    fn inside(&self, x: &Tensor) -> Vec<Tensor> {
        let rank = self.a.size()[1] / self.b.len() as i64;
        x.reshape([-1, self.a.size()[0]]).mm(&self.a).split(rank, -1)
    }
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
            frozen: OnceCell::new(),
        }
    }

    /// One module alone.
    pub fn single(scope: &Scope, inputs: i64, outputs: i64) -> Self {
        Self::new(&[(scope.clone(), outputs)], inputs, Init::Xavier)
    }

    /// # Shapes
    /// `[..., inputs]` → `[..., sum of outputs]`.
    pub fn forward(&self, x: &Tensor, mode: AdapterMode) -> Tensor {
        let bias = Some(&self.bias);
        if mode == AdapterMode::Off || !self.is_adapted() {
            return linear(x, &self.weight, bias);
        }
        match (mode, self.is_mergeable()) {
            (AdapterMode::Frozen, _) => match self.frozen.get_or_init(|| no_grad(|| self.freeze())) {
                FrozenAdapters::Merged(weight) => linear(x, weight, bias),
                FrozenAdapters::Apart(factors) => self.add_in_place(x, factors),
            },
            (_, true) => linear(x, &self.merge(), bias),
            (_, false) => self.add_differentiably(x, &self.factors()),
        }
    }

    fn is_adapted(&self) -> bool {
        self.parts.iter().any(|part| part.adapter.is_some())
    }

    fn is_mergeable(&self) -> bool {
        self.weight.kind() == Kind::Float
    }

    fn freeze(&self) -> FrozenAdapters {
        if self.is_mergeable() {
            FrozenAdapters::Merged(self.merge())
        } else {
            FrozenAdapters::Apart(self.factors())
        }
    }

    fn factors(&self) -> Factors {
        let kind = self.weight.kind();
        let adapters = || self.parts.iter().filter_map(|part| part.adapter.as_ref());
        let a = adapters().map(|adapter| adapter.a.shallow_clone()).collect();
        let b = adapters().map(|adapter| adapter.scaled_b().to_kind(kind).tr());
        Factors { b: b.collect(), a: concatenated(a, 0).to_kind(kind).tr() }
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

    /// Adds each module's `scale·(x·Aᵀ)·Bᵀ` where its output stands.
    fn add_in_place(&self, x: &Tensor, factors: &Factors) -> Tensor {
        let y = linear(x, &self.weight, Some(&self.bias));
        let rows = y.view([-1, self.outputs()]);
        let adapted = self.blocks(&rows, -1).filter(|(part, _)| part.adapter.is_some());
        for ((_, mut columns), (inside, b)) in adapted.zip(factors.inside(x).iter().zip(&factors.b)) {
            let _ = columns.addmm_(inside, b);
        }
        y
    }

    /// The same to the last bit, with gradients to the factors.
    fn add_differentiably(&self, x: &Tensor, factors: &Factors) -> Tensor {
        let y = linear(x, &self.weight, Some(&self.bias));
        let widths: Vec<i64> = self.parts.iter().map(|part| part.outputs).collect();
        let inside = factors.inside(x);
        let mut deltas = inside.iter().zip(&factors.b);
        // Split, where narrowing would make the backward pass add up as many padded tensors as there are modules.
        let columns = y.view([-1, self.outputs()]).split_with_sizes(widths, -1);
        let added = self.parts.iter().zip(columns).map(|(part, columns)| {
            match part.adapter.as_ref().and_then(|_| deltas.next()) {
                Some((inside, b)) => columns.addmm(inside, b),
                None => columns,
            }
        });
        concatenated(added.collect(), -1).view_as(&y)
    }

    fn outputs(&self) -> i64 {
        self.weight.size()[0]
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

    /// Lets frozen forward passes take the adapter, or the weights, as they are by then.
    pub fn refresh(&mut self) {
        self.frozen.take();
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
