//! Pickles that Python wrote (`golden/make_pickles.py`) are read as what they hold.

use pickle::{Call, Global, Limits, NumberError, Value, byte_string, number, numbers, read};

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.pkl", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).expect("golden pickle")
}

fn read_golden(name: &str) -> Value {
    read(&golden(name), &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn list<T>(elements: impl IntoIterator<Item = T>, value: impl Fn(T) -> Value) -> Value {
    Value::List(elements.into_iter().map(value).collect())
}

#[test]
fn plain_values_of_every_protocol_are_what_python_wrote() {
    for protocol in 0..=5 {
        let tree = read_golden(&format!("plain_{protocol}"));
        let get = |key| tree.get(key).unwrap_or_else(|| panic!("protocol {protocol} lacks {key}")).clone();
        assert_eq!(get("none"), Value::None);
        assert_eq!(get("truth"), list([true, false], Value::Bool));
        let ints =
            [0, 1, -1, 255, 256, 65_535, 65_536, -(1 << 31), 1 << 31, i64::MIN, i64::MAX].map(Value::Int);
        assert_eq!(get("ints"), Value::List(ints.into()), "protocol {protocol}");
        assert_eq!(get("floats"), list([0.0, -0.5, 1e-5, f64::MAX, f64::INFINITY], Value::Float));
        let words = ["", "a circle", "café 猫 😀", "line\nfeed \\u0041 \\", &"x".repeat(300)];
        assert_eq!(get("text"), list(words, text), "protocol {protocol}");
        let tuples = (0..5).map(|n| Value::Tuple((1..=n).map(Value::Int).collect()));
        assert_eq!(get("tuples"), Value::List(tuples.collect()));
        let deep = [[[["deep"]]]].map(|a| list(a, |b| list(b, |c| list(c, text))));
        let under = |key: &str, value| Value::Dict(vec![(text(key), value)]);
        let nested = [deep[0].clone(), under("a", under("b", list(["c"], text)))];
        assert_eq!(get("nested"), Value::List(nested.into()));
        assert_eq!(get("twice"), list([["shared"], ["shared"]], |inner| list(inner, text)));
        let Value::Dict(items) = &tree else { panic!("{tree:?}") };
        assert_eq!(items.last(), Some(&(Value::Int(5), text("a key that is an int"))));
    }
}

#[test]
fn byte_strings_are_read_in_the_forms_of_all_protocols() {
    for protocol in 0..=5 {
        let tree = read_golden(&format!("plain_{protocol}"));
        let strings = tree.get("bytes").and_then(Value::as_sequence).expect("a list");
        let strings: Vec<_> = strings.iter().map(|string| byte_string(string).expect("bytes")).collect();
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(strings, [vec![], vec![0, 255], [&all[..], &all[..]].concat()], "protocol {protocol}");
    }
    assert_eq!(read_golden("plain_5").get("array"), Some(&Value::Bytes(b"abc".to_vec())));
}

#[test]
fn sets_are_read_where_they_have_opcodes_and_recorded_as_calls_before() {
    let sets = [vec![], vec![Value::Int(7)], vec![Value::Int(8)]].map(Value::Set);
    assert_eq!(read_golden("plain_4").get("sets"), Some(&Value::List(sets.into())));
    let tree = read_golden("plain_3");
    let Some([_, Value::Call(call), _]) = tree.get("sets").and_then(Value::as_sequence) else {
        panic!("{tree:?}")
    };
    assert!(call.is("builtins", "set"));
    assert_eq!(call.arguments, [list([7], Value::Int)]);
}

#[test]
fn numpy_scalars_and_arrays_of_every_protocol_are_numbers() {
    for protocol in 0..=5 {
        let tree = read_golden(&format!("numbers_{protocol}"));
        let one = |key| number(tree.get(key).expect("recorded")).expect("a number");
        let row = |key| numbers(tree.get(key).expect("recorded")).expect("numbers");
        assert_eq!(one("float64"), 0.1, "protocol {protocol}");
        assert_eq!(one("float32"), f64::from(0.1_f32));
        assert_eq!(one("int64"), -3.0);
        assert_eq!(one("bool"), 1.0);
        assert_eq!(row("list"), [0.25, -2.5, 1.0, 1.0, 0.5]);
        assert_eq!(row("array64"), [0.1, -2.0, 3.5], "protocol {protocol}");
        assert_eq!(row("array32"), [0.25, -2.0]);
        assert_eq!(row("array16"), [0.5, 65_504.0]);
        assert_eq!(row("big_endian"), [1.5, -2.0]);
        assert_eq!(row("integers"), [-1.0, 2.0]);
        assert_eq!(row("flags"), [1.0, 0.0]);
        assert_eq!(row("empty"), [0.0; 0]);
        assert_eq!(row("frozen"), [7.0, 8.0]);
        // A table is no row, whatever it holds.
        for key in ["complex", "words", "grid"] {
            let refused = numbers(tree.get(key).expect("recorded"));
            assert!(matches!(refused, Err(NumberError::Numpy(_))), "{key}: {refused:?}");
        }
    }
}

#[test]
fn a_command_is_recorded_and_refused_by_its_name() {
    for protocol in 0..=5 {
        let tree = read_golden(&format!("command_{protocol}"));
        let outputs = tree.get("outputs").expect("recorded");
        let Some([Value::Call(call)]) = outputs.as_sequence() else { panic!("{outputs:?}") };
        assert!(call.is("posix", "system"));
        assert_eq!(call.arguments, [text("echo unpickled")]);
        let refused = numbers(outputs).unwrap_err().to_string();
        assert!(refused.contains("`posix.system`, which is not allowed"), "{refused}");
    }
}

#[test]
fn torchs_weights_are_calls_with_persistent_ids() {
    let tree = read_golden("torch");
    let Value::Call(state) = &tree else { panic!("{tree:?}") };
    assert!(state.is("collections", "OrderedDict"));
    let names: Vec<_> = state.items.iter().filter_map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["weight", "half", "step", "parameter", "module"]);
    let Value::Call(weight) = &state.items[0].1 else { panic!("{tree:?}") };
    assert!(weight.is("torch._utils", "_rebuild_tensor_v2"));
    let storage = Global { module: "torch".to_owned(), name: "FloatStorage".to_owned() };
    let id = vec![text("storage"), Value::Global(storage), text("0"), text("cpu"), Value::Int(6)];
    assert_eq!(weight.arguments[0], Value::PersistentId(Box::new(Value::Tuple(id))));
    assert_eq!(weight.arguments[2], Value::Tuple([2, 3].map(Value::Int).into()));
    let Value::Call(parameter) = &state.items[3].1 else { panic!("{tree:?}") };
    assert!(parameter.is("torch._utils", "_rebuild_parameter"));
    let Value::Call(module) = &state.items[4].1 else { panic!("{tree:?}") };
    let Call { items, state: Some(metadata), .. } = &**module else { panic!("{module:?}") };
    assert_eq!(items.len(), 2);
    assert!(metadata.get("_metadata").is_some());
}

#[test]
fn no_beginning_of_a_pickle_is_a_pickle() {
    let names = (0..=5)
        .flat_map(|protocol| ["plain", "numbers", "command"].map(|content| format!("{content}_{protocol}")));
    for name in names.chain(["torch".to_owned()]) {
        let whole = golden(&name);
        for length in 0..whole.len() {
            let read = read(&whole[..length], &Limits::default());
            assert!(read.is_err(), "{name} cut to {length} bytes: {read:?}");
        }
    }
}

#[test]
fn pickles_with_a_changed_byte_never_panic() {
    for name in ["plain_0", "plain_5", "numbers_2", "numbers_5", "torch"] {
        let mut bytes = golden(name);
        let limits = Limits { bytes: 1 << 16, values: 1 << 12, depth: 50 };
        for index in 0..bytes.len() {
            let kept = bytes[index];
            for changed in [0, b'.', b'(', b'0', b'R', b'b', 0x94, 0xff, kept ^ 1, kept.wrapping_add(1)] {
                bytes[index] = changed;
                if let Ok(tree) = read(&bytes, &limits) {
                    let _ = numbers(&tree);
                }
            }
            bytes[index] = kept;
        }
    }
}
