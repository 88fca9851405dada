//! Which type a tensor gets.

use super::{FileType, GgufTensor, Held, TensorType};
use crate::checkpoint::{Checkpoint, ExpertStorage};
use crate::dtype::Dtype;
use crate::error::Result;

/// What the weights of a file become, those aside that are always f32.
///
/// [`GgufTensor::is_always_f32`] tells which these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgufTarget {
    /// As they are in the model: MXFP4 experts byte for byte, all others in their own floats.
    Native,
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
    /// Blocks of eight bits; half precision where rows are no multiple of 32.
    Q8_0,
    /// The mix that ggml-org publishes: the experts in MXFP4, all others in blocks of eight bits.
    Mxfp4,
}

impl GgufTarget {
    /// Every target with the word for it.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Native, "native"),
        (Self::F32, "f32"),
        (Self::Bf16, "bf16"),
        (Self::F16, "f16"),
        (Self::Q8_0, "q8_0"),
        (Self::Mxfp4, "mxfp4"),
    ];

    /// The type of a tensor of `source` that is not always f32.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`] for a tensor of another model.
    pub fn tensor_type(self, source: &Checkpoint, tensor: &GgufTensor) -> Result<TensorType> {
        let is_expert = matches!(tensor.held, Held::Experts { .. });
        let row = tensor.shape.last().copied().unwrap_or(0);
        Ok(match self {
            Self::Native => match &tensor.held {
                Held::Whole(name) => float_type(source.tensor(name)?.dtype),
                _ => match source.expert_storage() {
                    ExpertStorage::Mxfp4 => TensorType::Mxfp4,
                    ExpertStorage::Float(dtype) => float_type(dtype),
                },
            },
            Self::F32 => TensorType::F32,
            Self::Bf16 => TensorType::Bf16,
            Self::F16 => TensorType::F16,
            Self::Mxfp4 if is_expert => TensorType::Mxfp4,
            Self::Q8_0 | Self::Mxfp4 => TensorType::Q8_0.fitting(row),
        })
    }

    /// What the file says of itself.
    #[must_use]
    pub fn file_type(self, source: &Checkpoint) -> FileType {
        match (self, source.expert_storage()) {
            (Self::Mxfp4, _) | (Self::Native, ExpertStorage::Mxfp4) => FileType::MXFP4_MOE,
            (Self::Native, ExpertStorage::Float(Dtype::F32)) | (Self::F32, _) => FileType::F32,
            (Self::Native, ExpertStorage::Float(Dtype::F16)) | (Self::F16, _) => FileType::F16,
            (Self::Native | Self::Bf16, _) => FileType::BF16,
            (Self::Q8_0, _) => FileType::Q8_0,
        }
    }
}

impl TensorType {
    /// The type that llama-quantize falls back to where a row of `row` elements is no whole number of blocks; MXFP4 has none.
    ///
    /// Source: llama.cpp `src/llama-quant.cpp`, `tensor_type_fallback`.
    #[must_use]
    pub fn fitting(self, row: usize) -> Self {
        let fits = |tensor_type: Self| (row as u64).is_multiple_of(tensor_type.block_elements());
        let stand_in = match self {
            _ if fits(self) => return self,
            Self::Mxfp4 => return self,
            Self::Q4K => Self::Q5_0,
            Self::Q5K => Self::Q5_1,
            Self::Q6K => Self::Q8_0,
            _ => Self::F16,
        };
        if fits(stand_in) { stand_in } else { Self::F16 }
    }
}

/// The same floats in GGUF; a checkpoint's weights are of no other types.
pub(super) fn float_type(dtype: Dtype) -> TensorType {
    match dtype {
        Dtype::F32 => TensorType::F32,
        Dtype::F16 => TensorType::F16,
        _ => TensorType::Bf16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_no_whole_blocks_get_another_type() {
        assert_eq!(TensorType::Q4K.fitting(4096), TensorType::Q4K);
        assert_eq!(TensorType::Q4K.fitting(2880), TensorType::Q5_0);
        assert_eq!(TensorType::Q5K.fitting(2880), TensorType::Q5_1);
        assert_eq!(TensorType::Q6K.fitting(2880), TensorType::Q8_0);
        assert_eq!(TensorType::Q6K.fitting(80), TensorType::F16);
        assert_eq!(TensorType::Q8_0.fitting(80), TensorType::F16);
        assert_eq!(TensorType::Mxfp4.fitting(80), TensorType::Mxfp4);
        assert_eq!(TensorType::Bf16.fitting(7), TensorType::Bf16);
    }
}
