//! What a file says about itself in `general.file_type`.

use std::fmt;

/// The kind of a file, after the type of most of its weights. Readers show it, and take the type of each tensor from the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names of llama.cpp, whose endings tell small mixes from large ones")]
pub enum FileType {
    /// All in single precision.
    F32,
    /// Half precision.
    F16,
    /// Blocks of four bits.
    Q4_0,
    /// Blocks of eight bits.
    Q8_0,
    /// Blocks of five bits.
    Q5_0,
    /// Blocks of five bits with minima.
    Q5_1,
    /// The small mix around `Q4_K`.
    Q4_K_S,
    /// The medium mix around `Q4_K`.
    Q4_K_M,
    /// The small mix around `Q5_K`.
    Q5_K_S,
    /// The medium mix around `Q5_K`.
    Q5_K_M,
    /// Blocks of six bits.
    Q6_K,
    /// Uneven levels of four bits.
    IQ4_NL,
    /// bfloat16.
    BF16,
    /// MXFP4 experts, whatever the rest.
    MXFP4_MOE,
}

/// Every kind with its number and its name. Source: llama.cpp `include/llama.h`, `enum llama_ftype`.
const TABLE: [(FileType, u32, &str); 14] = [
    (FileType::F32, 0, "F32"),
    (FileType::F16, 1, "F16"),
    (FileType::Q4_0, 2, "Q4_0"),
    (FileType::Q8_0, 7, "Q8_0"),
    (FileType::Q5_0, 8, "Q5_0"),
    (FileType::Q5_1, 9, "Q5_1"),
    (FileType::Q4_K_S, 14, "Q4_K_S"),
    (FileType::Q4_K_M, 15, "Q4_K_M"),
    (FileType::Q5_K_S, 16, "Q5_K_S"),
    (FileType::Q5_K_M, 17, "Q5_K_M"),
    (FileType::Q6_K, 18, "Q6_K"),
    (FileType::IQ4_NL, 25, "IQ4_NL"),
    (FileType::BF16, 32, "BF16"),
    (FileType::MXFP4_MOE, 38, "MXFP4_MOE"),
];

impl FileType {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.into_iter().map(|(file_type, ..)| file_type)
    }

    /// The kind of a number in a file.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == number).map(|(file_type, ..)| *file_type)
    }

    /// The number in a file.
    #[must_use]
    pub fn number(self) -> u32 {
        TABLE[self as usize].1
    }

    /// The name in llama.cpp.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].2
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_kinds() {
        for file_type in FileType::all() {
            assert_eq!(TABLE[file_type as usize].0, file_type);
            assert_eq!(FileType::from_number(file_type.number()), Some(file_type));
        }
        assert_eq!(FileType::from_number(4), None);
    }
}
