//! Which vector instructions this processor has: found out at run time.
//!
//! A kernel is written once, for any processor, and compiled for each level. On aarch64 the portable level is NEON, which every such
//! processor has.

/// A set of instructions that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level(Instructions);

/// What a level stands for. Functions compiled for one may be called where there is a [`Level`] of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    Portable,
    /// AVX2, BMI2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL besides.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The vector instructions that the codecs use on this processor: `AVX-512`, `AVX2`, or `portable` ones.
#[must_use]
pub fn instructions() -> &'static str {
    match Level::best().instructions() {
        Instructions::Portable => "portable",
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => "AVX2",
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => "AVX-512",
    }
}

impl Level {
    /// All levels that this processor has, the best one last.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let (has_avx2, has_avx512) = (
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("f16c"),
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"),
        );
        [
            Some(Self(Instructions::Portable)),
            #[cfg(target_arch = "x86_64")]
            has_avx2.then_some(Self(Instructions::Avx2)),
            #[cfg(target_arch = "x86_64")]
            (has_avx2 && has_avx512).then_some(Self(Instructions::Avx512)),
        ]
        .into_iter()
        .flatten()
    }

    /// The best one.
    pub(crate) fn best() -> Self {
        Self::available().last().unwrap_or(Self(Instructions::Portable))
    }

    pub(crate) fn instructions(self) -> Instructions {
        self.0
    }
}
