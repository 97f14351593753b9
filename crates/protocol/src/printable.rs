//! Which characters of a name from elsewhere are shown as they are.

/// Whether a character shows as itself: neither a control character nor one that reorders or hides its neighbours.
pub fn is_printable(character: char) -> bool {
    let is_format = matches!(
        character,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
    );
    !character.is_control() && !is_format
}
