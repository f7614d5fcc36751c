//! A share of requests, exact to one in a million.
//!
//! In: a random number. Out: whether the request is in the share. Pure; who asks brings the number.

/// A share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };
    /// No request.
    pub const NONE: Self = Self { numerator: 0, denominator: 1 };

    /// `numerator` of `denominator`; `None` when the denominator is zero. More than the whole is the whole.
    #[must_use]
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (denominator > 0).then(|| Self { numerator: numerator.min(denominator), denominator })
    }

    /// Whether `draw`, evenly distributed over all of `u64`, falls into the share.
    #[must_use]
    pub fn holds(self, draw: u64) -> bool {
        draw % u64::from(self.denominator) < u64::from(self.numerator)
    }

    /// Draws by itself; without a draw where the outcome is certain.
    #[must_use]
    pub fn draw(self) -> bool {
        self.is_all() || (self.numerator > 0 && self.holds(fastrand::u64(..)))
    }

    /// Whether every request is in the share.
    #[must_use]
    pub fn is_all(self) -> bool {
        self.numerator == self.denominator
    }

    /// Whether no request is in the share.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.numerator == 0
    }

    /// As a number from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_met_exactly_over_a_whole_cycle() {
        for (numerator, denominator) in [(0, 100), (1, 100), (37, 100), (100, 100), (123_456, 1_000_000)] {
            let share = Fraction::new(numerator, denominator).expect("valid");
            let hits = (0..u64::from(denominator)).filter(|&draw| share.holds(draw)).count();
            assert_eq!(hits, numerator as usize);
        }
        assert_eq!(Fraction::new(1, 0), None);
        assert!(Fraction::new(200, 100).expect("valid").is_all());
        assert!(Fraction::ALL.draw() && !Fraction::NONE.draw());
    }
}
