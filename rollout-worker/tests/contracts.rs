//! What two crates that may not know each other must agree on; the worker knows both.

#[test]
fn the_config_knows_exactly_the_rewards_that_exist() {
    assert_eq!(config::REWARD_NAMES, rewards::names());
}
