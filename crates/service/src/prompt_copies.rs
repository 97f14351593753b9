//! The prompts of a run as its directory keeps them.
//!
//! The coordinator alone reads the files that the config names, once, and leaves a copy of each list in the run directory;
//! all other processes read the copies, of which the coordinator told them the digests. So no two processes of a run can
//! have different lists, whatever becomes of the files meanwhile.

use crate::{OwnedDirectory, RunDirectory, ServiceError};
use config::{PromptFileError, PromptRecord, PromptSplit};
use proto::JoinReply;
use std::collections::HashMap;
use std::path::PathBuf;

/// Why a copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptCopyError {
    /// It is not what the coordinator wrote.
    #[error(
        "{} is not the list of prompts that the coordinator read; nobody may change it while the run lives: stop the run \
         and go on by `coordinator resume RUN`, which writes it anew",
        path.display()
    )]
    Changed {
        /// The copy.
        path: PathBuf,
    },
    /// The coordinator has no such list.
    #[error("the coordinator told of no list of prompts for `{}`; build all programs together", split.key())]
    Untold {
        /// What the prompts would be for.
        split: PromptSplit,
    },
    /// It cannot be read.
    #[error("failed to read the run's copy of its prompts")]
    Unreadable(#[from] PromptFileError),
}

/// The copies of a run's prompts, and what must be in them.
#[derive(Clone, Debug)]
pub struct PromptCopies {
    directory: RunDirectory,
    digests: HashMap<String, String>,
}

impl PromptCopies {
    /// The copies that the coordinator told a member of.
    pub fn of(reply: &JoinReply) -> Self {
        Self { directory: RunDirectory::new(&reply.run_directory), digests: reply.prompt_digests.clone() }
    }

    /// The same in another directory than the coordinator's.
    pub fn below(directory: RunDirectory, reply: &JoinReply) -> Self {
        Self { directory, digests: reply.prompt_digests.clone() }
    }

    /// Whether the run has prompts for a purpose.
    pub fn has(&self, split: PromptSplit) -> bool {
        self.digests.contains_key(&split.to_string())
    }

    /// Reads a list.
    ///
    /// # Errors
    /// If the run has no such list, or the copy cannot be read or is not the list that the coordinator has.
    pub fn read(&self, split: PromptSplit) -> Result<Vec<PromptRecord>, PromptCopyError> {
        let digest = self.digests.get(&split.to_string()).ok_or(PromptCopyError::Untold { split })?;
        let path = self.directory.prompts(split);
        let records = config::read_prompts(&path)?;
        match prompt_digest(&records) == *digest {
            true => Ok(records),
            false => Err(PromptCopyError::Changed { path }),
        }
    }
}

/// Names a list of prompts by what is in it.
pub fn prompt_digest(records: &[PromptRecord]) -> String {
    blake3::hash(config::prompts_as_json_lines(records).as_bytes()).to_hex().to_string()
}

/// Leaves a copy of a list in the run directory, unless it has just that already.
///
/// # Errors
/// If it cannot be written.
pub fn write_prompts(
    directory: &OwnedDirectory,
    split: PromptSplit,
    records: &[PromptRecord],
) -> Result<(), ServiceError> {
    let (path, text) = (directory.prompts(split), config::prompts_as_json_lines(records));
    if config::read_whole(&path, config::MOST_PROMPT_BYTES).is_ok_and(|bytes| bytes == text.as_bytes()) {
        return Ok(());
    }
    directory.create_directory(&directory.prompt_folder())?;
    directory.write_file(&path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ownership;

    #[test]
    fn a_copy_is_the_list_that_was_told_of_or_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        let file = home.path().join("mine.csv");
        std::fs::write(&file, "prompt,n\na cat,1\n\"a\ndog\",2\n").expect("written");
        let records = config::read_prompts(&file).expect("valid");
        let owned = Ownership::claim(&directory, 0, None).expect("nobody else's");
        write_prompts(owned.directory(), PromptSplit::Test, &records).expect("written");
        let reply = JoinReply {
            run_directory: home.path().display().to_string(),
            prompt_digests: [("test".to_owned(), prompt_digest(&records))].into(),
            ..JoinReply::default()
        };
        let copies = PromptCopies::of(&reply);
        // What becomes of the user's file is of no concern to a living run.
        std::fs::write(&file, "prompt\nanother\n").expect("written");
        assert_eq!(copies.read(PromptSplit::Test).expect("as written"), records);
        assert!(copies.has(PromptSplit::Test) && !copies.has(PromptSplit::Train));
        let error = copies.read(PromptSplit::Train).expect_err("no such list").to_string();
        assert!(error.contains("`data.train`"), "{error}");
        std::fs::write(directory.prompts(PromptSplit::Test), "{\"prompt\": \"a fox\"}\n").expect("written");
        let error = copies.read(PromptSplit::Test).expect_err("another list").to_string();
        assert!(error.contains("prompts/test.jsonl is not the list"), "{error}");
    }
}
