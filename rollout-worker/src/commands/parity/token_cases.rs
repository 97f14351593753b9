//! Token ids of recorded texts, exactly.

use std::path::Path;

use anyhow::ensure;
use models::json_file;
use models::reference_case::ParityReport;
use models::tokenizer::Tokenizer;
use serde::Deserialize;
use tch::Tensor;

/// The file that holds the texts and their ids.
pub(super) const FILE: &str = "cases.json";

#[derive(Deserialize)]
struct TokenCase {
    text: String,
    /// Padded; their number is the length asked for.
    ids: Vec<i64>,
}

#[derive(Deserialize)]
struct TokenizerClass {
    #[serde(default)]
    tokenizer_class: String,
}

/// Encodes each text of `path` with the tokenizer in `dir`.
pub(super) fn compare(path: &Path, dir: &Path, report: &mut ParityReport) -> anyhow::Result<()> {
    let cases: Vec<TokenCase> = json_file::read(path)?;
    ensure!(!cases.is_empty(), "0 cases in it");
    let settings = dir.join("tokenizer_config.json");
    let class = if settings.is_file() {
        json_file::read::<TokenizerClass>(&settings)?.tokenizer_class
    } else {
        String::new()
    };
    let tokenizer = Tokenizer::open(dir, &class)?;
    for (idx, case) in cases.iter().enumerate() {
        let got = tokenizer.encode(&case.text, case.ids.len())?.ids;
        report.compare(
            &format!("{FILE}[{idx}]"),
            "ids",
            &Tensor::from_slice(&got),
            &Tensor::from_slice(&case.ids),
        )?;
    }
    Ok(())
}
