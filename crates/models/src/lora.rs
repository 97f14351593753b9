//! Low-rank adapters: which modules get one, how it starts, and how it joins the weight it adapts.
//!
//! Names, target rule and initial values are PEFT's, so that adapters go both ways.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// What of a network is adapted, and how strongly.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Inner width of the adapter.
    pub rank: i64,
    /// The adapter's product is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Which modules.
    pub targets: Targets,
}

/// Which modules of a network are adapted.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// PEFT's rule: those whose path equals one of these or ends with a dot and one of these.
    EndingWith(Vec<String>),
    /// Those of these paths and no others, as the tensors of a file tell: what a rule would name besides, such as the
    /// `proj_out` of each block beside that of the network, was left out there.
    Exactly(BTreeSet<String>),
}

impl Targets {
    /// The ends of paths, or the paths, in order.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::EndingWith(ends) => ends.iter().map(String::as_str).collect(),
            Self::Exactly(paths) => paths.iter().map(String::as_str).collect(),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::EndingWith(ends) => ends.iter().any(|end| path_matches(path, end)),
            Self::Exactly(paths) => paths.contains(path),
        }
    }

    /// Whether `name`, one of these, stands for the module at `path`.
    fn names_module(&self, name: &str, path: &str) -> bool {
        match self {
            Self::EndingWith(_) => path_matches(path, name),
            Self::Exactly(_) => path == name,
        }
    }
}

impl From<Vec<String>> for Targets {
    fn from(ends: Vec<String>) -> Self {
        Self::EndingWith(ends)
    }
}

impl LoraConfig {
    /// The factor before `B·A`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Shapes of the two factors of a module with a weight `[outputs, inputs]`.
    pub(crate) fn factor_shapes(&self, [outputs, inputs]: [i64; 2]) -> [[i64; 2]; 2] {
        [[self.rank, inputs], [outputs, self.rank]]
    }

    /// Whether the module at `path` is adapted.
    pub fn targets_module(&self, path: &str) -> bool {
        self.targets.matches(path)
    }

    /// Checks the rank against the weights `[outputs, inputs]` of the network's modules by path: a rank above the shorter
    /// side of the largest adapted weight adds parameters and nothing that they could express. A file's adapter is what it
    /// is.
    ///
    /// # Errors
    /// If the rank is above that.
    pub fn check_rank<'a>(
        &self,
        modules: impl Iterator<Item = (&'a str, [i64; 2])>,
    ) -> Result<(), ModelError> {
        if let Targets::Exactly(_) = self.targets {
            return Ok(());
        }
        let adapted = modules.filter(|(path, _)| self.targets_module(path));
        let useful = adapted.map(|(_, [outputs, inputs])| outputs.min(inputs)).max();
        match useful {
            Some(useful) if self.rank > useful => Err(ModelError::Adapter(format!(
                "rank {} is above {useful}, the full rank of the largest weight that the targets name; lower `adapter.rank`",
                self.rank
            ))),
            _ => Ok(()),
        }
    }

    /// Checks the numbers, and that every target names at least one of the network's `modules`.
    ///
    /// # Errors
    /// If the rank is not positive, alpha is not a positive finite number, or a target matches nothing.
    pub fn check<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Result<(), ModelError> {
        if self.rank < 1 || !(self.alpha.is_finite() && self.alpha > 0.0) {
            let found = format!("rank {} and alpha {} must both be positive", self.rank, self.alpha);
            return Err(ModelError::Adapter(found));
        }
        let is_idle = |target: &&str| !modules.clone().any(|path| self.targets.names_module(target, path));
        let targets = self.targets.names();
        let idle: Vec<&str> = targets.iter().copied().filter(is_idle).collect();
        if targets.is_empty() || !idle.is_empty() {
            let reason =
                format!("no linear module of the transformer is named by target {:?}", idle.join(", "));
            return Err(ModelError::Adapter(format!(
                "{reason}; targets are ends of module paths, such as attn.to_q"
            )));
        }
        Ok(())
    }
}

fn path_matches(path: &str, target: &str) -> bool {
    path.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The two factors of one module's adapter; float32 whatever the network's element type.
pub(crate) struct LoraFactors {
    /// `[rank, inputs]`.
    pub(crate) a: Tensor,
    /// `[outputs, rank]`.
    pub(crate) b: Tensor,
    /// `alpha / rank`.
    pub(crate) scale: f64,
}

/// Source of standard normal numbers: given a tensor's name and length, the same name always gives the same values.
pub type NormalSource<'a> = dyn FnMut(&str, usize) -> Vec<f32> + 'a;

impl LoraFactors {
    /// PEFT's gaussian start: `A` normal with standard deviation `1 / rank`, `B` zero, so the adapter changes nothing.
    pub(crate) fn new(path: &str, shape: [i64; 2], config: &LoraConfig, normal: &mut NormalSource) -> Self {
        let [a, b] = config.factor_shapes(shape);
        let values = normal(&a_name(path), a.iter().product::<i64>() as usize);
        let a = Tensor::from_slice(&values).view(a) / config.rank as f64;
        let b = Tensor::zeros(b, (Kind::Float, Device::Cpu));
        Self { a, b, scale: config.scale() }
    }

    /// Moves both factors to a device and makes them leaves that collect gradients.
    pub(crate) fn into_leaves(self, device: Device) -> Self {
        let leaf = |t: &Tensor| t.to_device(device).detach().set_requires_grad(true);
        Self { a: leaf(&self.a), b: leaf(&self.b), scale: self.scale }
    }

    /// `weight + scale·B·A`, differentiable in `A` and `B`.
    pub(crate) fn merged_into(&self, weight: &Tensor) -> Tensor {
        weight.addmm(&self.scaled_b(), &self.a)
    }

    /// `scale·B`.
    pub(crate) fn scaled_b(&self) -> Tensor {
        &self.b * self.scale
    }
}

/// Name of the first factor of the module at `path`.
pub(crate) fn a_name(path: &str) -> String {
    format!("{path}.lora_A.weight")
}

/// Name of the second factor of the module at `path`.
pub(crate) fn b_name(path: &str) -> String {
    format!("{path}.lora_B.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(targets: &[&str]) -> LoraConfig {
        let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
        LoraConfig { rank: 4, alpha: 8.0, targets: targets.into() }
    }

    #[test]
    fn targets_match_whole_path_components_from_the_end() {
        let config = config(&["attn.to_q", "proj_out"]);
        assert!(config.targets_module("transformer_blocks.0.attn.to_q"));
        assert!(config.targets_module("proj_out"));
        assert!(!config.targets_module("transformer_blocks.0.attn2.to_q"));
        assert!(!config.targets_module("transformer_blocks.0.xattn.to_q"));
        assert!(!config.targets_module("transformer_blocks.0.attn.to_q.extra"));
    }

    #[test]
    fn paths_of_a_file_are_no_ends_of_others() {
        let targets = Targets::Exactly(["proj_out".to_owned()].into());
        let config = LoraConfig { targets, ..config(&[]) };
        assert!(config.targets_module("proj_out"));
        assert!(!config.targets_module("single_transformer_blocks.0.proj_out"));
        assert!(config.check(["single_transformer_blocks.0.proj_out"].into_iter()).is_err());
        assert!(config.check(["x", "proj_out"].into_iter()).is_ok());
    }

    #[test]
    fn a_target_that_names_nothing_is_told() {
        let modules = ["a.to_q"];
        let error = config(&["to_q", "to_qq"]).check(modules.into_iter()).unwrap_err().to_string();
        assert!(error.contains("to_qq") && !error.contains("to_q,"), "{error}");
        assert!(config(&[]).check(modules.into_iter()).is_err());
        assert!(LoraConfig { rank: 0, ..config(&["to_q"]) }.check(modules.into_iter()).is_err());
    }

    #[test]
    fn a_rank_above_every_adapted_weight_is_refused() {
        let modules = [("a.to_q", [6, 8]), ("b.to_q", [2, 8]), ("a.proj", [64, 64])];
        let check = |rank, targets: &[&str]| {
            LoraConfig { rank, ..config(targets) }.check_rank(modules.into_iter()).map_err(|e| e.to_string())
        };
        assert_eq!(check(6, &["to_q"]), Ok(()), "too much for one of them is what PEFT's users do");
        assert!(check(7, &["to_q"]).unwrap_err().contains("rank 7 is above 6"));
        assert_eq!(check(7, &["to_q", "proj"]), Ok(()));
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_its_first_factor_has_spread_one_over_rank() {
        let mut names = Vec::new();
        let factors = LoraFactors::new("m", [3, 5], &config(&["m"]), &mut |name, n| {
            names.push(name.to_owned());
            vec![2.0; n]
        });
        let weight = Tensor::ones([3, 5], (Kind::Float, Device::Cpu));
        assert_eq!(factors.merged_into(&weight), weight);
        assert_eq!(factors.a, Tensor::full([4, 5], 0.5, (Kind::Float, Device::Cpu)));
        assert_eq!(names, ["m.lora_A.weight"]);
    }
}
