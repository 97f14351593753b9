//! What two crates that may not know each other must agree on; the worker knows both.

use std::collections::BTreeSet;

use rewards::{Resources, RewardError};
use serde_json::{Map, Value, json};

#[test]
fn the_config_knows_exactly_the_rewards_that_exist() {
    assert_eq!(config::REWARD_NAMES, rewards::names());
}

/// Whether a scorer has an option of this name, whatever else it lacks.
fn has_option(scorer: &str, option: &str) -> bool {
    let mut options = Map::from_iter([(option.to_owned(), json!("no such value"))]);
    options.entry("url").or_insert(json!("http://127.0.0.1:1"));
    let refused = rewards::build(scorer, &Value::Object(options), &Resources::local()).err();
    let told = refused.map(|error| error.to_string()).unwrap_or_default();
    !told.contains("unknown option") && !told.contains("unknown field")
}

/// Scorers that take an address.
fn served() -> Vec<&'static str> {
    rewards::names().into_iter().filter(|scorer| has_option(scorer, "url")).collect()
}

#[test]
fn the_config_knows_what_says_how_a_server_is_reached() {
    // Options that remote scorers share, and those with which several are asked at once or by a key.
    let known: BTreeSet<&str> = config::CONNECTION_OPTIONS.into();
    let everywhere = ["url", "timeout_seconds", "patience_seconds", "max_reply_bytes"];
    assert!(served().len() >= 7, "{:?}", served());
    for scorer in served() {
        for option in everywhere {
            assert!(known.contains(option) && has_option(scorer, option), "{scorer} {option}");
        }
    }
    for option in &known {
        assert!(served().into_iter().any(|scorer| has_option(scorer, option)), "nobody has `{option}`");
    }
}

#[test]
fn every_served_scorer_without_a_server_of_custom_is_what_its_server_is() {
    for scorer in served() {
        let at =
            |url: &str| config::reward_from_settings(scorer, &[format!("url={url}")]).expect("well-formed");
        let missing = rewards::build(scorer, &Value::Null, &Resources::local()).err();
        let has_custom = !matches!(missing, Some(RewardError::OptionValue { key: "url", .. }));
        // What is asked of a judge stands in its options; another server is the same judge.
        let is_defined_here = has_custom || at("http://a:1").is_judge();
        assert_eq!(at("http://a:1").scores_as(&at("http://b:1")), is_defined_here, "{scorer}");
    }
}
