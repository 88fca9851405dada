//! E2M1: one sign bit, two exponent bits, one mantissa bit.

/// Value of each code; the upper eight are the lower eight negated, so code 8 is -0. Source: OCP MX 1.0, section 5.3.3.
pub(super) const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The code nearest to `value`: ties go to the even code, values beyond 6 to 6, and the sign stays, that of zero too.
pub(super) fn nearest_code(value: f32) -> u8 {
    let magnitude = value.abs();
    // One step up at each midpoint between neighbours; whether the midpoint itself goes up alternates with the code's parity.
    let code = u8::from(magnitude > 0.25)
        + u8::from(magnitude >= 0.75)
        + u8::from(magnitude > 1.25)
        + u8::from(magnitude >= 1.75)
        + u8::from(magnitude > 2.5)
        + u8::from(magnitude >= 3.5)
        + u8::from(magnitude > 5.0);
    code | (u8::from(value.is_sign_negative()) << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_nearest_to_its_own_code() {
        for (code, value) in (0..).zip(VALUES) {
            assert_eq!(nearest_code(value), code);
        }
    }

    #[test]
    fn ties_go_to_the_even_code_and_neighbours_to_the_nearer_one() {
        for low in 0..7u8 {
            let midpoint = f32::midpoint(VALUES[usize::from(low)], VALUES[usize::from(low) + 1]);
            let even = low + (low & 1);
            assert_eq!(nearest_code(midpoint), even, "midpoint {midpoint}");
            assert_eq!(nearest_code(midpoint.next_down()), low, "below {midpoint}");
            assert_eq!(nearest_code(midpoint.next_up()), low + 1, "above {midpoint}");
            assert_eq!(nearest_code(-midpoint), even | 8, "midpoint -{midpoint}");
        }
        assert_eq!(nearest_code(1e30), 7);
        assert_eq!(nearest_code(-7.0), 15);
    }
}
