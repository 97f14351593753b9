//! The tensors that a checkpoint's pickle tells of, by name; whatever else it asks for is refused by name.
//!
//! Source: PyTorch 2.11, `torch/_utils.py` (`_rebuild_tensor_v2`) and `torch/serialization.py` (`persistent_id`).

use std::collections::BTreeMap;

use pickle::{Call, Value};
use tch::Kind;

use super::Problem;

/// Where training scripts keep the tensors of the network, beside other things.
const NESTED: &str = "state_dict";

/// Storages by the names of their classes.
const STORAGES: [(&str, Kind); 10] = [
    ("FloatStorage", Kind::Float),
    ("HalfStorage", Kind::Half),
    ("BFloat16Storage", Kind::BFloat16),
    ("DoubleStorage", Kind::Double),
    ("LongStorage", Kind::Int64),
    ("IntStorage", Kind::Int),
    ("ShortStorage", Kind::Int16),
    ("CharStorage", Kind::Int8),
    ("ByteStorage", Kind::Uint8),
    ("BoolStorage", Kind::Bool),
];

/// A tensor as a view into a storage; sizes are those of elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// Name of the storage.
    pub storage: String,
    /// Elements that the storage should have.
    pub storage_length: usize,
    pub kind: Kind,
    pub offset: usize,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl View {
    /// The number of elements from the first to the last, both included.
    pub fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let last = |sum: i64, (size, stride): (&i64, &i64)| sum.checked_add((size - 1).checked_mul(*stride)?);
        let last = self.shape.iter().zip(&self.strides).try_fold(0_i64, last)?;
        usize::try_from(last).ok()?.checked_add(1)
    }

    fn check(&self) -> Result<(), Problem> {
        let is_negative = self.shape.iter().chain(&self.strides).any(|number| *number < 0);
        // Strides are products of sizes also where a size is 0.
        let mut sizes = self.shape.iter().filter(|size| **size != 0);
        let n_elements = sizes.try_fold(1_i64, |product, size| product.checked_mul(*size));
        let end = self.span().and_then(|span| span.checked_add(self.offset));
        let is_inside = n_elements.is_some() && end.is_some_and(|end| end <= self.storage_length);
        if is_negative || self.shape.len() != self.strides.len() || !is_inside {
            let Self { offset, shape, strides, storage_length, .. } = self;
            return Err(Problem::Damage(format!(
                "has shape {shape:?} and strides {strides:?} from element {offset} on, which is not inside of its storage of \
                 {storage_length} elements"
            )));
        }
        Ok(())
    }
}

/// The views by the names of the tensors.
pub(super) fn views(checkpoint: &Value) -> Result<BTreeMap<String, View>, Problem> {
    let items = items(checkpoint)?;
    let nested = items.iter().rev().find(|(key, _)| key.as_str() == Some(NESTED));
    let items = match nested {
        Some((_, nested)) => self::items(nested)?,
        None => items,
    };
    let named = |(key, value): &(Value, Value)| {
        let nameless =
            || Problem::Unread(format!("a tensor is named by {}, not by a string", key.describe()));
        let name = key.as_str().ok_or_else(nameless)?;
        let view = view(value).and_then(|view| view.check().map(|()| view));
        Ok((name.to_owned(), view.map_err(|problem| problem.in_place(&format!("`{name}`")))?))
    };
    items.iter().map(named).collect()
}

/// What a dictionary holds, ordered or not.
fn items(value: &Value) -> Result<&[(Value, Value)], Problem> {
    match value {
        Value::Dict(items) => Ok(items),
        Value::Call(call) if call.is("collections", "OrderedDict") && call.arguments.is_empty() => {
            Ok(&call.items)
        }
        other => Err(Problem::Unread(format!("it holds {}, not a dictionary of tensors", other.describe()))),
    }
}

fn view(value: &Value) -> Result<View, Problem> {
    let Value::Call(call) = value else {
        return Err(Problem::Unread(format!("is {}, not a tensor", value.describe())));
    };
    if !call.is("torch._utils", "_rebuild_tensor_v2") {
        let function = &call.function;
        let reason = format!("is a call of `{function}`, which is not made; only plain tensors are read");
        return Err(Problem::Unread(reason));
    }
    parse_view(call).ok_or_else(|| Problem::Unread("is a tensor of an unknown form".to_owned()))?
}

/// `None` where an argument is missing or of another kind.
fn parse_view(call: &Call) -> Option<Result<View, Problem>> {
    let [storage, offset, shape, strides, ..] = call.arguments.as_slice() else { return None };
    let Value::PersistentId(id) = storage else { return None };
    let [tag, class, key, _device, length] = id.as_sequence()? else { return None };
    let (Some("storage"), Value::Global(class)) = (tag.as_str(), class) else { return None };
    let known = STORAGES.iter().find(|(name, _)| class.module == "torch" && class.name == *name);
    let Some((_, kind)) = known else {
        let names = STORAGES.map(|(name, _)| name).join(", ");
        return Some(Err(Problem::Unread(format!("is stored as `{class}`; supported: {names}"))));
    };
    Some(Ok(View {
        storage: key.as_str()?.to_owned(),
        storage_length: count(length)?,
        kind: *kind,
        offset: count(offset)?,
        shape: integers(shape)?,
        strides: integers(strides)?,
    }))
}

fn count(value: &Value) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

fn integers(value: &Value) -> Option<Vec<i64>> {
    let integer = |value: &Value| match value {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    value.as_sequence()?.iter().map(integer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_without_elements_has_sizes_that_a_tensor_can_have() {
        let view = |shape: &[i64]| View {
            storage: "0".to_owned(),
            storage_length: 0,
            kind: Kind::Float,
            offset: 0,
            shape: shape.to_vec(),
            strides: vec![1; shape.len()],
        };
        assert!(view(&[0, 7]).check().is_ok());
        assert!(view(&[0, 1 << 62, 1 << 62]).check().is_err());
    }
}
