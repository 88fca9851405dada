//! Element types of tensors, as safetensors names them.

use std::fmt;

/// Type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// A byte that is 0 or 1.
    Bool,
    /// Four-bit float, two in a byte.
    F4,
    /// Six-bit float with a mantissa of three bits.
    F6E2m3,
    /// Six-bit float with a mantissa of two bits.
    F6E3m2,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// Eight-bit float with a mantissa of two bits.
    F8E5m2,
    /// Eight-bit float with a mantissa of three bits.
    F8E4m3,
    /// Eight-bit power of two.
    F8E8m0,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single precision.
    F32,
    /// Complex number of two single-precision floats.
    C64,
    /// IEEE double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

/// Every type with its name and its size in bits. Source: safetensors 0.8.0, `tensor.rs`, `enum Dtype`.
const TABLE: [(Dtype, &str, u64); 20] = [
    (Dtype::Bool, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6E2m3, "F6_E2M3", 6),
    (Dtype::F6E3m2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8E5m2, "F8_E5M2", 8),
    (Dtype::F8E4m3, "F8_E4M3", 8),
    (Dtype::F8E8m0, "F8_E8M0", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::Bf16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
];

impl Dtype {
    /// Every type.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.into_iter().map(|(dtype, ..)| dtype)
    }

    /// The type of a safetensors name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == name).map(|(dtype, ..)| *dtype)
    }

    /// The safetensors name.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// Bits of an element.
    #[must_use]
    pub fn bits(self) -> u64 {
        TABLE[self as usize].2
    }

    /// Bytes of an element; 1 for the types that are smaller than a byte.
    #[must_use]
    pub fn size(self) -> usize {
        usize::try_from(self.bits().div_ceil(8)).unwrap_or(1)
    }

    /// Bytes of a tensor of this type, or `None` when they exceed 2^63 or do not end on a byte.
    ///
    /// A dimension of 0 makes the tensor empty, but does not excuse the other dimensions from the limit.
    #[must_use]
    pub fn byte_length(self, shape: &[usize]) -> Option<u64> {
        let elements =
            |dim: &dyn Fn(u64) -> u64| shape.iter().try_fold(1u64, |product, &size| product.checked_mul(dim(u64::try_from(size).ok()?)));
        let limit = elements(&|size| size.max(1))?.checked_mul(self.bits())?;
        let bits = elements(&|size| size)?.checked_mul(self.bits())?;
        (limit <= i64::MAX.unsigned_abs() && bits.is_multiple_of(8)).then_some(bits / 8)
    }

    /// True for the types that a model's unquantized weights come in: BF16, F16 and F32.
    #[must_use]
    pub fn is_weight(self) -> bool {
        matches!(self, Self::Bf16 | Self::F16 | Self::F32)
    }

    /// Index of the first NaN or infinity in a tensor's bytes, of the types of weights.
    pub(crate) fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        // All ones in the exponent, which the upper bytes of a little-endian number hold.
        let exponent = match self {
            Self::Bf16 => 0x7f80_u16,
            Self::F16 => 0x7c00,
            Self::F32 => {
                let is_not_finite = |word: &[u8; 4]| !f32::from_le_bytes(*word).is_finite();
                return bytes.as_chunks::<4>().0.iter().position(is_not_finite);
            }
            _ => return None,
        };
        let is_not_finite = |half: &[u8; 2]| u16::from_le_bytes(*half) & exponent == exponent;
        let halves = bytes.as_chunks::<2>().0;
        // Without a branch for each element this goes at the speed of memory.
        let any = halves.iter().fold(false, |any, half| any | is_not_finite(half));
        any.then(|| halves.iter().position(is_not_finite)).flatten()
    }

    /// The name that torch and `config.json` use, for the types of weights.
    #[must_use]
    pub fn torch_name(self) -> Option<&'static str> {
        match self {
            Self::Bf16 => Some("bfloat16"),
            Self::F16 => Some("float16"),
            Self::F32 => Some("float32"),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_types() {
        for (index, dtype) in Dtype::all().enumerate() {
            assert_eq!(dtype as usize, index);
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }

    #[test]
    fn byte_lengths_neither_wrap_nor_round() {
        assert_eq!(Dtype::F32.byte_length(&[2, 3]), Some(24));
        assert_eq!(Dtype::F32.byte_length(&[]), Some(4));
        assert_eq!(Dtype::F4.byte_length(&[3]), None);
        assert_eq!(Dtype::F6E2m3.byte_length(&[4]), Some(3));
        assert_eq!(Dtype::U8.byte_length(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::U8.byte_length(&[0, usize::MAX]), None);
        assert_eq!(Dtype::U8.byte_length(&[0, 5]), Some(0));
    }
}
