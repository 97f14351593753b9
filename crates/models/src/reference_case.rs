//! What a reference implementation computed, recorded in a file, and how far our numbers are from it.
//!
//! A case is one safetensors file: `in.*` are inputs, `out.*` the reference's results, and the header's `call` is a JSON
//! object with the remaining arguments. `tests/reference/write_cases.py` writes such files. Inputs are handed out on the
//! device of the networks, whose element type they take by themselves; results are compared on the CPU.

mod folder;
mod latents;
mod network;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::safetensors_file::SafetensorsFile;
use crate::weights::WeightOptions;
pub use folder::{case_folder, how_to_record};
pub use latents::{RecordedLatents, image_size};
pub use network::{
    NetworkQuery, Outputs, adapter_outputs, conditioning, guidance_scale, named_gradients, open_with_adapter,
    saved_adapter,
};

/// How far from what another program recorded on another machine a result may be, as a part of the recorded tensor's norm.
///
/// Float32 rounds to 6e-8 of a number, and libtorch sums in an order that depends on the processor's vectors. A network
/// of some hundred operations in a row, asked ten times by a sampler, carries that to about 1e-5, whereas a wrong formula
/// shows from 1e-3 on. Between the two stands what `parity` promises; every comparison of recorded tensors is held to it.
pub const TOLERANCE: f64 = 1e-4;

/// The same for numbers that a handful of float32 operations makes, as a part of the largest of them: 1e-6 is eight
/// roundings, each of 1.2e-7 at worst.
pub const FORMULA_TOLERANCE: f64 = 1e-6;

const INPUT: &str = "in.";
const OUTPUT: &str = "out.";
const CALL: &str = "call";

/// What is compared with what.
pub struct ParityOptions<'a> {
    /// Folder of the model.
    pub model: &'a Path,
    /// Folder of its cases, if not [`case_folder`]'s own choice.
    pub cases: Option<&'a Path>,
    /// Largest relative deviation that passes.
    pub rtol: f64,
    /// How networks are opened, and where everything is computed.
    pub weights: WeightOptions,
}

/// One recorded case.
pub struct ReferenceCase {
    path: PathBuf,
    device: Device,
    file: SafetensorsFile,
    call: serde_json::Map<String, serde_json::Value>,
}

impl ReferenceCase {
    /// Opens a case file, whose inputs go to `device`.
    ///
    /// # Errors
    /// If the file is missing, truncated or malformed, or lacks a `call` or any output.
    pub fn open(path: &Path, device: Device) -> Result<Self, ModelError> {
        let file = SafetensorsFile::open(path)?;
        let metadata = file.metadata();
        let call = metadata.get(CALL).ok_or_else(|| ModelError::damaged(path, "its header has no `call`"))?;
        let call = serde_json::from_str(call).map_err(|error| {
            ModelError::damaged(path, format!("its `call` is not a JSON object: {error}"))
        })?;
        let case = Self { path: path.to_owned(), device, file, call };
        match case.output_names().is_empty() {
            true => Err(ModelError::damaged(path, "it records no output: no tensor is named `out.…`")),
            false => Ok(case),
        }
    }

    /// The file's name without its ending.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.file.shape(&format!("{INPUT}{name}")).is_some()
    }

    /// An input by its name without `in.`, on the device of the networks.
    ///
    /// # Errors
    /// If there is none.
    ///
    /// # Panics
    /// If the device has no memory left.
    pub fn input(&self, name: &str) -> Result<Tensor, ModelError> {
        Ok(self.file.read(&format!("{INPUT}{name}"))?.to_device(self.device))
    }

    /// Names of all recorded outputs, without `out.`.
    pub fn output_names(&self) -> Vec<String> {
        let names = self.file.names();
        let mut outputs: Vec<String> =
            names.iter().filter_map(|name| name.strip_prefix(OUTPUT)).map(str::to_owned).collect();
        outputs.sort();
        outputs
    }

    /// A recorded output by its name without `out.`, on the CPU.
    ///
    /// # Errors
    /// If there is none.
    pub fn output(&self, name: &str) -> Result<Tensor, ModelError> {
        self.file.read(&format!("{OUTPUT}{name}"))
    }

    /// How many rows an output has; `None` if the case does not record it.
    pub fn output_rows(&self, name: &str) -> Option<usize> {
        let shape = self.file.shape(&format!("{OUTPUT}{name}"))?;
        shape.first().map(|rows| *rows as usize)
    }

    /// An argument of the call.
    ///
    /// # Errors
    /// If it is missing or of another type.
    pub fn argument<T: DeserializeOwned>(&self, key: &str) -> Result<T, ModelError> {
        let found = self.optional_argument(key)?;
        found.ok_or_else(|| ModelError::config(&self.path, &format!("call.{key}"), "is missing"))
    }

    /// An argument of the call that may be missing or null.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn optional_argument<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ModelError> {
        match self.call.get(key) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| ModelError::config(&self.path, &format!("call.{key}"), error.to_string())),
        }
    }

    /// All arguments of the call.
    pub fn call(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.call
    }
}

/// How far a result is from its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Largest absolute difference of an element.
    pub max_abs: f64,
    /// `‖got − reference‖ / ‖reference‖`.
    pub relative: f64,
    /// Largest absolute number of the reference.
    pub largest: f64,
}

impl Deviation {
    /// Compares two tensors of one shape; two empty ones do not differ.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn between(got: &Tensor, reference: &Tensor) -> Self {
        assert_eq!(got.size(), reference.size(), "only tensors of one shape can be compared");
        if reference.numel() == 0 {
            return Self { max_abs: 0.0, relative: 0.0, largest: 0.0 };
        }
        let wide = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
        let (difference, reference) = (wide(got) - wide(reference), wide(reference));
        let (distance, length) = (difference.norm().double_value(&[]), reference.norm().double_value(&[]));
        let relative = if distance == 0.0 { 0.0 } else { distance / length };
        let largest_of = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
        Self { max_abs: largest_of(&difference), relative, largest: largest_of(&reference) }
    }

    /// Whether rounding explains it, of what a network computed: see [`TOLERANCE`].
    pub fn is_rounding(self) -> bool {
        self.relative <= TOLERANCE
    }

    /// Whether rounding explains it, of what a formula of a few operations computed: see [`FORMULA_TOLERANCE`].
    pub fn is_rounding_of_a_formula(self) -> bool {
        self.max_abs <= FORMULA_TOLERANCE * self.largest
    }
}

/// A table of comparisons as it grows: a line per output, then the count.
pub struct ParityReport<'a> {
    out: &'a mut dyn Write,
    rtol: f64,
    passed: usize,
    failed: usize,
    /// Whether the table has its head.
    is_begun: bool,
}

/// A relative error as a user types it.
///
/// # Errors
/// If it is no number of 0 or more.
pub fn parse_tolerance(text: &str) -> Result<f64, String> {
    let tolerance = text.parse().ok().filter(|tolerance: &f64| tolerance.is_finite() && *tolerance >= 0.0);
    tolerance.ok_or_else(|| "give a number of 0 or more, as in 1e-3".to_owned())
}

/// How many outputs agreed with the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParityOutcome {
    /// Outputs within tolerance.
    pub passed: usize,
    /// Outputs that are not.
    pub failed: usize,
}

impl<'a> ParityReport<'a> {
    /// A table on `out`, which begins with its first line; floating-point outputs pass up to the relative deviation
    /// `rtol`, integers if equal.
    pub fn new(out: &'a mut dyn Write, rtol: f64) -> Self {
        Self { out, rtol, passed: 0, failed: 0, is_begun: false }
    }

    /// Writes a line, if anybody reads it: whoever has seen enough of the table is still told the verdict.
    fn line(&mut self, text: &str) -> io::Result<()> {
        let head = match std::mem::replace(&mut self.is_begun, true) {
            true => String::new(),
            false => format!("{:<24} {:<28} {:>10} {:>10}\n", "case", "tensor", "max abs", "relative"),
        };
        match writeln!(self.out, "{head}{text}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| io::Error::new(e.kind(), format!("cannot write the comparison: {e}"))),
        }
    }

    /// Compares one output and writes its line.
    ///
    /// # Errors
    /// If the line cannot be written.
    pub fn compare(&mut self, case: &str, tensor: &str, got: &Tensor, reference: &Tensor) -> io::Result<()> {
        if got.size() != reference.size() {
            self.failed += 1;
            let (got, reference) = (got.size(), reference.size());
            return self.line(&format!("{case:<24} {tensor:<28} shape {got:?}, expected {reference:?} FAIL"));
        }
        let Deviation { max_abs, relative, .. } = Deviation::between(got, reference);
        let exact = !reference.is_floating_point();
        let ok = if exact { max_abs == 0.0 } else { relative <= self.rtol };
        *(if ok { &mut self.passed } else { &mut self.failed }) += 1;
        let verdict = if ok { "ok" } else { "FAIL" };
        self.line(&format!("{case:<24} {tensor:<28} {max_abs:>10.3e} {relative:>10.3e} {verdict}"))
    }

    /// Compares all that `case` recorded with what was `computed` under the same names.
    ///
    /// # Errors
    /// If the case recorded something that was not computed, or a line cannot be written.
    pub fn compare_case(
        &mut self,
        case: &ReferenceCase,
        computed: &[(String, Tensor)],
    ) -> Result<(), ModelError> {
        for name in case.output_names() {
            let reference = case.output(&name)?;
            let Some((_, got)) = computed.iter().find(|(computed, _)| *computed == name) else {
                let known: Vec<&str> = computed.iter().map(|(name, _)| name.as_str()).take(8).collect();
                let reason =
                    format!("it records `out.{name}`, but this kind of case has {}", known.join(", "));
                return Err(ModelError::damaged(case.path(), reason));
            };
            let written = self.compare(&case.name(), &name, got, &reference);
            written.map_err(|error| ModelError::Input(format!("cannot write the report: {error}")))?;
        }
        Ok(())
    }

    /// Writes the count.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<ParityOutcome> {
        self.line(&format!("{} passed, {} failed", self.passed, self.failed))?;
        Ok(ParityOutcome { passed: self.passed, failed: self.failed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rtol: f64, compare: impl FnOnce(&mut ParityReport)) -> (String, ParityOutcome) {
        let mut text = Vec::new();
        let mut report = ParityReport::new(&mut text, rtol);
        compare(&mut report);
        let outcome = report.finish().unwrap();
        (String::from_utf8(text).unwrap(), outcome)
    }

    #[test]
    fn a_tolerance_is_a_number_that_something_can_be_within() {
        assert_eq!(parse_tolerance("1e-3"), Ok(1e-3));
        assert_eq!(parse_tolerance("0"), Ok(0.0));
        for odd in ["NaN", "inf", "-1e-4", "tight", ""] {
            assert!(parse_tolerance(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn deviation_is_relative_to_the_reference() {
        let deviation =
            Deviation::between(&Tensor::from_slice(&[3.0, 5.0]), &Tensor::from_slice(&[3.0, 4.0]));
        assert_eq!(deviation, Deviation { max_abs: 1.0, relative: 0.2, largest: 4.0 });
    }

    #[test]
    fn floats_pass_within_tolerance_and_integers_only_when_equal() {
        let (text, outcome) = report(0.1, |report| {
            let (one, near) = (Tensor::from_slice(&[1.0_f32]), Tensor::from_slice(&[1.05_f32]));
            report.compare("case", "near", &near, &one).unwrap();
            report.compare("case", "far", &(near * 2), &one).unwrap();
            report
                .compare("case", "ids", &Tensor::from_slice(&[1000_i64]), &Tensor::from_slice(&[1001_i64]))
                .unwrap();
        });
        assert_eq!(outcome, ParityOutcome { passed: 1, failed: 2 });
        assert!(text.ends_with("1 passed, 2 failed\n"), "{text}");
    }

    #[test]
    fn a_reader_that_has_gone_is_still_told_the_verdict() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut gone = Gone;
        let mut report = ParityReport::new(&mut gone, 0.1);
        let one = Tensor::from_slice(&[1.0_f32]);
        report.compare("case", "same", &one, &one).unwrap();
        assert_eq!(report.finish().unwrap(), ParityOutcome { passed: 1, failed: 0 });
    }

    #[test]
    fn numbers_that_are_not_finite_and_shapes_that_differ_fail() {
        let (text, outcome) = report(1.0, |report| {
            let reference = Tensor::from_slice(&[1.0_f32, 1.0]);
            report.compare("case", "nan", &(&reference * f64::NAN), &reference).unwrap();
            report.compare("case", "short", &reference.narrow(0, 0, 1), &reference).unwrap();
        });
        assert_eq!(outcome, ParityOutcome { passed: 0, failed: 2 });
        assert!(text.contains("shape [1], expected [2] FAIL"), "{text}");
    }
}
