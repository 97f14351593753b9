//! The translation itself, section by section.

use super::document::{Document, written};
use super::report::{Fate, ImportEntry, ImportReport};
use super::unused_keys;
use crate::presets::base_model::{BaseModel, FLUX1_DEV, QWEN_IMAGE, SD35_MEDIUM};
use crate::validate::MOST;
use crate::{
    AdapterMethod, Algorithm, BranchSteps, ComputeDevice, Dtype, RatioNormalization, RunConfig, StepRule,
    StepWeight, parse,
};

/// Most seeds of one prompt that an imported run samples together.
const SEEDS_PER_TASK: usize = 8;

/// A run config on its way out of a Flow-Factory YAML.
pub(super) struct Translation {
    pub(super) document: Document,
    pub(super) config: RunConfig,
    pub(super) report: ImportReport,
}

/// Makes a run config of a document, and an account of all its keys.
///
/// # Errors
/// Every value of the wrong type, and a trainer or model that does not exist here.
pub(super) fn translate(document: Document) -> Result<(RunConfig, ImportReport), Vec<String>> {
    let (defaults, _) = parse::read("", &[]);
    let config = defaults.expect("the built-in defaults are a config; else this is a bug");
    let mut translation = Translation { document, config, report: ImportReport::default() };
    translation.trainer();
    translation.run();
    translation.model();
    translation.sampling();
    translation.steps();
    translation.optimizer();
    translation.objective();
    translation.averaging();
    translation.rewards();
    translation.evaluation();
    translation.rest();
    let Translation { document, config, report } = translation;
    if document.problems.is_empty() { Ok((config, report)) } else { Err(document.problems) }
}

impl Translation {
    fn enter(&mut self, theirs: &str, fate: Fate) {
        let value = self.document.has(theirs).then(|| self.document.written(theirs));
        self.report.entries.push(ImportEntry { theirs: theirs.to_owned(), value, fate });
    }

    pub(super) fn carried(&mut self, theirs: &str, ours: &'static str) {
        self.enter(theirs, Fate::Carried { ours });
    }

    pub(super) fn translated(&mut self, theirs: &str, ours: &'static str, note: impl Into<String>) {
        self.enter(theirs, Fate::Translated { ours, note: note.into() });
    }

    /// Accounts for a key that sets nothing; one that the file does not hold needs no account.
    pub(super) fn not_carried(&mut self, theirs: &str, reason: impl Into<String>) {
        if self.document.has(theirs) {
            self.enter(theirs, Fate::NotCarried { reason: reason.into() });
        }
    }

    pub(super) fn carried_number(&mut self, theirs: &str, default: f64, ours: &'static str) -> f64 {
        self.carried(theirs, ours);
        self.document.number(theirs, default)
    }

    pub(super) fn carried_count(&mut self, theirs: &str, default: usize, ours: &'static str) -> usize {
        self.carried(theirs, ours);
        self.document.count(theirs, default)
    }

    fn trainer(&mut self) {
        let trainer = self.document.text("train.trainer_type", "grpo").to_lowercase().replace('_', "-");
        self.config.sampling.algorithm = Algorithm::FlowGrpo;
        self.config.sampling.branches_per_seed = 1;
        self.config.training.step_weight = StepWeight::None;
        let note = match trainer.as_str() {
            "grpo" => "samples of a prompt are compared with each other; nothing branches",
            "grpo-guard" => {
                self.config.training.ratio_normalization = RatioNormalization::Guard;
                "with training.ratio_normalization = \"guard\"; steps weigh alike, as theirs do, and not by the inverse of \
                 their lengths as GRPO-Guard's authors have it (training.step_weight = \"inverse-length\"); the ratio of a \
                 CPS step is normalised as that of a Flow-SDE one, while theirs is smaller by about 2 S² and biased: choose \
                 training.clip_range anew"
            }
            other => {
                self.document.problems.push(format!(
                    "`train.trainer_type` is {other}; only grpo and grpo-guard can be repeated here"
                ));
                return;
            }
        };
        self.translated("train.trainer_type", "sampling.algorithm", note);
    }

    fn run(&mut self) {
        let given = self.document.text("log.run_name", "flow-factory-import");
        self.config.run.name = plain_name(&given);
        match self.config.run.name == given {
            true => self.carried("log.run_name", "run.name"),
            false => self.translated("log.run_name", "run.name", "it names a directory here"),
        }
        if self.document.get("log.save_dir").is_some() {
            self.carried("log.save_dir", "run.directory");
            self.config.run.directory = self.document.text("log.save_dir", "runs").into();
        }
        self.config.run.seed = self.carried_count("train.seed", 42, "run.seed") as u64;
        match self.document.get("train.max_epochs") {
            Some(_) => self.carried("train.max_epochs", "run.iterations"),
            None => self.translated(
                "train.max_epochs",
                "run.iterations",
                "theirs runs until it is stopped; ours has an end, which `coordinator resume RUN --set run.iterations=N` moves",
            ),
        }
        let default = self.config.run.iterations as usize;
        self.config.run.iterations = saturated(self.document.count("train.max_epochs", default));
        self.config.checkpoints.every = saturated(self.document.count("log.save_freq", 10));
        self.translated(
            "log.save_freq",
            "checkpoints.every",
            "also how much work a crash can cost; 1 is safest",
        );
        let folder = self.document.text("data.dataset_dir", "");
        if folder.is_empty() {
            self.document
                .problems
                .push("`data.dataset_dir` is missing; it names the folder of prompts".to_owned());
        }
        self.config.data.train = folder.clone().into();
        self.config.data.test = folder.into();
        self.translated("data.dataset_dir", "data.train", "and data.test: the folder's train.* and test.*");
    }

    fn model(&mut self) {
        let Some(base) = self.base_model() else { return };
        self.config.model.path = self.document.text("model.model_name_or_path", base.repository).into();
        self.carried("model.model_name_or_path", "model.path");
        self.config.model.max_sequence_length = base.max_sequence_length;
        self.config.resources.device = ComputeDevice::Cuda;
        let precision = self.document.text("mixed_precision", "bf16");
        self.config.model.dtype = if precision == "no" { Dtype::Float32 } else { Dtype::Bfloat16 };
        match precision.as_str() {
            "no" | "bf16" => self.carried("mixed_precision", "model.dtype"),
            _ => self.translated("mixed_precision", "model.dtype", "bfloat16 is the half precision here"),
        }
        self.not_carried(
            "model.master_weight_dtype",
            "the weights that are trained, and their moments, are always float32",
        );
        let components = self.document.get("model.target_components").map(written);
        match components.as_deref() {
            None | Some("transformer" | "[\"transformer\"]") => {
                self.not_carried("model.target_components", "the transformer is what is trained, as there");
            }
            Some(_) => self.not_carried("model.target_components", "only the transformer can be trained"),
        }
        self.carried("model.finetune_type", "adapter.method");
        match self.document.text("model.finetune_type", "lora").as_str() {
            "full" => {
                self.config.adapter.method = AdapterMethod::Full;
                for key in ["model.lora_rank", "model.lora_alpha", "model.target_modules"] {
                    self.not_carried(key, "all parameters of the transformer are trained");
                }
            }
            "lora" => self.adapter(base),
            other => {
                let problem = format!("`model.finetune_type` is {other}; lora and full exist here");
                self.document.problems.push(problem);
            }
        }
    }

    fn adapter(&mut self, base: &BaseModel) {
        let rank = self.carried_count("model.lora_rank", 8, "adapter.rank");
        self.config.adapter.rank = rank as i64;
        self.config.adapter.alpha =
            self.carried_number("model.lora_alpha", 2.0 * rank as f64, "adapter.alpha");
        self.targets(base);
    }

    fn is_sd3(&mut self) -> bool {
        let named = named_model(&self.document.text("model.model_type", ""));
        named.is_some_and(|base| std::ptr::eq(base, &SD35_MEDIUM))
    }

    fn base_model(&mut self) -> Option<&'static BaseModel> {
        let model = self.document.text("model.model_type", "");
        let Some(base) = named_model(&model) else {
            let problem =
                format!("`model.model_type` is `{model}`; sd3-5, flux1 and qwen-image can be trained here");
            self.document.problems.push(problem);
            return None;
        };
        let note =
            format!("prompts of {} tokens, adapter on this model's usual modules", base.max_sequence_length);
        self.translated("model.model_type", "model.max_sequence_length", note);
        Some(base)
    }

    fn targets(&mut self, base: &BaseModel) {
        self.config.adapter.targets = base.targets();
        let listed = match self.document.get("model.target_modules") {
            Some(serde_json::Value::Array(items)) => items.iter().map(written).collect(),
            Some(serde_json::Value::String(word)) if word == "all" => {
                let note = "there is no `all` here; the model's usual modules are taken";
                return self.translated("model.target_modules", "adapter.targets", note);
            }
            Some(serde_json::Value::String(word)) if word != "default" => vec![word.clone()],
            _ => {
                return self.translated(
                    "model.target_modules",
                    "adapter.targets",
                    "the model's usual modules",
                );
            }
        };
        self.config.adapter.targets = listed;
        self.carried("model.target_modules", "adapter.targets");
    }

    fn sampling(&mut self) {
        if self.document.get("train.group_size").is_none() {
            let problem = "`train.group_size` is missing; it is the number of samples per prompt";
            self.document.problems.push(problem.to_owned());
        }
        let group = self.carried_count("train.group_size", 1, "sampling.seeds_per_prompt");
        self.config.sampling.seeds_per_prompt = group;
        self.config.sampling.seeds_per_task = group.clamp(1, SEEDS_PER_TASK);
        self.config.sampling.prompts_per_iteration =
            self.carried_count("train.unique_sample_num_per_epoch", 8, "sampling.prompts_per_iteration");
        self.steps_and_their_levels();
        self.config.sampling.guidance_scale =
            self.carried_number("train.guidance_scale", 3.5, "sampling.guidance_scale");
        let (height, width) = self.resolution();
        self.config.sampling.height = self.side("train.height", height, "sampling.height");
        self.config.sampling.width = self.side("train.width", width, "sampling.width");
        let note = "latents in one training forward; lower it where memory runs out";
        self.translated("train.per_device_batch_size", "training.max_rows", note);
        self.config.training.gradient_checkpointing =
            self.document.flag("train.enable_gradient_checkpointing", false);
        self.carried("train.enable_gradient_checkpointing", "training.gradient_checkpointing");
        self.config.training.max_rows = self.document.count("train.per_device_batch_size", 1);
    }

    /// The number of steps, and what is told of a schedule that is not theirs.
    fn steps_and_their_levels(&mut self) {
        let steps = self.document.count("train.num_inference_steps", 10);
        self.config.sampling.steps = steps;
        // They give SD3's scheduler the noise levels that FLUX and Qwen-Image have, which it bends once more.
        match self.is_sd3() {
            true => self.translated(
                "train.num_inference_steps",
                "sampling.steps",
                "theirs hands SD3's scheduler the grid linspace(1, 1/T, T), which diffusers does not: its own, taken here, \
                 has OTHER noise levels (at T = 10 the last is 0.009, theirs 0.25)",
            ),
            false => self.carried("train.num_inference_steps", "sampling.steps"),
        }
    }

    /// Height and width where they are not given by themselves: one number for both, or two.
    fn resolution(&mut self) -> (usize, usize) {
        let (height, width) = self.document.sides("train.resolution", 512);
        match ["train.height", "train.width"].iter().all(|key| self.document.get(key).is_some()) {
            true => self.not_carried("train.resolution", "height and width are given"),
            false => self.translated("train.resolution", "sampling.height", "and sampling.width"),
        }
        (height, width)
    }

    fn side(&mut self, theirs: &str, resolution: usize, ours: &'static str) -> i64 {
        if self.document.get(theirs).is_some() {
            self.carried(theirs, ours);
        }
        self.document.side(theirs, resolution) as i64
    }

    fn steps(&mut self) {
        let dynamics = self.document.text("scheduler.dynamics_type", "Flow-SDE");
        let rule = match dynamics.to_lowercase().as_str() {
            "flow-sde" => Some(StepRule::FlowSde),
            "cps" => Some(StepRule::Cps),
            _ => None,
        };
        match rule {
            Some(rule) => {
                self.config.sampling.step_rule = rule;
                self.carried("scheduler.dynamics_type", "sampling.step_rule");
            }
            None => self.not_carried(
                "scheduler.dynamics_type",
                "only Flow-SDE and CPS steps exist here; Flow-SDE is taken, so choose the noise level anew",
            ),
        }
        self.config.sampling.noise_level =
            self.carried_number("scheduler.noise_level", 0.7, "sampling.noise_level");
        self.branch_steps();
    }

    /// `num_sde_steps` of the listed `sde_steps`; the last step of all is never trained here.
    fn branch_steps(&mut self) {
        if self.config.sampling.steps > MOST {
            let steps = self.config.sampling.steps;
            let problem = format!("`train.num_inference_steps` is {steps}; at most {MOST} exist here");
            return self.document.problems.push(problem);
        }
        let n_trainable = self.config.sampling.steps.saturating_sub(1);
        let listed = self.document.counts("scheduler.sde_steps");
        let mut candidates = listed.clone().unwrap_or_else(|| (0..n_trainable).collect());
        candidates.sort_unstable();
        candidates.dedup();
        let n_candidates = candidates.len();
        candidates.retain(|&step| step < n_trainable);
        let all_drawn = self.document.has("scheduler.num_sde_steps")
            && self.document.get("scheduler.num_sde_steps").is_none();
        let count =
            if all_drawn { candidates.len() } else { self.document.count("scheduler.num_sde_steps", 1) };
        let is_complete = candidates.len() == n_trainable;
        self.config.sampling.branch_steps = match count < candidates.len() {
            true if is_complete => BranchSteps::Random { count },
            true => BranchSteps::RandomAmong { count, among: candidates.clone() },
            false if is_complete => BranchSteps::All,
            false => BranchSteps::List(candidates.clone()),
        };
        self.translated("scheduler.num_sde_steps", "sampling.branch_steps", "drawn anew for every iteration");
        let key = "scheduler.sde_steps";
        match candidates.len() < n_candidates {
            true => {
                self.translated(key, "sampling.branch_steps", "without the last step, which is never trained")
            }
            false => self.translated(key, "sampling.branch_steps", "the steps that are drawn from"),
        }
    }

    fn evaluation(&mut self) {
        self.config.evaluation.steps = self.carried_count("eval.num_inference_steps", 30, "evaluation.steps");
        self.config.evaluation.every =
            saturated(self.carried_count("eval.eval_freq", 10, "evaluation.every"));
        self.config.evaluation.prompts_per_task =
            self.carried_count("eval.per_device_batch_size", 1, "evaluation.prompts_per_task");
        let (height, width) = self.document.sides("eval.resolution", 1024);
        let sampling = &self.config.sampling;
        let is_same_size = (height as i64, width as i64) == (sampling.height, sampling.width);
        let reason = match is_same_size {
            true => "held-out images are as large as those of training, and so they were there",
            false => "held-out images are as large as those of training; theirs were NOT",
        };
        self.not_carried("eval.resolution", reason);
        self.config.evaluation.guidance_scale =
            self.carried_number("eval.guidance_scale", 3.5, "evaluation.guidance_scale");
    }

    /// Accounts for all keys that nothing above has accounted for.
    fn rest(&mut self) {
        let keys: Vec<String> = self.document.keys().map(str::to_owned).collect();
        for key in keys {
            if self.report.fate(&key).is_none() {
                self.not_carried(&key, unused_keys::reason(&key));
            }
        }
    }
}

/// The model that they call so.
fn named_model(model_type: &str) -> Option<&'static BaseModel> {
    match model_type.to_lowercase().replace(['.', '_'], "-").as_str() {
        "sd3-5" | "sd3" | "sd35" => Some(&SD35_MEDIUM),
        "flux1" | "flux-1" | "flux1-dev" | "flux" => Some(&FLUX1_DEV),
        "qwen-image" => Some(&QWEN_IMAGE),
        _ => None,
    }
}

/// A name of theirs with the letters that names have here.
pub(super) fn plain_name(given: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let plain: String = given.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    plain.trim_start_matches('.').to_owned()
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
