//! Prompts in a table: fields separated by commas or tabs and quoted where they hold one, a line end or a quote.

use super::Problem;
use super::rows::{EMPTY, Row};
use serde_json::{Map, Value};

/// The column that holds prompts, in any case.
const PROMPT_COLUMN: &str = "prompt";

/// The rows below the header; all other columns are metadata, as strings.
pub(super) fn table_rows(text: &str, delimiter: u8) -> Vec<Row> {
    let mut builder = csv::ReaderBuilder::new();
    let mut reader =
        builder.delimiter(delimiter).has_headers(false).flexible(true).from_reader(text.as_bytes());
    let (mut header, mut rows): (Option<Header>, Vec<Row>) = (None, Vec::new());
    let mut record = csv::StringRecord::new();
    let (mut start, mut line) = (0, 1);
    loop {
        line += count_newlines(&text[start..start + blanks_at(text, start)]);
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return rows,
            Err(error) => {
                rows.push(Err(Problem { line, message: format!("cannot be read: {error}") }));
                return rows;
            }
        }
        let end = (reader.position().byte() as usize).min(text.len());
        if let Some(message) = misquoted(text[start..end].trim_matches('\n'), delimiter) {
            rows.push(Err(Problem { line, message: message.to_owned() }));
        } else if let Some(header) = &header {
            rows.push(header.row(&record).map_err(|message| Problem { line, message }));
        } else {
            match Header::of(&record, delimiter) {
                Ok(found) => header = Some(found),
                // Nothing below is worth reading.
                Err(message) => return vec![Err(Problem { line, message })],
            }
        }
        line += count_newlines(&text[start + blanks_at(text, start)..end]);
        start = end;
    }
}

/// How many empty lines there are at `start`.
fn blanks_at(text: &str, start: usize) -> usize {
    text.as_bytes()[start..].iter().take_while(|byte| **byte == b'\n').count()
}

fn count_newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// The names of the columns.
struct Header {
    names: Vec<String>,
    prompt: usize,
}

impl Header {
    fn of(record: &csv::StringRecord, delimiter: u8) -> Result<Self, String> {
        let names: Vec<String> = record.iter().map(|name| name.trim().to_owned()).collect();
        let is_prompt = |name: &&String| name.eq_ignore_ascii_case(PROMPT_COLUMN);
        let listed = || names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match names.iter().filter(is_prompt).count() {
            1 => {}
            0 => {
                let separator = if delimiter == b'\t' { "tabs" } else { "commas" };
                return Err(format!(
                    "names no column `{PROMPT_COLUMN}`, only {}; the first line names the columns, separated by \
                     {separator}",
                    listed()
                ));
            }
            _ => return Err(format!("names the column `{PROMPT_COLUMN}` twice: {}", listed())),
        }
        let prompt = names.iter().position(|name| is_prompt(&name)).unwrap_or_default();
        Ok(Self { names, prompt })
    }

    fn row(&self, record: &csv::StringRecord) -> Result<(String, Value), String> {
        if record.len() != self.names.len() {
            return Err(format!(
                "has {} fields, but the first line names {} columns; put quotes round a field with the separator in it",
                record.len(),
                self.names.len()
            ));
        }
        let prompt = record[self.prompt].trim();
        if prompt.is_empty() {
            return Err(EMPTY.to_owned());
        }
        let named = self.names.iter().zip(record).filter(|(name, _)| !name.is_empty());
        let mut metadata: Map<String, Value> =
            named.map(|(name, field)| (name.clone(), Value::String(field.to_owned()))).collect();
        metadata.remove(&self.names[self.prompt]);
        metadata.insert(PROMPT_COLUMN.to_owned(), Value::String(prompt.to_owned()));
        Ok((prompt.to_owned(), Value::Object(metadata)))
    }
}

/// What is wrong with the quotes of a record: a reader of tables passes over it, and would take the rest of the file for
/// one field.
fn misquoted(record: &str, delimiter: u8) -> Option<&'static str> {
    let mut rest = record.as_bytes();
    loop {
        let after_field = match rest.strip_prefix(b"\"") {
            Some(quoted) => match length_to_closing_quote(quoted) {
                Some(length) => &quoted[length..],
                None => {
                    return Some("opens a quote that nothing closes; write a quote in a quoted field twice");
                }
            },
            None => &rest[rest.iter().position(|byte| *byte == delimiter).unwrap_or(rest.len())..],
        };
        match after_field.split_first() {
            None => return None,
            Some((byte, next)) if *byte == delimiter => rest = next,
            Some(_) => {
                return Some("goes on after a closing quote; write a quote in a quoted field twice");
            }
        }
    }
}

/// Bytes up to the closing quote, itself included; two quotes in a row stand for one.
fn length_to_closing_quote(quoted: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(quote) = quoted[from..].iter().position(|byte| *byte == b'"') {
        let after = from + quote + 1;
        if quoted.get(after) != Some(&b'"') {
            return Some(after);
        }
        from = after + 1;
    }
    None
}
