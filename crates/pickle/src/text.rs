//! The text arguments of protocol 0.

/// An integer as protocol 0 writes it: decimal, with an `L` after it where it was a long.
pub(crate) fn decimal(line: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(line).ok()?;
    text.strip_suffix('L').unwrap_or(text).parse().ok()
}

/// A float as Python's `repr` writes it, `inf`, `-inf` and `nan` among them.
pub(crate) fn float(line: &[u8]) -> Option<f64> {
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// The encoding `raw-unicode-escape`: Latin-1 with `\uXXXX` and `\UXXXXXXXX` for the rest.
///
/// An escape counts only where an odd number of backslashes stands before its letter, as in Python.
pub(crate) fn raw_unicode_escape(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut position = 0;
    while let Some(&byte) = line.get(position) {
        let n_digits = match line.get(position + 1) {
            Some(b'u') if byte == b'\\' => 4,
            Some(b'U') if byte == b'\\' => 8,
            Some(b'\\') if byte == b'\\' => {
                text.push_str("\\\\");
                position += 2;
                continue;
            }
            _ => {
                text.push(char::from(byte));
                position += 1;
                continue;
            }
        };
        let digits = line.get(position + 2..position + 2 + n_digits)?;
        let digits = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
        text.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
        position += 2 + n_digits;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read_as_python_reads_them() {
        // bytes.decode("raw-unicode-escape")
        assert_eq!(raw_unicode_escape(b"caf\xe9 \\u732b").as_deref(), Some("café 猫"));
        assert_eq!(raw_unicode_escape(b"\\U0001f600").as_deref(), Some("😀"));
        assert_eq!(raw_unicode_escape(b"\\n \\\\u732b \\").as_deref(), Some("\\n \\\\u732b \\"));
        assert_eq!(raw_unicode_escape(b"\\u005c\\u000a").as_deref(), Some("\\\n"));
    }

    #[test]
    fn broken_escapes_are_refused() {
        for broken in [&b"\\u12"[..], b"\\u12g4", b"\\u+123", b"\\ud800", b"\\U00110000", b"\\U1234"] {
            assert_eq!(raw_unicode_escape(broken), None, "{}", broken.escape_ascii());
        }
    }

    #[test]
    fn numbers_are_read_as_python_writes_them() {
        assert_eq!(decimal(b"-12"), Some(-12));
        assert_eq!(decimal(b"4294967296L"), Some(1 << 32));
        assert_eq!(decimal(b"9223372036854775808L"), None);
        assert_eq!(float(b"1e-05"), Some(1e-5));
        assert_eq!(float(b"-inf"), Some(f64::NEG_INFINITY));
        assert_eq!(float(b""), None);
    }
}
