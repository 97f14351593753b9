//! A run config as TOML that a person goes on editing: what differs from the defaults, and a comment where one is due.

use crate::RunConfig;
use crate::defaults::defaults;
use crate::derived_defaults::{DerivedDefault, derived_defaults};
use toml::{Table, Value};

/// Longest line of a list or comment.
const LINE_WIDTH: usize = 110;

/// Writes a config as TOML: every key that differs from its default or is named in `comments`, section by section.
///
/// `header` stands above everything, and each comment, keyed by `section.key`, above its key (an empty one only has the
/// key written); neither carries `#`.
pub(crate) fn commented_toml(config: &RunConfig, header: &str, comments: &[(&str, String)]) -> String {
    let sections = Table::try_from(config).expect("every field has a TOML form; anything else is a bug");
    let mut defaults = defaults();
    for DerivedDefault { section, key, value } in derived_defaults(&sections) {
        defaults[section][key] = value;
    }
    let comment_on = |key: &str| comments.iter().find(|(of, _)| *of == key).map(|(_, text)| text.as_str());
    let mut text = comment_lines(header);
    for (section, value) in &sections {
        if let Value::Array(entries) = value {
            if entries.is_empty() {
                continue;
            }
            let comment = comment_on(section).map(comment_lines).unwrap_or_default();
            text.push_str(&format!("\n{comment}"));
            for entry in entries {
                text.push_str(&format!("[[{section}]]\n"));
                entry
                    .as_table()
                    .into_iter()
                    .flatten()
                    .for_each(|(key, value)| text.push_str(&assignment(key, value)));
            }
            continue;
        }
        let mut lines = String::new();
        for (key, value) in value.as_table().into_iter().flatten() {
            let comment = comment_on(&format!("{section}.{key}"));
            if comment.is_some() || defaults[section].get(key) != Some(value) {
                lines.push_str(&comment.map(comment_lines).unwrap_or_default());
                lines.push_str(&assignment(key, value));
            }
        }
        if !lines.is_empty() {
            text.push_str(&format!("\n[{section}]\n{lines}"));
        }
    }
    text
}

/// `key = value`, with lists wrapped and floats as short as they can be read back.
fn assignment(key: &str, value: &Value) -> String {
    match value {
        Value::Float(number) => format!("{key} = {number:?}\n"),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| format!("{item},")).collect();
            let items: Vec<&str> = items.iter().map(String::as_str).collect();
            let lines: String = wrapped(&items).iter().map(|line| format!("    {line}\n")).collect();
            format!("{key} = [\n{lines}]\n")
        }
        other => format!("{key} = {other}\n"),
    }
}

/// A text as comment lines; its own line breaks stay.
fn comment_lines(text: &str) -> String {
    let lines = text.lines().flat_map(|line| match line.is_empty() {
        true => vec![String::new()],
        false => wrapped(&line.split(' ').collect::<Vec<_>>()),
    });
    lines.map(|line| format!("{}\n", format!("# {line}").trim_end())).collect()
}

/// Words as lines of at most [`LINE_WIDTH`] characters.
fn wrapped(words: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= LINE_WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push((*word).to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.training.adam_epsilon = 1e-10;
        config.adapter.targets = vec!["attn.to_q".to_owned(); 30];
        let text = commented_toml(&config, "A header.\n\nAnd more.", &[]);
        assert_eq!(RunConfig::from_toml(&text).expect("valid"), config, "{text}");
        assert!(text.starts_with("# A header.\n#\n# And more.\n\n[run]\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= LINE_WIDTH + 4), "{text}");
    }

    #[test]
    fn defaults_are_left_out_unless_there_is_something_to_say() {
        let config = preset("tempflow-tiny-cpu").expect("a preset").config;
        let comments = [("training.kl_beta", "Why not.".to_owned()), ("rewards", "Scores.".to_owned())];
        let text = commented_toml(&config, "", &comments);
        assert!(text.contains("# Why not.\nkl_beta = 0.0\n") && !text.contains("adam_beta1"), "{text}");
        assert!(text.contains("\n# Scores.\n[[rewards]]\nname = \"shapes\"\n"), "{text}");
    }
}
