//! Where the members of a zip archive lie, as far as `torch.save` makes use of the format: stored members, one disk.
//!
//! Source: PKWARE's `APPNOTE.TXT` 6.3.10, sections 4.3 and 4.5.3.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Problem;

/// The end record without its comment, and the longest comment.
const END_BYTES: u64 = 22;
const LONGEST_COMMENT: u64 = u16::MAX as u64;
const END: &[u8] = b"PK\x05\x06";
const LOCATOR_BYTES: u64 = 20;
const LOCATOR: &[u8] = b"PK\x06\x07";
const END_64_BYTES: usize = 56;
const END_64: &[u8] = b"PK\x06\x06";
const CENTRAL_BYTES: usize = 46;
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL_BYTES: usize = 30;
const LOCAL: &[u8] = b"PK\x03\x04";
/// What a field of 32 bits holds whose value is in the extra field.
const IN_EXTRA_FIELD: u64 = 0xffff_ffff;
const EXTRA_64: u64 = 1;
/// More than any archive of tensors has.
const LARGEST_DIRECTORY: u64 = 64 << 20;

/// A member that is stored as it is.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub name: String,
    /// Position of its first byte in the archive.
    pub start: u64,
    pub length: u64,
}

/// The members of an archive, in the order of its directory.
pub(super) fn members(file: &File) -> Result<Vec<Member>, Problem> {
    let file_length = file.metadata().map_err(Problem::damage)?.len();
    let (directory_start, directory_length) = find_directory(file, file_length)?;
    if directory_length > LARGEST_DIRECTORY
        || directory_start.checked_add(directory_length).is_none_or(|end| end > file_length)
    {
        return Err(truncated());
    }
    let directory = read(file, directory_start, directory_length as usize)?;
    let mut members = Vec::new();
    let mut rest = directory.as_slice();
    while !rest.is_empty() {
        let (member, after) = parse_member(file, rest)?;
        if member.start.checked_add(member.length).is_none_or(|end| end > file_length) {
            return Err(truncated());
        }
        members.push(member);
        rest = after;
    }
    Ok(members)
}

fn truncated() -> Problem {
    Problem::damage("it is truncated, or its directory is not that of a zip archive")
}

/// Position and length of the central directory.
fn find_directory(file: &File, file_length: u64) -> Result<(u64, u64), Problem> {
    let tail_length = file_length.min(END_BYTES + LONGEST_COMMENT);
    let tail_start = file_length - tail_length;
    let tail = read(file, tail_start, tail_length as usize)?;
    let is_end = |position: &usize| {
        let rest = &tail[*position..];
        let comment = number(rest, 20, 2);
        rest.starts_with(END) && comment.is_ok_and(|comment| END_BYTES + comment == rest.len() as u64)
    };
    let position = (0..tail.len()).rev().find(is_end);
    let position = position.ok_or_else(|| no_archive(file))?;
    let end = &tail[position..];
    let locator_start = (tail_start + position as u64).checked_sub(LOCATOR_BYTES);
    if let Some(start) = locator_start {
        let locator = read(file, start, LOCATOR_BYTES as usize)?;
        if locator.starts_with(LOCATOR) {
            let end = read(file, number(&locator, 8, 8)?, END_64_BYTES)?;
            expect(&end, END_64)?;
            return Ok((number(&end, 48, 8)?, number(&end, 40, 8)?));
        }
    }
    Ok((number(end, 16, 4)?, number(end, 12, 4)?))
}

/// A zip archive ends with its directory: one that only begins like one was cut off.
fn no_archive(file: &File) -> Problem {
    match read(file, 0, LOCAL.len()) {
        Ok(start) if start == LOCAL => truncated(),
        Err(_) => truncated(),
        Ok(_) => {
            Problem::Unread("it is no zip archive, which torch.save writes since version 1.6".to_owned())
        }
    }
}

/// Reads the directory's first entry, and gives what follows it.
fn parse_member<'a>(file: &File, directory: &'a [u8]) -> Result<(Member, &'a [u8]), Problem> {
    expect(directory, CENTRAL)?;
    let (flags, method) = (number(directory, 8, 2)?, number(directory, 10, 2)?);
    let [name_length, extra_length, comment_length] =
        [28, 30, 32].map(|position| number(directory, position, 2).map(|length| length as usize));
    let (name_length, extra_length, comment_length) = (name_length?, extra_length?, comment_length?);
    let (_, after) = directory.split_at_checked(CENTRAL_BYTES).ok_or_else(truncated)?;
    let (name, after) = after.split_at_checked(name_length).ok_or_else(truncated)?;
    let (extra, after) = after.split_at_checked(extra_length).ok_or_else(truncated)?;
    let (_, after) = after.split_at_checked(comment_length).ok_or_else(truncated)?;
    let name = String::from_utf8_lossy(name).into_owned();
    if method != 0 || flags & 1 != 0 {
        let reason = format!("its member {name} is compressed or encrypted, which torch.save never does");
        return Err(Problem::Unread(reason));
    }
    let mut wide = wide_fields(extra)?.into_iter();
    let [length, _stored_length, header] = [24, 20, 42].map(|position| {
        let narrow = number(directory, position, 4)?;
        if narrow == IN_EXTRA_FIELD { wide.next().ok_or_else(truncated) } else { Ok(narrow) }
    });
    Ok((Member { start: data_start(file, header?)?, length: length?, name }, after))
}

/// The fields of 64 bits in an extra field.
fn wide_fields(mut extra: &[u8]) -> Result<Vec<u64>, Problem> {
    while extra.len() >= 4 {
        let (kind, length) = (number(extra, 0, 2)?, number(extra, 2, 2)? as usize);
        let (block, after) = extra[4..].split_at_checked(length).ok_or_else(truncated)?;
        if kind == EXTRA_64 {
            let (numbers, _) = block.as_chunks::<8>();
            return Ok(numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect());
        }
        extra = after;
    }
    Ok(Vec::new())
}

/// The position after a member's own header, whose padding the directory does not tell.
fn data_start(file: &File, header_start: u64) -> Result<u64, Problem> {
    let header = read(file, header_start, LOCAL_BYTES)?;
    expect(&header, LOCAL)?;
    let after = LOCAL_BYTES as u64 + number(&header, 26, 2)? + number(&header, 28, 2)?;
    header_start.checked_add(after).ok_or_else(truncated)
}

fn expect(record: &[u8], signature: &[u8]) -> Result<(), Problem> {
    if record.starts_with(signature) { Ok(()) } else { Err(truncated()) }
}

fn number(record: &[u8], position: usize, n_bytes: usize) -> Result<u64, Problem> {
    let bytes = record.get(position..position + n_bytes).ok_or_else(truncated)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn read(file: &File, start: u64, length: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, start).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => truncated(),
        _ => Problem::damage(error),
    })?;
    Ok(bytes)
}
