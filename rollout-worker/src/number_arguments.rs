//! Numbers of the command line, refused there where no run could use them.

use std::ops::RangeInclusive;

/// As many as a run config allows.
const STEPS: RangeInclusive<usize> = 2..=1_000_000;
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

/// A relative error that may be allowed.
///
/// # Errors
/// If it is none.
pub fn relative_error(text: &str) -> Result<f64, String> {
    finite(text).and_then(|number| match number >= 0.0 {
        true => Ok(number),
        false => Err("must be 0 or more".to_owned()),
    })
}

/// Denoising steps.
///
/// # Errors
/// If there cannot be so many.
pub fn steps(text: &str) -> Result<usize, String> {
    within(text, STEPS)
}

/// Tokens of a prompt.
///
/// # Errors
/// If there cannot be so many.
pub fn tokens(text: &str) -> Result<usize, String> {
    within(text, TOKENS)
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
            assert!(finite(text).is_err() && relative_error(text).is_err(), "{text}");
        }
        assert_eq!((finite("-1.5"), relative_error("1e-4")), (Ok(-1.5), Ok(1e-4)));
        assert!(relative_error("-1e-4").is_err());
        for text in ["0", "1", "1000001", "-2", "2.5", "99999999999999999999"] {
            assert!(steps(text).is_err(), "{text}");
        }
        assert_eq!((steps("28"), tokens("512")), (Ok(28), Ok(512)));
        assert!(tokens("0").is_ok() && tokens("100000000000").is_err());
    }
}
