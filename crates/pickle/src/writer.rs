//! Writes plain values in protocol 4, without frames and memo, which are optional.

use thiserror::Error;

use crate::opcode::*;
use crate::value::Value;

/// A value that Python would have to run something for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0} is not written to a pickle; only plain values are")]
pub struct NotPlain(String);

/// The pickle of a value made of dictionaries, lists, tuples, text, byte strings, numbers, booleans and `None`.
///
/// # Errors
/// If another kind of value is in it.
pub fn write(value: &Value) -> Result<Vec<u8>, NotPlain> {
    let mut output = Vec::with_capacity(n_bytes_at_most(value));
    output.extend([PROTO, 4]);
    write_value(value, &mut output)?;
    output.push(STOP);
    Ok(output)
}

fn write_value(value: &Value, output: &mut Vec<u8>) -> Result<(), NotPlain> {
    match value {
        Value::None => output.push(NONE),
        Value::Bool(true) => output.push(NEWTRUE),
        Value::Bool(false) => output.push(NEWFALSE),
        Value::Int(number) => write_int(*number, output),
        Value::Float(number) => {
            output.push(BINFLOAT);
            output.extend(number.to_be_bytes());
        }
        Value::Bytes(bytes) => {
            write_counted([SHORT_BINBYTES, BINBYTES, BINBYTES8], bytes, output);
        }
        Value::String(text) => {
            write_counted([SHORT_BINUNICODE, BINUNICODE, BINUNICODE8], text.as_bytes(), output);
        }
        Value::List(elements) => {
            output.extend([EMPTY_LIST, MARK]);
            elements.iter().try_for_each(|element| write_value(element, output))?;
            output.push(APPENDS);
        }
        Value::Tuple(elements) => {
            output.push(MARK);
            elements.iter().try_for_each(|element| write_value(element, output))?;
            output.push(TUPLE);
        }
        Value::Dict(items) => {
            output.extend([EMPTY_DICT, MARK]);
            for (key, value) in items {
                write_value(key, output)?;
                write_value(value, output)?;
            }
            output.push(SETITEMS);
        }
        Value::Set(_) | Value::Global(_) | Value::Call(_) | Value::PersistentId(_) => {
            return Err(NotPlain(value.describe()));
        }
    }
    Ok(())
}

fn write_int(number: i64, output: &mut Vec<u8>) {
    match i32::try_from(number) {
        Ok(number) => {
            output.push(BININT);
            output.extend(number.to_le_bytes());
        }
        Err(_) => {
            output.extend([LONG1, 8]);
            output.extend(number.to_le_bytes());
        }
    }
}

/// Writes the opcode for the least of 1, 4 and 8 bytes that hold the length, the length, and the bytes.
fn write_counted([short, medium, long]: [u8; 3], bytes: &[u8], output: &mut Vec<u8>) {
    if let Ok(length) = u8::try_from(bytes.len()) {
        output.extend([short, length]);
    } else if let Ok(length) = u32::try_from(bytes.len()) {
        output.push(medium);
        output.extend(length.to_le_bytes());
    } else {
        output.push(long);
        output.extend((bytes.len() as u64).to_le_bytes());
    }
    output.extend_from_slice(bytes);
}

/// Room for a value, so that byte strings are copied once and not again as the output grows.
fn n_bytes_at_most(value: &Value) -> usize {
    const OPCODES_AND_LENGTH: usize = 12;
    let parts = match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::String(text) => text.len(),
        Value::List(elements) | Value::Tuple(elements) => elements.iter().map(n_bytes_at_most).sum(),
        Value::Dict(items) => {
            items.iter().map(|(key, value)| n_bytes_at_most(key) + n_bytes_at_most(value)).sum()
        }
        _ => 0,
    };
    parts + OPCODES_AND_LENGTH
}
