//! What PEFT's `LoraConfig` says of an adapter, key by key: what means the same to plain LoRA, what is heeded, and what is
//! refused because the tensors alone would draw other images than PEFT does.
//!
//! Source: PEFT 0.21.2, `tuners/lora/config.py`, and what `tuners/lora/layer.py` and `tuners/lora/model.py` make of its
//! keys when an adapter is loaded.

use serde_json::{Map, Value};

/// Keys of which no value changes what an adapter adds to a network of plain linear modules.
const HARMLESS: [&str; 23] = [
    // Where it comes from.
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
    // Which modules have one: the tensors tell.
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
    // For training alone, or for how it runs.
    "lora_dropout",
    "merge_weights",
    "runtime_config",
    // Read beside a value of `init_lora_weights` only, which is looked at itself.
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    // Read beside another key only, which is refused.
    "megatron_core",
    "qalora_group_size",
    // About the token embeddings of language models.
    "ensure_weight_tying",
    // Heeded below.
    "lora_alpha",
    "peft_type",
    "r",
];
/// Ways to start that leave the weights of the network alone, in small letters.
const HARMLESS_STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];
/// How the names of ways to start begin that change the weights of the network, and which PEFT can convert.
const CONVERTIBLE_STARTS: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];
/// PEFT's default of both `r` and `lora_alpha`.
const DEFAULT_SIZE: i64 = 8;

const MERGE: &str =
    "merge it into the model with PEFT's `merge_and_unload`, and take the saved pipeline as the model";
const CONVERT: &str = "write it as plain LoRA with PEFT's `save_as_lora`, with one whole number as its rank";
const CONVERT_START: &str =
    "write it as plain LoRA with PEFT's `save_pretrained(…, path_initial_model_for_weight_conversion=…)`";

/// What of the settings the tensors do not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Settings {
    /// The one rank of all modules.
    pub(super) rank: i64,
    /// What the product is scaled by, times the rank.
    pub(super) alpha: f64,
}

/// A key and what is wrong with its value.
pub(super) type Refusal = (String, String);

impl Settings {
    /// Reads the keys of a `LoraConfig`.
    ///
    /// # Errors
    /// If a value is of the wrong type, or asks for more than plain LoRA of one rank and alpha.
    pub(super) fn read(keys: &Map<String, Value>) -> Result<Self, Refusal> {
        if let Some(why) = keys.get("peft_type").and_then(type_objection) {
            return Err(("peft_type".to_owned(), why));
        }
        let rank = number(keys, "r", Value::as_i64)?;
        let alpha = number(keys, "lora_alpha", Value::as_f64)?;
        for (key, value) in keys {
            if let Some(why) = objection(key, value, rank, alpha) {
                return Err((key.clone(), why));
            }
        }
        let rank_stabilised = keys.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        // PEFT then divides by the root of the rank: the same scale as that of another alpha.
        let alpha = if rank_stabilised { alpha * (rank as f64).sqrt() } else { alpha };
        Ok(Self { rank, alpha })
    }
}

fn number<T: From<i32>>(
    keys: &Map<String, Value>,
    key: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, Refusal> {
    match keys.get(key) {
        None => Ok(T::from(DEFAULT_SIZE as i32)),
        Some(value) => {
            read(value).ok_or_else(|| (key.to_owned(), format!("is {value}, which is not such a number")))
        }
    }
}

/// Why a key cannot have its value; `None` where plain LoRA is what PEFT makes of it.
fn objection(key: &str, value: &Value, rank: i64, alpha: f64) -> Option<String> {
    match key {
        _ if HARMLESS.contains(&key) => None,
        "init_lora_weights" => start_objection(value),
        "use_rslora" if value.is_boolean() => None,
        "bias" if value == "none" => None,
        "rank_pattern" => pattern_objection(value, |own| own.as_i64() == Some(rank)),
        "alpha_pattern" => pattern_objection(value, |own| own.as_f64() == Some(alpha)),
        _ if is_off(value) => None,
        _ => Some(format!("is {value}, which plain LoRA has no place for; {MERGE}")),
    }
}

/// Other types of adapters have other keys, so theirs is looked at first.
fn type_objection(value: &Value) -> Option<String> {
    (value != "LORA" && !is_off(value)).then(|| format!("is {value}, and only LORA is supported; {CONVERT}"))
}

/// PEFT's defaults of what an adapter may have besides.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

fn start_objection(value: &Value) -> Option<String> {
    let name = match value {
        Value::Null | Value::Bool(_) => return None,
        Value::String(name) => name.to_lowercase(),
        _ => String::new(),
    };
    if HARMLESS_STARTS.contains(&name.as_str()) {
        return None;
    }
    let is_convertible = CONVERTIBLE_STARTS.iter().any(|start| name.starts_with(start));
    let remedy = if is_convertible { CONVERT_START } else { MERGE };
    Some(format!(
        "is {value}, so the adapter belongs to weights that this start has changed, not to the model's; {remedy}"
    ))
}

/// Ranks or alphas of single modules, which may only repeat that of all.
fn pattern_objection(value: &Value, is_that_of_all: impl Fn(&Value) -> bool) -> Option<String> {
    let repeats = value.as_object().is_some_and(|own| own.values().all(is_that_of_all));
    (!is_off(value) && !repeats)
        .then(|| format!("is {value}, and only one rank and alpha for all modules are supported; {CONVERT}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `key` beside a rank of 4 and an alpha of 6.
    fn with(key: &str, value: Value) -> Result<Settings, String> {
        let mut keys = Map::new();
        keys.insert("r".to_owned(), json!(4));
        keys.insert("lora_alpha".to_owned(), json!(6));
        keys.insert(key.to_owned(), value);
        Settings::read(&keys).map_err(|(key, why)| format!("{key} {why}"))
    }

    #[test]
    fn what_leaves_plain_lora_as_it_is_is_accepted() {
        let plain = Ok(Settings { rank: 4, alpha: 6.0 });
        for (key, value) in [
            ("exclude_modules", json!(["attn.to_k"])),
            ("target_modules", json!("transformer_blocks.*attn")),
            ("layers_to_transform", json!([0, 3])),
            ("lora_dropout", json!(0.1)),
            ("init_lora_weights", json!(true)),
            ("init_lora_weights", json!("gaussian")),
            ("init_lora_weights", json!("eva")),
            ("eva_config", json!({"rho": 2.0})),
            ("corda_config", json!({"corda_method": "ipm"})),
            ("bias", json!("none")),
            ("modules_to_save", json!(null)),
            ("rank_pattern", json!({})),
            ("rank_pattern", json!({"attn.to_q": 4})),
            ("alpha_pattern", json!({"attn.to_q": 6.0})),
            ("use_dora", json!(false)),
            ("qalora_group_size", json!(16)),
            ("a_key_of_a_later_version", json!(null)),
        ] {
            assert_eq!(with(key, value.clone()), plain, "{key} = {value}");
        }
    }

    #[test]
    fn what_changes_the_meaning_of_the_tensors_is_refused_with_pefts_remedy() {
        for (key, value, remedy) in [
            ("init_lora_weights", json!("pissa"), "path_initial_model_for_weight_conversion"),
            ("init_lora_weights", json!("pissa_niter_16"), "path_initial_model_for_weight_conversion"),
            ("init_lora_weights", json!("OLoRA"), "path_initial_model_for_weight_conversion"),
            ("init_lora_weights", json!("corda"), "path_initial_model_for_weight_conversion"),
            ("init_lora_weights", json!("loftq"), "merge_and_unload"),
            ("init_lora_weights", json!("of a later version"), "merge_and_unload"),
            ("rank_pattern", json!({"attn.to_q": 8}), "save_as_lora"),
            ("alpha_pattern", json!({"attn.to_q": 8}), "save_as_lora"),
            ("peft_type", json!("LOHA"), "save_as_lora"),
            ("use_dora", json!(true), "merge_and_unload"),
            ("bias", json!("lora_only"), "merge_and_unload"),
            ("lora_bias", json!(true), "merge_and_unload"),
            ("fan_in_fan_out", json!(true), "merge_and_unload"),
            ("modules_to_save", json!(["proj_out"]), "merge_and_unload"),
            ("layer_replication", json!([[0, 2]]), "merge_and_unload"),
            ("alora_invocation_tokens", json!([1]), "merge_and_unload"),
            ("use_qalora", json!(true), "merge_and_unload"),
            ("a_key_of_a_later_version", json!(1), "merge_and_unload"),
        ] {
            let refusal = with(key, value.clone()).unwrap_err();
            assert!(refusal.starts_with(key) && refusal.contains(remedy), "{key} = {value}: {refusal}");
        }
    }

    #[test]
    fn rank_stabilised_lora_is_plain_lora_of_another_alpha() {
        assert_eq!(with("use_rslora", json!(true)), Ok(Settings { rank: 4, alpha: 12.0 }));
        assert_eq!(with("use_rslora", json!(false)), Ok(Settings { rank: 4, alpha: 6.0 }));
        assert!(with("use_rslora", json!("yes")).is_err());
    }

    #[test]
    fn rank_and_alpha_have_pefts_default() {
        assert_eq!(Settings::read(&Map::new()), Ok(Settings { rank: 8, alpha: 8.0 }));
        assert!(with("r", json!("many")).unwrap_err().contains("r is \"many\""));
    }
}
