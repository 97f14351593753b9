//! Adapters on disk: PEFT's folder, and the single file that diffusers and ComfyUI load.

mod naming;
mod reading;
mod settings;

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tch::Tensor;

use self::naming::{B_ENDING, DIFFUSERS_PREFIX, PEFT_PREFIX};
use crate::error::ModelError;
use crate::lora::LoraConfig;
use crate::network::Network;
use crate::safetensors_file::{write, write_atomically};

/// Name of the settings in a PEFT folder.
pub const PEFT_CONFIG: &str = "adapter_config.json";
/// Name of the tensors in a PEFT folder.
pub const PEFT_TENSORS: &str = "adapter_model.safetensors";
/// Name that diffusers gives and expects.
pub const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";

/// Key under which diffusers keeps an adapter's settings in the header of its file.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";
/// How many modules an error spells out before it only counts.
const MODULES_SHOWN: usize = 4;

/// An adapter with its settings; names are paths in the transformer, such as
/// `transformer_blocks.0.attn.to_q.lora_A.weight`.
#[derive(Debug)]
pub struct SavedAdapter {
    /// Rank, alpha and targets.
    pub config: LoraConfig,
    /// The factors.
    pub tensors: Vec<(String, Tensor)>,
    /// What of a file is not the transformer's and was left there, as in `24 tensors of text_encoder`.
    pub left_out: Vec<String>,
}

impl SavedAdapter {
    /// An adapter of the transformer alone.
    pub fn new(config: LoraConfig, tensors: Vec<(String, Tensor)>) -> Self {
        Self { config, tensors, left_out: Vec::new() }
    }

    /// Reads an adapter: a PEFT folder or a file in one, a folder or file as diffusers writes it, or a folder that has a PEFT
    /// folder inside as `lora` (flow_grpo's checkpoints) or `peft` (exports of ours). Its targets are the modules of its
    /// tensors, its values float32.
    ///
    /// # Errors
    /// If nothing of the kind is there, a file is damaged or of another format, or its settings make something else of the
    /// tensors than plain LoRA of one rank and alpha.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        reading::read(path)
    }

    /// Reads an adapter and puts it into a network in place of any other.
    ///
    /// # Errors
    /// As [`Self::read`], and if it is not one of this network's.
    pub fn load_into(path: &Path, network: &mut dyn Network) -> Result<Self, ModelError> {
        let adapter = Self::read(path)?;
        adapter.put_into(path, network)?;
        Ok(adapter)
    }

    /// Puts it into a network in place of any other; `path` is where it was read.
    ///
    /// # Errors
    /// If it is not one of this network's.
    pub fn put_into(&self, path: &Path, network: &mut dyn Network) -> Result<(), ModelError> {
        self.check_modules(path, network)?;
        network.attach_adapter(&self.config, &mut |_, length| vec![0.0; length])?;
        network.load_adapter(&self.tensors).map_err(|error| error.of_file(path))
    }

    /// Reads the adapter from which training an adapter of `config` on a network goes on: it must be all of it and no more.
    /// The network need not hold any memory.
    ///
    /// # Errors
    /// As [`Self::read`], and if rank, alpha, modules or shapes are others than those of `config` on this network.
    pub fn to_go_on_from(
        path: &Path,
        config: &LoraConfig,
        network: &dyn Network,
    ) -> Result<Self, ModelError> {
        let adapter = Self::read(path)?;
        adapter.check_modules(path, network)?;
        let refuse = |problem: String| Err(ModelError::Adapter(format!("{} {problem}", path.display())));
        let (rank, alpha) = (adapter.config.rank, adapter.config.alpha);
        if (rank, alpha) != (config.rank, config.alpha) {
            return refuse(format!(
                "has rank {rank} and alpha {alpha}, but the config has {} and {}; set `adapter.rank` and `adapter.alpha` \
                 to the former",
                config.rank, config.alpha
            ));
        }
        let all = modules(network);
        let trained: BTreeSet<&str> =
            all.iter().copied().filter(|path| config.targets_module(path)).collect();
        let held: BTreeSet<&str> = adapter.config.targets.names().into_iter().collect();
        if trained != held {
            return refuse(format!(
                "adapts other modules than `adapter.targets` names: {} of those are not in it{}, {} are in it besides{}; \
                 set `adapter.targets` to its modules",
                trained.difference(&held).count(),
                examples(trained.difference(&held)),
                held.difference(&trained).count(),
                examples(held.difference(&trained)),
            ));
        }
        let misshaped = adapter.misshaped(&network.adapter_shapes(config)?);
        match misshaped.is_empty() {
            true => Ok(adapter),
            false => Err(ModelError::Tensors {
                path: path.to_owned(),
                missing: Vec::new(),
                unexpected: Vec::new(),
                misshaped,
            }),
        }
    }

    fn misshaped(&self, expected: &[(String, [i64; 2])]) -> Vec<String> {
        let sizes: HashMap<&str, Vec<i64>> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
        let misshaped = |(name, shape): &(String, [i64; 2])| {
            let found = sizes.get(name.as_str()).filter(|found| found.as_slice() != shape)?;
            Some(format!("{name} has shape {found:?}, expected {shape:?}"))
        };
        expected.iter().filter_map(misshaped).collect()
    }

    fn check_modules(&self, path: &Path, network: &dyn Network) -> Result<(), ModelError> {
        let own = modules(network);
        let held = self.config.targets.names();
        let strange: Vec<&&str> = held.iter().filter(|module| !own.contains(**module)).collect();
        if strange.is_empty() {
            return Ok(());
        }
        let found = format!(
            "adapts {} modules that this model's transformer has not as linear modules{}",
            strange.len(),
            examples(strange.into_iter())
        );
        Err(ModelError::foreign(path, found, "take an adapter that was made for this model"))
    }

    /// Writes a PEFT folder, which `PeftModel.from_pretrained` loads; `base_model` is recorded as its origin.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write_peft(&self, folder: &Path, base_model: Option<&str>) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(|e| ModelError::io(folder, e))?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write(&folder.join(PEFT_TENSORS), &with_prefix(&self.tensors, PEFT_PREFIX), &metadata)?;
        let mut settings = self.settings();
        settings.extend([
            ("base_model_name_or_path".to_owned(), json!(base_model)),
            ("inference_mode".to_owned(), json!(true)),
            ("peft_type".to_owned(), json!("LORA")),
            ("task_type".to_owned(), Value::Null),
        ]);
        let text = format!("{:#}\n", Value::Object(settings));
        write_atomically(&folder.join(PEFT_CONFIG), |out| out.write_all(text.as_bytes()))
    }

    /// Writes the file that diffusers' `load_lora_weights` and ComfyUI load.
    ///
    /// ComfyUI does not read the settings in the file's header and applies `B·A` as it stands, and so do loaders that
    /// assume alpha to equal the rank. The scale is therefore multiplied into `B`, and alpha is written as the rank: the
    /// same adapter whether the settings are read or not. The PEFT folder keeps the factors as they are trained.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write_diffusers(&self, folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(|e| ModelError::io(folder, e))?;
        let folded = self.with_scale_in_b();
        let settings: serde_json::Map<String, Value> = folded
            .settings()
            .into_iter()
            .map(|(key, value)| (format!("{DIFFUSERS_PREFIX}{key}"), value))
            .collect();
        let metadata = HashMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (DIFFUSERS_METADATA.to_owned(), Value::Object(settings).to_string()),
        ]);
        write(&folder.join(DIFFUSERS_FILE), &with_prefix(&folded.tensors, DIFFUSERS_PREFIX), &metadata)
    }

    /// The same adapter with `alpha / rank` multiplied into its second factors, so that alpha equals the rank.
    fn with_scale_in_b(&self) -> Self {
        let scale = self.config.scale();
        let scaled = |(name, tensor): &(String, Tensor)| {
            let tensor = if name.ends_with(B_ENDING) { tensor * scale } else { tensor.shallow_clone() };
            (name.clone(), tensor)
        };
        let config = LoraConfig { alpha: self.config.rank as f64, ..self.config.clone() };
        Self::new(config, self.tensors.iter().map(scaled).collect())
    }

    fn settings(&self) -> serde_json::Map<String, Value> {
        let alpha = self.config.alpha;
        // PEFT's own files have whole numbers here.
        let alpha = if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
        let mut targets = self.config.targets.names();
        targets.sort_unstable();
        [
            ("r", json!(self.config.rank)),
            ("lora_alpha", alpha),
            ("target_modules", json!(targets)),
            ("lora_dropout", json!(0.0)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("init_lora_weights", json!("gaussian")),
            // Empty, but diffusers looks for them.
            ("rank_pattern", json!({})),
            ("alpha_pattern", json!({})),
            ("use_dora", json!(false)),
            ("use_rslora", json!(false)),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }
}

/// Paths of a network's linear modules.
fn modules(network: &dyn Network) -> BTreeSet<&str> {
    network.projections().into_iter().flat_map(|projection| projection.paths()).collect()
}

/// The first few modules in brackets; nothing where there are none.
fn examples<'a>(modules: impl Iterator<Item = &'a &'a str>) -> String {
    let shown: Vec<&str> = modules.take(MODULES_SHOWN).copied().collect();
    if shown.is_empty() { String::new() } else { format!(" (such as {})", shown.join(", ")) }
}

fn with_prefix(tensors: &[(String, Tensor)], prefix: &str) -> Vec<(String, Tensor)> {
    tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Targets;
    use crate::safetensors_file::read_all;
    use tch::{Device, Kind};

    fn adapter() -> SavedAdapter {
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let name = |factor: &str| format!("transformer_blocks.0.attn.to_q.lora_{factor}.weight");
        SavedAdapter::new(
            LoraConfig { rank: 2, alpha: 3.0, targets: vec!["attn.to_q".to_owned()].into() },
            vec![(name("A"), ones([2, 5])), (name("B"), ones([4, 2]))],
        )
    }

    fn its_module() -> Targets {
        Targets::Exactly(["transformer_blocks.0.attn.to_q".to_owned()].into())
    }

    /// What an adapter adds to the weight of its only module.
    fn product(adapter: &SavedAdapter) -> Tensor {
        adapter.tensors[1].1.matmul(&adapter.tensors[0].1) * adapter.config.scale()
    }

    #[test]
    fn a_peft_folder_gives_back_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        adapter().write_peft(folder.path(), Some("a/model")).unwrap();
        let read = SavedAdapter::read(folder.path()).unwrap();
        assert_eq!(read.config, LoraConfig { targets: its_module(), ..adapter().config });
        assert_eq!(read.tensors, adapter().tensors);
    }

    #[test]
    fn the_diffusers_file_is_the_same_adapter_with_and_without_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        adapter().write_diffusers(folder.path()).unwrap();
        let path = folder.path().join(DIFFUSERS_FILE);
        for place in [folder.path(), path.as_path()] {
            let read = SavedAdapter::read(place).unwrap();
            assert_eq!((read.config.rank, read.config.alpha), (2, 2.0));
            assert_eq!(read.config.targets, its_module());
            assert_eq!(product(&read), product(&adapter()));
        }
        let (tensors, _) = read_all(&path).unwrap();
        write(&path, &tensors, &HashMap::new()).unwrap();
        assert_eq!(product(&SavedAdapter::read(&path).unwrap()), product(&adapter()));
    }

    #[test]
    fn a_file_without_settings_has_alpha_equal_to_its_rank() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DIFFUSERS_FILE);
        write(&path, &with_prefix(&adapter().tensors, DIFFUSERS_PREFIX), &HashMap::new()).unwrap();
        let config = SavedAdapter::read(&path).unwrap().config;
        assert_eq!((config.rank, config.alpha), (2, 2.0));
        assert_eq!(config.targets, its_module());
    }

    #[test]
    fn variants_of_lora_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        adapter().write_peft(folder.path(), None).unwrap();
        let path = folder.path().join(PEFT_CONFIG);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"use_dora\": false", "\"use_dora\": true")).unwrap();
        let error = SavedAdapter::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("use_dora") && error.contains(PEFT_CONFIG), "{error}");
    }

    #[test]
    fn a_missing_tensor_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        adapter().write_peft(folder.path(), None).unwrap();
        std::fs::remove_file(folder.path().join(PEFT_TENSORS)).unwrap();
        let error = SavedAdapter::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(PEFT_TENSORS), "{error}");
    }
}
