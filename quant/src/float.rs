//! The types of weights that are packed.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
}

/// bf16, f16 or f32.
pub trait Float: Copy + Send + Sync + sealed::Sealed {
    /// The same number in f32, exactly.
    fn to_f32(self) -> f32;

    /// The nearest number of this type, ties to even.
    #[doc(hidden)]
    fn rounded(value: f32) -> Self;

    /// The same numbers in f32, as many as fit both.
    #[doc(hidden)]
    fn widen_into(values: &[Self], to: &mut [f32]) {
        for (to, value) in to.iter_mut().zip(values) {
            *to = value.to_f32();
        }
    }

    /// The values as bits, where they are bf16: for these the codecs have paths in integers.
    #[doc(hidden)]
    fn bf16_bits(values: &[Self]) -> Option<&[u16]> {
        let _ = values;
        None
    }
}

impl Float for bf16 {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn rounded(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn bf16_bits(values: &[Self]) -> Option<&[u16]> {
        Some(values.reinterpret_cast())
    }
}

impl Float for f16 {
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    fn rounded(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn widen_into(values: &[Self], to: &mut [f32]) {
        let count = values.len().min(to.len());
        values[..count].convert_to_f32_slice(&mut to[..count]);
    }
}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn rounded(value: f32) -> Self {
        value
    }
}
