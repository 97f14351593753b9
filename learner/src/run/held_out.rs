//! Prompts that are never trained on: which list an evaluation takes, and what it is called.

use config::{DataSection, PromptRecord, PromptSplit, TaskKind};

/// The prompts that are never trained on.
#[derive(Debug)]
pub struct HeldOutPrompts {
    /// Evaluated all along, and what the best version is chosen by.
    evaluated: HeldOutList,
    /// Reported; absent where the former are.
    test: Option<HeldOutList>,
}

/// One list of them.
#[derive(Debug)]
pub(super) struct HeldOutList {
    /// In the order of their file.
    pub(super) prompts: Vec<PromptRecord>,
    /// Names the list by what is in it.
    pub(super) digest: String,
}

impl HeldOutList {
    fn new(prompts: Vec<PromptRecord>) -> Self {
        Self { digest: service::prompt_digest(&prompts), prompts }
    }
}

impl HeldOutPrompts {
    /// The lists of a config; `read` is asked for each once.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read<E>(
        data: &DataSection,
        read: impl Fn(PromptSplit) -> Result<Vec<PromptRecord>, E>,
    ) -> Result<Self, E> {
        let evaluated = HeldOutList::new(read(data.split_of(TaskKind::Evaluate))?);
        let test =
            if data.has_validation() { Some(HeldOutList::new(read(PromptSplit::Test)?)) } else { None };
        Ok(Self { evaluated, test })
    }

    pub(super) fn of(&self, kind: TaskKind) -> &HeldOutList {
        match kind {
            TaskKind::Test => self.test.as_ref().unwrap_or(&self.evaluated),
            TaskKind::Evaluate | TaskKind::Train => &self.evaluated,
        }
    }
}
