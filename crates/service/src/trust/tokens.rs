//! Tokens: who has the one of a role may become a member of that role, again and again, until it is rotated.

use super::identity::{certificates_in, read, roots, unusable};
use super::secret_file::check_private;
use super::{PeerRole, TrustError, provider};
use crate::{ServiceError, durable};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const PREFIX: &str = "tempflow";
const SECRET_BYTES: usize = 32;
/// Most bytes of a token file that comes on standard input.
const MOST_BYTES: u64 = 1024 * 1024;
/// Roles that join by a token.
pub const TOKEN_ROLES: [PeerRole; 4] =
    [PeerRole::Worker, PeerRole::Learner, PeerRole::Reward, PeerRole::Admin];

/// `tempflow.ROLE.DOMAIN.SECRET`.
#[derive(Clone)]
pub struct JoinToken {
    /// What its holder may be.
    pub role: PeerRole,
    /// Of which run.
    pub domain: String,
    secret: String,
}

impl JoinToken {
    /// A token that nobody can guess.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn draw(role: PeerRole, domain: &str) -> Result<Self, TrustError> {
        let mut bytes = [0; SECRET_BYTES];
        let drawn = provider().secure_random.fill(&mut bytes);
        drawn.map_err(|_| TrustError::Token("the system gives no random numbers for a token".to_owned()))?;
        let secret = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { role, domain: domain.to_owned(), secret })
    }

    /// The words that let its holder in; not for logs.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.role, self.domain, self.secret)
    }

    /// Whether two are the same, in a time that tells nothing of where they differ.
    fn is(&self, other: &Self) -> bool {
        blake3::hash(self.reveal().as_bytes()) == blake3::hash(other.reveal().as_bytes())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.…", self.role, self.domain)
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What is wrong is not shown: it may be a token with a letter too many.
        let malformed = || format!("is not `{PREFIX}.ROLE.RUN.SECRET`");
        let rest =
            text.trim().strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')).ok_or_else(malformed)?;
        let (role, rest) = rest.split_once('.').ok_or_else(malformed)?;
        // A run's name may have dots.
        let (domain, secret) = rest.rsplit_once('.').ok_or_else(malformed)?;
        let is_secret =
            secret.len() == 2 * SECRET_BYTES && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        if domain.is_empty() || !is_secret {
            return Err(malformed());
        }
        Ok(Self {
            role: role.parse().map_err(|_| malformed())?,
            domain: domain.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

/// What a member needs to join: a token, and the certificate of the run's authority, by which it knows the coordinator.
#[derive(Clone, Debug)]
pub struct TokenFile {
    /// The token.
    pub token: JoinToken,
    /// The authority's certificate.
    pub authority: Vec<CertificateDer<'static>>,
}

impl FromStr for TokenFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim);
        let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let first = lines.next().ok_or("is empty; it should have a token and a certificate")?;
        let token = first
            .parse()
            .map_err(|problem| format!("does not begin with a token: its first line {problem}"))?;
        let authority = certificates_in(text.as_bytes())?;
        Ok(Self { token, authority })
    }
}

/// Where a member has its token from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// Read again for every certificate, so that a rotated one is taken up.
    File(PathBuf),
    /// Read once.
    Given(Box<TokenFile>),
}

impl TokenSource {
    /// That of an argument: the path of a token file, `-` for standard input.
    ///
    /// # Errors
    /// If what comes there is no token file.
    pub fn of_argument(path: &Path) -> Result<Self, TrustError> {
        if path != Path::new("-") {
            return Ok(Self::File(path.to_owned()));
        }
        let mut text = String::new();
        let unusable =
            |problem: String| TrustError::Token(format!("the token file on standard input {problem}"));
        let reading = std::io::stdin().lock().take(MOST_BYTES).read_to_string(&mut text);
        reading.map_err(|error| unusable(format!("cannot be read: {error}")))?;
        Ok(Self::Given(Box::new(text.parse().map_err(unusable)?)))
    }

    /// The token and the authority, for a process of that role.
    ///
    /// # Errors
    /// If the file cannot be used, or is for others.
    pub fn read(&self, role: PeerRole) -> Result<TokenFile, TrustError> {
        let (file, place) = match self {
            Self::File(path) => {
                check_private(path)?;
                (TokenFile::read(path)?, path.display().to_string())
            }
            Self::Given(file) => ((**file).clone(), "the token file on standard input".to_owned()),
        };
        if file.token.role != role {
            return Err(TrustError::Token(format!(
                "{place} has a token for the role `{}`, and this is a process of the role `{role}`; give it {role}.token",
                file.token.role
            )));
        }
        Ok(file)
    }
}

impl TokenFile {
    /// What the coordinator is verified by.
    ///
    /// # Errors
    /// If the certificate is none of an authority.
    pub fn roots(&self) -> Result<RootCertStore, TrustError> {
        roots(self.authority.clone())
    }

    fn read(path: &Path) -> Result<Self, TrustError> {
        let text = String::from_utf8(read(path)?).map_err(|_| unusable(path, "is not text".to_owned()))?;
        text.parse().map_err(|problem| unusable(path, problem))
    }
}

/// The tokens of a run, in its folder of secrets; read again for each who comes, so that they can be rotated meanwhile.
#[derive(Clone, Debug)]
pub struct Tokens {
    folder: PathBuf,
    domain: String,
    authority: String,
}

impl Tokens {
    /// The tokens in a folder, as they are.
    pub fn of(folder: &Path, authority: &super::Authority) -> Self {
        let (domain, pem) = (authority.domain().to_owned(), authority.pem().to_owned());
        Self { folder: folder.to_owned(), domain, authority: pem }
    }

    /// The tokens in a folder; those that are missing are drawn.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn open(folder: &Path, authority: &super::Authority) -> Result<Self, ServiceError> {
        let tokens = Self::of(folder, authority);
        for role in TOKEN_ROLES {
            if !tokens.is_current(role)? {
                tokens.rotate(role)?;
            }
        }
        Ok(tokens)
    }

    /// Whether a role has a token that this run's coordinator takes: neither run nor authority were made anew since.
    ///
    /// # Errors
    /// If its file is there and cannot be read, or others may read it: drawing another would lock out whoever holds the token.
    fn is_current(&self, role: PeerRole) -> Result<bool, ServiceError> {
        let path = Self::path(&self.folder, role);
        let is_there = path.try_exists();
        if !is_there.map_err(|source| ServiceError::File {
            action: "look for",
            path: path.clone(),
            source,
        })? {
            return Ok(false);
        }
        check_private(&path)?;
        let (file, authority) = (TokenFile::read(&path)?, certificates_in(self.authority.as_bytes()));
        Ok(file.token.domain == self.domain && Ok(file.authority) == authority)
    }

    /// Where the token of a role lies.
    pub fn path(folder: &Path, role: PeerRole) -> PathBuf {
        folder.join(format!("{role}.token"))
    }

    /// Replaces the token of a role; the one before lets nobody in any more.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn rotate(&self, role: PeerRole) -> Result<PathBuf, ServiceError> {
        let token = JoinToken::draw(role, &self.domain)?;
        let text = format!(
            "# Lets its holder join {} as {role}. Keep it secret; the certificate below is not.\n{}\n{}",
            self.domain,
            token.reveal(),
            self.authority
        );
        let path = Self::path(&self.folder, role);
        durable::write_private_file(&path, text.as_bytes())?;
        Ok(path)
    }

    /// The role that a token stands for.
    ///
    /// # Errors
    /// If it is none of this run, or none any more.
    pub fn role_of(&self, presented: &str) -> Result<PeerRole, TrustError> {
        let presented: JoinToken =
            presented.parse().map_err(|problem| TrustError::Token(format!("the token {problem}")))?;
        if presented.domain != self.domain {
            return Err(TrustError::Token(format!(
                "the token is of the run {}, and this is {}; use a token file of this run",
                crate::shown(&presented.domain, 100),
                self.domain
            )));
        }
        if !TOKEN_ROLES.contains(&presented.role) {
            return Err(TrustError::Token(format!("nobody becomes {} by a token", presented.role)));
        }
        let current = TokenFile::read(&Self::path(&self.folder, presented.role))?;
        match current.token.is(&presented) {
            true => Ok(presented.role),
            false => Err(TrustError::Token(format!(
                "the token for the role `{}` is not that of {}, or not any more: take a new copy of {}.token from the `tls` \
                 folder of the run's directory",
                presented.role, self.domain, presented.role
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Authority;
    use super::*;

    fn opened(home: &tempfile::TempDir, domain: &str) -> Tokens {
        let authority = Authority::open(home.path(), domain).expect("made");
        Tokens::open(home.path(), &authority).expect("drawn")
    }

    fn file(home: &tempfile::TempDir, role: PeerRole) -> TokenFile {
        TokenSource::File(Tokens::path(home.path(), role)).read(role).expect("a token")
    }

    #[test]
    fn a_token_stands_for_its_role_until_it_is_rotated() {
        let home = tempfile::tempdir().expect("a folder");
        let tokens = opened(&home, "run.1-a");
        let old = file(&home, PeerRole::Worker).token;
        assert_eq!(tokens.role_of(&old.reveal()).expect("current"), PeerRole::Worker);
        assert_eq!(opened(&home, "run.1-a").role_of(&old.reveal()).expect("kept"), PeerRole::Worker);
        tokens.rotate(PeerRole::Worker).expect("rotated");
        let told = tokens.role_of(&old.reveal()).expect_err("rotated").to_string();
        assert!(told.contains("not any more: take a new copy of worker.token"), "{told}");
        let new = file(&home, PeerRole::Worker).token;
        assert_eq!(tokens.role_of(&new.reveal()).expect("the new one"), PeerRole::Worker);
        assert_eq!(file(&home, PeerRole::Learner).token.role, PeerRole::Learner);
    }

    #[test]
    fn tokens_of_others_are_refused_and_never_shown() {
        let (home, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let tokens = opened(&home, "run-a");
        drop(opened(&other, "run-b"));
        let foreign = file(&other, PeerRole::Worker).token;
        let forged = format!("tempflow.coordinator.run-a.{}", foreign.secret);
        let promoted = file(&home, PeerRole::Worker).token.reveal().replace(".worker.", ".learner.");
        for (presented, words) in [
            (foreign.reveal(), "is of the run run-b, and this is run-a"),
            (forged, "nobody becomes coordinator by a token"),
            (promoted.clone(), "take a new copy of learner.token"),
            ("secret".to_owned(), "the token is not `tempflow.ROLE.RUN.SECRET`"),
        ] {
            let told = tokens.role_of(&presented).expect_err("refused").to_string();
            assert!(told.contains(words) && !told.contains(&foreign.secret), "{told}");
        }
        assert!(!format!("{:?}", file(&home, PeerRole::Worker)).contains(&promoted[promoted.len() - 8..]));
    }

    #[test]
    fn a_token_file_of_another_role_is_told_apart() {
        let home = tempfile::tempdir().expect("a folder");
        drop(opened(&home, "run-a"));
        let source = TokenSource::File(Tokens::path(home.path(), PeerRole::Worker));
        let told = source.read(PeerRole::Learner).expect_err("refused").to_string();
        assert!(
            told.contains("token for the role `worker`") && told.contains("give it learner.token"),
            "{told}"
        );
        for (text, words) in [("", "is empty"), ("hello", "does not begin with a token")] {
            assert!(text.parse::<TokenFile>().expect_err("refused").contains(words));
        }
    }
}
