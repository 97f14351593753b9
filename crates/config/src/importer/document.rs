//! A Flow-Factory YAML as dotted keys with values, read with the defaults that its authors give them.

use super::ImportError;
use crate::validate::MOST;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The keys of a YAML, those of sections as `section.key`, and what was wrong with values that were asked for.
#[derive(Debug)]
pub(super) struct Document {
    values: BTreeMap<String, Value>,
    pub problems: Vec<String>,
}

impl Document {
    /// Reads a YAML.
    pub fn parse(yaml: &str, file: &str) -> Result<Self, ImportError> {
        let top: Map<String, Value> = serde_saphyr::from_str(yaml).map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
            let message = error.without_snippet().to_string();
            let message = message.lines().next().unwrap_or_default().to_owned();
            ImportError::Malformed { file: file.to_owned(), line, column, message }
        })?;
        let mut values = BTreeMap::new();
        flatten("", top, &mut values);
        Ok(Self { values, problems: Vec::new() })
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of a key, if it is given; `null` counts as not given.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is written, be it as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A value as it would be written in the YAML; empty for a key that is not given.
    pub fn written(&self, key: &str) -> String {
        self.values.get(key).map(written).unwrap_or_default()
    }

    /// A number; also one that YAML takes for a string, such as `1e-4`.
    pub fn number(&mut self, key: &str, default: f64) -> f64 {
        let found = self.get(key).map(as_number);
        self.settle(key, found, default, "a number")
    }

    /// A whole number, not negative.
    pub fn count(&mut self, key: &str, default: usize) -> usize {
        let found = self.get(key).map(as_count);
        self.settle(key, found, default, "a whole number")
    }

    /// A string.
    pub fn text(&mut self, key: &str, default: &str) -> String {
        let found = self.get(key).map(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        self.settle(key, found, default.to_owned(), "a string")
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let found = self.get(key).map(Value::as_bool);
        self.settle(key, found, default, "true or false")
    }

    /// Whole numbers; `None` where the key is not given.
    pub fn counts(&mut self, key: &str) -> Option<Vec<usize>> {
        let found = self.get(key)?;
        let list = found.as_array().and_then(|items| items.iter().map(as_count).collect());
        self.settle(key, Some(list.map(Some)), None, "a list of whole numbers")
    }

    /// A side of an image in pixels.
    pub fn side(&mut self, key: &str, default: usize) -> usize {
        let found = self.get(key).map(as_side);
        self.settle(key, found, default, "a whole number of pixels, from 1 on")
    }

    /// Height and width in pixels; one number stands for both.
    pub fn sides(&mut self, key: &str, default: usize) -> (usize, usize) {
        let found = self.get(key).map(|value| match value {
            Value::Array(items) => match items.as_slice() {
                [height, width] => as_side(height).zip(as_side(width)),
                _ => None,
            },
            single => as_side(single).map(|side| (side, side)),
        });
        self.settle(key, found, (default, default), "a whole number of pixels or a pair of them, from 1 on")
    }

    /// A range around 0, given as its half width or as both ends.
    pub fn range(&mut self, key: &str, default: f64) -> (f64, f64) {
        let (low, high) = self.pair(key, default);
        let is_single = self.get(key).is_none_or(|value| !value.is_array());
        let (low, high) = if is_single { (-low, high) } else { (low, high) };
        let found = (low <= 0.0 && high >= 0.0).then_some((low, high));
        self.settle(key, Some(found), (-default, default), "0 or more, or a pair of ends with 0 between them")
    }

    /// One or two numbers; one stands for both.
    pub fn pair(&mut self, key: &str, default: f64) -> (f64, f64) {
        let found = self.get(key).map(|value| match value {
            Value::Array(items) => match items.as_slice() {
                [low, high] => as_number(low).zip(as_number(high)),
                _ => None,
            },
            single => as_number(single).map(|number| (number, number)),
        });
        self.settle(key, found, (default, default), "a number or a pair of numbers")
    }

    /// The tables of a list, such as those of `rewards`.
    pub fn tables(&mut self, key: &str) -> Vec<Map<String, Value>> {
        let found = self.get(key).map(|value| match value {
            Value::Array(items) => items.iter().map(|item| item.as_object().cloned()).collect(),
            _ => None,
        });
        self.settle(key, found, Vec::new(), "a list of tables")
    }

    /// The value found or the default; a value of the wrong type is noted as a problem.
    fn settle<T>(&mut self, key: &str, found: Option<Option<T>>, default: T, expected: &str) -> T {
        match found {
            Some(Some(value)) => value,
            Some(None) => {
                self.problems.push(format!("`{key}` is {}; it must be {expected}", self.written(key)));
                default
            }
            None => default,
        }
    }
}

/// Sections become dotted keys; lists stay values.
fn flatten(prefix: &str, table: Map<String, Value>, values: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let dotted = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(section) if !section.is_empty() => flatten(&dotted, section, values),
            value => {
                values.insert(dotted, value);
            }
        }
    }
}

fn as_number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite())
}

fn as_count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}

fn as_side(value: &Value) -> Option<usize> {
    as_count(value).filter(|side| (1..=MOST).contains(side))
}

/// A value as it would be written in one line of YAML.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
