//! Values of the command line, refused there where no run could use them.

use config::StepRule;
use std::ops::RangeInclusive;

/// None where a pipeline has no encoder of long texts.
const TOKENS: RangeInclusive<usize> = 0..=4096;

/// A number that float32, in which networks compute, can hold.
///
/// # Errors
/// If it is none.
pub fn finite(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (number as f32).is_finite() { Ok(number) } else { Err("must be finite, also in float32".to_owned()) }
}

/// Tokens of a prompt.
///
/// # Errors
/// If there cannot be so many.
pub fn tokens(text: &str) -> Result<usize, String> {
    within(text, TOKENS)
}

/// The step rule of a name, `flow-sde` or `cps`.
///
/// # Errors
/// If it has another name.
pub fn step_rule(name: &str) -> Result<StepRule, serde_json::Error> {
    serde_json::from_value(name.into())
}

fn within(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "not a whole number".to_owned())?;
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!("must be from {} to {}", range.start(), range.end())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_run_could_use_are_refused() {
        for text in ["nan", "NaN", "inf", "-inf", "1e400", "1e308", "x", ""] {
            assert!(finite(text).is_err(), "{text}");
        }
        assert_eq!(finite("-1.5"), Ok(-1.5));
        assert_eq!(tokens("512"), Ok(512));
        assert!(tokens("0").is_ok() && tokens("100000000000").is_err());
    }
}
