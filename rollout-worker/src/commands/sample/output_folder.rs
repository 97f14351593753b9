//! The folder that images are written to: seen to be usable before anything is drawn, and nothing in it is replaced unasked.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::commands::image_file;

/// Tried out in a folder before it is relied on.
const PROBE: &str = ".sample.partial";

/// A folder that can be written to.
#[derive(Debug)]
pub struct OutputFolder<'a> {
    path: &'a Path,
    is_new: bool,
    /// Images in it that nobody is going to write.
    pub n_others: usize,
}

impl<'a> OutputFolder<'a> {
    /// Makes the folder, unless it is there, and sees that it can hold files of these names.
    ///
    /// # Errors
    /// If it is no folder, cannot be written to, or, unless they are to be replaced, has such files already.
    pub fn prepare(path: &'a Path, names: &BTreeSet<String>, replace: bool) -> anyhow::Result<Self> {
        let is_new = !path.exists();
        if !is_new && !path.is_dir() {
            bail!("`--out` {} is no folder; give another", path.display());
        }
        let present = if is_new { BTreeSet::new() } else { file_names(path)? };
        let mut there = names.intersection(&present);
        if let Some(first) = there.next().filter(|_| !replace) {
            bail!(
                "{} holds {} of the {} images already, the first of them {first}; give another `--out`, or `--force` to \
                 replace them",
                path.display(),
                1 + there.count(),
                names.len()
            );
        }
        let usable = fs::create_dir_all(path).and_then(|()| {
            let probe = path.join(PROBE);
            fs::File::create(&probe).and_then(|_| fs::remove_file(&probe))
        });
        usable.with_context(|| format!("`--out` {} cannot be written to; give another", path.display()))?;
        let n_others = present.difference(names).filter(|name| image_file::is_one(Path::new(name))).count();
        Ok(Self { path, is_new, n_others })
    }

    /// Takes the folder away again if it is empty and was not there before.
    pub fn forget(self) {
        if self.is_new {
            // One that has something in it stays.
            let _ = fs::remove_dir(self.path);
        }
    }
}

fn file_names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let unreadable = || format!("reading `--out` {}", folder.display());
    let entries = fs::read_dir(folder).with_context(unreadable)?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).with_context(unreadable)
    };
    entries.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(numbers: std::ops::Range<u32>) -> BTreeSet<String> {
        numbers.map(|number| image_file::name(number, 0)).collect()
    }

    #[test]
    fn images_are_replaced_only_if_asked() {
        let home = tempfile::tempdir().unwrap();
        for number in 1..4 {
            fs::write(home.path().join(image_file::name(number, 0)), "kept").unwrap();
        }
        fs::write(home.path().join("notes.txt"), "kept").unwrap();
        let told = OutputFolder::prepare(home.path(), &names(0..3), false).unwrap_err().to_string();
        assert!(told.contains("2 of the 3 images already, the first of them 00001-0.png"), "{told}");
        assert!(told.contains("--out") && told.contains("--force"), "{told}");
        assert_eq!(OutputFolder::prepare(home.path(), &names(0..3), true).unwrap().n_others, 1);
        assert_eq!(OutputFolder::prepare(home.path(), &names(7..9), false).unwrap().n_others, 3);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 4, "nothing is left of the trial");
    }

    #[test]
    fn what_is_no_folder_or_cannot_be_one_is_refused_with_the_flag() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "kept").unwrap();
        for path in [file.clone(), file.join("below")] {
            let told = format!("{:#}", OutputFolder::prepare(&path, &names(0..1), true).unwrap_err());
            assert!(told.contains("--out") && told.contains("give another"), "{told}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn only_an_empty_folder_of_its_own_is_taken_away() {
        let home = tempfile::tempdir().unwrap();
        let (new, used) = (home.path().join("new"), home.path().join("used"));
        let prepare = |path| OutputFolder::prepare(path, &names(0..1), false).unwrap();
        prepare(&new).forget();
        assert!(!new.exists());
        let folder = prepare(&used);
        fs::write(used.join("00000-0.png"), "an image").unwrap();
        folder.forget();
        prepare(home.path()).forget();
        assert!(used.join("00000-0.png").exists());
    }
}
