//! Numbers in a pickle: Python's, and numpy's scalars and arrays, whose calls are known here and interpreted, not made.
//!
//! Source: what `pickle.dumps` of numpy 1.26 and 2.4 writes (`numpy/_core/src/multiarray/methods.c`, `array_reduce`).

use half::f16;
use thiserror::Error;

use crate::value::{Call, Value};

/// A value that is not the numbers that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NumberError {
    /// Another kind of value.
    #[error("expected {expected}, got {got}")]
    Kind {
        /// What was expected.
        expected: &'static str,
        /// What there was.
        got: String,
    },
    /// A call that numbers do not need.
    #[error(
        "the pickle asks to call `{function}`, which is not allowed; only numpy's numbers and arrays are"
    )]
    NotAllowed {
        /// What it asks to call.
        function: String,
    },
    /// A numpy value that is put together wrongly, or of a type that is not a real number.
    #[error("a numpy value of an unknown form: {0}")]
    Numpy(&'static str),
}

/// A number: a float, an int, a bool, or a numpy scalar.
///
/// # Errors
/// If the value is something else.
pub fn number(value: &Value) -> Result<f64, NumberError> {
    match value {
        Value::Float(number) => Ok(*number),
        Value::Int(number) => Ok(*number as f64),
        Value::Bool(truth) => Ok(f64::from(u8::from(*truth))),
        Value::Call(call) => match &numpy_elements(call)?[..] {
            [number] => Ok(*number),
            _ => Err(NumberError::Kind { expected: "a number", got: "an array".to_owned() }),
        },
        other => Err(NumberError::Kind { expected: "a number", got: other.describe() }),
    }
}

/// Numbers in a row: a list or tuple of them, or a numpy array of the shape (n,) or (n, 1).
///
/// # Errors
/// If the value is something else.
pub fn numbers(value: &Value) -> Result<Vec<f64>, NumberError> {
    match value {
        Value::List(elements) | Value::Tuple(elements) => elements.iter().map(number).collect(),
        Value::Call(call) => numpy_elements(call),
        other => Err(NumberError::Kind { expected: "a list of numbers", got: other.describe() }),
    }
}

/// A byte string, also in the forms in which protocols 0 to 2 write one.
pub fn byte_string(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Bytes(bytes) => Some(bytes.clone()),
        Value::Call(call) if call.is("_codecs", "encode") => match &call.arguments[..] {
            [Value::String(text), Value::String(encoding)] if encoding == "latin1" => {
                text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect()
            }
            _ => None,
        },
        Value::Call(call) if call.is("__builtin__", "bytes") && call.arguments.is_empty() => Some(Vec::new()),
        _ => None,
    }
}

fn numpy_elements(call: &Call) -> Result<Vec<f64>, NumberError> {
    let Call { function, arguments, state, .. } = call;
    let module = function.module.strip_prefix("numpy._core.").or(function.module.strip_prefix("numpy.core."));
    match (module, function.name.as_str()) {
        (Some("multiarray"), "scalar") => match &arguments[..] {
            [dtype, bytes] => elements(dtype, bytes),
            _ => Err(NumberError::Numpy("a scalar without type and bytes")),
        },
        (Some("multiarray"), "_reconstruct") => match state {
            Some(Value::Tuple(parts)) => match &parts[..] {
                [_version, shape, dtype, _fortran_order, bytes] => in_a_row(shape, elements(dtype, bytes)?),
                _ => Err(NumberError::Numpy("an array's state that has not five parts")),
            },
            _ => Err(NumberError::Numpy("an array without a state")),
        },
        (Some("numeric"), "_frombuffer") => match &arguments[..] {
            [bytes, dtype, shape, _order] => in_a_row(shape, elements(dtype, bytes)?),
            _ => Err(NumberError::Numpy("an array without bytes, type, shape and order")),
        },
        _ => Err(NumberError::NotAllowed { function: function.to_string() }),
    }
}

/// Lets elements pass that are a number, a row or a column by their shape.
fn in_a_row(shape: &Value, elements: Vec<f64>) -> Result<Vec<f64>, NumberError> {
    let sizes = match shape {
        Value::Tuple(sizes) | Value::List(sizes) => &sizes[..],
        other => std::slice::from_ref(other),
    };
    let fits = match sizes {
        [] => elements.len() == 1,
        [Value::Int(length)] | [Value::Int(length), Value::Int(1)] => {
            usize::try_from(*length) == Ok(elements.len())
        }
        _ => false,
    };
    if fits {
        Ok(elements)
    } else {
        Err(NumberError::Numpy("an array whose shape is not (n,) or (n, 1) for its n elements"))
    }
}

fn elements(dtype: &Value, bytes: &Value) -> Result<Vec<f64>, NumberError> {
    let bytes = byte_string(bytes).ok_or(NumberError::Numpy("elements that are not a byte string"))?;
    let (code, big_endian) = element_type(dtype)?;
    match code {
        "b1" => decode(&bytes, big_endian, |[byte]: [u8; 1]| f64::from(u8::from(byte != 0))),
        "u1" => decode(&bytes, big_endian, |element| u8::from_le_bytes(element).into()),
        "i1" => decode(&bytes, big_endian, |element| i8::from_le_bytes(element).into()),
        "u2" => decode(&bytes, big_endian, |element| u16::from_le_bytes(element).into()),
        "i2" => decode(&bytes, big_endian, |element| i16::from_le_bytes(element).into()),
        "u4" => decode(&bytes, big_endian, |element| u32::from_le_bytes(element).into()),
        "i4" => decode(&bytes, big_endian, |element| i32::from_le_bytes(element).into()),
        "u8" => decode(&bytes, big_endian, |element| u64::from_le_bytes(element) as f64),
        "i8" => decode(&bytes, big_endian, |element| i64::from_le_bytes(element) as f64),
        "f2" => decode(&bytes, big_endian, |element| f16::from_le_bytes(element).into()),
        "f4" => decode(&bytes, big_endian, |element| f32::from_le_bytes(element).into()),
        "f8" => decode(&bytes, big_endian, f64::from_le_bytes),
        _ => Err(NumberError::Numpy("elements that are not real numbers of at most 64 bits")),
    }
}

/// The code of a `numpy.dtype` call, such as `f4`, and whether its bytes are the wrong way round.
fn element_type(dtype: &Value) -> Result<(&str, bool), NumberError> {
    let Value::Call(call) = dtype else {
        return Err(NumberError::Numpy("a type that is no numpy.dtype"));
    };
    if !call.is("numpy", "dtype") {
        return Err(NumberError::NotAllowed { function: call.function.to_string() });
    }
    let code = call.arguments.first().and_then(Value::as_str);
    let code = code.ok_or(NumberError::Numpy("a type without a name"))?;
    let order = match &call.state {
        Some(Value::Tuple(parts)) => parts.get(1).and_then(Value::as_str),
        _ => None,
    };
    match order {
        Some("<" | "|" | "=") => Ok((code, false)),
        Some(">") => Ok((code, true)),
        _ => Err(NumberError::Numpy("a type without byte order")),
    }
}

fn decode<const N: usize>(
    bytes: &[u8],
    big_endian: bool,
    element: impl Fn([u8; N]) -> f64,
) -> Result<Vec<f64>, NumberError> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(NumberError::Numpy("elements cut off in the middle"));
    }
    let in_order = chunks.iter().map(|&(mut chunk)| {
        if big_endian {
            chunk.reverse();
        }
        element(chunk)
    });
    Ok(in_order.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_pass_that_are_a_number_a_row_or_a_column_by_their_shape() {
        let shape = |sizes: &[i64]| Value::Tuple(sizes.iter().map(|size| Value::Int(*size)).collect());
        let fits = |sizes: &[i64], n_elements| in_a_row(&shape(sizes), vec![0.5; n_elements]).is_ok();
        for (sizes, n_elements) in [(&[][..], 1), (&[8], 8), (&[8, 1], 8), (&[0], 0)] {
            assert!(fits(sizes, n_elements), "{sizes:?}");
        }
        for sizes in [&[][..], &[7], &[-8], &[2, 4], &[1, 8], &[1 << 62, 4], &[-8, -1], &[8, 1, 1]] {
            assert!(!fits(sizes, 8), "{sizes:?}");
        }
    }
}
