//! From text to a checked `RunConfig`: defaults below, then the file, then `--set section.key=value`.
//!
//! Every problem is collected before anything is reported, so that a user mends a config in one go. The trick that
//! makes single keys accountable: each given value is tried alone in an otherwise valid section.

use crate::defaults::{REWARD_LISTS, defaults};
use crate::derived_defaults::{DerivedDefault, derived_defaults};
use crate::hosts::{HOST_LIST, HostSection};
use crate::kinds;
use crate::spelling::meant;
use crate::validate::{unavailable_rewards, validate};
use crate::{RewardSection, RunConfig};
use serde::de::DeserializeOwned;
use std::fmt;
use toml::{Table, Value};

/// One thing wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Dotted key, `sampling.steps`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl ConfigProblem {
    /// A problem of one key.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

/// Everything that is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigProblem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            match problem.key.as_str() {
                "" => write!(f, "{separator}{}", problem.message)?,
                key => write!(f, "{separator}`{key}`: {}", problem.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl RunConfig {
    /// Reads a config and checks it.
    ///
    /// # Errors
    /// All problems at once: syntax, unknown keys (with the nearest known one), types, ranges, contradictions.
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        Self::from_toml_with(text, &[])
    }

    /// Reads a config, puts `section.key=value` settings on top, and checks the outcome.
    ///
    /// # Errors
    /// As [`RunConfig::from_toml`].
    pub fn from_toml_with(text: &str, settings: &[String]) -> Result<Self, ConfigErrors> {
        let (config, problems) = Self::examine(text, settings);
        config.filter(|_| problems.is_empty()).ok_or(ConfigErrors(problems))
    }

    /// Reads a config as far as it goes, and all that is wrong with it. Values that do not fit are at their defaults; there
    /// is no config only where the text is no TOML.
    pub fn examine(text: &str, settings: &[String]) -> (Option<Self>, Vec<ConfigProblem>) {
        let (config, mut problems) = read(text, settings);
        problems.extend(config.iter().flat_map(validate));
        (config, problems)
    }

    /// Reads a config to see what it would cost: rewards that this build lacks are no error, but returned as problems.
    ///
    /// # Errors
    /// As [`RunConfig::from_toml`] otherwise.
    pub fn from_toml_to_plan(
        text: &str,
        settings: &[String],
    ) -> Result<(Self, Vec<ConfigProblem>), ConfigErrors> {
        let (config, mut problems) = read(text, settings);
        let unavailable = config.as_ref().map(unavailable_rewards).unwrap_or_default();
        problems.extend(config.iter().flat_map(validate).filter(|problem| !unavailable.contains(problem)));
        let config = config.filter(|_| problems.is_empty()).ok_or(ConfigErrors(problems))?;
        Ok((config, unavailable))
    }

    /// The whole config as TOML, nothing left to defaults.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every field has a TOML form; anything else is a bug")
    }
}

/// Reads a config and what is wrong with its syntax, keys and types; ranges and contradictions are not looked at.
pub(crate) fn read(text: &str, settings: &[String]) -> (Option<RunConfig>, Vec<ConfigProblem>) {
    let mut given = match parse_table(text) {
        Ok(given) => given,
        Err(problem) => return (None, vec![problem]),
    };
    let mut problems = Vec::new();
    for setting in settings {
        if let Err(problem) = apply_setting(&mut given, setting) {
            problems.push(problem);
        }
    }
    let rewards = REWARD_LISTS.map(|key| take_rewards(&mut given, key, &mut problems));
    let hosts = take_hosts(&mut given, &mut problems);
    let merged = merge_over_defaults(given, &mut problems);
    match build(merged, rewards, hosts) {
        Ok(config) => (Some(config), problems),
        Err(problem) => {
            if problems.is_empty() {
                problems.push(problem);
            }
            (None, problems)
        }
    }
}

fn parse_table(text: &str) -> Result<Table, ConfigProblem> {
    text.parse::<Table>().map_err(|error| {
        let told = error.to_string();
        // The one kind of value that the parser reads and a table cannot hold.
        let is_too_large =
            ["invalid type: integer", "u64 value"].iter().any(|start| error.message().starts_with(start));
        let told = match is_too_large {
            true => told.replace(error.message(), kinds::ABOVE_WHOLE),
            false => told,
        };
        ConfigProblem::new("", format!("not valid TOML: {told}"))
    })
}

/// Puts `section.key=value` into the table.
fn apply_setting(given: &mut Table, setting: &str) -> Result<(), ConfigProblem> {
    let malformed = || {
        ConfigProblem::new(
            "",
            format!(
                "malformed setting `{setting}`; write `--set section.key=value`, as in `--set run.seed=7`"
            ),
        )
    };
    let (path, text) = setting.split_once('=').ok_or_else(malformed)?;
    let (section, key) = path.trim().split_once('.').ok_or_else(malformed)?;
    let value = setting_value(section, key, text);
    if let Some((_, each)) = lists().find(|(list, _)| *list == section) {
        let message = format!("{each}s cannot be set one by one; write them into the file");
        return Err(ConfigProblem::new(path, message));
    }
    let entry = given.entry(section).or_insert_with(|| Value::Table(Table::new()));
    match entry {
        Value::Table(table) => match key.split_once('.') {
            // Of a table within the section.
            Some((inner, key)) => {
                let entry = table.entry(inner).or_insert_with(|| Value::Table(Table::new()));
                let problem =
                    || ConfigProblem::new(format!("{section}.{inner}"), "is not a section of its own");
                entry.as_table_mut().ok_or_else(problem)?.insert(key.to_owned(), value);
                Ok(())
            }
            None => {
                table.insert(key.to_owned(), value);
                Ok(())
            }
        },
        _ => Err(ConfigProblem::new(section, format!("is not a section; write `[{section}]`"))),
    }
}

/// The value of a setting: whatever is typed where the key holds a text, so that a run may be called 2024 and steps may be
/// `2`; else as TOML has it.
fn setting_value(section: &str, key: &str, text: &str) -> Value {
    let of_section = defaults().remove(section);
    let default = key.split('.').try_fold(of_section, |table, key| Some(table?.get(key).cloned())).flatten();
    match (default, value_of(text)) {
        (_, value @ Value::String(_)) => value,
        (Some(Value::String(_)), _) => Value::String(text.trim().to_owned()),
        (_, value) => value,
    }
}

/// A value as a person types it: TOML, or else a string.
fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    let value = parsed.and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// A reward from its scorer's name and options as `key=value`.
///
/// # Errors
/// If a setting has no `=`, or no key before it.
pub fn reward_from_settings(scorer: &str, settings: &[String]) -> Result<RewardSection, ConfigErrors> {
    let mut reward = RewardSection::new(scorer);
    for setting in settings {
        let pair = setting.split_once('=').filter(|(key, _)| !key.trim().is_empty());
        let (key, text) = pair.ok_or_else(|| {
            let message = format!("malformed option `{setting}`; write `key=value`, as in `batch_size=8`");
            ConfigErrors(vec![ConfigProblem::new("", message)])
        })?;
        reward.options.insert(key.trim().to_owned(), value_of(text));
    }
    Ok(reward)
}

/// The lists of a config, and what each entry of them is.
fn lists() -> impl Iterator<Item = (&'static str, &'static str)> {
    REWARD_LISTS.into_iter().map(|list| (list, "reward")).chain([(HOST_LIST, "host")])
}

/// Takes the list of rewards called `key`; options of scorers pass as they are, since only scorers know them.
fn take_rewards(given: &mut Table, key: &str, problems: &mut Vec<ConfigProblem>) -> Vec<RewardSection> {
    let mut rewards = Vec::new();
    for (place, mut table) in take_tables(given, (key, "reward"), problems) {
        integer_to_float(&mut table, "weight");
        let name = table.get("name").and_then(Value::as_str).map(str::to_owned);
        match section::<RewardSection>(table) {
            Ok(reward) => rewards.push(reward),
            Err(message) => {
                problems.push(ConfigProblem::new(place, message));
                // What is said of those after it must name their places.
                rewards.extend(name.map(RewardSection::new));
            }
        }
    }
    rewards
}

/// Takes the list of hosts; one that cannot be read leaves none, so that nothing wrong is said of the places of others.
fn take_hosts(given: &mut Table, problems: &mut Vec<ConfigProblem>) -> Vec<HostSection> {
    let n_before = problems.len();
    let mut hosts = Vec::new();
    for (place, table) in take_tables(given, (HOST_LIST, "host"), problems) {
        match section::<HostSection>(table) {
            Ok(host) => hosts.push(host),
            Err(message) => problems.push(ConfigProblem::new(place, message)),
        }
    }
    if problems.len() == n_before { hosts } else { Vec::new() }
}

/// Takes a list of tables, each an entry that is called `each`, with their places.
fn take_tables(
    given: &mut Table,
    (key, each): (&str, &str),
    problems: &mut Vec<ConfigProblem>,
) -> Vec<(String, Table)> {
    let entries = match given.remove(key) {
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            let message = format!("is not a list; write `[[{key}]]` before each {each}");
            problems.push(ConfigProblem::new(key, message));
            return Vec::new();
        }
        None => return Vec::new(),
    };
    let mut tables = Vec::new();
    for (position, entry) in entries.into_iter().enumerate() {
        let place = format!("{key}[{position}]");
        match entry {
            Value::Table(table) => tables.push((place, table)),
            _ => {
                let message = format!("is not a table; write `[[{key}]]` before each {each}");
                problems.push(ConfigProblem::new(place, message));
            }
        }
    }
    tables
}

/// Lays the given sections over the defaults; whatever does not fit is reported and left at its default.
fn merge_over_defaults(given: Table, problems: &mut Vec<ConfigProblem>) -> Table {
    let mut merged = defaults();
    for (section_name, value) in given.clone() {
        let Some(Value::Table(default_section)) = merged.get(&section_name).cloned() else {
            let known = merged.keys().map(String::as_str).chain(lists().map(|(list, _)| list));
            problems.push(unknown_key("", &section_name, known));
            continue;
        };
        let Value::Table(given_section) = value else {
            problems.push(ConfigProblem::new(
                &section_name,
                format!("is not a section; write `[{section_name}]`"),
            ));
            continue;
        };
        let mut section_table = default_section.clone();
        for (key, value) in given_section {
            match merge_key(&section_name, &default_section, &key, value) {
                Ok(value) => {
                    section_table.insert(key, value);
                }
                Err(problem) => problems.push(problem),
            }
        }
        merged.insert(section_name, Value::Table(section_table));
    }
    let is_given =
        |section: &str, key: &str| given.get(section).is_some_and(|table| table.get(key).is_some());
    for DerivedDefault { section, key, value } in derived_defaults(&merged) {
        if !is_given(section, key) {
            merged[section][key] = value;
        }
    }
    merged
}

/// Checks one value by trying it in the section with everything else at its default.
fn merge_key(section_name: &str, defaults: &Table, key: &str, value: Value) -> Result<Value, ConfigProblem> {
    if !defaults.contains_key(key) {
        return Err(unknown_key(section_name, key, defaults.keys().map(String::as_str)));
    }
    let mut trial = defaults.clone();
    let is_float = matches!(defaults[key], Value::Float(_));
    let value = match (value, &defaults[key]) {
        // What is given of a table within a section.
        (Value::Table(given), Value::Table(defaults)) => {
            Value::Table(defaults.clone().into_iter().chain(given).collect())
        }
        (value, _) => value,
    };
    trial.insert(key.to_owned(), value);
    if is_float {
        integer_to_float(&mut trial, key);
    }
    let outcome = try_section(section_name, trial.clone());
    outcome.map_err(|message| {
        let message = kinds::mismatch(&defaults[key], &trial[key]).unwrap_or(message);
        ConfigProblem::new(format!("{section_name}.{key}"), message)
    })?;
    Ok(trial.remove(key).expect("inserted above"))
}

fn integer_to_float(table: &mut Table, key: &str) {
    if let Some(Value::Integer(whole)) = table.get(key) {
        let float = *whole as f64;
        table.insert(key.to_owned(), Value::Float(float));
    }
}

/// Whether a table is a valid section of that name.
fn try_section(name: &str, table: Table) -> Result<(), String> {
    match name {
        "run" => section::<crate::RunSection>(table).map(drop),
        "model" => section::<crate::ModelSection>(table).map(drop),
        "adapter" => section::<crate::AdapterSection>(table).map(drop),
        "data" => section::<crate::DataSection>(table).map(drop),
        "sampling" => section::<crate::SamplingSection>(table).map(drop),
        "training" => section::<crate::TrainingSection>(table).map(drop),
        "ema" => section::<crate::EmaSection>(table).map(drop),
        "evaluation" => section::<crate::EvaluationSection>(table).map(drop),
        "checkpoints" => section::<crate::CheckpointSection>(table).map(drop),
        "resources" => section::<crate::ResourceSection>(table).map(drop),
        "network" => section::<crate::NetworkSection>(table).map(drop),
        other => unreachable!("the defaults have no section `{other}`; this is a bug"),
    }
}

fn section<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    table.try_into::<T>().map_err(|error: toml::de::Error| error.message().trim().to_owned())
}

fn build(
    mut merged: Table,
    [rewards, evaluation_rewards]: [Vec<RewardSection>; 2],
    hosts: Vec<HostSection>,
) -> Result<RunConfig, ConfigProblem> {
    for key in REWARD_LISTS {
        merged.insert(key.to_owned(), Value::Array(Vec::new()));
    }
    let config: RunConfig = merged
        .try_into()
        .map_err(|error: toml::de::Error| ConfigProblem::new("", error.message().to_owned()))?;
    Ok(RunConfig { rewards, evaluation_rewards, hosts, ..config })
}

/// Names the known key that is spelt most like the given one.
fn unknown_key<'a>(place: &str, key: &str, known: impl Iterator<Item = &'a str>) -> ConfigProblem {
    let dotted = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
    let mut known: Vec<&str> = known.collect();
    let message = match meant(key, known.iter().copied()) {
        Some(nearest) => format!("unknown key; did you mean `{}`?", dotted(nearest)),
        None => {
            known.sort_unstable();
            format!("unknown key; known here: {}", known.join(", "))
        }
    };
    ConfigProblem::new(dotted(key), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    fn problems(text: &str, settings: &[&str]) -> Vec<ConfigProblem> {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        RunConfig::from_toml_with(text, &settings).expect_err("a faulty config").0
    }

    fn tiny() -> String {
        preset("tempflow-tiny-cpu").expect("a preset").text
    }

    #[test]
    fn a_config_survives_writing_and_reading() {
        let config = RunConfig::from_toml(&tiny()).expect("valid");
        assert_eq!(RunConfig::from_toml(&config.to_toml()).expect("valid"), config);
    }

    #[test]
    fn settings_override_the_file() {
        let settings =
            ["run.seed=7".to_owned(), "run.name=other".to_owned(), "training.kl_beta=1".to_owned()];
        let config = RunConfig::from_toml_with(&tiny(), &settings).expect("valid");
        assert_eq!((config.run.seed, config.run.name.as_str(), config.training.kl_beta), (7, "other", 1.0));
    }

    #[test]
    fn a_setting_is_taken_as_a_text_where_the_key_holds_one() {
        let settings = [
            "run.name=2024",
            "sampling.branch_steps=2",
            "training.step_weight=none",
            "data.train=1e3",
            "model.variant= true ",
            "data.test=\"7\"",
        ];
        let settings = settings.map(str::to_owned);
        let config = RunConfig::from_toml_with(&tiny(), &settings).expect("valid");
        assert_eq!((config.run.name.as_str(), config.model.variant.as_str()), ("2024", "true"));
        assert_eq!(config.sampling.branch_steps, crate::BranchSteps::List(vec![2]));
        assert_eq!(config.data.train, std::path::Path::new("1e3"));
        assert_eq!(config.data.test, std::path::Path::new("7"));
    }

    #[test]
    fn a_value_of_another_kind_is_told_with_the_kind_that_is_wanted() {
        let settings = [
            ("run.seed=1.5", "is 1.5, a number with a fraction, where a whole number is wanted"),
            ("run.lag=-1", "is -1, where a whole number of 0 or more is wanted"),
            ("ema.interval=true", "is true, a yes or no, where a whole number is wanted"),
            ("checkpoints.every=5000000000", "is 5000000000, above 2^32 − 1"),
            ("run.iterations=many", "is \"many\", a text, where a whole number is wanted"),
            ("sampling.guidance_scale=high", "is \"high\", a text, where a number is wanted"),
            ("model.random_weights=1", "is 1, a whole number, where true or false is wanted"),
            ("adapter.targets=attn.to_q", "is \"attn.to_q\", a text, where a list in brackets is wanted"),
        ];
        let found = problems(&tiny(), &settings.map(|(setting, _)| setting));
        for (setting, expected) in settings {
            let key = setting.split('=').next().expect("a key");
            let told = found.iter().any(|problem| problem.key == key && problem.message.contains(expected));
            assert!(told, "{expected} is not in {found:?}");
        }
        let found = problems(&tiny(), &["run.seed=9223372036854775808"]);
        assert!(
            found[0].message.starts_with("is 9223372036854775808, above 2^63 − 1, the largest"),
            "{found:?}"
        );
        let found = problems("[run]\nseed = 9223372036854775808\n", &[]);
        assert!(
            found[0].message.contains("line 2") && found[0].message.contains("above 2^63 − 1"),
            "{found:?}"
        );
        let found = problems("[run]\nname = 2024\n", &[]);
        let expected = "is 2024, a whole number, where a text in quotes is wanted";
        assert!(found.iter().any(|problem| problem.message == expected), "{found:?}");
    }

    #[test]
    fn all_problems_come_at_once_with_key_and_remedy() {
        let found = problems(
            &tiny(),
            &[
                "sampling.stepz=4",
                "sampling.guidence_scale=1.0",
                "samplin.steps=4",
                "training.learning_rate=fast",
                "training.step_weight=heavy",
                "sampling.branch_steps=0..",
                "run.seed=-1",
                "training.clip_range=-0.5",
                "nonsense",
            ],
        );
        let of = |key: &str| {
            found.iter().find(|problem| problem.key == key).map(|problem| problem.message.as_str())
        };
        assert!(
            of("sampling.stepz").is_some_and(|message| message.contains("`sampling.steps`")),
            "{found:?}"
        );
        assert!(
            of("sampling.guidence_scale")
                .is_some_and(|message| message.contains("`sampling.guidance_scale`"))
        );
        assert!(of("samplin").is_some_and(|message| message.contains("`sampling`")));
        assert!(of("training.step_weight").is_some_and(|message| message.contains("constant:2.25")));
        for key in ["training.learning_rate", "sampling.branch_steps", "run.seed", "training.clip_range", ""]
        {
            assert!(of(key).is_some(), "{key} is not among {found:?}");
        }
        assert_eq!(found.len(), 9, "{found:?}");
    }

    #[test]
    fn misspelt_rewards_are_named() {
        let text = format!("{}\n[[rewards]]\nnmae = \"shapes\"\n", tiny());
        let found = problems(&text, &[]);
        let of_reward = found.iter().find(|problem| problem.key == "rewards[1]").expect("named");
        assert!(of_reward.message.contains("missing field `name`"), "{found:?}");
    }

    #[test]
    fn a_reward_from_the_command_line_has_options_of_their_kinds() {
        let settings = ["quality=80", "url=http://here:1/a?b=c", "names=[\"a\"]"].map(str::to_owned);
        let reward = reward_from_settings("jpeg_compressibility", &settings).expect("well-formed");
        let expected = serde_json::json!({"quality": 80, "url": "http://here:1/a?b=c", "names": ["a"]});
        assert_eq!(reward.options_as_json(), expected);
        for malformed in ["quality", "=80"] {
            let problem = reward_from_settings("x", &[malformed.to_owned()]).expect_err("malformed");
            assert!(problem.to_string().contains("write `key=value`"), "{problem}");
        }
    }

    #[test]
    fn options_of_scorers_pass_and_come_back() {
        let text = format!(
            "{}\n[[evaluation_rewards]]\nname = \"tidy\"\nscorer = \"jpeg_compressibility\"\nquality = 80\n",
            tiny()
        );
        let (config, found) = read(&text, &[]);
        let config = config.filter(|_| found.is_empty()).expect("valid");
        let [held_out] = config.evaluation_rewards.as_slice() else { panic!("{config:?}") };
        assert_eq!((held_out.scorer(), held_out.weight), ("jpeg_compressibility", 1.0));
        assert_eq!(held_out.options_as_json(), serde_json::json!({"quality": 80}));
        let again = RunConfig::from_toml(&config.to_toml()).expect("valid");
        assert_eq!(again, config);
    }

    #[test]
    fn a_plan_needs_no_reward_but_all_else() {
        let text = preset("dgx-geneval-sd3-pr").expect("a preset").text;
        let text = text.replace("name = \"geneval\"", "name = \"nobody\"");
        let (_, problems) = RunConfig::from_toml_to_plan(&text, &[]).expect("can be planned");
        assert_eq!(
            problems.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>(),
            ["rewards[0].name"]
        );
        let settings = ["sampling.steps=1".to_owned()];
        let ConfigErrors(problems) = RunConfig::from_toml_to_plan(&text, &settings).expect_err("too few");
        assert_eq!(
            problems.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>(),
            ["sampling.steps"]
        );
    }

    #[test]
    fn broken_syntax_names_the_line() {
        let found = problems("[run]\nname = \n", &[]);
        assert!(found[0].message.contains("line 2"), "{found:?}");
    }
}
