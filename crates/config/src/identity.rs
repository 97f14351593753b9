//! Which keys decide what a run trains, and which may change when it is resumed.

use crate::{
    CONNECTION_OPTIONS, CheckpointSection, LearnerPlace, NetworkSection, OnRewardHacking, PortRange,
    RewardSection, RunConfig, TlsSection,
};

/// Keys, or sections ending in a dot, that decide nothing about the iterations done: what [`RunConfig::identity`] leaves
/// out. Thread counts and the device are not among them, since matrix products round differently on others; nor is
/// `run.determinism`, since what is faster may round differently; nor are the images of an evaluation, since gains are taken
/// against the first one. What scores them may change: every evaluation says what it was scored by, and only equals are
/// compared. Of a trained reward, [`CONNECTION_OPTIONS`] may change. Prompt files may move, since the prompts themselves are
/// compared when a run is resumed, as the model's files are.
pub const CHANGEABLE_KEYS: [&str; 18] = [
    "run.name",
    "run.directory",
    "run.iterations",
    "run.max_hours",
    "model.embedding_cache",
    "data.",
    "evaluation.every",
    "evaluation.grid",
    "evaluation.hacking_patience",
    "evaluation.on_reward_hacking",
    "evaluation_rewards",
    "checkpoints.",
    "resources.learners",
    "resources.workers",
    "resources.max_workers",
    "resources.mixed_devices",
    "network.",
    "hosts",
];

impl RunConfig {
    /// The config without [`CHANGEABLE_KEYS`] and [`CONNECTION_OPTIONS`], as TOML: two configs of equal identity train the
    /// same adapter.
    pub fn identity(&self) -> String {
        let mut identity = self.clone();
        identity.run.name.clear();
        identity.run.directory.clear();
        identity.run.iterations = 0;
        identity.run.max_hours = 0.0;
        identity.model.embedding_cache.clear();
        identity.data.train.clear();
        identity.data.validation.clear();
        identity.data.test.clear();
        identity.evaluation.every = 0;
        identity.evaluation.grid = 0;
        identity.evaluation.hacking_patience = 0;
        identity.evaluation.on_reward_hacking = OnRewardHacking::Warn;
        identity.evaluation_rewards.clear();
        identity.rewards = identity.rewards.iter().map(RewardSection::without_connection).collect();
        identity.checkpoints = CheckpointSection { every: 0, keep_last: 0, retry_minutes: 0.0 };
        identity.resources.learners = 0;
        identity.resources.workers = 0;
        identity.resources.max_workers = 0;
        identity.resources.mixed_devices = false;
        identity.network = NetworkSection {
            bind: String::new(),
            advertise: String::new(),
            port: PortRange::one(0),
            grace: 0.0,
            metrics: String::new(),
            weights_relay: false,
            learner: LearnerPlace::Here,
            tls: TlsSection::default(),
        };
        identity.hosts.clear();
        identity.to_toml()
    }
}

/// Whether a key, `section.key` or `list[position].key`, may change when a run is resumed.
pub fn is_changeable(key: &str) -> bool {
    let list = key.split_once('[').map(|(list, _)| list);
    let is_listed = CHANGEABLE_KEYS.iter().any(|changeable| match changeable.ends_with('.') {
        true => key.starts_with(changeable),
        false => key == *changeable || list == Some(changeable),
    });
    is_listed
        || list == Some("rewards") && key.split_once("].").is_some_and(|(_, option)| is_connection(option))
}

fn is_connection(option: &str) -> bool {
    CONNECTION_OPTIONS.contains(&option)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RewardSection, preset};

    fn with(setting: &str) -> RunConfig {
        let text = preset("tempflow-tiny-cpu").expect("a preset").text;
        RunConfig::from_toml_with(&text, &[setting.to_owned()]).expect("valid")
    }

    #[test]
    fn exactly_the_changeable_keys_leave_the_identity_alone() {
        let settings = [
            "run.name=other",
            "run.directory=elsewhere",
            "run.iterations=7",
            "run.max_hours=7",
            "run.seed=7",
            "run.lag=1",
            "run.determinism=fast",
            "model.embedding_cache=embeddings",
            "data.train=elsewhere.txt",
            "data.validation=elsewhere.txt",
            "data.test=elsewhere.txt",
            "model.path=elsewhere",
            "sampling.vae_tile=512",
            "training.gradient_checkpointing=true",
            "evaluation.every=7",
            "evaluation.grid=7",
            "evaluation.hacking_patience=7",
            "evaluation.prompts=7",
            "training.reward_combination=gdpo",
            "checkpoints.every=7",
            "checkpoints.keep_last=7",
            "checkpoints.retry_minutes=7.0",
            "resources.learners=3",
            "training.gradient_shards=4",
            "resources.workers=7",
            "resources.max_workers=7",
            "resources.mixed_devices=true",
            "network.bind=10.0.0.1",
            "network.advertise=a",
            "network.port=7",
            "network.grace=7",
            "network.metrics=127.0.0.1:9400",
            "network.weights_relay=false",
            "network.learner=by-hand",
            "network.tls.mode=always",
            "resources.worker_threads=7",
            "training.learning_rate=7.0",
        ];
        for setting in settings {
            let key = setting.split('=').next().expect("a key");
            let is_same = with(setting).identity() == with("run.lag=0").identity();
            assert_eq!(is_same, is_changeable(key), "{key}");
        }
    }

    #[test]
    fn a_server_that_moves_scores_the_same_run() {
        let mut config = with("run.lag=0");
        config.rewards[0] = RewardSection::new("geneval");
        let identity = config.identity();
        for option in CONNECTION_OPTIONS {
            config.rewards[0].options.insert(option.to_owned(), toml::Value::Integer(7));
            assert!(is_changeable(&format!("rewards[0].{option}")));
        }
        assert_eq!(config.identity(), identity);
        config.rewards[0].options.insert("batch_size".to_owned(), toml::Value::Integer(7));
        assert_ne!(config.identity(), identity);
        for key in ["rewards[0].batch_size", "rewards[0].name", "rewards[0]", "sampling.url", "url"] {
            assert!(!is_changeable(key), "{key}");
        }
        assert!(is_changeable("evaluation_rewards[1].name"));
    }

    #[test]
    fn a_run_that_moves_to_other_hosts_is_the_same() {
        let mut config = with("run.lag=0");
        let identity = config.identity();
        let (address, slots) = ("gpu1".to_owned(), crate::Slots::Count(2));
        let host = crate::HostSection { address, slots, programs: "".into(), environment: [].into() };
        config.hosts.push(host);
        assert_eq!(config.identity(), identity);
        assert!(is_changeable("hosts[0].slots") && is_changeable("hosts"));
    }

    #[test]
    fn what_evaluations_are_scored_by_may_change_but_not_what_is_trained() {
        let mut config = with("run.lag=0");
        let identity = config.identity();
        config.evaluation_rewards = vec![RewardSection::new("jpeg_compressibility")];
        config.evaluation.on_reward_hacking = OnRewardHacking::Stop;
        assert!(is_changeable("evaluation_rewards") && is_changeable("evaluation.on_reward_hacking"));
        assert_eq!(config.identity(), identity);
        config.rewards[0].weight = 2.0;
        assert!(!is_changeable("rewards") && config.identity() != identity);
    }
}
