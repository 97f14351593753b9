//! Adapters on disk: PEFT's folder, and the single file that diffusers and ComfyUI load.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::json_file;
use crate::lora::LoraConfig;
use crate::safetensors_file::{read_all, write, write_atomically};
use crate::saved_weights::adapter_within;

/// Name of the settings in a PEFT folder.
pub const PEFT_CONFIG: &str = "adapter_config.json";
/// Name of the tensors in a PEFT folder.
pub const PEFT_TENSORS: &str = "adapter_model.safetensors";
/// Name that diffusers gives and expects.
pub const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";

const PEFT_PREFIX: &str = "base_model.model.";
const DIFFUSERS_PREFIX: &str = "transformer.";
/// Key under which diffusers keeps an adapter's settings in the header of its file.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";

/// An adapter with its settings; names are paths in the transformer, such as
/// `transformer_blocks.0.attn.to_q.lora_A.weight`.
#[derive(Debug)]
pub struct SavedAdapter {
    /// Rank, alpha and targets.
    pub config: LoraConfig,
    /// The factors.
    pub tensors: Vec<(String, Tensor)>,
}

impl SavedAdapter {
    /// Reads a PEFT folder, or a folder or file as diffusers writes it, or a folder that holds one of these as an export
    /// does.
    ///
    /// # Errors
    /// If nothing of the kind is there, a file is damaged, or its settings are not supported.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let path = &adapter_within(path);
        if path.is_file() {
            return Self::read_diffusers(path);
        }
        if path.join(DIFFUSERS_FILE).is_file() && !path.join(PEFT_CONFIG).is_file() {
            return Self::read_diffusers(&path.join(DIFFUSERS_FILE));
        }
        Self::read_peft(path)
    }

    fn read_peft(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join(PEFT_CONFIG);
        let settings: Settings = json_file::read(&config_path)?;
        let path = folder.join(PEFT_TENSORS);
        if !path.is_file() {
            let remedy =
                format!("{} is of no use without it; export the adapter again", config_path.display());
            return Err(ModelError::MissingFile { path, remedy });
        }
        let (tensors, _) = read_all(&path)?;
        let tensors = without_prefix(&path, tensors, PEFT_PREFIX)?;
        let config = settings
            .into_config(&tensors)
            .map_err(|(key, why)| ModelError::config(&config_path, key, why))?;
        Ok(Self { config, tensors })
    }

    fn read_diffusers(path: &Path) -> Result<Self, ModelError> {
        let (tensors, metadata) = read_all(path)?;
        let tensors = without_prefix(path, tensors, DIFFUSERS_PREFIX)?;
        let settings = match metadata.get(DIFFUSERS_METADATA) {
            Some(text) => diffusers_settings(path, text)?,
            None => Settings::from_shapes(path, &tensors)?,
        };
        let config =
            settings.into_config(&tensors).map_err(|(key, why)| ModelError::config(path, key, why))?;
        Ok(Self { config, tensors })
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
        Self { config, tensors: self.tensors.iter().map(scaled).collect() }
    }

    fn settings(&self) -> serde_json::Map<String, Value> {
        let alpha = self.config.alpha;
        // PEFT's own files have whole numbers here.
        let alpha = if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
        let mut targets = self.config.targets.clone();
        targets.sort();
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

/// The settings of PEFT's `LoraConfig` that change what an adapter means.
#[derive(Deserialize)]
struct Settings {
    r: i64,
    lora_alpha: f64,
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: Option<serde_json::Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<serde_json::Map<String, Value>>,
}

impl Settings {
    /// What diffusers assumes of a file without settings: alpha equals rank.
    fn from_shapes(path: &Path, tensors: &[(String, Tensor)]) -> Result<Self, ModelError> {
        let (_, first) = tensors
            .iter()
            .find(|(name, tensor)| name.ends_with(A_ENDING) && tensor.dim() == 2)
            .ok_or_else(|| ModelError::damaged(path, format!("no tensor of it ends with {A_ENDING}")))?;
        let rank = first.size()[0];
        Ok(Self {
            r: rank,
            lora_alpha: rank as f64,
            target_modules: Value::Null,
            use_dora: false,
            use_rslora: false,
            fan_in_fan_out: false,
            bias: None,
            rank_pattern: None,
            alpha_pattern: None,
        })
    }

    fn into_config(self, tensors: &[(String, Tensor)]) -> Result<LoraConfig, (&'static str, String)> {
        let empty = |map: &Option<serde_json::Map<_, _>>| map.as_ref().is_none_or(serde_json::Map::is_empty);
        let unsupported = [
            ("use_dora", self.use_dora),
            ("use_rslora", self.use_rslora),
            ("fan_in_fan_out", self.fan_in_fan_out),
            ("bias", self.bias.is_some_and(|bias| bias != "none")),
            ("rank_pattern", !empty(&self.rank_pattern)),
            ("alpha_pattern", !empty(&self.alpha_pattern)),
        ];
        if let Some((key, _)) = unsupported.into_iter().find(|(_, used)| *used) {
            return Err((key, "only plain LoRA of one rank and alpha is supported".to_owned()));
        }
        // A pattern (a string in PEFT) has been applied already: the tensors tell which modules it matched.
        let targets = match serde_json::from_value::<Vec<String>>(self.target_modules) {
            Ok(targets) => targets,
            Err(_) => tensors
                .iter()
                .filter_map(|(name, _)| name.strip_suffix(A_ENDING))
                .map(str::to_owned)
                .collect(),
        };
        Ok(LoraConfig { rank: self.r, alpha: self.lora_alpha, targets })
    }
}

const A_ENDING: &str = ".lora_A.weight";
const B_ENDING: &str = ".lora_B.weight";

fn diffusers_settings(path: &Path, text: &str) -> Result<Settings, ModelError> {
    let malformed = |e: serde_json::Error| ModelError::damaged(path, format!("{DIFFUSERS_METADATA}: {e}"));
    let all: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(malformed)?;
    let own = all
        .into_iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(DIFFUSERS_PREFIX)?.to_owned(), value)));
    serde_json::from_value(Value::Object(own.collect())).map_err(malformed)
}

fn with_prefix(tensors: &[(String, Tensor)], prefix: &str) -> Vec<(String, Tensor)> {
    tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect()
}

fn without_prefix(
    path: &Path,
    tensors: Vec<(String, Tensor)>,
    prefix: &str,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    tensors
        .into_iter()
        .map(|(name, tensor)| match name.strip_prefix(prefix) {
            Some(rest) => Ok((rest.to_owned(), tensor.to_kind(Kind::Float))),
            None => Err(ModelError::damaged(path, format!("tensor {name} does not start with {prefix}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn adapter() -> SavedAdapter {
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let name = |factor: &str| format!("transformer_blocks.0.attn.to_q.lora_{factor}.weight");
        SavedAdapter {
            config: LoraConfig { rank: 2, alpha: 3.0, targets: vec!["attn.to_q".into()] },
            tensors: vec![(name("A"), ones([2, 5])), (name("B"), ones([4, 2]))],
        }
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
        assert_eq!((read.config, read.tensors), (adapter().config, adapter().tensors));
    }

    #[test]
    fn the_diffusers_file_is_the_same_adapter_with_and_without_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        adapter().write_diffusers(folder.path()).unwrap();
        let path = folder.path().join(DIFFUSERS_FILE);
        for place in [folder.path(), path.as_path()] {
            let read = SavedAdapter::read(place).unwrap();
            assert_eq!((read.config.rank, read.config.alpha), (2, 2.0));
            assert_eq!(read.config.targets, adapter().config.targets);
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
        assert_eq!(config.targets, ["transformer_blocks.0.attn.to_q"]);
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
