//! Tensors that are put out as they are, and the order in which those of a model come.

use std::borrow::Cow;
use std::ops::Range;

use super::Output;
use crate::checkpoint::{Checkpoint, CheckpointTensor, Projection};
use crate::error::{Error, Result};

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
pub(crate) fn carry_over<'a>(
    source: &Checkpoint,
    tensor: CheckpointTensor<'a>,
    output: &Output<'a>,
    advance: &mut dyn FnMut(usize),
) -> Result<()> {
    let CheckpointTensor { name, dtype, bytes, .. } = tensor;
    for start in (0..bytes.len()).step_by(PIECE_BYTES) {
        let piece = piece(&bytes, start..bytes.len().min(start + PIECE_BYTES));
        if let Some(index) = dtype.first_not_finite(&piece) {
            let index = start / dtype.size() + index;
            return Err(Error::NotFinite { tensor: name.to_owned(), path: source.file_of(name).to_owned(), index });
        }
        advance(piece.len());
        output.write(name.to_owned(), piece.into())?;
    }
    Ok(())
}

/// Some of the bytes, mapped where all are.
pub(crate) fn piece<'a>(bytes: &Cow<'a, [u8]>, range: Range<usize>) -> Cow<'a, [u8]> {
    match bytes {
        Cow::Borrowed(mapped) => mapped[range].into(),
        Cow::Owned(made) => made[range].to_vec().into(),
    }
}
