//! Differentiable operations with a forward and a backward of our own: leaner than the graph that libtorch would record.

mod attention;
mod checkpoint;
mod cross_entropy;
mod grouped_matmul;
mod rms_norm;
mod rotate;
mod routing_weights;
mod rows;
mod swiglu;
#[cfg(test)]
pub(super) mod testing;

pub use attention::{AttentionSpan, sink_attention};
pub use checkpoint::{InputKept, checkpoint};
pub use cross_entropy::{LogitTerm, chunk_rows, cross_entropy};
pub use grouped_matmul::{Groups, PIECE_BYTES, PackedWeight, Workspace, grouped_matmul, packed_matmul};
pub use rms_norm::rms_norm;
pub use rotate::rotate;
pub use routing_weights::routing_weights;
pub use rows::Rows;
pub use swiglu::{SwigluLimits, swiglu};
