//! The scorers that a run can name, and what is known of each before it is built.

/// What a scorer is to a config; how it scores stands in its file in `crates/rewards`.
struct ScorerFacts {
    name: &'static str,
    /// Whether it looks at GenEval's metadata: a string `tag` and a list `include`.
    needs_metadata: bool,
    identity: Identity,
}

/// What makes a scorer the scorer it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// Its name and options.
    Options,
    /// The same, but it is a language model, whose answers may differ from one time to the next.
    Judge,
    /// Whatever its server is: another address is another scorer.
    Server,
}

/// Every scorer, those in other processes last.
const SCORERS: [ScorerFacts; 16] = [
    facts("shapes").with_metadata(),
    facts("jpeg_compressibility"),
    facts("jpeg_incompressibility"),
    facts("pickscore"),
    facts("clipscore"),
    facts("aesthetic"),
    facts("hpsv2.1"),
    facts("hpsv3"),
    facts("ocr"),
    facts("flow_grpo_server").known_by(Identity::Server),
    facts("geneval").with_metadata(),
    facts("deqa"),
    facts("flow_factory").known_by(Identity::Server),
    facts("unifiedreward").known_by(Identity::Judge),
    facts("vlm_judge").known_by(Identity::Judge),
    facts("grpc").known_by(Identity::Server),
];

/// The names of all scorers; each has a file in `crates/rewards`.
pub const REWARD_NAMES: [&str; SCORERS.len()] = {
    let mut names = [""; SCORERS.len()];
    let mut position = 0;
    while position < names.len() {
        names[position] = SCORERS[position].name;
        position += 1;
    }
    names
};

/// Options of every scorer in another process that say how its server is reached, known, and shown who asks.
pub const SERVER_OPTIONS: [&str; 7] = [
    "url",
    "timeout_seconds",
    "patience_seconds",
    "max_reply_bytes",
    "tls_ca",
    "api_key_env",
    "api_key_file",
];

/// Options of scorers in other processes that say how the server is reached, and nothing of what it says: those of all, and
/// those with which several are asked at once or by a certificate.
pub const CONNECTION_OPTIONS: [&str; 10] = {
    let [url, timeout, patience, reply, ca, key_env, key_file] = SERVER_OPTIONS;
    let [certificate, key] = ["tls_certificate", "tls_key"];
    [url, timeout, patience, reply, ca, key_env, key_file, "max_concurrent", certificate, key]
};

/// Those of them that are paths.
pub(crate) const CONNECTION_PATHS: [&str; 4] = ["tls_ca", "tls_certificate", "tls_key", "api_key_file"];

const fn facts(name: &'static str) -> ScorerFacts {
    ScorerFacts { name, needs_metadata: false, identity: Identity::Options }
}

impl ScorerFacts {
    const fn with_metadata(self) -> Self {
        Self { needs_metadata: true, ..self }
    }

    const fn known_by(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }
}

/// Whether a language model judges.
pub(crate) fn is_judge(scorer: &str) -> bool {
    has_identity(scorer, Identity::Judge)
}

/// Whether another address is another scorer.
pub(crate) fn is_named_by_its_server(scorer: &str) -> bool {
    has_identity(scorer, Identity::Server)
}

/// The scorers that look at GenEval's metadata.
pub(crate) fn needing_metadata() -> impl Iterator<Item = &'static str> {
    SCORERS.iter().filter(|facts| facts.needs_metadata).map(|facts| facts.name)
}

fn has_identity(scorer: &str, identity: Identity) -> bool {
    SCORERS.iter().any(|facts| facts.name == scorer && facts.identity == identity)
}
