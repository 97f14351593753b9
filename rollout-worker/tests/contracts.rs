//! What two crates that may not know each other must agree on; the worker knows both.

use std::collections::BTreeSet;

use rewards::{Resources, RewardError};
use serde_json::{Map, Value, json};

#[test]
fn the_config_knows_exactly_the_rewards_that_exist() {
    assert_eq!(config::REWARD_NAMES, rewards::names());
}

/// The option that a refusal is about.
fn refused_option(refusal: &RewardError) -> Option<&str> {
    match refusal {
        RewardError::Options { key, .. } => Some(key),
        RewardError::OptionRange { key, .. } | RewardError::OptionValue { key, .. } => Some(key),
        RewardError::Url { .. } => Some("url"),
        _ => None,
    }
}

/// Whether some value of this option is not what a scorer of this name and these options is refused for.
fn takes(scorer: &str, options: &Map<String, Value>, option: &str) -> bool {
    let resources = Resources { variable: Box::new(|_| Some("secret".to_owned())), ..Resources::local() };
    let secret = tempfile::NamedTempFile::new().expect("a file of its owner's alone");
    std::fs::write(secret.path(), "secret").expect("written");
    [json!("http://127.0.0.1:1"), json!(1), json!(secret.path())].into_iter().any(|value| {
        let options = options.clone().into_iter().chain([(option.to_owned(), value)]).collect();
        match rewards::build(scorer, &Value::Object(options), &resources) {
            Ok(_) => true,
            Err(refusal) => refused_option(&refusal) != Some(option),
        }
    })
}

/// Scorers that take an address.
fn served() -> Vec<&'static str> {
    rewards::names().into_iter().filter(|scorer| takes(scorer, &Map::new(), "url")).collect()
}

/// Whether a scorer in another process has an option of this name.
fn has_option(scorer: &str, option: &str) -> bool {
    let address = Map::from_iter([("url".to_owned(), json!("http://127.0.0.1:1"))]);
    takes(scorer, &address, option)
}

#[test]
fn the_config_knows_what_says_how_a_server_is_reached() {
    // Options that remote scorers share, and those with which several are asked at once or by a certificate.
    let known: BTreeSet<&str> = config::CONNECTION_OPTIONS.into();
    assert!(served().len() >= 7, "{:?}", served());
    for scorer in served() {
        assert!(!has_option(scorer, "no_such_option"), "{scorer} takes anything");
        for option in config::SERVER_OPTIONS {
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
