//! What can go wrong in a codec.

/// Why a slice could not be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice does not have the length that the other slices imply.
    #[error("`{slice}` holds {found} elements, expected {expected}")]
    Length {
        /// Name of the argument.
        slice: &'static str,
        /// Elements that the other arguments imply.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// The number of values is no multiple of the block size.
    #[error("{found} values are no multiple of a block of {block}")]
    PartialBlock {
        /// Elements of a block.
        block: usize,
        /// Number of values given.
        found: usize,
    },
    /// A scale byte that stands for NaN.
    #[error("scale byte {index} is 255, which stands for no number")]
    ReservedScale {
        /// Index of the scale in the slice of scales.
        index: usize,
    },
    /// A scale under which an element of its block exceeds the largest bf16.
    #[error("scale byte {index} is {scale}, and an element of its block exceeds the range of bf16")]
    Overflow {
        /// Index of the scale in the slice of scales.
        index: usize,
        /// The scale byte.
        scale: u8,
    },
    /// An f16 scale, or the minimum beside it, that is NaN or infinite: the block stands for no numbers, or the values that it was
    /// to hold are too large for its type.
    #[error("scale of block {index} is not a finite f16")]
    ScaleNotFinite {
        /// Index of the block.
        index: usize,
    },
    /// A value that is NaN or infinite, for which the format has no code.
    #[error("value {index} is not a finite number")]
    NotFinite {
        /// Index of the value.
        index: usize,
    },
}
