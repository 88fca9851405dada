//! The element types of host kernels.

use half::bf16;
use tch::Kind;

/// What a tensor's memory is made of.
pub trait Stored: Copy + Send + Sync + 'static {
    /// Its type in libtorch.
    const KIND: Kind;
}

impl Stored for u8 {
    const KIND: Kind = Kind::Uint8;
}

/// A number that is kept as it is and computed with as f32.
pub trait Element: Stored {
    /// Its value.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Stored for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Stored for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// A NaN stays one: its quiet bit is in the upper half.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        let kept = if value.is_nan() { (bits >> 16) | 0x40 } else { rounded };
        #[expect(clippy::cast_possible_truncation, reason = "the upper half was shifted down")]
        bf16::from_bits(kept as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(4099) {
            let value = f32::from_bits(bits);
            let (found, expected) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
            assert!(found == expected || (found.is_nan() && expected.is_nan()), "{value}");
        }
    }
}
