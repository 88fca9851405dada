#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ft_formats::fuzzing::safetensors(bytes));
