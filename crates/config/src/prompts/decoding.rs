//! From the bytes of a prompt file to its text, whose lines end in `\n` whoever wrote them.

use super::Problem;

/// Byte order marks of encodings that are not read.
const FOREIGN_MARKS: [([u8; 2], &str); 2] = [([0xff, 0xfe], "UTF-16"), ([0xfe, 0xff], "UTF-16BE")];

/// The text without a byte order mark; line ends of Windows and of old Macs are line ends.
///
/// # Errors
/// Every line that is not UTF-8 or has a NUL byte.
pub(super) fn decode(bytes: &[u8]) -> Result<String, Vec<Problem>> {
    if let Some((_, encoding)) = FOREIGN_MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        let message =
            format!("is {encoding}, not UTF-8; save the file as UTF-8, as by `iconv -f {encoding} -t UTF-8`");
        return Err(vec![Problem { line: 1, message }]);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
            let problems = lines_with_nul(&text);
            if problems.is_empty() { Ok(text) } else { Err(problems) }
        }
        Err(_) => Err(lines_not_utf8(bytes)),
    }
}

fn lines_with_nul(text: &str) -> Vec<Problem> {
    let numbered = text.split('\n').enumerate().filter(|(_, line)| line.contains('\0'));
    let message = "has a NUL byte, as UTF-16 and binary files have; save the file as UTF-8";
    numbered.map(|(line_idx, _)| Problem { line: line_idx + 1, message: message.to_owned() }).collect()
}

fn lines_not_utf8(bytes: &[u8]) -> Vec<Problem> {
    let (mut problems, mut line) = (Vec::<Problem>::new(), 1);
    let mut is_after_return = false;
    for chunk in bytes.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            line += usize::from(byte == b'\r' || byte == b'\n' && !is_after_return);
            is_after_return = byte == b'\r';
        }
        let is_named = problems.last().is_some_and(|problem| problem.line == line);
        if let (Some(byte), false) = (chunk.invalid().first(), is_named) {
            let message = format!(
                "is not UTF-8 (byte 0x{byte:02X}); save the file as UTF-8, as by `iconv -f WINDOWS-1252 -t UTF-8`"
            );
            problems.push(Problem { line, message });
        }
    }
    problems
}
