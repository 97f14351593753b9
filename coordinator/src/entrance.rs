//! How a run is reached, and who is let in: decided from `[network]` of its config before anything listens.

use crate::cli::UpOptions;
use crate::error::CoordinatorError;
use crate::lost_files::stored_config;
use crate::run_record::RunRecord;
use config::{NetworkSection, PortRange, RunConfig, TlsMode};
use service::network::{ListenAddress, NetworkError, advertised, joined, told_address};
use service::trust::{Authority, CertificateFiles, TokenSource, Tokens};
use service::{EnrolmentService, Insecure, PeerRole, RunDirectory, ServiceError, Source, Trust, expand_path};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// What stands for a role in paths of certificates.
const ROLE: &str = "{role}";

/// Where coordinator and learner of a run listen and what they call themselves.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    bound: IpAddr,
    ports: PortRange,
    /// The host that others are told.
    advertised: String,
    /// Whether connections are secured.
    pub is_secure: bool,
    /// Where metrics are shown, if anywhere.
    metrics: Option<ListenAddress>,
    network: NetworkSection,
}

impl NetworkPlan {
    /// The plan of a config and what was typed besides.
    ///
    /// # Errors
    /// A usage error if this host has no such address, others could not reach what is advertised, or plain text was asked for
    /// beyond the loopback in less than so many words.
    pub fn of(config: &RunConfig, options: &UpOptions) -> Result<Self, CoordinatorError> {
        let network = config.network.clone();
        let ports = options.port.map_or(network.port, PortRange::one);
        let bound = ListenAddress { host: network.bind.clone(), ports }.resolve();
        let bound = bound.map_err(|error| usage("bind", &error))?;
        let advertised =
            advertised(bound, &network.advertise, None).map_err(|error| usage("advertise", &error))?;
        let is_secure = is_secure(&network, bound, options.insecure)?;
        let metrics = metrics_place(&network.metrics)?;
        let plan = Self { bound, ports, advertised, is_secure, metrics, network };
        let learners = plan.network.port.ports();
        if !plan.is_local() && options.port.is_none() && learners.len() == 1 && !learners.contains(&0) {
            return Err(CoordinatorError::Usage(format!(
                "`network.port` is {}, and beyond this host coordinator and learner listen at one each: write a range, as `{0}-{}`",
                plan.network.port,
                u32::from(*learners.end()) + 1
            )));
        }
        Ok(plan)
    }

    /// Whether nobody beyond this host can reach it.
    pub fn is_local(&self) -> bool {
        self.bound.to_canonical().is_loopback()
    }

    /// Listens, where the run was reached before if that is allowed and free, else at the first free port that is.
    ///
    /// # Errors
    /// A usage error if no port is free.
    pub async fn listen(
        &self,
        before: Option<u16>,
        options: &UpOptions,
    ) -> Result<TcpListener, CoordinatorError> {
        let before = before.filter(|port| options.port.is_none() && self.may_be(*port));
        if let Some(port) = before
            && let Ok(listener) = self.bind(PortRange::one(port)).await
        {
            return Ok(listener);
        }
        let ports = self.ports;
        self.bind(ports).await.map_err(|error| match error {
            NetworkError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                CoordinatorError::Usage(format!(
                    "port {ports} is taken; choose another with `--port`, 0 for any free one"
                ))
            }
            other => usage("bind", &other),
        })
    }

    /// Listens for who scrapes metrics, and says by what address; `None` where the run shows none.
    ///
    /// # Errors
    /// A usage error if all ports are taken, or nobody may listen there.
    pub async fn listen_for_scrapers(&self) -> Result<Option<(TcpListener, String)>, CoordinatorError> {
        let Some(place) = &self.metrics else { return Ok(None) };
        let listener = place.bind().await.map_err(|error| usage("metrics", &error))?;
        let address = told_address(&listener, &self.network.advertise, None);
        Ok(Some((listener, address)))
    }

    async fn bind(&self, ports: PortRange) -> Result<TcpListener, NetworkError> {
        ListenAddress { host: self.bound.to_string(), ports }.bind().await
    }

    /// Whether the config allows a port.
    fn may_be(&self, port: u16) -> bool {
        let ports = self.ports.ports();
        ports.contains(&0) || ports.contains(&port)
    }

    /// Where processes of this host reach the coordinator.
    pub fn local_address(&self, port: u16) -> String {
        let host = match self.bound {
            number if !number.is_unspecified() => number,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        self.address(&host.to_string(), port)
    }

    /// Where members on other hosts do.
    pub fn advertised_address(&self, port: u16) -> String {
        self.address(&self.advertised, port)
    }

    fn address(&self, host: &str, port: u16) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", joined(host, &port.to_string()))
    }

    /// What a member that is started here is told of all this.
    pub fn member_arguments(&self, role: PeerRole, port: u16, secrets: &Path) -> Vec<String> {
        let mut arguments = vec!["--coordinator".to_owned(), self.local_address(port)];
        let mut say = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        let listens = role == PeerRole::Learner || self.network.weights_relay;
        if listens && !self.is_local() {
            // The coordinator has one of the range already; `--port` is its own.
            let place = ListenAddress { host: self.bound.to_string(), ports: self.ports_of(role) };
            say("--listen", place.to_string());
            say("--advertise", self.advertised.clone());
        }
        if let Some(ListenAddress { host, ports }) = &self.metrics {
            // The coordinator has the first of several.
            let ports = if ports.ports().len() > 1 { *ports } else { PortRange::one(0) };
            say("--metrics-listen", ListenAddress { host: host.clone(), ports }.to_string());
        }
        arguments.extend(self.credential_arguments(role, &Tokens::path(secrets, role)));
        arguments
    }

    /// The ports that a member which is started here takes a free one of: where that is one alone, it is the learner's.
    fn ports_of(&self, role: PeerRole) -> PortRange {
        let ports = self.network.port;
        if role == PeerRole::Worker && ports.ports().len() == 1 { PortRange::one(0) } else { ports }
    }

    /// What a worker that is started on another host is told; a token comes on its standard input.
    pub fn remote_worker_arguments(&self, port: u16) -> Vec<String> {
        let mut arguments = vec!["--coordinator".to_owned(), self.advertised_address(port)];
        arguments.extend(self.credential_arguments(PeerRole::Worker, Path::new("-")));
        arguments
    }

    /// Whether members join by tokens.
    pub fn has_tokens(&self) -> bool {
        self.is_secure && !self.network.tls.has_files()
    }

    /// How long a member waits for the coordinator, and how it shows who it is.
    fn credential_arguments(&self, role: PeerRole, token_file: &Path) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut say = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        say("--coordinator-grace", self.network.grace.to_string());
        match (self.is_secure, self.files(role)) {
            (true, Some(files)) => {
                say("--tls-ca", files.authority.display().to_string());
                say("--tls-certificate", files.certificate.display().to_string());
                say("--tls-key", files.key.display().to_string());
            }
            (true, None) => say("--token-file", token_file.display().to_string()),
            (false, _) if !self.is_local() => arguments.push("--insecure=i-know".to_owned()),
            (false, _) => {}
        }
        arguments
    }

    fn files(&self, role: PeerRole) -> Option<CertificateFiles> {
        certificate_files(&self.network, role)
    }

    /// What a worker on another host is started with, for people.
    pub fn join_command(&self, port: u16, secrets: &Path) -> String {
        format!(
            "rollout-worker serve {} --member-id NAME",
            self.join_arguments(PeerRole::Worker, port, secrets)
        )
    }

    /// What a learner on another host is started with, for people.
    pub fn learner_command(&self, port: u16, secrets: &Path) -> String {
        let join = self.join_arguments(PeerRole::Learner, port, secrets);
        let listen = if self.is_local() { "" } else { " --listen ADDRESS:PORT" };
        format!("learner serve {join}{listen} --run-directory DIRECTORY")
    }

    fn join_arguments(&self, role: PeerRole, port: u16, secrets: &Path) -> String {
        let token = match (self.is_secure, self.files(role)) {
            (true, None) => {
                let path = Tokens::path(secrets, role).display().to_string();
                format!(" --token-file {}", crate::advice::quoted(&path))
            }
            (true, Some(_)) => " --tls-ca FILE --tls-certificate FILE --tls-key FILE".to_owned(),
            (false, _) if self.is_local() => String::new(),
            (false, _) => " --insecure=i-know".to_owned(),
        };
        format!("--coordinator {}{token}", self.advertised_address(port))
    }
}

fn is_secure(
    network: &NetworkSection,
    bound: IpAddr,
    insecure: Option<Insecure>,
) -> Result<bool, CoordinatorError> {
    let is_local = bound.to_canonical().is_loopback();
    let wish = match (network.tls.mode, network.tls.has_files()) {
        (TlsMode::Always, _) => Some("`network.tls.mode` is `always`"),
        (TlsMode::Auto, true) => Some("`network.tls` names certificates"),
        (TlsMode::Auto, false) => None,
    };
    match (insecure, wish) {
        (None, _) => Ok(!is_local || wish.is_some()),
        (Some(_), Some(wish)) => Err(CoordinatorError::Usage(format!(
            "{wish}, and `--insecure` asks for plain text: leave `--insecure` out, or take that key out of `network.tls`"
        ))),
        (Some(Insecure::Loopback), None) if !is_local => Err(CoordinatorError::Usage(format!(
            "`--insecure` is for this host alone, and the run listens at {bound}: whoever reaches it could stop it, take its \
             weights or send it false rewards; leave `--insecure` out, or say `--insecure=i-know`"
        ))),
        (Some(_), None) => Ok(false),
    }
}

/// Whether connections of a run will be secured, as far as its config tells. One that cannot be started for what it says of the
/// network is refused for that elsewhere.
pub fn will_be_secure(network: &NetworkSection, insecure: Option<Insecure>) -> bool {
    let bound = ListenAddress { host: network.bind.clone(), ports: network.port }.resolve();
    bound.ok().and_then(|bound| is_secure(network, bound, insecure).ok()).unwrap_or(true)
}

/// Where metrics are shown, by the number that it stands for on this host.
fn metrics_place(text: &str) -> Result<Option<ListenAddress>, CoordinatorError> {
    if text.is_empty() {
        return Ok(None);
    }
    let place: ListenAddress =
        text.parse().map_err(|problem| CoordinatorError::Usage(format!("`network.metrics`: {problem}")))?;
    let host = place.resolve().map_err(|error| usage("metrics", &error))?.to_string();
    Ok(Some(ListenAddress { host, ports: place.ports }))
}

fn usage(key: &str, error: &NetworkError) -> CoordinatorError {
    CoordinatorError::Usage(format!("`network.{key}`: {error}"))
}

/// The user's own certificate of a role, if the config names such.
fn certificate_files(network: &NetworkSection, role: PeerRole) -> Option<CertificateFiles> {
    let of_role = |path: &Path| {
        let path = PathBuf::from(path.display().to_string().replace(ROLE, role.name()));
        let path = expand_path(&path);
        std::path::absolute(&path).unwrap_or(path)
    };
    let tls = &network.tls;
    tls.has_files().then(|| CertificateFiles {
        authority: of_role(&tls.ca),
        certificate: of_role(&tls.certificate),
        key: of_role(&tls.key),
    })
}

/// Who is let in, and how the coordinator shows who it is.
pub struct Entrance {
    /// How connections are secured.
    pub trust: Trust,
    /// Signs for who has a token, where the run has an authority of its own.
    pub enrolment: Option<EnrolmentService>,
    /// Whether nobody beyond this host can reach it.
    pub is_local: bool,
}

impl Entrance {
    /// Plain text, on this host.
    pub fn local() -> Self {
        Self { trust: Trust::Plain(Insecure::Loopback), enrolment: None, is_local: true }
    }

    /// The entrance of a run, whose authority and tokens are made if there are none yet.
    ///
    /// # Errors
    /// If they, or the user's own certificates, cannot be used.
    pub async fn open(
        plan: &NetworkPlan,
        run_id: &str,
        directory: &RunDirectory,
    ) -> Result<Self, CoordinatorError> {
        let is_local = plan.is_local();
        if !plan.is_secure {
            let insecure = if is_local { Insecure::Loopback } else { Insecure::Anywhere };
            return Ok(Self { trust: Trust::Plain(insecure), enrolment: None, is_local });
        }
        let (source, enrolment) = match plan.files(PeerRole::Coordinator) {
            Some(files) => (Source::Files(files), None),
            None => {
                let authority = Arc::new(Authority::open(&directory.secrets(), run_id)?);
                let tokens = Tokens::open(&directory.secrets(), &authority)?;
                (Source::Authority(authority.clone()), Some(EnrolmentService::new(authority, tokens)))
            }
        };
        let trust = source.trust(PeerRole::Coordinator, Duration::ZERO).await.map_err(unusable)?;
        Ok(Self { trust, enrolment, is_local })
    }
}

/// Certificates that cannot be used are the user's to mend.
fn unusable(error: ServiceError) -> CoordinatorError {
    match error {
        ServiceError::Trust(problem) => CoordinatorError::Usage(format!("`network.tls`: {problem}")),
        other => other.into(),
    }
}

/// How the commands of an operator reach the coordinator of a run on this host, and show who they are.
///
/// # Errors
/// If the key to that, in the run's directory, or the run's config cannot be used, or the coordinator does not take it.
pub async fn operator_trust(record: &RunRecord, directory: &RunDirectory) -> Result<Trust, CoordinatorError> {
    let address = record.coordinator_address();
    if !address.starts_with("https://") {
        // Whoever started the run wished for that; the address is its own record's.
        return Ok(Trust::Plain(Insecure::Anywhere));
    }
    let config = stored_config(directory)?.value;
    let trust = match config.and_then(|config| certificate_files(&config.network, PeerRole::Coordinator)) {
        Some(files) => Source::Files(files).trust(PeerRole::Coordinator, Duration::ZERO).await,
        None => {
            let token = TokenSource::File(Tokens::path(&directory.secrets(), PeerRole::Admin));
            let source = Source::Token { coordinator: address.parse()?, token };
            source.trust(PeerRole::Admin, Duration::ZERO).await
        }
    };
    Ok(trust?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn options(flags: &[&str]) -> UpOptions {
        let line = ["coordinator", "up", "run.toml"].iter().chain(flags);
        match Cli::try_parse_from(line).expect("valid flags").command {
            Command::Up(args) => args.options,
            other => panic!("not `up`: {other:?}"),
        }
    }

    fn plan(settings: &[&str], flags: &[&str]) -> Result<NetworkPlan, String> {
        let text = config::preset("tempflow-tiny-cpu").expect("a preset").text;
        let settings: Vec<String> = settings.iter().map(|setting| format!("network.{setting}")).collect();
        let config = RunConfig::from_toml_with(&text, &settings).expect("valid");
        NetworkPlan::of(&config, &options(flags)).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        })
    }

    fn arguments(plan: &NetworkPlan, role: PeerRole) -> String {
        plan.member_arguments(role, 7100, Path::new("/run/tls")).join(" ")
    }

    #[test]
    fn one_host_needs_no_certificates_and_more_do() {
        let local = plan(&[], &[]).expect("the default");
        assert!(local.is_local() && !local.is_secure);
        assert_eq!(
            arguments(&local, PeerRole::Learner),
            "--coordinator http://127.0.0.1:7100 --coordinator-grace 60"
        );
        assert!(plan(&["tls.mode=always"], &[]).expect("asked for").is_secure);
        let far = ["bind=0.0.0.0", "advertise=node-1", "port=7100-7109"];
        let beyond = plan(&far, &[]).expect("by name");
        assert!(beyond.is_secure && !beyond.is_local());
        assert_eq!(beyond.advertised_address(7100), "https://node-1:7100");
        assert_eq!(
            arguments(&beyond, PeerRole::Learner),
            "--coordinator https://127.0.0.1:7100 --listen 0.0.0.0:7100-7109 --advertise node-1 --coordinator-grace 60 \
             --token-file /run/tls/learner.token"
        );
        assert_eq!(
            arguments(&beyond, PeerRole::Worker),
            "--coordinator https://127.0.0.1:7100 --listen 0.0.0.0:7100-7109 --advertise node-1 --coordinator-grace 60 \
             --token-file /run/tls/worker.token"
        );
        let alone = plan(&[&far[..], &["weights_relay=false"]].concat(), &[]).expect("nobody listens");
        assert_eq!(
            arguments(&alone, PeerRole::Worker),
            "--coordinator https://127.0.0.1:7100 --coordinator-grace 60 --token-file /run/tls/worker.token"
        );
        let told = plan(&far, &["--insecure"]).expect_err("not in so many words");
        assert!(told.contains("listens at 0.0.0.0") && told.contains("`--insecure=i-know`"), "{told}");
        let elsewhere = beyond.remote_worker_arguments(7100).join(" ");
        assert_eq!(
            elsewhere, "--coordinator https://node-1:7100 --coordinator-grace 60 --token-file -",
            "the token comes on standard input"
        );
        let plain = plan(&far, &["--insecure=i-know"]).expect("in so many words");
        assert!(!plain.is_secure && arguments(&plain, PeerRole::Worker).ends_with("--insecure=i-know"));
        let six = plan(&["bind=::", "advertise=fd00::2"], &[]).expect("version 6");
        assert_eq!(six.advertised_address(7), "https://[fd00::2]:7");
        assert_eq!(six.local_address(7), "https://[::1]:7");
    }

    #[test]
    fn security_that_was_asked_for_is_not_left_out_by_a_flag() {
        for (settings, words) in [
            (&["tls.mode=always"][..], "`network.tls.mode` is `always`"),
            (&["tls.ca=c", "tls.certificate=c", "tls.key=k"], "`network.tls` names certificates"),
        ] {
            for flag in ["--insecure", "--insecure=i-know"] {
                let told = plan(settings, &[flag]).expect_err("a contradiction");
                assert!(told.contains(words) && told.contains("leave `--insecure` out"), "{told}");
            }
        }
    }

    #[tokio::test]
    async fn a_run_comes_back_at_its_port_or_where_that_is_taken_at_another_of_its_range() {
        // An address of the loopback at which nobody else takes the port meanwhile.
        let (host, bind) = ("127.0.77.1", "bind=127.0.77.1");
        let taken = TcpListener::bind((host, 0)).await.expect("a free port");
        let before = taken.local_addr().expect("bound").port();
        let range = format!("port={}-{}", before, before.saturating_add(50));
        for port in [range.as_str(), "port=0"] {
            let plan = plan(&[port, bind], &[]).expect("valid");
            let listener = plan.listen(Some(before), &options(&[])).await.expect("another is free");
            assert_ne!(listener.local_addr().expect("bound").port(), before);
        }
        drop(taken);
        let again = plan(&["port=0", bind], &[]).expect("valid").listen(Some(before), &options(&[])).await;
        assert_eq!(again.expect("free").local_addr().expect("bound").port(), before);
    }

    #[tokio::test]
    async fn an_operator_hears_what_is_wrong_with_the_config_of_a_secured_run() {
        let home = tempfile::tempdir().expect("a folder");
        let directory = RunDirectory::new(home.path());
        directory.create().expect("made");
        std::fs::create_dir(directory.checkpoints().join("iteration-000001")).expect("made");
        std::fs::write(directory.config(), "[run").expect("written");
        let record = RunRecord { address: Some("https://127.0.0.1:1".to_owned()), ..RunRecord::new("a") };
        let told = operator_trust(&record, &directory).await.err().expect("damaged").to_string();
        assert!(told.contains("config.toml is not a valid run config"), "{told}");
    }

    #[test]
    fn an_address_that_others_cannot_reach_is_refused_with_its_key() {
        for (settings, words) in [
            (
                &["bind=no-such-interface"][..],
                "`network.bind`: `no-such-interface` is no address, interface or subnet",
            ),
            (
                &["bind=0.0.0.0", "advertise=127.0.0.1"],
                "`network.advertise`: 127.0.0.1 is every host's own loopback",
            ),
            (&["bind=0.0.0.0", "advertise=lo"], "is every host's own loopback"),
            (
                &["metrics=no-such-interface:9400"],
                "`network.metrics`: `no-such-interface` is no address, interface or subnet",
            ),
        ] {
            let told = plan(settings, &[]).expect_err("refused");
            assert!(told.contains(words), "{told}");
        }
    }

    #[tokio::test]
    async fn metrics_are_shown_where_asked_and_members_take_the_next_ports() {
        let silent = plan(&[], &[]).expect("the default");
        assert!(silent.listen_for_scrapers().await.expect("nothing to do").is_none());
        assert!(!arguments(&silent, PeerRole::Worker).contains("--metrics-listen"));
        let shown = plan(&["metrics=lo:0"], &[]).expect("an interface");
        assert!(arguments(&shown, PeerRole::Worker).contains("--metrics-listen 127.0.0.1:0"));
        let (_taken, address) = shown.listen_for_scrapers().await.expect("free").expect("asked for");
        let again = plan(&[&format!("metrics={address}")], &[]).expect("well-formed");
        assert!(arguments(&again, PeerRole::Learner).contains("--metrics-listen 127.0.0.1:0"));
        let error = again.listen_for_scrapers().await.expect_err("taken");
        let told = error.to_string();
        assert!(told.contains(&format!("`network.metrics`: cannot listen at {address}")), "{told}");
        assert!(told.contains("choose another port") && error.exit_code() == 2, "{told}");
        let several = plan(&["metrics=0.0.0.0:9400-9499"], &[]).expect("well-formed");
        assert!(arguments(&several, PeerRole::Worker).contains("--metrics-listen 0.0.0.0:9400-9499"));
    }

    #[test]
    fn certificates_of_the_users_own_are_found_by_role() {
        let own = [
            "bind=0.0.0.0",
            "advertise=a",
            "tls.ca=/c/ca.pem",
            "tls.certificate=/c/{role}.pem",
            "tls.key=/c/{role}.key",
        ];
        let plan = plan(&own, &[]).expect("valid");
        let told = arguments(&plan, PeerRole::Worker);
        assert!(
            told.ends_with("--tls-ca /c/ca.pem --tls-certificate /c/worker.pem --tls-key /c/worker.key"),
            "{told}"
        );
        assert_eq!(plan.files(PeerRole::Coordinator).expect("named").key, Path::new("/c/coordinator.key"));
    }

    #[tokio::test]
    async fn a_run_gets_an_authority_once_and_only_where_it_needs_one() {
        let home = tempfile::tempdir().expect("a folder");
        let directory = RunDirectory::new(home.path());
        let local =
            Entrance::open(&plan(&[], &[]).expect("valid"), "run-a", &directory).await.expect("plain");
        assert!(!local.trust.is_mutual() && !directory.secrets().exists());
        let secure = plan(&["tls.mode=always"], &[]).expect("valid");
        let entrance = Entrance::open(&secure, "run-a", &directory).await.expect("made");
        assert!(entrance.trust.is_mutual() && entrance.enrolment.is_some());
        let token = || std::fs::read(Tokens::path(&directory.secrets(), PeerRole::Worker)).expect("drawn");
        let before = token();
        drop(Entrance::open(&secure, "run-a", &directory).await.expect("found"));
        assert_eq!(token(), before, "members outlive a coordinator");
        drop(Entrance::open(&secure, "run-b", &directory).await.expect("of another run id"));
        assert_ne!(token(), before, "a run whose record was lost has another id");
    }
}
