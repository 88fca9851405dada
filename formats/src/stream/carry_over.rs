//! Tensors that are put out as they are, and the order in which those of a model come.

use crate::checkpoint::{Checkpoint, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::safetensors::TensorView;

use super::{Bytes, Output};

/// Bytes of a tensor that are carried over together.
const PIECE_BYTES: usize = 16 << 20;

/// What comes next of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// The experts' matrices of a layer: one tensor, or blocks and scales.
    Experts { layer: usize, projection: Projection },
    /// Another tensor.
    Tensor { name: &'a str },
}

/// Every tensor of a model, in the order of a forward pass.
pub(crate) fn parts(source: &Checkpoint) -> impl Iterator<Item = Part<'_>> {
    let mut matrices = source.expert_matrices().peekable();
    source.specs().iter().filter_map(move |spec| {
        let name = spec.name.as_str();
        let ending = matrices.peek().and_then(|&(layer, projection)| name.strip_prefix(&projection.tensor_name(layer)));
        match ending {
            Some("_blocks") => None,
            // The blocks came before.
            Some("" | "_scales") => matrices.next().map(|(layer, projection)| Part::Experts { layer, projection }),
            _ => Some(Part::Tensor { name }),
        }
    })
}

/// Puts out a tensor of `source` as it is. `advance` takes the bytes that are done.
///
/// # Errors
/// [`Error::NotFinite`] for a value that is no number.
pub(crate) fn carry_over<'a>(source: &Checkpoint, view: TensorView<'a>, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
    for (piece, bytes) in view.bytes.chunks(PIECE_BYTES).enumerate() {
        if let Some(index) = first_not_finite(view.dtype, bytes) {
            let index = piece * PIECE_BYTES / view.dtype.size() + index;
            return Err(Error::NotFinite { tensor: view.name.to_owned(), path: source.file_of(view.name).to_owned(), index });
        }
        output.write(view.name.to_owned(), Bytes::Mapped(bytes))?;
        advance(bytes.len());
    }
    Ok(())
}

/// Index of the first NaN or infinity; nothing for types that have none.
pub(crate) fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    // All ones in the exponent, which the upper bytes of a little-endian number hold.
    let exponent = match dtype {
        Dtype::Bf16 => 0x7f80_u16,
        Dtype::F16 => 0x7c00,
        Dtype::F32 => {
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
