//! Errors as they travel: on one line, whole.

/// An error with its causes, outermost first, joined by colons. A cause that the text before it ends with already is not said
/// twice.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("failed to write weights.bin")]
        Silent(#[source] io::Error),
        #[error("failed to write weights.bin: {0}")]
        Quoting(#[source] io::Error),
        #[error("the task failed")]
        Outer(#[source] Box<Layer>),
    }

    fn full_disk() -> io::Error {
        io::Error::other("no space left on device")
    }

    #[test]
    fn every_cause_is_said_once() {
        let whole = "the task failed: failed to write weights.bin: no space left on device";
        for inner in [Layer::Silent(full_disk()), Layer::Quoting(full_disk())] {
            assert_eq!(with_causes(&Layer::Outer(Box::new(inner))), whole);
        }
    }
}
