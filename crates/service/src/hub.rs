//! Models by name: a folder, or a repository in the Hugging Face cache of this machine.
//!
//! The cache has for each repository a folder `models--ORG--NAME` with `refs/REVISION`, a file that names a commit, and
//! `snapshots/COMMIT`, the files as they are in the repository.
//!
//! Built with the feature `hub`, a repository that the cache lacks is downloaded by `hf`, Hugging Face's own client, which
//! knows about tokens, mirrors, resumed transfers and locks; nothing here reads or logs a token.

use crate::cuda::without_cuda_half;
use crate::environment::expand_path_by;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Hugging Face's command line client.
const CLIENT: &str = "hf";
const DEFAULT_REVISION: &str = "main";

/// Where this machine keeps models.
#[derive(Clone, Debug)]
pub struct Hub {
    cache: PathBuf,
    /// What downloads a repository that the cache lacks.
    client: Option<PathBuf>,
}

/// A name that stands for no model here.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{model}` is neither a folder{} nor in the Hugging Face cache {}, where {missing} is missing; {remedy}, or set HF_HOME \
     to where it is",
    folder.as_ref().map(|folder| format!(" in {}", folder.display())).unwrap_or_default(),
    cache.display()
)]
pub struct ModelNotFound {
    /// As given.
    model: String,
    /// The working directory, which it was looked for in.
    folder: Option<PathBuf>,
    cache: PathBuf,
    /// The first path below the cache that is not there.
    missing: String,
    /// How it is downloaded, and what became of an attempt to.
    remedy: String,
}

impl Hub {
    /// The cache below this folder.
    pub fn at(cache: impl Into<PathBuf>) -> Self {
        Self { cache: cache.into(), client: None }
    }

    /// The same with a client that downloads what the cache lacks: a program with the arguments of `hf`.
    pub fn with_client(self, client: impl Into<PathBuf>) -> Self {
        Self { client: Some(client.into()), ..self }
    }

    /// The cache that the environment names, by Hugging Face's own rules; `variable` looks a variable up.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let expanded = |path: &Path| expand_path_by(path, &variable);
        let path = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(|value| expanded(Path::new(&value)))
        };
        let hugging_face = || {
            let caches = || path("XDG_CACHE_HOME").unwrap_or_else(|| expanded(Path::new("~/.cache")));
            path("HF_HOME").unwrap_or_else(|| caches().join("huggingface"))
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let hub = Self::at(cache.unwrap_or_else(|| hugging_face().join("hub")));
        let is_offline = variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value.to_string_lossy()));
        match cfg!(feature = "hub") && !is_offline {
            true => hub.with_client(CLIENT),
            false => hub,
        }
    }

    /// The folder of a model: what is given, unless that is no folder but reads as `org/name` or `org/name@revision`.
    ///
    /// # Errors
    /// If it reads as a repository that the cache does not have, and that cannot be downloaded.
    pub fn resolve(&self, model: &Path) -> Result<PathBuf, ModelNotFound> {
        let repository = model.to_str().filter(|_| !model.is_dir()).and_then(Repository::parse);
        let Some(repository) = repository else { return Ok(model.to_owned()) };
        match (self.find(model, &repository), &self.client) {
            (Err(not_found), Some(client)) => match download(client, &repository) {
                Ok(()) => self.find(model, &repository),
                Err(problem) => {
                    Err(ModelNotFound { remedy: format!("{} ({problem})", not_found.remedy), ..not_found })
                }
            },
            (found, _) => found,
        }
    }

    fn find(&self, model: &Path, repository: &Repository) -> Result<PathBuf, ModelNotFound> {
        let Repository { name, revision } = *repository;
        let folder = PathBuf::from(format!("models--{}", name.replace('/', "--")));
        let reference = config::read_settings(&self.cache.join(&folder).join("refs").join(revision));
        // A full commit needs no reference. What a reference says is the name of a folder, and leads nowhere else.
        let reference = reference.as_deref().map(str::trim).ok().filter(|commit| is_word(commit));
        let commit = reference.unwrap_or(revision);
        let snapshot = folder.join("snapshots").join(commit);
        if self.cache.join(&snapshot).is_dir() {
            return Ok(self.cache.join(snapshot));
        }
        let is_there = |path: &PathBuf| self.cache.join(path).exists();
        let missing = if is_there(&folder) { snapshot } else { folder };
        Err(ModelNotFound {
            model: model.display().to_string(),
            folder: std::env::current_dir().ok(),
            cache: self.cache.clone(),
            missing: missing.display().to_string(),
            remedy: format!("download it with `hf download {name}{}`", revision_argument(revision)),
        })
    }
}

/// Has the client fill its cache, which is this one since both read the same environment; its progress is shown.
fn download(client: &Path, repository: &Repository) -> Result<(), String> {
    let arguments = ["download", repository.name, "--revision", repository.revision];
    // Its standard output is the folder, which is found by its name.
    let mut command = Command::new(client);
    command.args(arguments).stdout(std::process::Stdio::null());
    match without_cuda_half(&mut command).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{}` failed with {status}", client.display())),
        Err(problem) => Err(format!("`{}` cannot be started: {problem}", client.display())),
    }
}

/// Hugging Face's reading of a variable that is on or off.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

/// `org/name@revision`.
struct Repository<'a> {
    name: &'a str,
    revision: &'a str,
}

impl<'a> Repository<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let (organisation, repository) = name.split_once('/')?;
        let is_revision = !revision.is_empty() && revision.split('/').all(is_word);
        (is_word(organisation) && is_word(repository) && is_revision).then_some(Self { name, revision })
    }
}

/// Whether a text is one plain name: no path, and nothing that the client would take for a flag.
fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(is_plain)
}

fn revision_argument(revision: &str) -> String {
    match revision {
        DEFAULT_REVISION => String::new(),
        _ => format!(" --revision {revision}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with `org/tiny` at `main` and at `refs/pr/1`.
    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().expect("a folder");
        let folder = cache.path().join("models--org--tiny");
        std::fs::create_dir_all(folder.join("refs/refs/pr")).expect("made");
        std::fs::create_dir_all(folder.join("snapshots").join(COMMIT)).expect("made");
        std::fs::write(folder.join("refs/main"), format!("{COMMIT}\n")).expect("written");
        std::fs::write(folder.join("refs/refs/pr/1"), COMMIT).expect("written");
        cache
    }

    #[test]
    fn a_repository_is_found_by_branch_pull_request_and_commit() {
        let cache = cache();
        let expected = cache.path().join("models--org--tiny/snapshots").join(COMMIT);
        let commit = format!("org/tiny@{COMMIT}");
        for model in ["org/tiny", "org/tiny@main", "org/tiny@refs/pr/1", commit.as_str()] {
            assert_eq!(Hub::at(cache.path()).resolve(Path::new(model)).expect("found"), expected, "{model}");
        }
    }

    #[test]
    fn a_reference_leads_nowhere_but_to_a_snapshot() {
        let cache = cache();
        let elsewhere = tempfile::tempdir().expect("a folder");
        let outside = elsewhere.path().display().to_string();
        for told in ["", "..", "../../..", ".", "refs/main", outside.as_str()] {
            std::fs::write(cache.path().join("models--org--tiny/refs/main"), told).expect("written");
            let error = Hub::at(cache.path()).resolve(Path::new("org/tiny")).expect_err("no snapshot");
            assert!(error.to_string().contains("snapshots/main is missing"), "{told}: {error}");
        }
    }

    #[test]
    fn what_is_not_there_is_named_with_the_command_that_gets_it() {
        let cache = cache();
        for (model, missing, command) in [
            ("org/other", "models--org--other", "`hf download org/other`"),
            ("org/tiny@v2", "snapshots/v2", "`hf download org/tiny --revision v2`"),
        ] {
            let error = Hub::at(cache.path()).resolve(Path::new(model)).expect_err("missing").to_string();
            assert!(error.contains(missing) && error.contains(command), "{error}");
        }
    }

    /// A client in place of the real one: a script.
    fn client(folder: &Path, script: &str) -> PathBuf {
        let (text, path) = (folder.join("text"), folder.join("client"));
        std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).expect("written");
        // Another process makes the program: one that this process has open for writing, as tests in other threads may
        // inherit, cannot be started.
        let install = Command::new("install").args(["-m", "755"]).args([&text, &path]).status();
        assert!(install.expect("started").success());
        path
    }

    #[test]
    fn what_is_missing_is_downloaded_once_where_there_is_a_client() {
        let (cache, folder) = (cache(), tempfile::tempdir().expect("a folder"));
        let (root, log) = (cache.path().display(), folder.path().join("log"));
        let script = format!(
            "echo \"$@\" >> {}; mkdir -p {root}/models--org--new/refs {root}/models--org--new/snapshots/{COMMIT}; \
             printf {COMMIT} > {root}/models--org--new/refs/main",
            log.display()
        );
        let hub = Hub::at(cache.path()).with_client(client(folder.path(), &script));
        for _ in 0..2 {
            let found = hub.resolve(Path::new("org/new")).expect("downloaded");
            assert_eq!(found, cache.path().join("models--org--new/snapshots").join(COMMIT));
        }
        let calls = std::fs::read_to_string(log).expect("a log");
        assert_eq!(calls, "download org/new --revision main\n");
    }

    #[test]
    fn a_client_that_fails_or_is_not_there_is_named() {
        let (cache, folder) = (cache(), tempfile::tempdir().expect("a folder"));
        let failing = client(folder.path(), "exit 3");
        for (client, reason) in [(failing, "exit status: 3"), ("/no/such/client".into(), "cannot be started")]
        {
            let error = Hub::at(cache.path()).with_client(client).resolve(Path::new("org/other"));
            let error = error.expect_err("not there").to_string();
            assert!(error.contains(reason) && error.contains("models--org--other is missing"), "{error}");
        }
    }

    #[test]
    fn offline_means_that_nothing_is_downloaded() {
        for (value, is_offline) in [("1", true), ("true", true), ("0", false), ("", false)] {
            assert_eq!(is_true(value), is_offline, "{value:?}");
        }
        let offline = Hub::from_environment(|name| (name == "HF_HUB_OFFLINE").then(|| "1".into()));
        assert_eq!(offline.client, None);
        let online = Hub::from_environment(|_| None);
        assert_eq!(online.client.is_some(), cfg!(feature = "hub"));
    }

    #[test]
    fn paths_are_left_alone() {
        let (cache, folder) = (cache(), tempfile::tempdir().expect("a folder"));
        let hub = Hub::at(cache.path());
        let given = [
            "/nowhere",
            "./org/tiny",
            "../tiny",
            "a/b/c",
            "tiny",
            "org/tiny@../../x",
            "org/..",
            "-x/y",
            "org/tiny@-x",
        ];
        for path in given.iter().map(Path::new).chain([folder.path()]) {
            assert_eq!(hub.resolve(path).expect("left alone"), path);
        }
    }

    #[test]
    fn the_cache_is_where_hugging_face_keeps_it() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/e", "/e/.cache/huggingface/hub"),
        ];
        for first in 0..all.len() {
            let given = &all[first..];
            let look_up = |name: &str| given.iter().find(|(known, _, _)| *known == name).map(|v| v.1.into());
            assert_eq!(Hub::from_environment(look_up).cache, Path::new(given[0].2));
        }
    }

    #[test]
    fn tildes_and_variables_in_the_environment_are_expanded() {
        let cases = [
            (("HF_HUB_CACHE", "~/hub"), "/home/ada/hub"),
            (("HUGGINGFACE_HUB_CACHE", "$SCRATCH/hub"), "/scratch/hub"),
            (("HF_HOME", "${SCRATCH}/hf"), "/scratch/hf/hub"),
            (("XDG_CACHE_HOME", "~/.c"), "/home/ada/.c/huggingface/hub"),
            (("HF_HOME", "$NOWHERE/hf"), "$NOWHERE/hf/hub"),
        ];
        for ((name, value), expected) in cases {
            let all = [("HOME", "/home/ada"), ("SCRATCH", "/scratch"), (name, value)];
            let look_up = |wanted: &str| all.iter().find(|(name, _)| *name == wanted).map(|v| v.1.into());
            assert_eq!(Hub::from_environment(look_up).cache, Path::new(expected), "{name}={value}");
        }
        // A process may have no HOME: the system knows its user's.
        let cache = Hub::from_environment(|_| None).cache;
        assert!(cache.is_absolute() && cache.ends_with(".cache/huggingface/hub"), "{cache:?}");
    }
}
