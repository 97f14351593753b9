//! Their rewards as ours: names, weights, and the options that have a counterpart.

use super::document::written;
use super::report::{Fate, ImportEntry};
use super::sections::{Translation, plain_name};
use super::unused_keys;
use crate::{AdvantageGroup, RewardCombination, RewardSection};
use serde_json::{Map, Value};

/// How a scorer gets at images, which says what options it has.
enum Kind {
    /// A network in the worker.
    Network,
    /// A server of scores.
    Server,
    /// A language model behind an API.
    Judge,
    /// Neither.
    Computed,
}

/// What of a list of theirs could be carried over.
#[derive(Default)]
struct Carried {
    rewards: Vec<RewardSection>,
    /// Which scorer each of theirs became.
    notes: Vec<String>,
    entries: Vec<ImportEntry>,
}

impl Translation {
    pub(super) fn rewards(&mut self) {
        if self.document.tables("rewards").is_empty() {
            self.document.problems.push("`rewards` is empty; nothing would be learned".to_owned());
        }
        let Carried { rewards, notes, entries } = self.reward_list("rewards", "rewards");
        self.translated("rewards", "rewards", notes.join(", "));
        self.report.entries.extend(entries);
        self.config.rewards = rewards;
        self.evaluation_rewards();
    }

    /// Where they name none, theirs evaluates by the rewards of training, as ours does.
    fn evaluation_rewards(&mut self) {
        let Carried { rewards, notes, entries } = self.reward_list("eval_rewards", "evaluation_rewards");
        if rewards.is_empty() || rewards == self.config.rewards {
            return self.not_carried("eval_rewards", "evaluation is scored as training is, as there");
        }
        self.translated("eval_rewards", "evaluation_rewards", notes.join(", "));
        self.report.entries.extend(entries);
        self.config.evaluation_rewards = rewards;
    }

    /// How rewards become one advantage; theirs has each normalised within its prompt with gdpo, whatever `global_std`.
    pub(super) fn combination(&mut self) {
        let (theirs, ours) = ("train.advantage_aggregation", "training.reward_combination");
        let is_global = self.document.flag("train.global_std", true);
        match self.document.text(theirs, "gdpo").as_str() {
            "gdpo" => {
                self.config.training.reward_combination = RewardCombination::Gdpo;
                self.config.training.advantage_group = AdvantageGroup::Prompt;
                let note = "each reward is normalised within its prompt, whatever global_std says, as there";
                self.translated(theirs, ours, note);
                return self.not_carried("train.global_std", "without effect with gdpo, as there");
            }
            "sum" => self.carried(theirs, ours),
            _ => self.not_carried(theirs, "a function of theirs; the weighted sum of raw scores is taken"),
        }
        self.config.training.reward_combination = RewardCombination::Sum;
        let (group, note) = match is_global {
            true => (AdvantageGroup::Batch, "mean of the prompt, deviation of the whole iteration"),
            false => (AdvantageGroup::Prompt, "mean and deviation of the prompt"),
        };
        self.config.training.advantage_group = group;
        self.translated("train.global_std", "training.advantage_group", note);
    }

    fn reward_list(&mut self, theirs: &str, ours: &'static str) -> Carried {
        let mut carried = Carried::default();
        for (position, table) in self.document.tables(theirs).iter().enumerate() {
            let place = format!("{theirs}[{position}]");
            let text = |key: &str| table.get(key).map(written);
            let model = text("reward_model").or_else(|| text("name")).unwrap_or_default();
            let (scorer, remark) = scorer_of(&model);
            carried.notes.push(format!("{model} is {scorer}{remark}"));
            let (options, entries) = options(&scorer, table, &place, ours);
            carried.entries.extend(entries);
            let weight = self.weight(table, &place);
            let reward = RewardSection { weight, options, ..RewardSection::new(scorer) };
            add(&mut carried.rewards, reward, &text("name").unwrap_or_default());
        }
        carried
    }

    fn weight(&mut self, table: &Map<String, Value>, place: &str) -> f64 {
        let Some(weight) = table.get("weight") else { return 1.0 };
        weight.as_f64().unwrap_or_else(|| {
            let problem = format!("`{place}.weight` is {weight}; it must be a number");
            self.document.problems.push(problem);
            1.0
        })
    }
}

/// Adds a reward to a list: its weight where one scores the same, else under a name that is still free.
fn add(rewards: &mut Vec<RewardSection>, mut reward: RewardSection, their_name: &str) {
    if let Some(same) = rewards.iter_mut().find(|other| other.is_built_as(&reward)) {
        same.weight += reward.weight;
        return;
    }
    let is_taken = |name: &str| rewards.iter().any(|other| other.name == name);
    if is_taken(&reward.name) {
        let names = std::iter::once(plain_name(their_name))
            .chain((2..).map(|number| format!("{}-{number}", reward.name)));
        let free = names.into_iter().find(|name| !name.is_empty() && !is_taken(name));
        let scorer =
            std::mem::replace(&mut reward.name, free.expect("numbers do not end; else this is a bug"));
        reward.scorer = Some(scorer);
    }
    rewards.push(reward);
}

/// The options of a scorer that an entry of theirs sets, and what became of all its keys.
fn options(
    scorer: &str,
    table: &Map<String, Value>,
    place: &str,
    ours: &'static str,
) -> (toml::Table, Vec<ImportEntry>) {
    let (mut options, mut entries) = (toml::Table::new(), Vec::new());
    for (key, value) in table {
        if ["name", "reward_model", "weight"].contains(&key.as_str()) {
            continue;
        }
        let fate = match option_of(scorer, key).zip(option_value(key, value)) {
            Some((option, value)) => {
                options.insert(option.to_owned(), value);
                Fate::Translated { ours, note: format!("option `{option}` of {scorer}") }
            }
            None => Fate::NotCarried { reason: unused_keys::reason(key).to_owned() },
        };
        entries.push(ImportEntry { theirs: format!("{place}.{key}"), value: Some(written(value)), fate });
    }
    (options, entries)
}

/// Our option that means what a key of theirs does.
fn option_of(scorer: &str, key: &str) -> Option<&'static str> {
    match (kind_of(scorer), key) {
        (Kind::Network | Kind::Server, "batch_size") => Some("batch_size"),
        (Kind::Network, "dtype") => Some("dtype"),
        (Kind::Server, "server_url") | (Kind::Judge, "api_base_url") => Some("url"),
        (Kind::Server | Kind::Judge, "timeout") => Some("timeout_seconds"),
        (Kind::Judge, "vlm_model") => Some("model"),
        (Kind::Judge, "max_concurrent") => Some("max_concurrent"),
        _ => None,
    }
}

fn kind_of(scorer: &str) -> Kind {
    match scorer {
        "pickscore" | "clipscore" | "aesthetic" | "hpsv2.1" | "hpsv3" => Kind::Network,
        "flow_grpo_server" | "geneval" | "deqa" | "flow_factory" | "grpc" => Kind::Server,
        "unifiedreward" | "vlm_judge" => Kind::Judge,
        _ => Kind::Computed,
    }
}

/// The value of a key of theirs as an option's.
fn option_value(key: &str, value: &Value) -> Option<toml::Value> {
    if key != "dtype" {
        return as_toml(value);
    }
    let ours = match value.as_str()? {
        "bf16" | "bfloat16" => "bfloat16",
        "fp32" | "float32" => "float32",
        _ => return None,
    };
    Some(toml::Value::String(ours.to_owned()))
}

/// A number or a string; whole numbers as such, since an option may take no others.
fn as_toml(value: &Value) -> Option<toml::Value> {
    match value {
        Value::String(text) => Some(toml::Value::String(text.clone())),
        Value::Number(number) => match (number.as_i64(), number.as_f64()?) {
            (Some(whole), _) => Some(toml::Value::Integer(whole)),
            (None, float) if float.fract() == 0.0 && float.abs() < 1e15 => {
                Some(toml::Value::Integer(float as i64))
            }
            (None, float) => Some(toml::Value::Float(float)),
        },
        _ => None,
    }
}

/// Our name of one of their scorers, and what is different about it.
fn scorer_of(model: &str) -> (String, &'static str) {
    let lower = model.to_lowercase();
    let class = lower.rsplit('.').next().unwrap_or_default();
    match lower.as_str() {
        "clip" | "clip_score" => ("clipscore".to_owned(), ""),
        "pickscore_rank" => {
            ("pickscore".to_owned(), " (its score, not its rank among the samples of a prompt)")
        }
        "ocr" => ("ocr".to_owned(), " (its target stands in quotes; theirs is the whole prompt)"),
        "hpsv2" | "hps_v2" | "hpsv2_1" => ("hpsv2.1".to_owned(), ""),
        "vllm_evaluate" => ("vlm_judge".to_owned(), " (look at the question that it asks)"),
        _ if class == "remotepointwiserewardmodel" => ("flow_factory".to_owned(), ""),
        other => (plain_name(&other.replace('-', "_")), ""),
    }
}
