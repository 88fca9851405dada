//! How a tensor's elements are stored.

use std::fmt;

/// Type of a tensor, of those that models of gpt-oss are published in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32, four bits and a scale.
    Q4_0,
    /// Blocks of 32, five bits and a scale.
    Q5_0,
    /// Blocks of 32, five bits, a scale and a minimum.
    Q5_1,
    /// Blocks of 32, eight bits and a scale.
    Q8_0,
    /// Blocks of 256, four bits with scales and minima of six bits.
    Q4K,
    /// Blocks of 256, five bits with scales and minima of six bits.
    Q5K,
    /// Blocks of 256, six bits with scales of eight bits.
    Q6K,
    /// Blocks of 32, one of sixteen uneven levels and a scale.
    Iq4Nl,
    /// Blocks of 32, four-bit floats under a power of two.
    Mxfp4,
}

/// Every type with the number that stands for it in a file, its name, and elements and bytes of a block.
///
/// Source: gguf 0.19.0 `constants.py`, `GGMLQuantizationType` and `GGML_QUANT_SIZES`.
const TABLE: [(TensorType, u32, &str, u64, u64); 12] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (TensorType::Mxfp4, 39, "MXFP4", 32, 17),
];

impl TensorType {
    /// Every type.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.into_iter().map(|(tensor_type, ..)| tensor_type)
    }

    /// The type of a number in a file.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|(_, known, ..)| *known == number).map(|(tensor_type, ..)| *tensor_type)
    }

    /// The number in a file.
    #[must_use]
    pub fn number(self) -> u32 {
        TABLE[self as usize].1
    }

    /// The name in ggml.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].2
    }

    /// Elements of a block; 1 for floats.
    #[must_use]
    pub fn block_elements(self) -> u64 {
        TABLE[self as usize].3
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        TABLE[self as usize].4
    }

    /// Bytes of a tensor, or `None` when its rows are no whole number of blocks or it exceeds 2^63 bytes.
    ///
    /// # Shapes
    /// The last dimension is that of the rows.
    #[must_use]
    pub fn byte_length(self, shape: &[usize]) -> Option<u64> {
        let wide = |size: usize| u64::try_from(size).ok();
        let (&row, rows) = shape.split_last()?;
        let row = wide(row)?;
        if row % self.block_elements() != 0 {
            return None;
        }
        let row_bytes = (row / self.block_elements()).checked_mul(self.block_bytes())?;
        let bytes = rows.iter().try_fold(row_bytes, |bytes, &size| bytes.checked_mul(wide(size)?))?;
        (bytes <= i64::MAX.unsigned_abs()).then_some(bytes)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_types() {
        for tensor_type in TensorType::all() {
            assert_eq!(TABLE[tensor_type as usize].0, tensor_type);
            assert_eq!(TensorType::from_number(tensor_type.number()), Some(tensor_type));
        }
        assert_eq!(TensorType::from_number(40), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(TensorType::Mxfp4.byte_length(&[3, 5, 64]), Some(3 * 5 * 34));
        assert_eq!(TensorType::Q4K.byte_length(&[5, 2880]), None);
        assert_eq!(TensorType::F32.byte_length(&[7]), Some(28));
        assert_eq!(TensorType::F32.byte_length(&[usize::MAX, 2]), None);
        assert_eq!(TensorType::F32.byte_length(&[]), None);
    }
}
