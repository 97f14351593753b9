//! What a run directory keeps of what the run reads: a copy of each list of prompts, and digests of these and of the files
//! of models, in `inputs.json` and once more in `run.json`. So the loss of any of them is noticed, and what is left tells
//! whether the run would go on with what it began with.

use crate::input_record::{InputRecord, PromptMark};
use crate::run_record::RunRecord;
use config::{PromptRecord, PromptSplit, read_prompts};
use service::RunDirectory;

/// What a run has kept of what it read.
#[derive(Debug)]
pub struct KeptInputs {
    directory: RunDirectory,
    /// The digests; absent where they are lost twice.
    pub record: Option<InputRecord>,
    /// What was lost and is made good.
    pub notice: Option<String>,
}

/// A list of prompts as a run has kept it.
#[derive(Clone, Debug, PartialEq)]
pub enum KeptPrompts {
    /// The copy, whole as far as can be told.
    Whole(Vec<PromptRecord>),
    /// The copy is lost or damaged; the digest is left, unless that is lost as well.
    Lost(Option<PromptMark>),
    /// The run has no such list.
    Absent,
}

impl KeptInputs {
    /// Looks at a run directory.
    pub fn of(directory: &RunDirectory) -> Self {
        let (directory, own) = (directory.clone(), InputRecord::read(directory));
        if own.is_some() {
            return Self { directory, record: own, notice: None };
        }
        let record = RunRecord::read(&directory).ok().and_then(|record| record.inputs);
        let notice = record.as_ref().map(|_| {
            let (lost, left) = (directory.inputs(), directory.run_file());
            format!("{} is lost or damaged; it is made anew of {}", lost.display(), left.display())
        });
        Self { directory, record, notice }
    }

    /// The prompts for a purpose.
    pub fn prompts(&self, split: PromptSplit) -> KeptPrompts {
        let path = self.directory.prompts(split);
        let copy = read_prompts(&path).ok();
        let marks = self.record.as_ref().map(|record| record.prompts.as_ref());
        match marks {
            Some(Some(marks)) => match (marks.get(&split.to_string()), copy) {
                (None, _) => KeptPrompts::Absent,
                (Some(mark), Some(copy)) if PromptMark::of(&copy) == *mark => KeptPrompts::Whole(copy),
                (Some(mark), _) => KeptPrompts::Lost(Some(mark.clone())),
            },
            // Earlier versions wrote the record when all copies had been made.
            Some(None) if self.directory.prompt_folder().is_dir() && !path.exists() => KeptPrompts::Absent,
            Some(None) | None => copy.map_or(KeptPrompts::Lost(None), KeptPrompts::Whole),
        }
    }

    /// Where the copy of the prompts for a purpose is, or was, for messages.
    pub fn copy_name(&self, split: PromptSplit) -> String {
        self.directory.prompts(split).display().to_string()
    }
}
