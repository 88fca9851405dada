//! One loop, several instruction sets.

/// Defines `name(arguments)`, which runs `body` compiled for the widest vectors that the machine has.
macro_rules! for_each_instruction_set {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident<$generic:ident: $bound:path>($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $visibility fn $name<$generic: $bound>($($argument: $type),*) {
            #[inline(always)]
            fn body<$generic: $bound>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide<$generic: $bound>($($argument: $type),*) {
                    body::<$generic>($($argument),*);
                }
                #[target_feature(enable = "avx2")]
                fn medium<$generic: $bound>($($argument: $type),*) {
                    body::<$generic>($($argument),*);
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
                    // SAFETY: the features were just detected.
                    return unsafe { wide::<$generic>($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was just detected.
                    return unsafe { medium::<$generic>($($argument),*) };
                }
            }
            body::<$generic>($($argument),*)
        }
    };
}

pub(super) use for_each_instruction_set;
