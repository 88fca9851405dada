//! What the pages that `ft` writes have in common: axes, numbers, and text from outside made safe.

pub(crate) mod axis;
pub(crate) mod escape;
pub(crate) mod number;
