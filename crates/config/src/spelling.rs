//! "Did you mean": which of the known names was meant by one that is not known.

/// Likeness above which a name is a misspelling of another rather than another.
const LIKE: f64 = 0.75;

/// The known name that is spelt most like `name`, however little; `None` if none is known.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().max_by(|a, b| likeness(a, name).total_cmp(&likeness(b, name)))
}

/// The known name that is spelt most like `name`, where one is spelt nearly so.
pub(crate) fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest(name, known).filter(|nearest| likeness(nearest, name) > LIKE)
}

/// Jaro and Winkler's, from 0 to 1.
fn likeness(known: &str, name: &str) -> f64 {
    strsim::jaro_winkler(known, name)
}

#[cfg(test)]
mod tests {
    use super::{meant, nearest};

    #[test]
    fn a_misspelling_has_a_name_that_was_meant_and_another_word_has_none() {
        let known = ["steps", "height", "guidance_scale"];
        assert_eq!(meant("stepps", known), Some("steps"));
        assert_eq!(meant("guidance-scale", known), Some("guidance_scale"));
        assert_eq!(meant("xylophone", known), None);
        assert!(nearest("xylophone", known).is_some());
        assert_eq!(nearest("steps", []), None);
    }
}
