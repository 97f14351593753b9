//! AdamW with the numerics of `torch.optim.AdamW(foreach=False)` and a state that can be saved.
//!
//! For each parameter `θ` with gradient `g`, at its update number `t`:
//!
//! ```text
//! θ ← θ·(1 − lr·weight_decay)
//! m ← lerp(m, g, 1 − β₁)          u ← u·β₂ + (1 − β₂)·g²
//! θ ← θ − lr/(1 − β₁ᵗ) · m / (√u/√(1 − β₂ᵗ) + ε)
//! ```
//!
//! As there, a parameter without a gradient is left alone and its update count stands still.
//!
//! Source: PyTorch 2.11, `torch/optim/adam.py`; Loshchilov and Hutter (arXiv:1711.05101).

use std::collections::HashMap;
use std::ops::Range;

use tch::Tensor;

use crate::FlowError;
use crate::transfer::host_copy;

/// Hyper-parameters of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// The optimizer: parameters, by name, with their moments.
///
/// It holds the parameters themselves, not copies: tensors share their storage.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    updates: i64,
}

impl AdamW {
    /// An optimizer that has not made an update yet.
    pub fn new(parameters: &[(String, Tensor)], settings: AdamWSettings) -> Self {
        let slots = parameters.iter().map(|(name, parameter)| Slot {
            name: name.clone(),
            parameter: parameter.shallow_clone(),
            first_moment: parameter.detach().zeros_like(),
            second_moment: parameter.detach().zeros_like(),
            updates: 0,
        });
        Self { settings, slots: slots.collect() }
    }

    /// Uses another learning rate from the next update on.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.settings.lr = lr;
    }

    /// Moves every parameter that has a gradient.
    pub fn step(&mut self) {
        tch::no_grad(|| {
            for slot in &mut self.slots {
                let gradient = slot.parameter.grad();
                if gradient.defined() {
                    slot.update(&gradient, &self.settings);
                }
            }
        });
    }

    /// Zeroes all gradients in place, so that the next backward pass starts a new sum.
    pub fn zero_gradients(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// Everything that [`AdamW::load_state`] needs, under names derived from the parameters':
    /// `NAME.first_moment`, `NAME.second_moment` (shaped as the parameter) and `NAME.updates` (int64, `[1]`).
    ///
    /// The tensors are copies in the host's memory: later updates do not change them, and they take none of the device's.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let of_slot = |slot: &Slot| {
            [
                (format!("{}.first_moment", slot.name), host_copy(&slot.first_moment)),
                (format!("{}.second_moment", slot.name), host_copy(&slot.second_moment)),
                (format!("{}.updates", slot.name), Tensor::from_slice(&[slot.updates])),
            ]
        };
        self.slots.iter().flat_map(of_slot).collect()
    }

    /// Continues from a saved state, so that the next update is the one that would have followed.
    ///
    /// # Errors
    /// If a tensor is missing, is one too many, or has the wrong shape; the optimizer is then unchanged.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), FlowError> {
        let mut saved: HashMap<&str, &Tensor> =
            state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut loaded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let shape = slot.parameter.size();
            let first_moment = take(&mut saved, format!("{}.first_moment", slot.name), &shape)?;
            let second_moment = take(&mut saved, format!("{}.second_moment", slot.name), &shape)?;
            let updates = take(&mut saved, format!("{}.updates", slot.name), &[1])?.int64_value(&[0]);
            loaded.push((first_moment, second_moment, updates));
        }
        reject_leftover(&saved)?;
        tch::no_grad(|| {
            for (slot, (first_moment, second_moment, updates)) in self.slots.iter_mut().zip(loaded) {
                slot.first_moment.copy_(first_moment);
                slot.second_moment.copy_(second_moment);
                slot.updates = updates;
            }
        });
        Ok(())
    }
}

/// Elements that are moved at once. What an update has beside parameters, gradients and moments is some numbers for each of
/// these, not for each of the largest parameter, which may be a tenth of a network.
const ELEMENTS_AT_ONCE: i64 = 1 << 24;

impl Slot {
    fn update(&mut self, gradient: &Tensor, settings: &AdamWSettings) {
        self.updates += 1;
        let tensors = [&self.parameter, gradient, &self.first_moment, &self.second_moment];
        for rows in slices(&self.parameter.size(), ELEMENTS_AT_ONCE) {
            let [parameter, gradient, first_moment, second_moment] =
                tensors.map(|tensor| tensor.atleast_1d().narrow(0, rows.start, rows.end - rows.start));
            update_in_place([parameter, first_moment, second_moment], &gradient, self.updates, settings);
        }
    }
}

/// Ranges of the first dimension of `shape` that cover it, each of at most `most` elements, or of one row where that has more.
fn slices(shape: &[i64], most: i64) -> impl Iterator<Item = Range<i64>> {
    let rows = shape.first().copied().unwrap_or(1);
    let elements_per_row: i64 = shape.iter().skip(1).product();
    let rows_at_once = (most / elements_per_row.max(1)).max(1);
    (0..rows).step_by(rows_at_once as usize).map(move |start| start..rows.min(start + rows_at_once))
}

/// The update number `updates` of some elements: of the parameter, the first and the second moment.
fn update_in_place(moved: [Tensor; 3], gradient: &Tensor, updates: i64, settings: &AdamWSettings) {
    let AdamWSettings { lr, beta1, beta2, epsilon, weight_decay } = *settings;
    let [mut parameter, mut first_moment, mut second_moment] = moved;
    let updates = updates as f64;
    let _ = parameter.g_mul_scalar_(1.0 - lr * weight_decay);
    let _ = first_moment.lerp_(gradient, 1.0 - beta1);
    let _ = second_moment.g_mul_scalar_(beta2);
    second_moment += (gradient * (1.0 - beta2)) * gradient;

    let step_size = lr / (1.0 - libm::pow(beta1, updates));
    let correction = (1.0 - libm::pow(beta2, updates)).sqrt();
    let denominator = second_moment.sqrt() / correction + epsilon;
    parameter += (first_moment * -step_size) / denominator;
}

/// Scales all gradients together so that their joint Euclidean norm is at most `max_norm`; returns the norm before.
///
/// # Errors
/// If a gradient is not finite; nothing is scaled then.
///
/// Source: `torch.nn.utils.clip_grad_norm_`.
pub fn clip_gradient_norm(parameters: &[(String, Tensor)], max_norm: f64) -> Result<f64, FlowError> {
    let gradients: Vec<(&String, Tensor)> = parameters
        .iter()
        .map(|(name, parameter)| (name, parameter.grad()))
        .filter(|(_, gradient)| gradient.defined())
        .collect();
    if gradients.is_empty() {
        return Ok(0.0);
    }
    let norms: Vec<Tensor> = gradients.iter().map(|(_, gradient)| gradient.norm()).collect();
    let norms = Tensor::stack(&norms, 0);
    let total = norms.norm();
    let total_on_host = total.double_value(&[]);
    if !total_on_host.is_finite() {
        let culprit = (0..gradients.len()).find(|index| !norms.double_value(&[*index as i64]).is_finite());
        return Err(FlowError::NonFiniteGradient { parameter: gradients[culprit.unwrap_or(0)].0.clone() });
    }
    let factor = ((total + 1e-6).reciprocal() * max_norm).clamp_max(1.0);
    tch::no_grad(|| {
        for (_, mut gradient) in gradients {
            gradient *= factor.to_kind(gradient.kind());
        }
    });
    Ok(total_on_host)
}

/// Takes one tensor out of a saved state.
pub(crate) fn take<'a>(
    saved: &mut HashMap<&str, &'a Tensor>,
    name: String,
    shape: &[i64],
) -> Result<&'a Tensor, FlowError> {
    match saved.remove(name.as_str()) {
        Some(tensor) if tensor.size() == shape => Ok(tensor),
        Some(tensor) => {
            let problem = format!("has shape {:?}, the parameter's is {shape:?}", tensor.size());
            Err(FlowError::State { tensor: name, problem })
        }
        None => Err(FlowError::State { tensor: name, problem: "is missing".to_owned() }),
    }
}

/// What is left of a saved state after every parameter has taken its tensors belongs to none of them.
pub(crate) fn reject_leftover(saved: &HashMap<&str, &Tensor>) -> Result<(), FlowError> {
    match saved.keys().min() {
        Some(name) => Err(FlowError::State {
            tensor: (*name).to_owned(),
            problem: "belongs to no parameter".to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use models::reference_case::Deviation;
    use tch::{Device, Kind};

    use super::*;

    const SETTINGS: AdamWSettings =
        AdamWSettings { lr: 3e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-1 };

    fn parameters(values: &[f32]) -> Vec<(String, Tensor)> {
        vec![("layer.lora_A".to_owned(), Tensor::from_slice(values).set_requires_grad(true))]
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    /// Accumulates the gradient of `Σ gradient·parameter`.
    fn backward(parameters: &[(String, Tensor)], gradient: &[f32]) {
        (&parameters[0].1 * Tensor::from_slice(gradient)).sum(Kind::Float).backward();
    }

    #[test]
    fn slices_cover_all_rows_once_and_are_a_row_at_least() {
        let of =
            |shape: &[i64], most| slices(shape, most).map(|rows| (rows.start, rows.end)).collect::<Vec<_>>();
        assert_eq!(of(&[5, 3], 6), [(0, 2), (2, 4), (4, 5)]);
        assert_eq!(of(&[2, 100], 6), [(0, 1), (1, 2)]);
        assert_eq!(of(&[7], 7), [(0, 7)]);
        assert_eq!((of(&[], 6), of(&[0, 3], 6)), (vec![(0, 1)], vec![]));
    }

    #[test]
    fn an_update_in_slices_is_that_of_the_whole_to_the_last_bit() {
        let update = |shape: &[i64], most: i64| {
            let tensor =
                |scale: f64| (Tensor::arange(35, (Kind::Float, Device::Cpu)).sin() * scale).view(shape);
            let [moved @ .., gradient] = [tensor(1.0), tensor(0.1), tensor(0.3).square(), tensor(0.7)];
            for rows in slices(shape, most) {
                let slice = |whole: &Tensor| whole.narrow(0, rows.start, rows.end - rows.start);
                update_in_place(moved.each_ref().map(slice), &slice(&gradient), 3, &SETTINGS);
            }
            moved.map(|tensor| floats(&tensor.flatten(0, -1)))
        };
        assert_eq!(update(&[7, 5], 12), update(&[7, 5], 35));
        assert_eq!(update(&[35], 4), update(&[35], 35));
    }

    const GRADIENTS: [[f32; 5]; 3] =
        [[0.3, -0.02, 1e-5, 2.0, 0.0], [-0.1, -0.03, 2e-5, 1.0, 0.0], [0.2, 0.04, -1e-5, -3.0, 0.7]];

    #[test]
    fn updates_are_those_of_torch() {
        // torch.optim.AdamW(foreach=False) in PyTorch 2.11 on the same numbers.
        let expected: [[f32; 5]; 3] = [
            [0.4685, -1.21625, 2.96103, -0.029002998, -0.6979],
            [0.45508793, -1.182877, 2.9232097, -0.056881376, -0.69580626],
            [0.43563005, -1.1781892, 2.9018462, -0.05425143, -0.71288323],
        ];
        let parameters = parameters(&[0.5, -1.25, 3.0, 0.001, -0.7]);
        let mut optimizer = AdamW::new(&parameters, SETTINGS);
        for (gradient, expected) in GRADIENTS.iter().zip(expected) {
            optimizer.zero_gradients();
            backward(&parameters, gradient);
            optimizer.step();
            let deviation = Deviation::between(&parameters[0].1, &Tensor::from_slice(&expected));
            assert!(deviation.is_rounding_of_a_formula(), "{deviation:?}: {:?}", floats(&parameters[0].1));
        }
    }

    #[test]
    fn loaded_state_continues_bit_for_bit() {
        let straight = parameters(&[0.5, -1.25, 3.0, 0.001, -0.7]);
        let mut optimizer = AdamW::new(&straight, SETTINGS);
        let mut resumed = None;
        for (index, gradient) in GRADIENTS.iter().enumerate() {
            optimizer.zero_gradients();
            backward(&straight, gradient);
            optimizer.step();
            if index == 1 {
                resumed = Some((parameters(&floats(&straight[0].1)), optimizer.state()));
            }
        }
        let (resumed, state) = resumed.unwrap();
        let mut optimizer = AdamW::new(&resumed, SETTINGS);
        optimizer.load_state(&state).unwrap();
        backward(&resumed, &GRADIENTS[2]);
        optimizer.step();
        assert_eq!(floats(&resumed[0].1), floats(&straight[0].1));
    }

    #[test]
    fn parameter_without_gradient_is_left_alone() {
        let parameters = parameters(&[1.0, 2.0]);
        AdamW::new(&parameters, SETTINGS).step();
        assert_eq!(floats(&parameters[0].1), [1.0, 2.0]);
    }

    #[test]
    fn state_that_does_not_fit_is_refused_by_name() {
        let mut optimizer = AdamW::new(&parameters(&[1.0, 2.0]), SETTINGS);
        let good = optimizer.state();
        let missing = optimizer.load_state(&good[1..]).unwrap_err().to_string();
        assert!(missing.contains("layer.lora_A.first_moment") && missing.contains("missing"), "{missing}");
        let other = AdamW::new(&parameters(&[1.0, 2.0, 3.0]), SETTINGS).state();
        let misshapen = optimizer.load_state(&other).unwrap_err().to_string();
        assert!(misshapen.contains("[3]") && misshapen.contains("[2]"), "{misshapen}");
        let mut extra = optimizer.state();
        extra.push(("other.updates".to_owned(), Tensor::from_slice(&[1_i64])));
        let extra = optimizer.load_state(&extra).unwrap_err().to_string();
        assert!(extra.contains("other.updates"), "{extra}");
    }

    #[test]
    fn gradients_are_scaled_to_the_norm_and_never_up() {
        let mut two = parameters(&[1.0, 1.0]);
        two.push(("layer.lora_B".to_owned(), Tensor::from_slice(&[1.0_f32]).set_requires_grad(true)));
        ((&two[0].1 * Tensor::from_slice(&[3.0_f32, 0.0])).sum(Kind::Float) + &two[1].1 * 4.0)
            .sum(Kind::Float)
            .backward();
        assert_eq!(clip_gradient_norm(&two, 10.0).unwrap(), 5.0);
        assert_eq!(floats(&two[0].1.grad()), [3.0, 0.0]);
        assert_eq!(clip_gradient_norm(&two, 1.0).unwrap(), 5.0);
        assert!((two[0].1.grad().double_value(&[0]) - 0.6).abs() < 1e-6);
        assert!((two[1].1.grad().double_value(&[0]) - 0.8).abs() < 1e-6);
    }

    #[test]
    fn gradient_that_is_not_finite_is_named_and_not_scaled() {
        let parameters = parameters(&[1.0, 1.0]);
        backward(&parameters, &[f32::NAN, 3.0]);
        let error = clip_gradient_norm(&parameters, 1.0).unwrap_err();
        assert_eq!(error, FlowError::NonFiniteGradient { parameter: "layer.lora_A".to_owned() });
        assert_eq!(parameters[0].1.grad().double_value(&[1]), 3.0);
    }
}
