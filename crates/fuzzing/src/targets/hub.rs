//! Names of models, and what the Hugging Face cache of this machine says of them.

use service::Hub;
use std::path::Path;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

thread_local! {
    /// A cache with one model, whose reference the inputs are written to; it is gone when the thread ends.
    static CACHE: TempDir = {
        let cache = tempfile::tempdir().expect("a folder");
        let model = cache.path().join("models--org--tiny");
        std::fs::create_dir_all(model.join("snapshots").join(COMMIT)).expect("made");
        std::fs::create_dir_all(model.join("refs")).expect("made");
        cache
    };
}

/// A name, then what the reference `main` holds.
pub(super) fn names() -> Vec<Vec<u8>> {
    let commit = format!("org/tiny@{COMMIT}");
    [("org/tiny", COMMIT), ("org/tiny@main", "0123\n"), (&commit, ""), ("./folder", "../..")]
        .map(|(name, reference)| [name, reference].map(str::as_bytes).join(&0xff))
        .to_vec()
}

/// A name is a path that is left alone, or stands for a snapshot in the cache and nothing else.
pub(super) fn check_name(bytes: &[u8]) -> bool {
    CACHE.with(|cache| check_name_in(cache.path(), bytes));
    true
}

fn check_name_in(cache: &Path, bytes: &[u8]) {
    let [name, reference] = crate::parts(bytes);
    let model = cache.join("models--org--tiny");
    std::fs::write(model.join("refs/main"), reference).expect("written");
    let name = String::from_utf8_lossy(name);
    let given = Path::new(name.as_ref());
    match Hub::at(cache).resolve(given) {
        Ok(found) => {
            let is_snapshot = found == model.join("snapshots").join(COMMIT);
            assert!(found == given || is_snapshot, "`{name}` leads to {}", found.display());
        }
        Err(error) => assert!(error.to_string().contains("hf download"), "no remedy: {error}"),
    }
}
