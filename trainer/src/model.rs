//! gpt-oss: the forward pass, top to bottom, one file for each part.
//!
//! Letters used throughout: t tokens (packed), d model width, h query heads, g key/value heads, k head width, e experts, a active
//! experts of a token, r rows (a token for each of its experts), f expert width, v vocabulary.

pub mod attention;
pub mod batch;
pub mod block;
pub mod experts;
pub mod linear;
pub mod norm;
pub mod rope;
pub mod router;
pub mod routing_meter;
pub mod transformer;
pub mod weights;

pub use batch::PackedTokens;
pub use routing_meter::RoutingMeter;
pub use transformer::{Activations, Cache, Transformer};
