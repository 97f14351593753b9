//! What `config.json` says of the language model: under `text_config`, or at the top in older files.

use std::path::Path;

use serde::Deserialize;

use crate::sizes::{check_layers, check_sizes};
use crate::{ModelError, json_file};

/// The shape of a Qwen2 language model, by the key names of `transformers`.
#[derive(Clone, Debug, Deserialize)]
pub struct Qwen2Config {
    /// Number of tokens.
    pub vocab_size: i64,
    /// C.
    pub hidden_size: i64,
    /// Width of the feed-forward's middle.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// N.
    pub num_attention_heads: i64,
    /// Heads of keys and values; divides N.
    pub num_key_value_heads: i64,
    /// The nonlinearity; only SiLU is known.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// ε of the norms.
    #[serde(default = "default_epsilon")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies, where `rope_scaling` has none.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// How positions on several axes share the frequencies; absent where there is one axis. `transformers` 5 has another
    /// name for it and writes the base there too.
    #[serde(default, alias = "rope_parameters")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether tokens see only some of those before them, which is not implemented.
    #[serde(default)]
    pub use_sliding_window: bool,
}

/// `rope_scaling`.
#[derive(Clone, Debug, Deserialize)]
pub struct RopeScaling {
    /// `mrope`, or `default` where the sections say it all; older files call the key `type`.
    #[serde(rename = "rope_type")]
    pub rope_type: Option<String>,
    /// The same under its old name.
    #[serde(rename = "type")]
    pub old_type: Option<String>,
    /// Base of the rotary frequencies, in newer files.
    pub rope_theta: Option<f64>,
    /// How many of the D/2 frequencies belong to each axis.
    pub mrope_section: Option<Vec<i64>>,
}

fn default_activation() -> String {
    "silu".to_owned()
}
fn default_epsilon() -> f64 {
    1e-5
}
fn default_theta() -> f64 {
    1e6
}

#[derive(Deserialize)]
struct Nested {
    text_config: Qwen2Config,
}

impl Qwen2Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// If the file is missing or malformed, or asks for what is not implemented.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let file: serde_json::Value = json_file::read(path)?;
        let config = match file.get("text_config").is_some_and(|nested| nested.get("hidden_size").is_some()) {
            true => json_file::read::<Nested>(path)?.text_config,
            false => json_file::read(path)?,
        };
        config.check().map_err(|(key, reason)| ModelError::config(path, key, reason))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        ];
        check_sizes(&sizes)?;
        check_layers(&[("num_hidden_layers", self.num_hidden_layers)])?;
        let (width, heads, shared) = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads);
        if width % heads != 0 || self.head_width() % 2 != 0 {
            return Err((
                "num_attention_heads",
                format!("{heads} does not split {width} features into even heads"),
            ));
        }
        if heads % shared != 0 {
            return Err(("num_key_value_heads", format!("{shared} does not divide {heads} query heads")));
        }
        if self.hidden_act != "silu" {
            return Err(("hidden_act", format!("\"{}\" is not supported; use silu", self.hidden_act)));
        }
        if self.use_sliding_window {
            return Err(("use_sliding_window", "true is not supported; use false".to_owned()));
        }
        self.check_rope()
    }

    fn check_rope(&self) -> Result<(), (&'static str, String)> {
        let Some(scaling) = &self.rope_scaling else { return Ok(()) };
        let kinds = [&scaling.rope_type, &scaling.old_type];
        if let Some(kind) =
            kinds.into_iter().flatten().find(|kind| !["default", "mrope"].contains(&kind.as_str()))
        {
            return Err((
                "rope_scaling.rope_type",
                format!("\"{kind}\" is not supported; use default or mrope"),
            ));
        }
        let (sections, half) = (self.sections(), self.head_width() / 2);
        // Larger ones would add up to a number that there is not.
        let are_parts = sections.iter().all(|section| (0..=half).contains(section));
        match are_parts && sections.iter().sum::<i64>() == half {
            true => Ok(()),
            false => {
                let reason = format!("{sections:?} does not share out the {half} frequencies of a head");
                Err(("rope_scaling.mrope_section", reason))
            }
        }
    }

    /// D.
    pub fn head_width(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }

    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        self.rope_scaling.as_ref().and_then(|scaling| scaling.rope_theta).unwrap_or(self.rope_theta)
    }

    /// A: on how many axes a token has a position.
    pub fn axes(&self) -> i64 {
        self.sections().len() as i64
    }

    fn sections(&self) -> Vec<i64> {
        let sections = self.rope_scaling.as_ref().and_then(|scaling| scaling.mrope_section.clone());
        sections.unwrap_or_else(|| vec![self.head_width() / 2])
    }

    /// The axis of each of a head's frequencies.
    pub(super) fn axis_of_frequency(&self) -> Vec<i64> {
        let sections = self.sections();
        let runs = sections.iter().enumerate();
        runs.flat_map(|(axis, section)| std::iter::repeat_n(axis as i64, *section as usize)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT: &str = r#""vocab_size": 9, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1"#;

    fn read(json: &str) -> Result<Qwen2Config, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Qwen2Config::read(&path)
    }

    #[test]
    fn a_nested_configuration_counts_before_a_flat_one() {
        let flat = read(&format!("{{{FLAT}}}")).unwrap();
        assert_eq!((flat.hidden_size, flat.axes(), flat.axis_of_frequency()), (16, 1, vec![0; 4]));
        let nested = FLAT.replace("16", "32");
        let both = read(&format!("{{{FLAT}, \"text_config\": {{{nested}}}}}")).unwrap();
        assert_eq!(both.hidden_size, 32);
    }

    #[test]
    fn frequencies_are_shared_out_among_the_axes() {
        let mrope = r#""rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}"#;
        let config = read(&format!("{{{FLAT}, {mrope}}}")).unwrap();
        assert_eq!((config.axes(), config.axis_of_frequency()), (3, vec![0, 0, 1, 2]));
    }

    #[test]
    fn the_base_of_the_frequencies_is_read_where_newer_files_keep_it() {
        let newer =
            r#""rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 500.0}"#;
        let config = read(&format!("{{{FLAT}, {newer}}}")).unwrap();
        assert_eq!((config.axes(), config.rope_theta()), (3, 500.0));
        assert_eq!(read(&format!("{{{FLAT}, \"rope_theta\": 7.0}}")).unwrap().rope_theta(), 7.0);
    }

    #[test]
    fn values_that_do_not_work_are_named() {
        for (json, word) in [
            (FLAT.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 3"), "num_attention_heads"),
            (FLAT.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 0"), "num_hidden_layers"),
            (FLAT.replace("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 4"), "num_key_value_heads"),
            (format!("{FLAT}, \"hidden_act\": \"gelu\""), "hidden_act"),
            (format!("{FLAT}, \"use_sliding_window\": true"), "use_sliding_window"),
            (format!("{FLAT}, \"rope_scaling\": {{\"type\": \"yarn\"}}"), "yarn"),
            (format!("{FLAT}, \"rope_scaling\": {{\"mrope_section\": [1, 1, 1]}}"), "mrope_section"),
            (
                format!("{FLAT}, \"rope_scaling\": {{\"mrope_section\": [{0}, {0}, 6]}}", i64::MAX),
                "mrope_section",
            ),
        ] {
            let error = read(&format!("{{{json}}}")).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("config.json"), "{error}");
        }
    }
}
