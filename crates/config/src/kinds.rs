//! The kinds of values, in the words of a person.

use toml::Value;

/// What is said of a number that is too large for TOML.
pub(crate) const ABOVE_WHOLE: &str = "above 2^63 − 1, the largest whole number that a config can hold";

/// What is said of a value that its key cannot hold, by the default of the key; `None` where its kind is right.
pub(crate) fn mismatch(default: &Value, given: &Value) -> Option<String> {
    match (default, given) {
        (Value::Integer(_), Value::Integer(number)) if *number < 0 => {
            return Some(format!("is {number}, where a whole number of 0 or more is wanted"));
        }
        (Value::Integer(_), Value::Integer(number)) => {
            return Some(format!("is {number}, above 2^32 − 1, the most that it can be"));
        }
        _ if default.same_type(given) => return None,
        _ => {}
    }
    let is_number = matches!(default, Value::Integer(_) | Value::Float(_));
    if let (true, Value::String(digits)) = (is_number, given)
        && is_whole(digits)
    {
        return Some(format!("is {digits}, {ABOVE_WHOLE}"));
    }
    Some(format!("is {given}, {}, where {} is wanted", given_kind(given), wanted_kind(default)))
}

/// Whether a text is a whole number; one that TOML can hold is no text.
fn is_whole(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn given_kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "a yes or no",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

fn wanted_kind(default: &Value) -> &'static str {
    match default {
        Value::String(_) => "a text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list in brackets",
        Value::Table(_) => "a section",
    }
}
