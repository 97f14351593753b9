//! What sizes a configuration may ask for: a network beyond them would take the process down before its files are seen not
//! to fit.

/// Of any dimension; published vocabularies have up to a few hundred thousand rows.
const LARGEST: i64 = 1 << 24;
/// Of layers of one kind; published networks have up to a few hundred.
const MOST_LAYERS: i64 = 10_000;

/// The first of these sizes that is not from 1 to 2²⁴, and why.
pub(crate) fn check_sizes<'a>(sizes: &[(&'a str, i64)]) -> Result<(), (&'a str, String)> {
    check(sizes, LARGEST)
}

/// Why a size that several numbers of a configuration make together, such as heads times their width, is above 2²⁴, if it is.
pub(crate) fn check_product<'a>(key: &'a str, factors: &[i64]) -> Result<(), (&'a str, String)> {
    let product = factors.iter().fold(1_i64, |product, factor| product.saturating_mul(*factor));
    match product <= LARGEST {
        true => Ok(()),
        false => {
            let factors: Vec<String> = factors.iter().map(i64::to_string).collect();
            Err((key, format!("makes a size of {}, which is above {LARGEST}", factors.join(" × "))))
        }
    }
}

/// The first of these numbers of layers that is not from 1 to 10 000, and why.
pub(crate) fn check_layers<'a>(numbers: &[(&'a str, i64)]) -> Result<(), (&'a str, String)> {
    check(numbers, MOST_LAYERS)
}

fn check<'a>(numbers: &[(&'a str, i64)], most: i64) -> Result<(), (&'a str, String)> {
    match numbers.iter().find(|(_, number)| !(1..=most).contains(number)) {
        None => Ok(()),
        Some((key, number)) => Err((key, format!("is {number}; it must be from 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_out_of_bounds_is_told() {
        assert_eq!(check_sizes(&[("width", 1), ("inner", LARGEST)]), Ok(()));
        let told = |key, reason: &str| Err((key, reason.to_owned()));
        assert_eq!(
            check_sizes(&[("width", 1), ("inner", 0)]),
            told("inner", "is 0; it must be from 1 to 16777216")
        );
        assert_eq!(check_sizes(&[("width", i64::MAX)]).map_err(|(key, _)| key), Err("width"));
        assert_eq!(check_product("heads", &[1 << 12, 1 << 12]), Ok(()));
        assert_eq!(
            check_product("heads", &[1 << 24, 1 << 24, 1 << 24]),
            told("heads", "makes a size of 16777216 × 16777216 × 16777216, which is above 16777216")
        );
        assert_eq!(
            check_layers(&[("depth", 100_000_000)]),
            told("depth", "is 100000000; it must be from 1 to 10000")
        );
    }
}
