//! What of a run is exported, and whether it is what its newest checkpoint has.

use crate::advice;
use crate::checkpoint_list::{checkpoints, marked_best};
use crate::error::CoordinatorError;
use service::{EXPORTED_FOLDERS, Provenance, RunDirectory};

/// Checks that what is exported of a run is of one version, and if nobody is working on the run of its checkpoint's, the
/// newest or the best.
///
/// # Errors
/// If it is not, with the remedy.
pub fn check(directory: &RunDirectory, lives: bool) -> Result<(), CoordinatorError> {
    let remedy = match lives {
        true => "the run is exporting it; try again in a moment".to_owned(),
        false => {
            let command = advice::resume(directory.path());
            format!("the run was interrupted; `{command}` finishes the export")
        }
    };
    let not_exported = |what: String| Err(CoordinatorError::NotExported(format!("{what}; {remedy}")));
    let newest = checkpoints(directory).last().map(|(version, _)| *version);
    let places =
        [(directory.adapter(), "newest", newest), (directory.best_adapter(), "best", marked_best(directory))];
    for (place, checkpoint, expected) in places {
        if place.join(EXPORTED_FOLDERS[0]).exists() != place.join(EXPORTED_FOLDERS[1]).exists() {
            return not_exported(format!("{} has only one of `peft` and `diffusers`", place.display()));
        }
        let versions: Vec<(&str, u32)> = EXPORTED_FOLDERS
            .iter()
            .filter_map(|folder| Some((*folder, Provenance::read(&place.join(folder))?.version)))
            .collect();
        if let [(one, first), (other, second)] = versions[..]
            && first != second
        {
            let place = place.display();
            return not_exported(format!("{place}/{one} is of version {first}, {other} of version {second}"));
        }
        if let ([(_, version), ..], Some(expected)) = (&versions[..], expected)
            && *version != expected
            && !lives
        {
            let place = place.display();
            return not_exported(format!(
                "{place} is of version {version}, the {checkpoint} checkpoint of {expected}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn export(place: &Path, folder: &str, version: u32) {
        let folder = place.join(folder);
        std::fs::create_dir_all(&folder).expect("created");
        Provenance { version, average: String::new() }.write(&folder).expect("written");
    }

    #[test]
    fn what_is_handed_out_is_of_one_version_and_the_newest() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        directory.create().expect("created");
        check(&directory, false).expect("nothing is there");
        std::fs::create_dir(directory.checkpoints().join("iteration-000004")).expect("created");
        let (adapter, best) = (directory.adapter(), directory.best_adapter());
        let refused = |lives: bool| {
            let error = check(&directory, lives).expect_err("refused");
            assert_eq!(error.exit_code(), 75);
            error.to_string()
        };
        export(&adapter, "peft", 4);
        assert!(refused(false).contains("only one of `peft` and `diffusers`"));
        export(&adapter, "diffusers", 3);
        assert!(refused(false).contains("peft is of version 4, diffusers of version 3"));
        assert!(refused(true).contains("try again"));
        export(&adapter, "peft", 3);
        assert!(refused(false).contains("is of version 3, the newest checkpoint of 4"));
        check(&directory, true).expect("a living run is about to export it");
        ["peft", "diffusers"].iter().for_each(|folder| export(&adapter, folder, 4));
        check(&directory, false).expect("as it should be");
        export(&best, "peft", 2);
        export(&best, "diffusers", 1);
        assert!(refused(false).contains("best/peft is of version 2"));
        export(&best, "diffusers", 2);
        assert_eq!(Provenance::of_exports(&directory).len(), 4);
        check(&directory, false).expect("the best may be an earlier one");
        std::fs::write(directory.checkpoints().join("best"), "iteration-000003\n").expect("written");
        assert!(refused(false).contains("is of version 2, the best checkpoint of 3"));
    }
}
