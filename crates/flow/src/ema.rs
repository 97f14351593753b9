//! A moving average of the trained parameters, which evaluation and export use.
//!
//! After optimizer update number `s` (counted from 1 over the whole run), where `(s + 1)` is a multiple of the interval:
//!
//! ```text
//! average ← average + (1 − d)·(parameter − average),   d = min((1 + s) / (10 + s), decay)
//! ```
//!
//! The fraction lets a young average forget its start quickly. Once per optimizer update, never per micro-batch.

use std::collections::HashMap;

use tch::Tensor;

use crate::FlowError;
use crate::adamw::{reject_leftover, take};

/// How the average moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmaSettings {
    /// Largest share of the old average that is kept.
    pub decay: f64,
    /// The average moves once in so many optimizer updates.
    pub interval: u64,
}

impl Default for EmaSettings {
    fn default() -> Self {
        Self { decay: 0.9, interval: 8 }
    }
}

/// The average, by parameter name.
#[derive(Debug)]
pub struct Ema {
    settings: EmaSettings,
    averages: Vec<(String, Tensor)>,
}

impl Ema {
    /// Starts with a copy of the parameters.
    pub fn new(parameters: &[(String, Tensor)], settings: EmaSettings) -> Self {
        let averages = parameters.iter().map(|(name, parameter)| (name.clone(), parameter.detach().copy()));
        Self { settings, averages: averages.collect() }
    }

    /// Takes note of optimizer update number `updates`, the first being 1; returns whether the average moved.
    ///
    /// `parameters` are those the average started from, in the same order.
    pub fn update(&mut self, parameters: &[(String, Tensor)], updates: u64) -> bool {
        if !(updates + 1).is_multiple_of(self.settings.interval.max(1)) {
            return false;
        }
        let pull = 1.0 - self.settings.decay_at(updates);
        tch::no_grad(|| {
            for ((_, average), (_, parameter)) in self.averages.iter_mut().zip(parameters) {
                let distance = parameter - &*average;
                *average += distance * pull;
            }
        });
        true
    }

    /// The average; also what [`Ema::load_state`] takes.
    pub fn averages(&self) -> &[(String, Tensor)] {
        &self.averages
    }

    /// Exchanges the values of average and parameters; a second call undoes the first exactly.
    pub fn swap(&mut self, parameters: &[(String, Tensor)]) {
        tch::no_grad(|| {
            for ((_, average), (_, parameter)) in self.averages.iter_mut().zip(parameters) {
                let trained = parameter.detach().copy();
                parameter.shallow_clone().copy_(average);
                average.copy_(&trained);
            }
        });
    }

    /// Continues from a saved average.
    ///
    /// # Errors
    /// If a tensor is missing, is one too many, or has the wrong shape; the average is then unchanged.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), FlowError> {
        let mut saved: HashMap<&str, &Tensor> =
            state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut loaded = Vec::with_capacity(self.averages.len());
        for (name, average) in &self.averages {
            loaded.push(take(&mut saved, name.clone(), &average.size())?);
        }
        reject_leftover(&saved)?;
        tch::no_grad(|| {
            for ((_, average), tensor) in self.averages.iter_mut().zip(loaded) {
                average.copy_(tensor);
            }
        });
        Ok(())
    }
}

impl EmaSettings {
    fn decay_at(&self, updates: u64) -> f64 {
        let updates = updates as f64;
        ((1.0 + updates) / (10.0 + updates)).min(self.decay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(value: f32) -> Vec<(String, Tensor)> {
        vec![("lora_A".to_owned(), Tensor::from_slice(&[value]).set_requires_grad(true))]
    }

    fn value(tensors: &[(String, Tensor)]) -> f64 {
        tensors[0].1.double_value(&[0])
    }

    #[test]
    fn decay_rises_to_its_cap() {
        let table = [(7, 0.470588), (15, 0.64), (23, 0.727273), (71, 0.888889), (79, 0.898876), (87, 0.9)];
        for (updates, decay) in table {
            assert!((EmaSettings::default().decay_at(updates) - decay).abs() < 1e-6, "update {updates}");
        }
    }

    #[test]
    fn average_moves_after_updates_seven_fifteen_and_so_on() {
        let mut ema = Ema::new(&parameters(0.0), EmaSettings::default());
        let trained = parameters(1.0);
        let moved: Vec<u64> = (1..=32).filter(|updates| ema.update(&trained, *updates)).collect();
        assert_eq!(moved, [7, 15, 23, 31]);
    }

    #[test]
    fn first_move_goes_about_half_way() {
        let mut ema = Ema::new(&parameters(0.0), EmaSettings::default());
        ema.update(&parameters(1.0), 7);
        assert!((value(ema.averages()) - 0.529412).abs() < 1e-6);
    }

    #[test]
    fn average_does_not_share_memory_with_the_parameters() {
        let trained = parameters(1.0);
        let ema = Ema::new(&trained, EmaSettings::default());
        let _ = tch::no_grad(|| trained[0].1.shallow_clone().fill_(5.0));
        assert_eq!(value(ema.averages()), 1.0);
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        let trained = parameters(0.3);
        let mut ema = Ema::new(&parameters(0.1), EmaSettings::default());
        ema.swap(&trained);
        assert_eq!((value(&trained), value(ema.averages())), (f64::from(0.1_f32), f64::from(0.3_f32)));
        ema.swap(&trained);
        assert_eq!((value(&trained), value(ema.averages())), (f64::from(0.3_f32), f64::from(0.1_f32)));
        assert!(trained[0].1.requires_grad());
    }

    #[test]
    fn saved_average_is_restored_or_refused_by_name() {
        let mut ema = Ema::new(&parameters(0.0), EmaSettings::default());
        ema.load_state(&parameters(0.25)).unwrap();
        assert_eq!(value(ema.averages()), 0.25);
        let error = ema.load_state(&[]).unwrap_err().to_string();
        assert!(error.contains("lora_A"), "{error}");
    }
}
