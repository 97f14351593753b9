//! Texts from other processes, made fit to be logged, kept and sent on.

use protocol::is_printable;

/// A text that came from elsewhere as it may be shown: at most `n_most` characters of it, with escapes for what a terminal
/// would obey or hide.
pub fn shown(text: &str, n_most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(n_most));
    for (n_shown, character) in text.chars().enumerate() {
        if n_shown == n_most {
            shown.push_str(&format!("… ({} bytes in all)", text.len()));
            break;
        }
        match is_printable(character) {
            true => shown.push(character),
            false => shown.extend(character.escape_default()),
        }
    }
    shown
}

/// A text of one or several lines with escapes for what a terminal would obey or hide.
pub fn visible(text: &str) -> String {
    let is_shown = |character| is_printable(character) || matches!(character, '\n' | '\t');
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        match is_shown(character) {
            true => visible.push(character),
            false => visible.extend(character.escape_default()),
        }
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_and_what_terminals_obey_is_escaped() {
        assert_eq!(shown("ein schöner Grund", 100), "ein schöner Grund");
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{202e}", 100), "a\\u{1b}[2Jb\\nc\\u{202e}");
        assert_eq!(shown("äbcdef", 3), "äbc… (7 bytes in all)");
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(visible("a\tb\nschön \u{1b}[31mred\r\u{9b}"), "a\tb\nschön \\u{1b}[31mred\\r\\u{9b}");
        let long = "x".repeat(7 << 20);
        assert!(shown(&long, 100).len() < 150);
    }
}
