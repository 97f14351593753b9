//! Pickles that were made to do harm are refused with their opcode and its place, in little time and memory.

use pickle::{Limits, Problem, Value, read, read_prefix};

fn refused(bytes: &[u8]) -> String {
    read(bytes, &Limits::default()).expect_err("must be refused").to_string()
}

/// `n` levels of lists, each the only element of the next.
fn nested(n: usize) -> Vec<u8> {
    [vec![b']'; n], vec![b'a'; n - 1], b".".to_vec()].concat()
}

/// `n` levels of lists, each ten times in the next by reference; a text is ten times in the first.
fn laughs(n: u8) -> Vec<u8> {
    let level = |index| [&b"0]("[..], &[b'h', index].repeat(10), b"e\x94"].concat();
    [b"\x8c\x03lol\x94".to_vec(), (0..n).flat_map(level).collect(), b".".to_vec()].concat()
}

#[test]
fn claimed_lengths_are_checked_before_memory_is_taken() {
    let claim = |opcode: u8, length: &[u8]| [&[opcode], length, b"abc"].concat();
    let huge = (1_u64 << 60).to_le_bytes();
    for (opcode, name) in [(0x8d, "BINUNICODE8"), (0x8e, "BINBYTES8"), (0x96, "BYTEARRAY8"), (0x95, "FRAME")]
    {
        let message = refused(&claim(opcode, &huge));
        assert_eq!(
            message,
            format!("pickle, opcode {name} at byte 0: needs 1152921504606846976 bytes, 3 are left")
        );
    }
    assert!(refused(&claim(b'X', &[0xff; 4])).contains("BINUNICODE at byte 0: needs 4294967295 bytes"));
    assert!(refused(&claim(0x8b, &[0xff; 4])).contains("LONG4 at byte 0: needs 4294967295 bytes"));
}

#[test]
fn depth_is_bounded() {
    assert!(read(&nested(100), &Limits::default()).is_ok());
    assert!(refused(&nested(101)).contains("more than 100 levels of values"));
    assert!(refused(&nested(1_000_000)).contains("more than 100 levels of values"));
    let tuples = [b")".to_vec(), vec![0x85; 200_000], b".".to_vec()].concat();
    assert!(refused(&tuples).contains("more than 100 levels of values"));
    let ids = [b"N".to_vec(), vec![b'Q'; 200_000], b".".to_vec()].concat();
    assert!(refused(&ids).contains("more than 100 levels of values"));
}

#[test]
fn repetition_by_reference_is_bounded_by_the_size_of_the_tree() {
    assert!(read(&laughs(5), &Limits::default()).is_ok());
    assert!(refused(&laughs(60)).contains("more than 1048576 values"));
    // One megabyte of text a hundred times.
    let text = [&b"\x8d"[..], &(1_u64 << 20).to_le_bytes(), &vec![b'x'; 1 << 20], b"\x94"].concat();
    let bytes = [&text, &b"0](".to_vec(), &b"h\x00".repeat(100), &b"e.".to_vec()].map(Vec::as_slice).concat();
    assert!(refused(&bytes).contains("more than 67108864 bytes of text and byte strings"));
}

#[test]
fn a_value_that_contains_itself_is_refused() {
    // l = []; l.append(l)
    assert!(refused(b"]\x94h\x00a.").contains("more than 100 levels of values"));
    assert!(refused(b"]\x94(h\x00h\x00h\x00e.").contains("more than"));
    assert!(refused(b"cm\nf\n)R\x94h\x00b.").contains("more than 100 levels of values"));
}

#[test]
fn long_arguments_and_names_called_over_and_over_take_no_copies() {
    // A tuple of 100 000 values and a name of 100 000 bytes; 100 000 calls would be 20 GB of copies.
    let name = [b"c".to_vec(), vec![b'm'; 100_000], b"\nf\n\x940".to_vec()].concat();
    let tuple = [b"(".to_vec(), vec![b'N'; 100_000], b"t\x940".to_vec()].concat();
    let calls = [b"](".to_vec(), b"h\x00h\x01R".repeat(100_000), b"e.".to_vec()].concat();
    assert!(refused(&[name, tuple, calls].concat()).contains("more than"));
}

#[test]
fn memo_and_values_are_bounded_while_reading() {
    let limits = Limits { values: 10, ..Limits::default() };
    let too_much = |what, allowed| Problem::TooMuch { what, allowed };
    let memo = [b"N".to_vec(), vec![0x94; 11], b".".to_vec()].concat();
    assert_eq!(read(&memo, &limits).unwrap_err().problem, too_much("memo entries", 10));
    let values = [vec![b'N'; 11], b".".to_vec()].concat();
    assert_eq!(read(&values, &limits).unwrap_err().problem, too_much("values", 10));
    let bytes = [b"N0".repeat(20), b"N.".to_vec()].concat();
    let limits = Limits { bytes: 10, ..Limits::default() };
    assert_eq!(read(&bytes, &limits).unwrap_err().problem, too_much("bytes", 10));
}

#[test]
fn broken_programs_are_told_with_opcode_and_offset() {
    for (bytes, message) in [
        (&b""[..], "opcode missing at byte 0: needs 1 bytes, 0 are left"),
        (b"N", "opcode missing at byte 1: needs 1 bytes, 0 are left"),
        (b"Nz.", "opcode 0x7a at byte 1: not an opcode that is read here"),
        (b"\x80\x06N.", "opcode PROTO at byte 0: protocol 6 is not known; there are 0 to 5"),
        (b"0.", "opcode POP at byte 0: takes a value from the stack where there is none"),
        (b"N(R", "opcode REDUCE at byte 2: takes a value from the stack where there is none"),
        (b"Nt", "opcode TUPLE at byte 1: goes back to a mark where there is none"),
        (b"h\x05", "opcode BINGET at byte 0: refers to memo entry 5, which was not stored"),
        (b"NNa", "opcode APPEND at byte 2: works on a list, and got another kind of value"),
        (b"}NNNs", "opcode SETITEM at byte 4: works on a dict, and got another kind of value"),
        (b"}(NNNu", "opcode SETITEMS at byte 5: an odd number of keys and values"),
        (b"N)R", "opcode REDUCE at byte 2: works on a global, and got another kind of value"),
        (b"cm\nf\nNR", "opcode REDUCE at byte 6: works on a tuple of arguments"),
        (b"NNb", "opcode BUILD at byte 2: works on the result of a call"),
        (b"N\x8c\x01f\x93", "opcode STACK_GLOBAL at byte 4: works on strings"),
        (b"NN.", "opcode STOP at byte 2: leaves 1 more values than the result"),
        (b"N.more", "opcode STOP at byte 1: 4 bytes follow the end"),
        (b"X\x01\x00\x00\x00\xff.", "opcode BINUNICODE at byte 0: its text is not valid"),
        (b"I12x\n.", "opcode INT at byte 0: its number is none, or needs more than 64 bits"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01.", "opcode LONG1 at byte 0: its number is none"),
        (b"\x8a\x09\0\0\0\0\0\0\0\x80\x00.", "opcode LONG1 at byte 0: its number is none"),
        (b"I1", "opcode INT at byte 0: its line does not end"),
        (b"S'old'\n.", "opcode STRING at byte 0: not an opcode that is read here"),
        (b"\x97.", "opcode NEXT_BUFFER at byte 0: not an opcode that is read here"),
        (b"\x82\x01.", "opcode EXT1 at byte 0: not an opcode that is read here"),
    ] {
        let told = refused(bytes);
        assert!(told.contains(message), "{}: {told}", bytes.escape_ascii());
    }
}

#[test]
fn longs_are_read_with_their_sign_in_as_few_bytes_as_they_like() {
    for (bytes, expected) in [
        (&b"\x8a\x00."[..], 0),
        (b"\x8a\x01\xff.", -1),
        (b"\x8a\x02\xff\x00.", 255),
        (b"\x8a\x0a\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff.", -2),
    ] {
        assert_eq!(read(bytes, &Limits::default()), Ok(Value::Int(expected)));
    }
}

#[test]
fn the_first_of_several_pickles_tells_its_length() {
    let bytes = b"\x80\x02K\x07.\x80\x02N.rest";
    assert_eq!(read_prefix(bytes, &Limits::default()), Ok((Value::Int(7), 5)));
    assert_eq!(read_prefix(&bytes[5..], &Limits::default()), Ok((Value::None, 4)));
}
