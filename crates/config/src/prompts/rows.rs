//! From the text of a prompt file to its prompts, format by format.
//!
//! Nothing is guessed: what is not of the format that the file's name says is a problem with its line.

use super::Problem;
use super::format::PromptFormat;
use super::table::table_rows;
use serde_json::{Map, Value};

/// There is nothing to draw.
pub(super) const EMPTY: &str = "`prompt` is empty; write what is to be drawn, or remove the line";

/// A prompt and what came with it, or what is wrong with it.
pub(super) type Row = Result<(String, Value), Problem>;

/// All rows of a file; blank lines are none.
pub(super) fn rows(text: &str, format: PromptFormat) -> Vec<Row> {
    match format {
        PromptFormat::Text => text_rows(text),
        PromptFormat::Json => json_rows(text),
        PromptFormat::Table { delimiter } => table_rows(text, delimiter),
    }
}

/// Lines that are not blank, each with its number. Byte order marks stand where files were joined.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.split('\n').enumerate();
    let trimmed = numbered.map(|(line_idx, line)| {
        (line_idx + 1, line.trim_matches(|c: char| c == '\u{feff}' || c.is_whitespace()))
    });
    trimmed.filter(|(_, line)| !line.is_empty())
}

fn text_rows(text: &str) -> Vec<Row> {
    let is_list = text.trim_start().starts_with('[')
        && serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_array());
    if is_list {
        let message = "begins a JSON list, where one prompt a line is wanted; name the file .json".to_owned();
        return vec![Err(Problem { line: 1, message })];
    }
    let is_object = |line: &str| {
        line.starts_with('{') && serde_json::from_str::<Map<String, Value>>(line).is_ok_and(|o| !o.is_empty())
    };
    let row = |(line, text): (usize, &str)| match is_object(text) {
        true => {
            let message =
                "is a JSON object, where a prompt is wanted; name the file .jsonl or .json".to_owned();
            Err(Problem { line, message })
        }
        false => Ok((text.to_owned(), Value::Object(Map::new()))),
    };
    lines(text).map(row).collect()
}

/// A JSON list, or a JSON value a line.
fn json_rows(text: &str) -> Vec<Row> {
    let first_line = lines(text).next().map_or(1, |(line, _)| line);
    match serde_json::from_str(text) {
        Ok(Value::Array(items)) => {
            item_lines(text).into_iter().zip(items).map(|(line, item)| row_of(item, line)).collect()
        }
        Ok(single) => vec![row_of(single, first_line)],
        Err(error) if text.trim_start().starts_with('[') => {
            // A line end in the wrong place is counted to the line after it.
            let line = error.line() - usize::from(error.column() == 0 && error.line() > 1);
            let message = format!("is no valid JSON list: {}", without_place(&error));
            vec![Err(Problem { line, message })]
        }
        Err(_) => {
            let row = |(line, text): (usize, &str)| match serde_json::from_str(text) {
                Ok(value) => row_of(value, line),
                Err(error) => {
                    let message = format!("not JSON ({}, column {})", without_place(&error), error.column());
                    Err(Problem { line, message })
                }
            };
            lines(text).map(row).collect()
        }
    }
}

fn row_of(value: Value, line: usize) -> Row {
    let problem = |message: String| Err(Problem { line, message });
    let fields = match value {
        Value::String(prompt) if prompt.trim().is_empty() => return problem(EMPTY.to_owned()),
        Value::String(prompt) => return Ok((prompt, Value::Object(Map::new()))),
        Value::Object(fields) => fields,
        _ => return problem("neither a string nor an object; write {\"prompt\": \"…\"}".to_owned()),
    };
    match fields.get("prompt") {
        Some(Value::String(prompt)) if prompt.trim().is_empty() => problem(EMPTY.to_owned()),
        Some(Value::String(prompt)) => Ok((prompt.clone(), Value::Object(fields))),
        Some(_) => problem("`prompt` is not a string".to_owned()),
        None => {
            let keys: Vec<String> = fields.keys().take(5).map(|key| format!("`{key}`")).collect();
            problem(format!(
                "has no `prompt`, only {}",
                if keys.is_empty() { "{}".into() } else { keys.join(", ") }
            ))
        }
    }
}

/// What is wrong with a JSON text; the place that the parser adds counts from the start of what it was given.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// The line at which each item of a JSON list begins; the list is known to be valid.
fn item_lines(list: &str) -> Vec<usize> {
    let (mut starts, mut line, mut depth) = (Vec::new(), 1, 0_usize);
    let (mut in_string, mut is_escaped, mut awaits_item) = (false, false, false);
    for byte in list.bytes() {
        line += usize::from(byte == b'\n');
        if in_string {
            in_string = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        if depth == 1 && awaits_item && byte != b']' {
            starts.push(line);
            awaits_item = false;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                awaits_item = depth == 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => awaits_item = depth == 1,
            _ => {}
        }
    }
    starts
}
