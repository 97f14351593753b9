//! `model_index.json`: library and class of each component, both null where it is absent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{ModelError, json_file};

/// The parts of a pipeline by name, with their classes.
pub(in crate::pipeline) struct ModelIndex {
    path: PathBuf,
    classes: BTreeMap<String, String>,
}

impl ModelIndex {
    pub(in crate::pipeline) fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("model_index.json");
        let entries: BTreeMap<String, serde_json::Value> = json_file::read(&path)?;
        let class =
            |(name, entry): (String, serde_json::Value)| Some((name, entry.get(1)?.as_str()?.to_owned()));
        let classes = entries.into_iter().filter_map(class).collect();
        Ok(Self { path, classes })
    }

    /// Names of the components that are not absent, sorted.
    pub(in crate::pipeline) fn components(&self) -> Vec<String> {
        self.classes.keys().cloned().collect()
    }

    pub(in crate::pipeline) fn has(&self, component: &str) -> bool {
        self.classes.contains_key(component)
    }

    pub(in crate::pipeline) fn class(&self, component: &str) -> Option<&str> {
        self.classes.get(component).map(String::as_str)
    }

    pub(in crate::pipeline) fn require(&self, component: &str, class: &str) -> Result<(), ModelError> {
        match self.class(component) {
            Some(found) if found == class => Ok(()),
            found => Err(ModelError::UnsupportedClass {
                path: self.path.clone(),
                found: format!("{} of `{component}`", found.unwrap_or("null")),
                supported: class.to_owned(),
            }),
        }
    }
}
