//! Which numbers of a push are taken. A number that is none, or so large that squaring it makes it none, would end the run
//! on the word of one worker; refused at the door, it is that worker's failure, and another one tries.

use protocol::PushFault;

/// Beyond any latent or feature of a text that a network has, and small enough that losses made of it stay finite.
pub const LARGEST_FEATURE: f32 = 1e9;

/// What the numbers of a tensor may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Latents: not beyond [`LARGEST_FEATURE`].
    Features,
    /// Scores and log-probabilities.
    Finite,
    /// Numbers that may not apply.
    FiniteOrNan,
}

impl Allowed {
    fn holds(self, number: f32) -> bool {
        match self {
            Self::Features => number.abs() <= LARGEST_FEATURE,
            Self::Finite => number.is_finite(),
            Self::FiniteOrNan => !number.is_infinite(),
        }
    }

    /// Checks the numbers of tensor `name` of that shape, row-major.
    ///
    /// # Errors
    /// The first number that is not allowed, and where it is.
    pub fn check(self, name: &str, shape: &[i64], numbers: &[f32]) -> Result<(), PushFault> {
        match numbers.iter().position(|number| !self.holds(*number)) {
            None => Ok(()),
            Some(position) => {
                let (number, place) = (numbers[position], place(position, shape));
                Err(PushFault::Number { tensor: name.to_owned(), number, place })
            }
        }
    }
}

/// Indices along each axis of the element at a position in row-major order.
fn place(position: usize, shape: &[i64]) -> Vec<usize> {
    let mut left = position;
    let mut place: Vec<usize> = Vec::with_capacity(shape.len());
    for size in shape.iter().rev() {
        let size = usize::try_from(*size).unwrap_or(1).max(1);
        place.push(left % size);
        left /= size;
    }
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_is_told_with_its_place() {
        let check = |allowed: Allowed, bad: f32| {
            let mut numbers = vec![0.5; 24];
            numbers[17] = bad;
            allowed.check("means", &[2, 3, 4], &numbers)
        };
        for (allowed, bad) in [
            (Allowed::Features, f32::NAN),
            (Allowed::Features, 1e30),
            (Allowed::Features, f32::NEG_INFINITY),
            (Allowed::Finite, f32::NAN),
            (Allowed::Finite, f32::INFINITY),
            (Allowed::FiniteOrNan, f32::INFINITY),
        ] {
            let fault = check(allowed, bad).unwrap_err().to_string();
            assert_eq!(fault, format!("tensor `means` holds {bad} at [1, 1, 1]"));
        }
        for (allowed, good) in
            [(Allowed::Features, -1e6), (Allowed::Finite, f32::MAX), (Allowed::FiniteOrNan, f32::NAN)]
        {
            assert_eq!(check(allowed, good), Ok(()));
        }
    }
}
