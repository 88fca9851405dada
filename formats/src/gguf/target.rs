//! Which type a tensor gets.

use super::{FileType, GgufTensor, Held, Mix, MixModel, TensorType};
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
    /// As llama-quantize chooses.
    Mix(Mix),
}

impl GgufTarget {
    /// Every target.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Native).chain(Mix::ALL.map(Self::Mix))
    }

    /// The target of a name, whatever the case of its letters.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case(Self::Native.name()) { Some(Self::Native) } else { Mix::from_name(name).map(Self::Mix) }
    }

    /// The name that people ask with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Mix(mix) => mix.name(),
        }
    }

    /// The type of a tensor of `source` that is not always f32.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`] for a tensor of another model.
    pub fn tensor_type(self, source: &Checkpoint, tensor: &GgufTensor) -> Result<TensorType> {
        let config = source.config();
        Ok(match (self, &tensor.held) {
            (Self::Mix(mix), _) => {
                let model = MixModel { num_layers: config.num_hidden_layers, num_experts: config.num_local_experts, has_output: true };
                mix.tensor_type(&model, &tensor.name, &tensor.shape)
            }
            (Self::Native, Held::Whole(name)) => float_type(source.tensor(name)?.dtype),
            (Self::Native, _) => match source.expert_storage() {
                ExpertStorage::Mxfp4 => TensorType::Mxfp4,
                ExpertStorage::Float(dtype) => float_type(dtype),
            },
        })
    }

    /// What the file says of itself.
    #[must_use]
    pub fn file_type(self, source: &Checkpoint) -> FileType {
        match (self, source.expert_storage()) {
            (Self::Mix(mix), _) => mix.file_type(),
            (Self::Native, ExpertStorage::Mxfp4) => FileType::MXFP4_MOE,
            (Self::Native, ExpertStorage::Float(Dtype::F32)) => FileType::F32,
            (Self::Native, ExpertStorage::Float(Dtype::F16)) => FileType::F16,
            (Self::Native, _) => FileType::BF16,
        }
    }
}

impl TensorType {
    /// The type that llama-quantize falls back to where a row of `row` elements is no whole number of blocks.
    ///
    /// Source: llama.cpp `src/llama-quant.cpp`, `tensor_type_fallback`.
    #[must_use]
    pub fn fitting(self, row: usize) -> Self {
        let fits = |tensor_type: Self| (row as u64).is_multiple_of(tensor_type.block_elements());
        let stand_in = match self {
            _ if fits(self) => return self,
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
        assert_eq!(TensorType::Mxfp4.fitting(80), TensorType::F16);
        assert_eq!(TensorType::Bf16.fitting(7), TensorType::Bf16);
    }
}
