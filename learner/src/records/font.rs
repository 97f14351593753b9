//! A bitmap font five pixels high, for captions; lower case is drawn as upper case.

/// Rows of a glyph.
pub const HEIGHT: u32 = 5;

/// Pixel columns of a character: bit `r` of a column is row `r` from the top. Unknown characters are drawn as a box.
pub fn columns(character: char) -> Vec<u8> {
    let wanted = character.to_ascii_uppercase();
    let glyph = GLYPHS.iter().find(|(known, _)| *known == wanted).map_or(BOX, |(_, glyph)| glyph);
    let rows: Vec<&[u8]> = glyph.split(' ').map(str::as_bytes).collect();
    let column = |x: usize| rows.iter().enumerate().map(|(y, row)| u8::from(row[x] == b'#') << y).sum();
    (0..rows[0].len()).map(column).collect()
}

/// Width of a line in pixels, one empty column after each character included.
pub fn line_width(line: &str) -> u32 {
    line.chars().map(|character| columns(character).len() as u32 + 1).sum()
}

const BOX: &str = "### #.# #.# #.# ###";

const GLYPHS: &[(char, &str)] = &[
    (' ', ".. .. .. .. .."),
    ('A', ".#. #.# ### #.# #.#"),
    ('B', "##. #.# ##. #.# ##."),
    ('C', ".## #.. #.. #.. .##"),
    ('D', "##. #.# #.# #.# ##."),
    ('E', "### #.. ##. #.. ###"),
    ('F', "### #.. ##. #.. #.."),
    ('G', ".### #... #.## #..# .###"),
    ('H', "#.# #.# ### #.# #.#"),
    ('I', "# # # # #"),
    ('J', "..# ..# ..# #.# .#."),
    ('K', "#.# #.# ##. #.# #.#"),
    ('L', "#.. #.. #.. #.. ###"),
    ('M', "#...# ##.## #.#.# #...# #...#"),
    ('N', "#..# ##.# #.## #..# #..#"),
    ('O', ".##. #..# #..# #..# .##."),
    ('P', "##. #.# ##. #.. #.."),
    ('Q', ".##. #..# #..# #.#. .#.#"),
    ('R', "##. #.# ##. #.# #.#"),
    ('S', ".## #.. .#. ..# ##."),
    ('T', "### .#. .#. .#. .#."),
    ('U', "#.# #.# #.# #.# ###"),
    ('V', "#.# #.# #.# #.# .#."),
    ('W', "#...# #...# #.#.# ##.## #...#"),
    ('X', "#.# #.# .#. #.# #.#"),
    ('Y', "#.# #.# .#. .#. .#."),
    ('Z', "### ..# .#. #.. ###"),
    ('0', "### #.# #.# #.# ###"),
    ('1', ".#. ##. .#. .#. ###"),
    ('2', "##. ..# .#. #.. ###"),
    ('3', "##. ..# .#. ..# ##."),
    ('4', "#.# #.# ### ..# ..#"),
    ('5', "### #.. ##. ..# ##."),
    ('6', ".## #.. ### #.# ###"),
    ('7', "### ..# .#. .#. .#."),
    ('8', "### #.# ### #.# ###"),
    ('9', "### #.# ### ..# ##."),
    ('.', ". . . . #"),
    (',', ".. .. .. .# #."),
    (':', ". # . # ."),
    (';', ".. .# .. .# #."),
    ('!', "# # # . #"),
    ('?', "##. ..# .#. ... .#."),
    ('\'', "# # . . ."),
    ('"', "#.# #.# ... ... ..."),
    ('-', "... ... ### ... ..."),
    ('+', "... .#. ### .#. ..."),
    ('=', "... ### ... ### ..."),
    ('_', "... ... ... ... ###"),
    ('(', ".# #. #. #. .#"),
    (')', "#. .# .# .# #."),
    ('/', "..# ..# .#. #.. #.."),
    ('%', "#.# ..# .#. #.. #.#"),
    ('&', ".#. #.# .#. #.# .##"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glyph_is_a_full_rectangle() {
        for (character, glyph) in GLYPHS {
            let widths: Vec<usize> = glyph.split(' ').map(str::len).collect();
            assert_eq!(widths.len(), HEIGHT as usize, "{character}");
            assert!(widths.iter().all(|width| *width == widths[0]), "{character}");
        }
    }

    #[test]
    fn characters_are_told_apart() {
        let mut drawn: Vec<Vec<u8>> = GLYPHS.iter().map(|(character, _)| columns(*character)).collect();
        drawn.sort();
        drawn.dedup();
        // O and 0 differ, and so do I and 1; nothing else may coincide either.
        assert_eq!(drawn.len(), GLYPHS.len());
        assert_eq!(columns('a'), columns('A'));
        assert_eq!(columns('é'), columns('ü'));
    }
}
