//! Names of models, and what the Hugging Face cache of this machine says of them.

use service::Hub;
use std::path::Path;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A name, then what the reference `main` holds.
pub(super) fn names() -> Vec<Vec<u8>> {
    let commit = format!("org/tiny@{COMMIT}");
    [("org/tiny", COMMIT), ("org/tiny@main", "0123\n"), (&commit, ""), ("./folder", "../..")]
        .map(|(name, reference)| [name, reference].map(str::as_bytes).join(&0xff))
        .to_vec()
}

/// A name is a path that is left alone, or stands for a snapshot in the cache and nothing else.
pub(super) fn check_name(bytes: &[u8]) -> bool {
    let [name, reference] = crate::parts::<2>(bytes);
    let cache = tempfile::tempdir().expect("a folder");
    let model = cache.path().join("models--org--tiny");
    let snapshot = model.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).expect("made");
    std::fs::create_dir_all(model.join("refs")).expect("made");
    std::fs::write(model.join("refs/main"), reference).expect("written");
    let name = String::from_utf8_lossy(name);
    let given = Path::new(name.as_ref());
    match Hub::at(cache.path()).resolve(given) {
        Ok(found) => {
            assert!(found == given || found == snapshot, "`{name}` leads to {}", found.display());
        }
        Err(error) => assert!(error.to_string().contains("hf download"), "no remedy: {error}"),
    }
    true
}
