//! Texts from other processes, made fit to be logged, kept and sent on.

/// A text that came from elsewhere as it may be shown: at most `n_most` characters of it, with escapes for what a terminal
/// would obey or hide.
pub fn shown(text: &str, n_most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(n_most));
    let mut n_shown = 0;
    for character in text.chars() {
        if n_shown == n_most {
            shown.push_str(&format!("… ({} bytes in all)", text.len()));
            break;
        }
        n_shown += 1;
        match is_printable(character) {
            true => shown.push(character),
            false => shown.extend(character.escape_default()),
        }
    }
    shown
}

/// Whether a character shows as itself: neither a control character nor one that reorders or hides its neighbours.
pub fn is_printable(character: char) -> bool {
    let is_format = matches!(
        character,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
    );
    !character.is_control() && !is_format
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
        let long = "x".repeat(7 << 20);
        assert!(shown(&long, 100).len() < 150);
    }
}
