//! The tree that a pickle is read into.

use std::fmt;

/// What a pickle holds. Lists and dictionaries that it holds twice are two equal values here.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer; those beyond 64 bits are refused.
    Int(i64),
    /// A float.
    Float(f64),
    /// `bytes` or `bytearray`.
    Bytes(Vec<u8>),
    /// `str`.
    String(String),
    /// `list`.
    List(Vec<Value>),
    /// `tuple`.
    Tuple(Vec<Value>),
    /// `dict`, in the order in which it was written; of equal keys the last one counts.
    Dict(Vec<(Value, Value)>),
    /// `set` or `frozenset`, in the order in which it was written.
    Set(Vec<Value>),
    /// A class or function, by name alone.
    Global(Global),
    /// What Python would call, not called.
    Call(Box<Call>),
    /// A reference to something kept outside of the pickle.
    PersistentId(Box<Value>),
}

impl Value {
    /// The value under a string key, of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(items) = self else { return None };
        items.iter().rev().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list or tuple.
    pub fn as_sequence(&self) -> Option<&[Value]> {
        match self {
            Self::List(elements) | Self::Tuple(elements) => Some(elements),
            _ => None,
        }
    }

    /// What it is, in words for an error: `a list`, or a call by the name of what it calls.
    pub fn describe(&self) -> String {
        match self {
            Self::None => "None".to_owned(),
            Self::Bool(_) => "a bool".to_owned(),
            Self::Int(_) => "an int".to_owned(),
            Self::Float(_) => "a float".to_owned(),
            Self::Bytes(_) => "a byte string".to_owned(),
            Self::String(_) => "a string".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Tuple(_) => "a tuple".to_owned(),
            Self::Dict(_) => "a dict".to_owned(),
            Self::Set(_) => "a set".to_owned(),
            Self::Global(global) => format!("the global `{global}`"),
            Self::Call(call) => format!("a call of `{}`", call.function),
            Self::PersistentId(_) => "a persistent id".to_owned(),
        }
    }
}

/// The name of a class or function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Global {
    /// The module it is in, with dots.
    pub module: String,
    /// Its name there, with dots where it is nested.
    pub name: String,
}

impl fmt::Display for Global {
    /// Printable and not long, whatever the pickle says.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.100}.{:.100}", printable(&self.module), printable(&self.name))
    }
}

fn printable(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}

/// A call, or the making of an object, that a pickle asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What to call.
    pub function: Global,
    /// With what.
    pub arguments: Vec<Value>,
    /// What the result's `__setstate__` would get.
    pub state: Option<Value>,
    /// What would be appended to the result.
    pub appended: Vec<Value>,
    /// What would be set in the result, as in a dictionary.
    pub items: Vec<(Value, Value)>,
}

impl Call {
    /// Whether it calls `name` of `module`.
    pub fn is(&self, module: &str, name: &str) -> bool {
        self.function.module == module && self.function.name == name
    }
}
