//! What lies in the place of a file whose download went wrong: whole, but not what its name promises.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes that tell.
const LOOKED_AT: u64 = 512;
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const ANNEX_POINTER: &[u8] = b"/annex/objects/";
/// How pages begin, in small letters.
const PAGES: [&[u8]; 3] = [b"<!doctype html", b"<html", b"<?xml"];

/// What a file is by its first bytes and what to do about it; `None` where they do not tell, or cannot be read.
pub(crate) fn recognised(path: &Path) -> Option<(&'static str, &'static str)> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(LOOKED_AT).read_to_end(&mut start).ok()?;
    recognise(&start)
}

fn recognise(start: &[u8]) -> Option<(&'static str, &'static str)> {
    if start.starts_with(LFS_POINTER) {
        return Some((
            "is a Git LFS pointer, not the file that it stands for",
            "run `git lfs pull` in its repository, or download it with `hf download`",
        ));
    }
    if start.starts_with(ANNEX_POINTER) {
        return Some((
            "is a git-annex pointer, not the file that it stands for",
            "run `git annex get` in its repository",
        ));
    }
    let text = start.trim_ascii_start().to_ascii_lowercase();
    PAGES.iter().any(|page| text.starts_with(page)).then_some((
        "is a web page, as servers send it in place of a file that they do not give out",
        "look at it for the reason, then download the file with `hf download`, signed in where its model is gated",
    ))
}

/// What a file is that should have been one of safetensors, by its first bytes.
pub(crate) fn instead_of_safetensors(start: &[u8]) -> Option<(&'static str, &'static str)> {
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") {
        return Some((
            "is not in safetensors format, but what `torch.save` writes",
            "write it with `safetensors.torch.save_file`, or give it the ending .bin",
        ));
    }
    if start.starts_with(b"GGUF") {
        return Some((
            "is a GGUF file, not one in safetensors format",
            "take the model's files in safetensors format, in bfloat16 or float16",
        ));
    }
    let is_text =
        start.len() >= 8 && start.iter().all(|byte| byte.is_ascii_graphic() || b" \t\r\n".contains(byte));
    is_text.then_some((
        "is a text, not a file in safetensors format",
        "look at it for the reason, then download the file again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_for_files_is_recognised_by_its_first_bytes() {
        for (start, word) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"[..], "git lfs pull"),
            (b"/annex/objects/SHA256E-s12--4d7a.safetensors\n", "git annex get"),
            (b"\n <!DOCTYPE html><html>", "hf download"),
            (b"<HTML><head>", "hf download"),
        ] {
            let (_, remedy) = recognise(start).unwrap();
            assert!(remedy.contains(word), "{remedy}");
        }
        for start in [&b"{\"a\": 1}"[..], b"", b"\x10\0\0\0\0\0\0\0{", b"PK\x03\x04"] {
            assert_eq!(recognise(start), None);
        }
    }

    #[test]
    fn other_formats_are_told_from_a_header() {
        let found = |start: &[u8]| instead_of_safetensors(start).map(|(found, _)| found);
        assert!(found(b"PK\x03\x04rest").unwrap().contains("torch.save"));
        assert!(found(b"GGUF\x03\0\0\0").unwrap().contains("GGUF"));
        assert!(found(b"Entry not found").unwrap().contains("a text"));
        assert_eq!(found(b"\x10\0\0\0\0\0\0\0{\"a\":"), None);
        assert_eq!(found(b"abc"), None);
    }
}
