//! Differentiable operations with a forward and a backward of our own: leaner than the graph that libtorch would record.

mod attention;
mod checkpoint;
mod cross_entropy;
mod grouped_matmul;
mod rms_norm;
mod rotate;
mod swiglu;
#[cfg(test)]
mod testing;

pub use attention::{AttentionSpan, sink_attention};
pub use checkpoint::checkpoint;
pub use cross_entropy::{CHUNK_ELEMENTS, LogitTerm, cross_entropy};
pub use grouped_matmul::{Groups, grouped_matmul};
pub use rms_norm::rms_norm;
pub use rotate::rotate;
pub use swiglu::{SwigluLimits, swiglu};
