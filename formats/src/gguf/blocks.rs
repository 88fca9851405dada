//! Types of tensors in terms of those who can read them.

use ft_quant::ggml::Type;

use super::TensorType;
use crate::dtype::Dtype;

impl TensorType {
    /// The type of plain floats; `None` for blocks.
    #[must_use]
    pub fn float_dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    /// The codec of a type of blocks; `None` for plain floats.
    #[must_use]
    pub fn block_type(self) -> Option<Type> {
        match self {
            Self::Q4_0 => Some(Type::Q4_0),
            Self::Q5_0 => Some(Type::Q5_0),
            Self::Q5_1 => Some(Type::Q5_1),
            Self::Q8_0 => Some(Type::Q8_0),
            Self::Q4K => Some(Type::Q4K),
            Self::Q5K => Some(Type::Q5K),
            Self::Q6K => Some(Type::Q6K),
            Self::Iq4Nl => Some(Type::Iq4Nl),
            Self::Mxfp4 => Some(Type::Mxfp4),
            Self::F32 | Self::F16 | Self::Bf16 => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_has_the_blocks_of_its_type() {
        for tensor_type in TensorType::all() {
            if let Some(codec) = tensor_type.block_type() {
                assert_eq!(codec.block_elements() as u64, tensor_type.block_elements(), "{tensor_type}");
                assert_eq!(codec.block_bytes() as u64, tensor_type.block_bytes(), "{tensor_type}");
                assert_eq!(tensor_type.float_dtype(), None);
            } else if let Some(dtype) = tensor_type.float_dtype() {
                assert_eq!(dtype.size() as u64, tensor_type.block_bytes());
                assert_eq!(dtype.name(), tensor_type.name());
            }
        }
    }
}
