//! Whether this process computes as its run wants it.

use config::Determinism;
use models::determinism::LibtorchFlags;

/// A process that computes otherwise than its run wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`run.determinism` is `{wanted}`, but this process was started otherwise and cannot change; start it with \
     {}={wanted}",
    Determinism::VARIABLE
)]
pub struct OtherDeterminism {
    /// What the run wants.
    pub wanted: Determinism,
}

/// Checks what libtorch was told when this process was loaded.
///
/// # Errors
/// If the run wants it otherwise.
pub fn check_determinism(wanted: Determinism) -> Result<(), OtherDeterminism> {
    check(wanted, LibtorchFlags::of_process())
}

fn check(wanted: Determinism, found: Option<LibtorchFlags>) -> Result<(), OtherDeterminism> {
    let expected = match wanted {
        Determinism::Strict => LibtorchFlags::STRICT,
        Determinism::Fast => LibtorchFlags::FAST,
    };
    match found == Some(expected) {
        true => Ok(()),
        false => Err(OtherDeterminism { wanted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_run_wants_will_do() {
        let (strict, fast) = (Some(LibtorchFlags::STRICT), Some(LibtorchFlags::FAST));
        assert!(check(Determinism::Strict, strict).is_ok() && check(Determinism::Fast, fast).is_ok());
        assert!(check(Determinism::Strict, fast).is_err() && check(Determinism::Strict, None).is_err());
        let told = check(Determinism::Fast, strict).unwrap_err().to_string();
        assert!(told.contains("start it with FLOW_RL_DETERMINISM=fast"), "{told}");
    }

    #[test]
    fn a_process_that_was_told_nothing_is_strict() {
        assert_eq!(check_determinism(Determinism::Strict), Ok(()));
    }
}
