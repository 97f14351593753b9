//! What every member of a run is told on its command line.

use crate::ServiceError;
use crate::connect::Address;
use crate::enrolment::{Security, Source};
use crate::environment::expand_path;
use crate::hub::{Hub, ModelNotFound};
use crate::logging::LogFormat;
use crate::network::ListenAddress;
use crate::output::end_unless_written;
use crate::trust::{CertificateFiles, Insecure, TokenSource, TrustError};
use clap::Parser;
use clap::builder::{PathBufValueParser, TypedValueParser};
use config::{ComputeDevice, Dtype};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Parses the path of a file or folder on this machine and makes it absolute, so that whatever is said of it later says
/// where it was looked for. Expanded as a config's paths are: a shell leaves what is in quotes alone, as in
/// `--out="~/images"`.
pub fn path_argument() -> impl TypedValueParser<Value = PathBuf> {
    typed_path().try_map(std::path::absolute)
}

/// The same where a relative path stays one.
pub fn typed_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| expand_path(&path))
}

/// The arguments of this process. Ends it where they are wrong, and where help or version were asked for: as a failure if
/// they could not be written.
pub fn parse_arguments<P: Parser>() -> P {
    P::try_parse().unwrap_or_else(|answer| {
        let printed = answer.print().and_then(|()| std::io::stdout().flush());
        if !answer.use_stderr() {
            end_unless_written(printed);
        }
        std::process::exit(answer.exit_code())
    })
}

/// The folder of a model as a user names it, absolute; what [`Hub::resolve`] leaves alone is looked for from the working
/// directory.
///
/// # Errors
/// If it reads as a repository that the cache does not have.
pub fn model_folder(model: &Path, hub: &Hub) -> Result<PathBuf, ModelNotFound> {
    let folder = hub.resolve(&expand_path(model))?;
    Ok(std::path::absolute(&folder).unwrap_or(folder))
}

/// Variables that stand for arguments by which a member finds the coordinator and is found, and shows who it is. A member that is
/// started with all of these said inherits none of them.
pub const MEMBER_VARIABLES: [&str; 11] = [
    "FLOW_RL_COORDINATOR",
    "FLOW_RL_COORDINATOR_GRACE",
    "FLOW_RL_TOKEN_FILE",
    "FLOW_RL_TLS_CA",
    "FLOW_RL_TLS_CERTIFICATE",
    "FLOW_RL_TLS_KEY",
    "FLOW_RL_INSECURE",
    "FLOW_RL_LISTEN",
    "FLOW_RL_ADVERTISE",
    "FLOW_RL_METRICS_LISTEN",
    "FLOW_RL_RUN_DIRECTORY",
];

/// How a process finds the coordinator and logs; to be flattened into the arguments of its `serve` command.
#[derive(Clone, Debug, clap::Args)]
pub struct MemberArguments {
    /// Address of the coordinator: `http://host:port`, `https://host:port` where the run is secured, or `file:PATH` of a
    /// file that holds one; read anew for every connection.
    #[arg(long, env = "FLOW_RL_COORDINATOR")]
    pub coordinator: String,
    /// What lets this process into a secured run: a file from the `tls` folder of the run's directory, with a token and the
    /// run's certificate; `-` reads it from standard input.
    #[arg(long, env = "FLOW_RL_TOKEN_FILE", value_name = "FILE", conflicts_with_all = ["tls_ca", "insecure"])]
    pub token_file: Option<PathBuf>,
    /// In place of a token file: certificates of the authority that members are verified by, PEM.
    #[arg(long, env = "FLOW_RL_TLS_CA", value_name = "FILE", requires_all = ["tls_certificate", "tls_key"])]
    pub tls_ca: Option<PathBuf>,
    /// This process's certificate, which names `tempflow://DOMAIN/ROLE`, PEM; read again when it is replaced.
    #[arg(long, env = "FLOW_RL_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_ca")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, env = "FLOW_RL_TLS_KEY", value_name = "FILE", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,
    /// Speak plain text: to this host alone, or `=i-know` to any.
    #[arg(long, env = "FLOW_RL_INSECURE", value_name = "i-know", num_args = 0..=1, require_equals = true,
          default_missing_value = "loopback", conflicts_with = "tls_ca")]
    pub insecure: Option<Insecure>,
    /// Seconds that an absent coordinator is waited for.
    #[arg(long, env = "FLOW_RL_COORDINATOR_GRACE", default_value = config::DEFAULT_GRACE, value_parser = parse_seconds)]
    pub coordinator_grace: Duration,
    /// Where metrics and health of this process are shown over plain HTTP to whoever asks: an address, interface or subnet of
    /// this host, and a port or range of ports, as in `127.0.0.1:9400`; nowhere if not given.
    #[arg(long, env = "FLOW_RL_METRICS_LISTEN", value_name = "HOST:PORT")]
    pub metrics_listen: Option<ListenAddress>,
    /// `text` or `json`.
    #[arg(long, env = "FLOW_RL_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// Where a program computes, and in what; to be flattened into the arguments of one that no run config tells.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ComputeArguments {
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, env = "FLOW_RL_DEVICE", default_value = "cpu")]
    pub device: ComputeDevice,
    /// Type that networks compute in, `float32` or `bfloat16`.
    #[arg(long, default_value = "float32")]
    pub dtype: Dtype,
}

impl MemberArguments {
    /// How this process shows who it is.
    ///
    /// # Errors
    /// If it would have to and cannot, or would speak plain text beyond this host without being told so in so many words.
    pub fn credentials(&self) -> Result<Security, ServiceError> {
        let files = [&self.tls_ca, &self.tls_certificate, &self.tls_key].map(Option::as_ref);
        credentials(&self.coordinator, self.token_file.as_deref(), files, self.insecure)
    }
}

/// How a command finds the coordinator of a run whose directory is not here, and shows who it is; to be flattened into its
/// arguments. No variables stand for these: one that is set for members would be taken for an operator's.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OperatorArguments {
    /// Address of the run's coordinator, from a host that has no such directory: `https://host:port`, `http://host:port` where
    /// the run is not secured, or `file:PATH` of a file that holds one.
    #[arg(long, value_name = "ADDRESS")]
    pub coordinator: Option<String>,
    /// What lets an operator in: a copy of `tls/admin.token` of the run's directory; `-` reads it from standard input.
    #[arg(long, value_name = "FILE", requires = "coordinator", conflicts_with_all = ["tls_ca", "insecure"])]
    pub token_file: Option<PathBuf>,
    /// In place of a token file: certificates of the authority that members are verified by, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["coordinator", "tls_certificate", "tls_key"])]
    pub tls_ca: Option<PathBuf>,
    /// The operator's certificate, which names `tempflow://DOMAIN/admin`, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,
    /// Speak plain text: to this host alone, or `=i-know` to any.
    #[arg(long, value_name = "i-know", num_args = 0..=1, require_equals = true, default_missing_value = "loopback",
          requires = "coordinator", conflicts_with = "tls_ca")]
    pub insecure: Option<Insecure>,
}

impl OperatorArguments {
    /// The coordinator's address and how the operator shows who it is; `None` where no coordinator is named.
    ///
    /// # Errors
    /// As [`MemberArguments::credentials`].
    pub fn credentials(&self) -> Result<Option<(&str, Security)>, ServiceError> {
        let Some(coordinator) = self.coordinator.as_deref() else { return Ok(None) };
        let files = [&self.tls_ca, &self.tls_certificate, &self.tls_key].map(Option::as_ref);
        let security = credentials(coordinator, self.token_file.as_deref(), files, self.insecure)?;
        Ok(Some((coordinator, security)))
    }
}

/// How a server of rewards, which is no member of a run, shows who it is and knows who calls; to be flattened into the
/// arguments of its command.
#[derive(Clone, Debug, clap::Args)]
pub struct RewardServerArguments {
    /// Address of the coordinator whose workers are served, which certifies this server: `https://host:port`, or `file:PATH` of a
    /// file that holds one.
    #[arg(long, env = "FLOW_RL_COORDINATOR", value_name = "ADDRESS")]
    pub coordinator: Option<String>,
    /// What has the coordinator certify this server: a copy of `tls/reward.token` of the run's directory; `-` reads it from
    /// standard input.
    #[arg(long, env = "FLOW_RL_TOKEN_FILE", value_name = "FILE", requires = "coordinator",
          conflicts_with_all = ["tls_ca", "insecure"])]
    pub token_file: Option<PathBuf>,
    /// In place of a token file, as for a server that outlives runs: certificates of the authorities of those who may call, PEM.
    #[arg(long, env = "FLOW_RL_TLS_CA", value_name = "FILE", requires_all = ["tls_certificate", "tls_key"])]
    pub tls_ca: Option<PathBuf>,
    /// This server's certificate, which names `tempflow://DOMAIN/reward`, PEM; read again when it is replaced.
    #[arg(long, env = "FLOW_RL_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_ca")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, env = "FLOW_RL_TLS_KEY", value_name = "FILE", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,
    /// Speak plain text: to this host alone, or `=i-know` to any.
    #[arg(long, env = "FLOW_RL_INSECURE", value_name = "i-know", num_args = 0..=1, require_equals = true,
          default_missing_value = "loopback", conflicts_with = "tls_ca")]
    pub insecure: Option<Insecure>,
    /// Seconds that an absent coordinator is waited for.
    #[arg(long, env = "FLOW_RL_COORDINATOR_GRACE", default_value = config::DEFAULT_GRACE, value_parser = parse_seconds)]
    pub coordinator_grace: Duration,
}

impl RewardServerArguments {
    /// How this server shows who it is; whether it may listen where it is to is another matter.
    ///
    /// # Errors
    /// If it would have to and cannot.
    pub fn credentials(&self) -> Result<Security, ServiceError> {
        let files = [&self.tls_ca, &self.tls_certificate, &self.tls_key].map(Option::as_ref);
        match (&self.coordinator, &self.token_file, files, self.insecure) {
            (Some(coordinator), Some(_), ..) => {
                credentials(coordinator, self.token_file.as_deref(), files, self.insecure)
            }
            (_, _, [Some(ca), Some(certificate), Some(key)], _) => Ok(of_files([ca, certificate, key])),
            (Some(_), None, _, None) => Err(TrustError::Usage(
                "a coordinator certifies the holder of a token: give this server `--token-file`, a copy of `reward.token` from \
                 the `tls` folder of the run's directory, or leave `--coordinator` out"
                    .to_owned(),
            )
            .into()),
            (.., insecure) => Ok(Security::PlainText(insecure.unwrap_or(Insecure::Loopback))),
        }
    }
}

fn of_files(files: [&PathBuf; 3]) -> Security {
    let [authority, certificate, key] = files.map(Clone::clone);
    Security::Certificates(Source::Files(CertificateFiles { authority, certificate, key }))
}

/// `files` are authority, certificate and key.
fn credentials(
    coordinator: &str,
    token_file: Option<&Path>,
    files: [Option<&PathBuf>; 3],
    insecure: Option<Insecure>,
) -> Result<Security, ServiceError> {
    if let Some(path) = token_file {
        let token = TokenSource::of_argument(path)?;
        let coordinator = coordinator.parse()?;
        return Ok(Security::Certificates(Source::Token { coordinator, token }));
    }
    if let [Some(ca), Some(certificate), Some(key)] = files {
        return Ok(of_files([ca, certificate, key]));
    }
    let insecure = insecure.unwrap_or(Insecure::Loopback);
    coordinator.parse::<Address>()?.check_plain(insecure)?;
    Ok(Security::PlainText(insecure))
}

/// What every environment variable begins with that stands for an argument of one of the programs.
const VARIABLE_PREFIX: &str = "FLOW_RL_";

/// Arguments of a program and its commands whose environment variables could mean something to others: `DEVICE` or
/// `LISTEN` may be set for any program. For the tests of the programs, which expect none.
pub fn unprefixed_variables(command: &clap::Command) -> Vec<String> {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env());
    let variables = variables.map(|variable| variable.to_string_lossy().into_owned());
    let own = variables.filter(|variable| !variable.starts_with(VARIABLE_PREFIX));
    own.chain(command.get_subcommands().flat_map(unprefixed_variables)).collect()
}

/// A time as it is typed: a number of seconds, which may have a fraction.
///
/// # Errors
/// If it is no number, negative, or more than a year.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    // Clocks can add a year to any time, but not any duration.
    match seconds <= 366.0 * 24.0 * 3600.0 {
        true => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        false => Err("must be at most a year".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        member: MemberArguments,
    }

    #[test]
    fn variables_have_a_prefix_and_one_without_is_found_in_any_command() {
        use clap::CommandFactory;
        assert_eq!(unprefixed_variables(&Program::command()), Vec::<String>::new());
        let generic = clap::Command::new("serve").arg(clap::Arg::new("device").long("device").env("DEVICE"));
        assert_eq!(unprefixed_variables(&Program::command().subcommand(generic)), ["DEVICE"]);
    }

    fn parse(arguments: &[&str]) -> Result<MemberArguments, String> {
        let words = ["program", "--coordinator", "http://here:1"].iter().chain(arguments);
        Program::try_parse_from(words).map(|program| program.member).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_text_beyond_this_host_has_to_be_wished_for() {
        let credentials = |arguments: &[&str]| {
            let words = ["program", "--coordinator"].iter().chain(arguments);
            let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
            let is_secure = |security| matches!(security, Security::Certificates(_));
            program.member.credentials().map(is_secure).map_err(|error| error.to_string())
        };
        for (arguments, outcome) in [
            (&["http://127.0.0.1:1"][..], Ok(false)),
            (&["http://[::1]:1", "--insecure"], Ok(false)),
            (&["http://10.0.0.2:1"], Err("say `--insecure=i-know`")),
            (&["http://10.0.0.2:1", "--insecure"], Err("say `--insecure=i-know`")),
            (&["http://10.0.0.2:1", "--insecure=i-know"], Ok(false)),
            (&["http://10.0.0.2:1", "--insecure=yes"], Err("is `yes`; write `--insecure`")),
            (&["https://127.0.0.1:1"], Err("give it a token file by `--token-file`")),
            (&["https://10.0.0.2:1", "--token-file", "/nowhere/worker.token"], Ok(true)),
            (&["https://10.0.0.2:1", "--tls-ca", "ca.pem"], Err("--tls-certificate")),
            (&["https://10.0.0.2:1", "--tls-ca=c", "--tls-certificate=c", "--tls-key=k"], Ok(true)),
            (&["https://a:1", "--insecure", "--token-file", "f"], Err("cannot be used with")),
        ] {
            match (credentials(arguments), outcome) {
                (Err(told), Err(words)) => assert!(told.contains(words), "{told}"),
                (found, wanted) => assert_eq!(found.ok(), wanted.ok(), "{arguments:?}"),
            }
        }
    }

    #[test]
    fn a_server_of_rewards_has_a_token_or_files_or_speaks_plain_text() {
        #[derive(Debug, Parser)]
        struct Server {
            #[command(flatten)]
            server: RewardServerArguments,
        }
        let credentials = |arguments: &[&str]| {
            let words = ["program"].iter().chain(arguments);
            let server = Server::try_parse_from(words).map_err(|error| error.to_string())?.server;
            let shown = |security| match security {
                Security::PlainText(insecure) => format!("{insecure:?}"),
                Security::Certificates(Source::Token { .. }) => "a token".to_owned(),
                Security::Certificates(_) => "files".to_owned(),
            };
            server.credentials().map(shown).map_err(|error| error.to_string())
        };
        let files = ["--tls-ca=c", "--tls-certificate=c", "--tls-key=k"];
        for (arguments, outcome) in [
            (&[][..], Ok("Loopback")),
            (&["--insecure"], Ok("Loopback")),
            (&["--insecure=i-know"], Ok("Anywhere")),
            (&["--insecure=yes"], Err("is `yes`; write `--insecure`, or `--insecure=i-know`")),
            (&["--coordinator=https://a:1", "--token-file=t"], Ok("a token")),
            (
                &["--coordinator=https://a:1"],
                Err("give this server `--token-file`, a copy of `reward.token`"),
            ),
            (&["--token-file=t"], Err("--coordinator")),
            (&files, Ok("files")),
            (&files[..2], Err("--tls-key")),
            (&[files[0], files[1], files[2], "--insecure"], Err("cannot be used with")),
            (&["--coordinator=https://a:1", "--token-file=t", "--insecure"], Err("cannot be used with")),
        ] {
            match (credentials(arguments), outcome) {
                (Err(told), Err(words)) => assert!(told.contains(words), "{told}"),
                (found, wanted) => assert_eq!(found.ok().as_deref(), wanted.ok(), "{arguments:?}"),
            }
        }
    }

    #[test]
    fn paths_become_absolute_and_are_not_empty() {
        #[derive(Debug, Parser)]
        struct WithPath {
            #[arg(long, value_parser = path_argument())]
            out: PathBuf,
        }
        let out = |text: &str| WithPath::try_parse_from(["program", "--out", text]).map(|parsed| parsed.out);
        let here = std::env::current_dir().expect("a directory");
        assert_eq!(out("a/b").expect("a path"), here.join("a/b"));
        assert_eq!(out("/a/b").expect("a path"), PathBuf::from("/a/b"));
        assert!(out("").expect_err("refused").to_string().contains("--out"));
        let home = expand_path(Path::new("~"));
        assert_eq!(out("~/a").expect("a path"), home.join("a"));
        assert_eq!(out("$HOME/a").expect("a path"), home.join("a"));
    }

    #[test]
    fn a_model_that_is_not_there_says_from_where_it_was_looked_for() {
        let (here, hub) = (std::env::current_dir().expect("a directory"), Hub::at("/nowhere"));
        assert_eq!(model_folder(Path::new("./tiny"), &hub).expect("left alone"), here.join("./tiny"));
        assert_eq!(model_folder(Path::new("/tiny"), &hub).expect("left alone"), PathBuf::from("/tiny"));
        assert!(model_folder(Path::new("~/tiny"), &hub).expect("left alone").is_absolute());
        assert_eq!(model_folder(Path::new("~/tiny"), &hub).expect("found"), expand_path(Path::new("~/tiny")));
        let error = model_folder(Path::new("org/tiny"), &hub).expect_err("nowhere").to_string();
        assert!(error.contains(&here.display().to_string()), "{error}");
    }

    #[test]
    fn seconds_may_be_fractions_but_not_negative() {
        assert_eq!(parse(&[]).expect("valid").coordinator_grace, Duration::from_secs(60));
        let grace = parse(&["--coordinator-grace", "0.5"]).expect("valid").coordinator_grace;
        assert_eq!(grace, Duration::from_millis(500));
        for odd in ["--coordinator-grace=-1", "--coordinator-grace=inf", "--coordinator-grace=soon"] {
            let message = parse(&[odd]).expect_err("refused");
            assert!(message.contains("--coordinator-grace"), "{message}");
        }
    }
}
