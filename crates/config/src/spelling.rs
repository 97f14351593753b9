//! "Did you mean": which of the known names was meant by one that is not known.

/// Jaro-Winkler likeness above which a name is a misspelling of another rather than another.
const LIKE: f64 = 0.75;

/// The known name that is spelt most like `name`, where one is spelt nearly so.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let nearest = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest.filter(|nearest| likeness(nearest) > LIKE)
}

/// The question that ends a message about an unknown name, or nothing where none of the known ones was meant.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"))
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_misspelling_has_a_name_that_was_meant_and_another_word_has_none() {
        let known = ["steps", "height", "guidance_scale"];
        assert_eq!(nearest("stepps", known), Some("steps"));
        assert_eq!(nearest("guidance-scale", known), Some("guidance_scale"));
        assert_eq!(nearest("xylophone", known), None);
        assert_eq!(nearest("steps", []), None);
    }
}
