//! E2M1: one sign bit, two exponent bits, one mantissa bit.

/// Value of each code; the upper eight are the lower eight negated, so code 8 is -0. Source: OCP MX 1.0, section 5.3.3.
pub(crate) const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Midpoints between the magnitudes of neighbouring codes.
const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// Which code an element halfway between two gets, and what becomes of the sign of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rounding {
    /// Halfway goes to the even code; -0 stays -0, also where it was rounded to. Source: OCP MX 1.0, section 6.3; Triton, torchao.
    #[default]
    Even,
    /// Halfway goes toward zero, and every zero is +0. Source: ggml `ggml-quants.c`, `best_index_mxfp4`.
    TowardZero,
}

impl Rounding {
    /// The code nearest to `value`; values beyond 6 get that of 6.
    pub(super) fn nearest_code(self, value: f32) -> u8 {
        let magnitude = value.abs();
        let mut code = 0;
        for (below, midpoint) in MIDPOINTS.into_iter().enumerate() {
            // A tie steps up where the code below is odd, so that the even one wins.
            let steps_up_at_tie = self == Self::Even && below % 2 == 1;
            code += u8::from(magnitude > midpoint || (steps_up_at_tie && magnitude >= midpoint));
        }
        let keeps_sign = self == Self::Even || code > 0;
        code | (u8::from(keeps_sign && value.is_sign_negative()) << 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_nearest_to_its_own_code() {
        for (code, value) in (0..).zip(VALUES) {
            assert_eq!(Rounding::Even.nearest_code(value), code);
            let canonical = if code == 8 { 0 } else { code };
            assert_eq!(Rounding::TowardZero.nearest_code(value), canonical);
        }
    }

    #[test]
    fn ties_go_where_the_rule_says_and_neighbours_to_the_nearer_code() {
        for low in 0..7u8 {
            let midpoint = f32::midpoint(VALUES[usize::from(low)], VALUES[usize::from(low) + 1]);
            assert_eq!(midpoint, MIDPOINTS[usize::from(low)]);
            let even = low + (low & 1);
            assert_eq!(Rounding::Even.nearest_code(midpoint), even, "midpoint {midpoint}");
            assert_eq!(Rounding::Even.nearest_code(-midpoint), even | 8, "midpoint -{midpoint}");
            assert_eq!(Rounding::TowardZero.nearest_code(midpoint), low, "midpoint {midpoint}");
            let negative = if low == 0 { 0 } else { low | 8 };
            assert_eq!(Rounding::TowardZero.nearest_code(-midpoint), negative, "midpoint -{midpoint}");
            for rounding in [Rounding::Even, Rounding::TowardZero] {
                assert_eq!(rounding.nearest_code(midpoint.next_down()), low, "below {midpoint}");
                assert_eq!(rounding.nearest_code(midpoint.next_up()), low + 1, "above {midpoint}");
            }
        }
        assert_eq!(Rounding::Even.nearest_code(1e30), 7);
        assert_eq!(Rounding::Even.nearest_code(-7.0), 15);
    }
}
