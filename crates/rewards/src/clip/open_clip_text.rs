//! Prompts as `open_clip` cleans them before it looks for tokens.
//!
//! Done are quotes, ligatures, full width, control characters and the common HTML entities. Left out are the repair of text
//! that was decoded wrongly (mojibake), terminal escapes, digraphs of one character, and the two thousand other entities.
//! White space, case and composition are the tokenizer's affair.
//!
//! Source: `open_clip` 3.3, `tokenizer.py` (`_clean_lower`); `ftfy` 6.3, `fixes.py`.

use unicode_normalization::UnicodeNormalization;

/// The entities that prompts from web pages have, without `&` and `;`.
const ENTITIES: [(&str, char); 6] =
    [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\''), ("nbsp", '\u{a0}')];
/// Longer than the number of any character.
const LONGEST_ENTITY: usize = 10;

/// Cleans a prompt.
pub(crate) fn clean(prompt: &str) -> String {
    let mut plain = String::with_capacity(prompt.len());
    prompt.chars().for_each(|character| push_plain(&mut plain, character));
    // Twice, for what was escaped twice.
    unescape(&unescape(&plain)).trim().to_owned()
}

fn push_plain(output: &mut String, character: char) {
    match character {
        '\u{3000}' => output.push(' '),
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => output.push('\''),
        '\u{201c}'..='\u{201f}' => output.push('"'),
        'ﬅ' => output.push_str("ſt"),
        '\u{fb00}'..='\u{fb06}' | '\u{ff01}'..='\u{ffef}' => output.extend(character.nfkc()),
        '\t' | '\n' | '\u{c}' | '\r' => output.push(character),
        '\0'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => (),
        _ => output.push(character),
    }
}

/// Puts characters in the place of entities; what is none stays.
fn unescape(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        output.push_str(before);
        let entity = after.split_once(';').filter(|(name, _)| name.len() <= LONGEST_ENTITY);
        match entity.and_then(|(name, after)| Some((character(name)?, after))) {
            Some((character, after)) => {
                output.push(character);
                rest = after;
            }
            None => {
                output.push('&');
                rest = after;
            }
        }
    }
    output + rest
}

fn character(entity: &str) -> Option<char> {
    let Some(number) = entity.strip_prefix('#') else {
        return ENTITIES.iter().find(|(name, _)| *name == entity).map(|(_, character)| *character);
    };
    let number = match number.strip_prefix(['x', 'X']) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => number.parse(),
    };
    char::from_u32(number.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cleaned_as_ftfy_and_html_do_it() {
        // html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        for (text, cleaned) in [
            ("a “quoted” word, it’s ‘fine’", "a \"quoted\" word, it's 'fine'"),
            ("ﬁne ﬂuﬀy oﬃce ﬅ", "fine fluffy office ſt"),
            ("ＦＵＬＬ　ｗｉｄｔｈ！", "FULL width!"),
            ("salt &amp; pepper &lt;3 &#39;x&#x27;", "salt & pepper <3 'x'"),
            ("twice &amp;lt;", "twice <"),
            ("AT&T; & co &unknown; &", "AT&T; & co &unknown; &"),
            ("be\u{7}ll \u{feff}mark\u{0}", "bell mark"),
            ("\n two\tlines \r", "two\tlines"),
            ("naïve café 猫 🐈", "naïve café 猫 🐈"),
        ] {
            assert_eq!(clean(text), cleaned);
        }
    }
}
