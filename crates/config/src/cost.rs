//! What a run config costs: network evaluations, images, bytes. Counting only; nothing is measured here.
//!
//! Source of the counts: TempFlow-GRPO (arXiv 2508.04324) with the trunk stopped after the last branch.

use crate::{Algorithm, BranchSteps, RunConfig};
use std::fmt;
use std::path::Path;

/// What one iteration costs. A network evaluation is one guided evaluation of one latent.
#[derive(Clone, Debug, PartialEq)]
pub struct IterationCost {
    /// Evaluations to sample one seed, averaged where steps are drawn at random.
    pub evaluations_per_seed: f64,
    /// Evaluations to sample the iteration.
    pub sampling_evaluations: f64,
    /// Images decoded and scored.
    pub images: f64,
    /// (seed, step) cells that the learner evaluates with gradients.
    pub trained_cells: f64,
    /// Optimizer updates.
    pub updates: usize,
    /// Network rows per evaluation: 2 under classifier-free guidance.
    pub rows_per_evaluation: usize,
    /// Forward-equivalents of the learner: 3 per trained cell, and one more with a KL term.
    pub training_forward_equivalents: f64,
}

/// Step counts of a plan: how many steps are trained, and on average how many evaluations their completions take.
struct TrainedSteps {
    count: f64,
    completion_evaluations: f64,
    trunk_evaluations: f64,
}

impl RunConfig {
    /// Counts what one iteration costs.
    pub fn iteration_cost(&self) -> IterationCost {
        let sampling = &self.sampling;
        let n_seeds = (sampling.prompts_per_iteration * sampling.seeds_per_prompt) as f64;
        let steps = trained_steps(&sampling.branch_steps, sampling.steps);
        let branches = sampling.branches_per_seed as f64;
        let (evaluations_per_seed, images_per_seed) = match sampling.algorithm {
            Algorithm::TempflowGrpo => {
                (steps.trunk_evaluations + branches * steps.completion_evaluations, branches * steps.count)
            }
            Algorithm::FlowGrpo => (sampling.steps as f64, 1.0),
        };
        let trained_cells = n_seeds * steps.count;
        IterationCost {
            evaluations_per_seed,
            sampling_evaluations: n_seeds * evaluations_per_seed,
            images: n_seeds * images_per_seed,
            trained_cells,
            updates: self.training.updates_per_iteration,
            rows_per_evaluation: if sampling.guidance_scale > 1.0 { 2 } else { 1 },
            training_forward_equivalents: trained_cells * if self.training.kl_beta > 0.0 { 4.0 } else { 3.0 },
        }
    }
}

/// Averages over the draw where the plan is random.
fn trained_steps(plan: &BranchSteps, steps: usize) -> TrainedSteps {
    let exactly = |trained: &[usize]| TrainedSteps {
        count: trained.len() as f64,
        completion_evaluations: trained.iter().map(|step| (steps - 1 - step) as f64).sum(),
        trunk_evaluations: trained.iter().max().map_or(0.0, |last| (last + 1) as f64),
    };
    match plan {
        BranchSteps::All => exactly(&(0..steps - 1).collect::<Vec<_>>()),
        BranchSteps::Range { from, to } => exactly(&(*from..*to).collect::<Vec<_>>()),
        BranchSteps::List(list) => exactly(list),
        BranchSteps::Random { count } => drawn(*count, &(0..steps - 1).collect::<Vec<_>>(), steps),
        BranchSteps::RandomAmong { count, among } => drawn(*count, among, steps),
        BranchSteps::Window { size, from, to } => {
            let windows: Vec<TrainedSteps> = (*from..=to - size)
                .map(|start| exactly(&(start..start + size).collect::<Vec<_>>()))
                .collect();
            let mean =
                |of: fn(&TrainedSteps) -> f64| windows.iter().map(of).sum::<f64>() / windows.len() as f64;
            TrainedSteps {
                count: *size as f64,
                completion_evaluations: mean(|window| window.completion_evaluations),
                trunk_evaluations: mean(|window| window.trunk_evaluations),
            }
        }
    }
}

/// Means over all draws of `count` among rising steps, without replacement: every step is as likely as any other, and the
/// r-th of n (from 0) is the last one drawn with probability C(r, count − 1) / C(n, count).
fn drawn(count: usize, among: &[usize], steps: usize) -> TrainedSteps {
    let (n, drawn) = (among.len(), count as f64);
    let mean_completion = among.iter().map(|step| (steps - 1 - step) as f64).sum::<f64>() / n as f64;
    // From the top down: the chance that the step at `rank` is drawn and none above it is.
    let mut none_above = 1.0;
    let mut trunk_evaluations = 0.0;
    for rank in (0..n).rev() {
        let is_last = none_above * (drawn / (rank + 1) as f64).min(1.0);
        trunk_evaluations += is_last * (among[rank] + 1) as f64;
        none_above -= is_last;
    }
    TrainedSteps { count: drawn, completion_evaluations: drawn * mean_completion, trunk_evaluations }
}

/// What `coordinator plan` prints.
#[derive(Clone, Debug)]
pub struct Plan {
    cost: IterationCost,
    iterations: u32,
    latent_elements: Option<f64>,
    n_seeds: f64,
    branches: f64,
    components: Vec<(String, u64)>,
}

/// Works out what a run will cost; facts about the model are read from its folder where it exists.
pub fn plan(config: &RunConfig) -> Plan {
    Plan {
        cost: config.iteration_cost(),
        iterations: config.run.iterations,
        latent_elements: latent_elements(config),
        n_seeds: (config.sampling.prompts_per_iteration * config.sampling.seeds_per_prompt) as f64,
        branches: config.sampling.branches_per_seed as f64,
        components: component_sizes(&config.model.path),
    }
}

/// Elements of one latent, from the model's config files.
fn latent_elements(config: &RunConfig) -> Option<f64> {
    let read = |part: &str| -> Option<serde_json::Value> {
        let text = std::fs::read_to_string(config.model.path.join(part).join("config.json")).ok()?;
        serde_json::from_str(&text).ok()
    };
    let vae = read("vae")?;
    let n_blocks = vae.get("block_out_channels")?.as_array()?.len() as u32;
    let channels = vae.get("latent_channels")?.as_f64()?;
    let scale = f64::from(1u32.checked_shl(n_blocks.checked_sub(1)?)?);
    Some(channels * (config.sampling.height as f64 / scale) * (config.sampling.width as f64 / scale))
}

/// Bytes of the weight files of every component of the pipeline folder.
fn component_sizes(model: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = std::fs::read_dir(model) else { return Vec::new() };
    let mut sizes: Vec<(String, u64)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let files = std::fs::read_dir(entry.path()).ok()?;
            let weights = files
                .filter_map(Result::ok)
                .filter(|file| file.path().extension().is_some_and(|extension| extension == "safetensors"));
            let bytes: u64 = weights.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum();
            let name = entry.file_name().to_string_lossy().into_owned();
            (bytes > 0 && name != "cases").then_some((name, bytes))
        })
        .collect();
    sizes.sort();
    sizes
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = &self.cost;
        let sampling_rows = cost.sampling_evaluations * cost.rows_per_evaluation as f64;
        writeln!(f, "per iteration ({} in all)", self.iterations)?;
        writeln!(f, "  seeds                    {:>12}", self.n_seeds)?;
        writeln!(
            f,
            "  network evaluations      {:>12.0}  ({:.0} per seed)",
            cost.sampling_evaluations, cost.evaluations_per_seed
        )?;
        writeln!(
            f,
            "  network rows             {:>12.0}  ({} per evaluation)",
            sampling_rows, cost.rows_per_evaluation
        )?;
        writeln!(f, "  images decoded, scored   {:>12.0}", cost.images)?;
        writeln!(f, "  cells trained            {:>12.0}  in {} updates", cost.trained_cells, cost.updates)?;
        let ratio = cost.sampling_evaluations / cost.training_forward_equivalents;
        writeln!(
            f,
            "  rollout : learner work   {ratio:>12.2}  (forward-equivalents, decoding and rewards left out)"
        )?;
        match self.latent_elements {
            Some(elements) => {
                let bytes = self.bytes_on_the_wire(elements);
                writeln!(f, "  trajectories on the wire {:>12}", human_bytes(bytes))?;
            }
            None => writeln!(f, "  trajectories on the wire      unknown: the model folder was not found")?,
        }
        if !self.components.is_empty() {
            writeln!(f, "weights on disk")?;
            for (name, bytes) in &self.components {
                writeln!(f, "  {name:<24} {:>12}", human_bytes(*bytes as f64))?;
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Per trained cell a state and a mean in f32, and per branch a log-probability, a reward and an 8-byte hash.
    fn bytes_on_the_wire(&self, latent_elements: f64) -> f64 {
        self.cost.trained_cells * (8.0 * latent_elements + 16.0 * self.branches)
    }
}

/// Bytes with a binary unit, three digits.
pub fn human_bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    fn config(steps: usize, branch_steps: BranchSteps) -> RunConfig {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.sampling.steps = steps;
        config.sampling.branch_steps = branch_steps;
        config.sampling.branches_per_seed = 6;
        config.sampling.seeds_per_prompt = 4;
        config.sampling.prompts_per_iteration = 1;
        config
    }

    #[test]
    fn counts_equal_the_published_ones() {
        let cost = config(10, BranchSteps::All).iteration_cost();
        assert_eq!(cost.evaluations_per_seed, 279.0);
        assert_eq!(cost.sampling_evaluations, 1116.0);
        assert_eq!(cost.images, 216.0);
        let mut baseline = config(10, BranchSteps::All);
        baseline.sampling.algorithm = Algorithm::FlowGrpo;
        baseline.sampling.branches_per_seed = 1;
        baseline.sampling.seeds_per_prompt = 24;
        assert_eq!(baseline.iteration_cost().sampling_evaluations, 240.0);
    }

    #[test]
    fn the_trunk_stops_after_the_last_branch() {
        let cost = config(10, BranchSteps::Range { from: 0, to: 3 }).iteration_cost();
        assert_eq!(cost.evaluations_per_seed, 3.0 + 6.0 * (9.0 + 8.0 + 7.0));
    }

    #[test]
    fn steps_drawn_from_a_list_cost_what_they_do_on_average() {
        let means = |trained: &[&[usize]]| {
            let each = trained.iter().map(|list| trained_steps(&BranchSteps::List(list.to_vec()), 10));
            let sums = each.fold((0.0, 0.0), |sums, steps| {
                (sums.0 + steps.completion_evaluations, sums.1 + steps.trunk_evaluations)
            });
            (sums.0 / trained.len() as f64, sums.1 / trained.len() as f64)
        };
        let (completion, trunk) = means(&[&[1, 2], &[1, 5], &[2, 5]]);
        let drawn = trained_steps(&BranchSteps::RandomAmong { count: 2, among: vec![1, 2, 5] }, 10);
        assert!((drawn.completion_evaluations - completion).abs() < 1e-12);
        assert!((drawn.trunk_evaluations - trunk).abs() < 1e-12);
    }

    #[test]
    fn random_steps_cost_what_they_do_on_average() {
        let (steps, n) = (6, 5);
        let mut total = 0.0;
        let mut draws = 0.0;
        for a in 0..n {
            for b in a + 1..n {
                total += trained_steps(&BranchSteps::List(vec![a, b]), steps).completion_evaluations * 6.0
                    + (b + 1) as f64;
                draws += 1.0;
            }
        }
        let cost = config(steps, BranchSteps::Random { count: 2 }).iteration_cost();
        assert!(
            (cost.evaluations_per_seed - total / draws).abs() < 1e-9,
            "{} {}",
            cost.evaluations_per_seed,
            total / draws
        );
    }
}
