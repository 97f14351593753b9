//! What became of the keys of an imported file.

use std::fmt;

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It means the same here.
    Carried {
        /// Our key.
        ours: &'static str,
    },
    /// It means something else here, and was turned into that.
    Translated {
        /// Our key.
        ours: &'static str,
        /// What was done.
        note: String,
    },
    /// There is nothing here that it could set.
    NotCarried {
        /// Why.
        reason: String,
    },
}

/// One key of the imported file and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportEntry {
    /// Their key, dotted.
    pub theirs: String,
    /// Its value; `None` where the file is silent and the default of its authors applies.
    pub value: Option<String>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of every key, those that the file leaves to their defaults included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// The keys, in the order of translation.
    pub entries: Vec<ImportEntry>,
}

impl ImportReport {
    /// What became of a key of the imported file.
    pub fn fate(&self, theirs: &str) -> Option<&Fate> {
        self.entries.iter().find(|entry| entry.theirs == theirs).map(|entry| &entry.fate)
    }

    /// Where each of our keys comes from, for the comments of the written config.
    pub(super) fn comments(&self) -> Vec<(&str, String)> {
        let mut comments: Vec<(&str, String)> = Vec::new();
        for entry in &self.entries {
            let (ours, comment) = match &entry.fate {
                Fate::Carried { ours } => (*ours, entry.origin()),
                Fate::Translated { ours, note } => (*ours, format!("{}: {note}", entry.origin())),
                Fate::NotCarried { .. } => continue,
            };
            match comments.iter_mut().find(|(key, _)| *key == ours) {
                Some((_, text)) => text.push_str(&format!("\n{comment}")),
                None => comments.push((ours, comment)),
            }
        }
        comments
    }
}

impl ImportEntry {
    /// `key = value`, or that the file is silent.
    fn origin(&self) -> String {
        match &self.value {
            Some(value) => format!("{} = {value}", self.theirs),
            None => format!("{} (their default)", self.theirs),
        }
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |wanted: fn(&ImportEntry) -> bool| self.entries.iter().filter(move |entry| wanted(entry));
        writeln!(f, "carried over")?;
        for entry in of(|entry| entry.value.is_some() && matches!(entry.fate, Fate::Carried { .. })) {
            writeln!(f, "  {entry}")?;
        }
        writeln!(f, "translated")?;
        for entry in of(|entry| entry.value.is_some() && matches!(entry.fate, Fate::Translated { .. })) {
            writeln!(f, "  {entry}")?;
        }
        writeln!(f, "their defaults, where the file is silent")?;
        for entry in of(|entry| entry.value.is_none()) {
            writeln!(f, "  {entry}")?;
        }
        writeln!(f, "not carried over")?;
        for entry in of(|entry| entry.value.is_some() && matches!(entry.fate, Fate::NotCarried { .. })) {
            writeln!(f, "  {entry}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ImportEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fate {
            Fate::Carried { ours } => write!(f, "{ours} ← {}", self.origin()),
            Fate::Translated { ours, note } => write!(f, "{ours} ← {} ({note})", self.origin()),
            Fate::NotCarried { reason } => write!(f, "{}: {reason}", self.origin()),
        }
    }
}
