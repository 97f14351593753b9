//! Files of `torch.save` hold what PyTorch says (`tests/golden/torch_file/make_torch_file.py`); forged ones are refused.

use std::path::{Path, PathBuf};

use models::safetensors_file::SafetensorsFile;
use models::torch_file::TorchFile;
use models::weights::{Init, Inventory, TensorSource, WeightOptions, Weights};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/torch_file").join(name)
}

#[track_caller]
fn refusal(path: &Path) -> String {
    TorchFile::open(path).err().expect("must be refused").to_string()
}

#[test]
fn tensors_of_every_kind_and_layout_are_what_torch_saved() {
    let expected = SafetensorsFile::open(&golden("expected.safetensors")).unwrap();
    for name in ["plain.pt", "nested.pth"] {
        let file = TorchFile::open(&golden(name)).unwrap();
        let mut names = expected.names();
        names.sort();
        assert_eq!(file.names(), names);
        for name in names {
            let want = expected.read(&name).unwrap();
            assert_eq!(file.shape(&name), Some(want.size()), "{name}");
            let target = Tensor::empty(want.size(), (want.kind(), Device::Cpu));
            file.read_into(&name, &target).unwrap();
            assert!(target.equal(&want), "{name}");
        }
    }
}

#[test]
fn doubles_are_read_into_floats() {
    let file = TorchFile::open(&golden("double.pt")).unwrap();
    let target = Tensor::ones([2], (Kind::Float, Device::Cpu));
    file.read_into("w", &target).unwrap();
    assert_eq!((file.shape("w"), target.abs().max().double_value(&[])), (Some(vec![2]), 0.0));
}

#[test]
fn a_part_of_a_matrix_is_filled_in_another_element_type() {
    let file = TorchFile::open(&golden("plain.pt")).unwrap();
    for name in ["turned", "part"] {
        let shape = file.shape(name).unwrap();
        let target = Tensor::zeros([2, shape[0], shape[1]], (Kind::BFloat16, Device::Cpu));
        file.read_into(name, &target.select(0, 1)).unwrap();
        let want = SafetensorsFile::open(&golden("expected.safetensors")).unwrap().read(name).unwrap();
        assert!(target.select(0, 1).equal(&want.to_kind(Kind::BFloat16)), "{name}");
        assert_eq!(target.select(0, 0).abs().max().double_value(&[]), 0.0);
        assert!(file.read_into(name, &target).unwrap_err().to_string().contains("elements, not"));
    }
}

#[test]
fn components_are_opened_from_them_with_all_differences_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("linear.bin"), folder.path().join("model.bin")).unwrap();
    let options = WeightOptions::new(Kind::Float, Device::Cpu);
    for source in [TensorSource::Files, TensorSource::Headers(Inventory::default())] {
        let weights = Weights::open(folder.path(), "model", &options.clone().from_source(source)).unwrap();
        let scope = weights.scope("");
        let _ = scope.tensor("weight", &[2, 1], Init::Zeros);
        let _ = scope.tensor("scale", &[1], Init::Ones);
        let error = weights.finish().unwrap_err().to_string();
        for part in
            ["model.bin", "1 missing: scale", "unexpected: bias", "weight has shape [1, 2], expected [2, 1]"]
        {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn what_is_no_dictionary_of_plain_tensors_is_refused_by_name() {
    for (name, reason) in [
        ("command.pt", "`w` is a call of `posix.system`, which is not made"),
        ("list.pt", "it holds a list, not a dictionary of tensors"),
        ("number.pt", "`w` is an int, not a tensor"),
    ] {
        let error = refusal(&golden(name));
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
}

#[test]
fn views_that_leave_their_storage_are_refused() {
    for (name, reason) in [
        ("beyond.pt", "`w` has shape [2, 3] and strides [3, 1] from element 1 on, which is not inside"),
        ("huge.pt", "which is not inside of its storage of 1 elements"),
        ("backwards.pt", "strides [-1] from element 5 on"),
        ("short.pt", "`w` should have 6 elements of Float in its storage, which has 20 bytes"),
        ("lost.pt", "`w` has its elements in storage 0, which is missing"),
    ] {
        let error = refusal(&golden(name));
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn files_of_the_old_format_and_cut_or_changed_ones_are_called_damaged() {
    assert!(refusal(&golden("old.pt")).contains("since version 1.6"));
    let whole = std::fs::read(golden("plain.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pt");
    for length in [0, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(refusal(&path).contains("cut.pt is damaged"), "{length} bytes");
    }
    // Where bytes say how long something is or where, other ones may not lead to a panic.
    let mut n_refused = 0;
    for position in (0..whole.len()).rev().step_by(3).take(800) {
        let mut changed = whole.clone();
        changed[position] = changed[position].wrapping_add(0x81);
        std::fs::write(&path, &changed).unwrap();
        n_refused += usize::from(TorchFile::open(&path).is_err());
    }
    assert!(n_refused > 150, "{n_refused}");
}
