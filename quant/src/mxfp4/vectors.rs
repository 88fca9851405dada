//! Kernels for every level of instructions. What the compiler does not find by itself is a method of [`Vectors`].

use super::lanes::{LANES, Rule, code, value_bits};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS};

/// The steps that some processors have instructions for.
pub(super) trait Vectors {
    /// The largest magnitude of a block, as bits.
    fn largest(values: &[u16; BLOCK_ELEMENTS]) -> u16;
    /// The bytes of a block under the scale with `offset`.
    fn pack<R: Rule>(values: &[u16; BLOCK_ELEMENTS], offset: i16) -> [u8; BLOCK_BYTES];
    /// The values of a block under the scale with `offset`.
    fn unpack(block: &[u8; BLOCK_BYTES], offset: i16) -> [u16; BLOCK_ELEMENTS];
    /// Writes past the caches, where `out` is aligned for that: worth it for more than they hold.
    fn stream(values: &[u16; LANES], out: &mut [u16; LANES]);
    /// Makes what was streamed visible to other threads.
    fn finish_streaming();
}

/// Plain code.
pub(super) struct Portable;

impl Vectors for Portable {
    #[inline(always)]
    fn largest(values: &[u16; BLOCK_ELEMENTS]) -> u16 {
        values.iter().fold(0, |largest, value| largest.max(value & super::lanes::MAGNITUDE))
    }

    #[inline(always)]
    fn pack<R: Rule>(values: &[u16; BLOCK_ELEMENTS], offset: i16) -> [u8; BLOCK_BYTES] {
        let codes = values.map(|value| code::<R>(value, offset));
        std::array::from_fn(|index| (codes[2 * index] | codes[2 * index + 1] << 4).to_le_bytes()[0])
    }

    #[inline(always)]
    fn unpack(block: &[u8; BLOCK_BYTES], offset: i16) -> [u16; BLOCK_ELEMENTS] {
        let mut values = [0; BLOCK_ELEMENTS];
        for (pair, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(block) {
            *pair = [value_bits(u16::from(byte & 0xf), offset), value_bits(u16::from(byte >> 4), offset)];
        }
        values
    }

    #[inline(always)]
    fn stream(values: &[u16; LANES], out: &mut [u16; LANES]) {
        *out = *values;
    }

    #[inline(always)]
    fn finish_streaming() {}
}

/// Defines `$name`, which runs the generic `$kernel` compiled for a level.
macro_rules! for_each_level {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident<$rule:ident>($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? = $kernel:ident;) => {
        $(#[$attribute])*
        $visibility fn $name<$rule: crate::mxfp4::lanes::Rule>(level: crate::processor::Level, $($argument: $type),*) $(-> $output)? {
            use crate::mxfp4::vectors::Portable;
            use crate::processor::Instructions;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,f16c")]
            fn avx512<$rule: crate::mxfp4::lanes::Rule>($($argument: $type),*) $(-> $output)? {
                $kernel::<crate::mxfp4::x86::Avx512, $rule>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi2,f16c")]
            fn avx2<$rule: crate::mxfp4::lanes::Rule>($($argument: $type),*) $(-> $output)? {
                $kernel::<crate::mxfp4::x86::Avx2, $rule>($($argument),*)
            }
            match level.instructions() {
                // SAFETY: a level is only made where the processor has its instructions.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { avx512::<$rule>($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { avx2::<$rule>($($argument),*) },
                Instructions::Portable => $kernel::<Portable, $rule>($($argument),*),
            }
        }
    };
}
pub(super) use for_each_level;
