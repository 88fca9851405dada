//! The CUDA kernels on machines without a GPU: compiled by NVRTC for every architecture, and run on the host, where
//! `native/cuda_emulator.cpp` stands in for driver and device.

use std::ffi::{CString, c_int, c_uint};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ft_quant::cuda::{
    Combine, CombineTypes, Compiler, CrossEntropy, CudaError, ElementType, ExpertBias, Gpu, KERNELS, KernelSource, Layout, PackedPointers,
    Swiglu, Target,
};
use ft_quant::mxfp4::{self, BLOCK_BYTES, BLOCK_ELEMENTS, Rounding, ScaleRule};
use ft_tests::codec::{Packed, Random, awkward_values, compare_all, compare_pack, packings};
use ft_tests::nvrtc;
use ft_tests::program::{built, succeed};
use ft_tests::training_kernels::{
    compare_combine, compare_cross_entropy, compare_expert_bias, compare_gather, compare_rms_norm, compare_rope, compare_swiglu,
};
use half::{bf16, f16};

/// The architectures that ft is meant for: A100, H100 and H200, B200.
const ARCHITECTURES: [u32; 3] = [80, 90, 100];

#[test]
fn every_kernel_compiles_for_every_architecture_and_spills_nothing() {
    let compiler = Compiler::open(&nvrtc::folders()).expect("NVRTC is among the peers: run `make peers`");
    std::thread::scope(|scope| {
        for architecture in ARCHITECTURES {
            let compiler = &compiler;
            scope.spawn(move || KERNELS.map(|kernel| check_machine_code(compiler, kernel, architecture)));
        }
    });
    for kernel in KERNELS {
        let compiled = compiler.compile(kernel, Target::Ptx(ARCHITECTURES[0])).unwrap();
        assert!(compiled.code.ends_with(b"\0") && compiled.code.windows(7).any(|text| text == b".entry "), "{}", kernel.name);
    }
}

fn check_machine_code(compiler: &Compiler, kernel: KernelSource, architecture: u32) {
    let compiled = compiler.compile(kernel, Target::Machine(architecture)).expect("kernels compile");
    let log = &compiled.log;
    assert!(compiled.code.starts_with(b"\x7fELF"), "{} for {architecture}", kernel.name);
    assert!(!log.contains("warning"), "{} for {architecture}: {log}", kernel.name);
    let spills: Vec<&str> = log.lines().filter(|line| line.contains("spill stores")).collect();
    assert!(spills.len() >= log.matches("Compiling entry function").count(), "{} for {architecture}: {log}", kernel.name);
    for line in spills {
        let nothing = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        assert!(line.contains(nothing), "{} for {architecture}: {log}", kernel.name);
    }
    let registers: Vec<u32> = log.split("Used ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    assert!(!registers.is_empty(), "{} for {architecture}: {log}", kernel.name);
    // 65,536 registers hold two blocks of 256 threads.
    assert!(registers.iter().all(|&registers| registers <= 128), "{} for {architecture} takes {registers:?} registers", kernel.name);
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_with_the_log() {
    let compiler = Compiler::open(&nvrtc::folders()).expect("NVRTC is among the peers: run `make peers`");
    let broken = KernelSource { name: "broken.cu", text: "__global__ void broken() { missing(); }" };
    match compiler.compile(broken, Target::Machine(90)) {
        Err(CudaError::Compile { kernel: "broken.cu", log }) => assert!(log.contains("missing"), "{log}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(compiler.compile(broken, Target::Machine(1)), Err(CudaError::Compiler { .. } | CudaError::Compile { .. })));
    assert_eq!(compiler.target_for(90), Target::Machine(90));
    assert!(matches!(compiler.target_for(999), Target::Ptx(_)));
}

/// What the emulator offers beside the driver; as in `native/cuda_emulator.cpp`.
#[repr(C)]
struct Emulator {
    unpack_values: unsafe extern "C" fn(c_uint, c_uint, *mut [c_uint; 4], *mut u64),
    pack_pair: unsafe extern "C" fn(c_uint, c_uint, c_uint, bool) -> c_uint,
    pack_exactly: unsafe extern "C" fn(c_uint, c_uint, bool) -> c_uint,
    rule_scale: unsafe extern "C" fn(c_uint, c_uint) -> c_uint,
    context_depth: unsafe extern "C" fn() -> c_int,
    allocations: unsafe extern "C" fn() -> c_int,
    launches: unsafe extern "C" fn() -> c_int,
}

/// The emulator, which from its first use on is the driver of this process. It serves one thread at a time.
fn emulator() -> (&'static Emulator, MutexGuard<'static, ()>) {
    static EMULATOR: OnceLock<&'static Emulator> = OnceLock::new();
    static IN_USE: Mutex<()> = Mutex::new(());
    let guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let open = || {
        let path = CString::new(env!("FT_EMULATED_CUDA")).expect("a path");
        // SAFETY: a library of ours, without initialisers that depend on anything.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!library.is_null(), "{path:?} cannot be opened");
        // SAFETY: the library is open, the name ends with zero.
        let table = unsafe { libc::dlsym(library, c"ft_emulator".as_ptr()) };
        assert!(!table.is_null(), "{path:?} has no table");
        // SAFETY: the function has this type, and the table is never freed.
        unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> &'static Emulator>(table)() }
    };
    (EMULATOR.get_or_init(open), guard)
}

fn emulated_gpu() -> Gpu {
    Gpu::open_with(0, &nvrtc::folders()).expect("the emulator is a device, and NVRTC is among the peers: run `make peers`")
}

#[test]
fn kernels_on_the_host_equal_the_cpu() {
    let (emulator, _guard) = emulator();
    let gpu = emulated_gpu();
    compare_all(&gpu);
    drop(gpu);
    // SAFETY: these take nothing.
    unsafe {
        assert!((emulator.launches)() > 100);
        assert_eq!(((emulator.context_depth)(), (emulator.allocations)()), (0, 0), "contexts and memory that were not given back");
    }
}

/// Runs a comparison on the emulator, which must be left with nothing of it.
fn on_the_host(compare: impl FnOnce(&Gpu)) {
    let (emulator, _guard) = emulator();
    let gpu = emulated_gpu();
    compare(&gpu);
    drop(gpu);
    // SAFETY: these take nothing.
    let left = unsafe { ((emulator.context_depth)(), (emulator.allocations)()) };
    assert_eq!(left, (0, 0), "contexts and memory that were not given back");
}

#[test]
fn swiglu_on_the_host_is_what_its_definition_says() {
    on_the_host(compare_swiglu);
}

#[test]
fn rms_norm_on_the_host_is_what_its_definition_says() {
    on_the_host(compare_rms_norm);
}

#[test]
fn rope_on_the_host_is_what_its_definition_says() {
    on_the_host(compare_rope);
}

#[test]
fn combine_on_the_host_is_what_its_definition_says() {
    on_the_host(compare_combine);
    on_the_host(compare_gather);
}

#[test]
fn expert_bias_on_the_host_is_what_its_definition_says() {
    on_the_host(compare_expert_bias);
}

#[test]
fn cross_entropy_on_the_host_is_what_its_definition_says() {
    on_the_host(compare_cross_entropy);
}

#[test]
fn launches_that_no_kernel_takes_are_refused() {
    let (_, _guard) = emulator();
    let gpu = emulated_gpu();
    let misaligned = |argument, alignment| Err(CudaError::Misaligned { argument, alignment });
    let too_large = |dimension, found| Err(CudaError::TooLarge { dimension, found });
    let (element, alpha, limit) = (ElementType::Bf16, 1.702, 7.0);
    let swiglu = |rows, width, gate_up, bias| {
        // SAFETY: nothing is launched: what comes here is refused, or has no rows.
        unsafe { gpu.swiglu_on(0, Swiglu { element, rows, width, alpha, limit, gate_up, bias }, 0) }
    };
    let bias = |num_experts, bias, ends| Some(ExpertBias { num_experts, bias, ends });
    assert_eq!(swiglu(1, 8, 1, None), misaligned("gate_up", 2));
    assert_eq!(swiglu(1, 8, 2, bias(1, 3, 0)), misaligned("bias", 2));
    assert_eq!(swiglu(1, 8, 2, bias(1, 2, 2)), misaligned("ends", 4));
    assert_eq!(swiglu(0, 8, 2, bias(0, 3, 3)), Ok(()));
    assert_eq!(swiglu(1 << 31, 1, 0, None), too_large("rows", 1 << 31));
    assert_eq!(swiglu(1 << 20, 1 << 15, 0, None), too_large("chunks of all rows", 1 << 32));
    let of = Combine {
        types: CombineTypes::Bf16WithF32Weights,
        num_rows: 0,
        tokens: 1,
        active: 1,
        width: 1,
        rows: 2,
        row_of_slot: 4,
        weights: None,
    };
    // SAFETY: as above.
    let combine = |of, to_rows, to_weights| unsafe { gpu.combine_backward_on(0, of, 2, to_rows, to_weights) };
    assert_eq!(combine(of, Some(1), None), misaligned("row_gradients", 2));
    assert_eq!(combine(of, Some(2), Some(2)), misaligned("weight_gradients", 4));
    assert_eq!(combine(Combine { weights: Some(6), ..of }, None, None), misaligned("weights", 4));
    assert_eq!(combine(Combine { row_of_slot: 2, ..of }, None, None), misaligned("row_of_slot", 4));
    assert_eq!(combine(Combine { tokens: 1 << 30, active: 4, ..of }, None, None), too_large("slots", 1 << 32));
    let of = CrossEntropy { element, rows: 1, vocabulary: 1, logits: 2, targets: 8, weights: 4 };
    // SAFETY: as above.
    let cross_entropy = |of, losses| unsafe { gpu.cross_entropy_on(0, of, true, losses) };
    assert_eq!(cross_entropy(CrossEntropy { logits: 1, ..of }, 4), misaligned("logits", 2));
    assert_eq!(cross_entropy(CrossEntropy { targets: 4, ..of }, 4), misaligned("targets", 8));
    assert_eq!(cross_entropy(CrossEntropy { weights: 2, ..of }, 4), misaligned("weights", 4));
    assert_eq!(cross_entropy(of, 2), misaligned("losses", 4));
    assert_eq!(cross_entropy(CrossEntropy { vocabulary: 1 << 31, ..of }, 4), too_large("vocabulary", 1 << 31));
    assert_eq!(cross_entropy(CrossEntropy { rows: 1 << 31, ..of }, 4), too_large("rows", 1 << 31));
    assert_eq!(cross_entropy(CrossEntropy { rows: 0, ..of }, 4), Ok(()));
}

#[test]
fn many_blocks_are_packed_as_on_the_cpu() {
    let (_, _guard) = emulator();
    let gpu = emulated_gpu();
    let mut random = Random(7);
    let values = awkward_values(&mut random, 64 * 600);
    let hints: Vec<u8> = values.chunks(BLOCK_ELEMENTS).map(|block| near_hint(block, &mut random)).collect();
    for packing in packings() {
        compare_pack(&gpu, &values, 64, packing, Some(&hints));
    }
}

/// A hint within what can win, for a block.
fn near_hint(block: &[bf16], random: &mut Random) -> u8 {
    let largest = block.iter().map(|value| value.to_bits() & 0x7fff).max().unwrap_or(0);
    (i32::from(largest >> 7) - 2 + i32::from(random.below(7)) - 2).clamp(0, 254) as u8
}

#[test]
fn other_types_and_what_does_not_fit_are_as_on_the_cpu() {
    let (_, _guard) = emulator();
    let gpu = emulated_gpu();
    let values: Vec<f32> = (0..64).map(|index| index as f32 - 31.5).collect();
    let half: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
    let (mut blocks, mut scales) = (vec![0; 32], vec![0; 2]);
    let even = ScaleRule::Even.into();
    gpu.pack(&values, even, None, &mut blocks, &mut scales).unwrap();
    let of_floats = (blocks.clone(), scales.clone());
    mxfp4::pack(&values, even, None, &mut blocks, &mut scales).unwrap();
    assert_eq!(of_floats, (blocks.clone(), scales.clone()));
    gpu.pack_transposed(&half, 2, even, None, &mut blocks, &mut scales).unwrap();

    let mut out = vec![bf16::ZERO; 64];
    let length = |slice, expected, found| CudaError::from(ft_quant::Error::Length { slice, expected, found });
    assert_eq!(gpu.unpack(&blocks[1..], &scales, &mut out), Err(length("blocks", 32, 31)));
    assert_eq!(gpu.unpack(&blocks, &scales, &mut out[1..]), Err(length("out", 64, 63)));
    assert_eq!(gpu.unpack_transposed(&blocks, &scales, 3, &mut out), Err(length("scales", 0, 2)));
    let partial = |found| CudaError::from(ft_quant::Error::PartialBlock { block: 32, found });
    assert_eq!(gpu.pack(&out[1..], even, None, &mut blocks, &mut scales), Err(partial(63)));
    assert_eq!(gpu.pack_transposed(&out, 4, even, None, &mut blocks, &mut scales), Err(partial(16)));
    let hint = ScaleRule::Hint.into();
    assert_eq!(gpu.pack(&out, hint, Some(&[1]), &mut blocks, &mut scales), Err(length("hints", 2, 1)));
    assert_eq!(gpu.pack::<bf16>(&[], even, None, &mut [], &mut []), Ok(()));
    assert_eq!(gpu.unpack_transposed(&[], &[], 0, &mut []), Ok(()));
    assert_eq!(gpu.allocate(2 << 30).unwrap_err(), CudaError::OutOfMemory { bytes: 2 << 30 });
    let packed = PackedPointers { blocks: 8, scales: 0 };
    // SAFETY: refused before anything is launched.
    let misaligned = unsafe { gpu.unpack_on(0, Layout::Rows { num_blocks: 1 }, packed, 0, 0) };
    assert_eq!(misaligned, Err(CudaError::Misaligned { argument: "blocks", alignment: 16 }));
}

#[test]
fn every_code_has_the_value_of_the_cpu_under_every_scale() {
    let (emulator, _guard) = emulator();
    for scale in 0..=255u8 {
        for code in 0..16u32 {
            // A code that fits beside it, so that places are told apart: 0, then the code, and so on.
            let word = code * 0x1010_1010;
            let block: Vec<u8> = (0..BLOCK_BYTES / 4).flat_map(|_| word.to_le_bytes()).collect();
            let mut expected = [bf16::ZERO; BLOCK_ELEMENTS];
            let result = mxfp4::unpack(&block, &[scale], &mut expected);
            let (mut pairs, mut first_bad) = ([0; 4], u64::MAX);
            // SAFETY: writes four words and a number.
            unsafe { (emulator.unpack_values)(word, scale.into(), &raw mut pairs, &raw mut first_bad) };
            assert_eq!(Gpu::unpack_error([first_bad, u64::MAX]), result, "code {code} under {scale}");
            if result.is_ok() {
                let found: Vec<u16> = pairs.iter().flat_map(|pair| [*pair as u16, (pair >> 16) as u16]).collect();
                let expected: Vec<u16> = expected[..8].iter().map(|value| value.to_bits()).collect();
                assert_eq!(found, expected, "code {code} under {scale}");
            }
        }
    }
}

/// The code nearest to `value` units. Source: OCP MX 1.0, sections 5.3.3 and 6.3.
fn nearest_code(value: f64, is_negative: bool, rounding: Rounding) -> u32 {
    const VALUES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let steps = VALUES.windows(2).enumerate().filter(|(below, pair)| {
        let midpoint = (pair[0] + pair[1]) / 2.0;
        value > midpoint || (value == midpoint && rounding == Rounding::Even && below % 2 == 1)
    });
    let magnitude = steps.count() as u32;
    if is_negative && (magnitude > 0 || rounding == Rounding::Even) { magnitude | 8 } else { magnitude }
}

#[test]
fn every_bf16_gets_the_nearest_code_under_every_scale() {
    let (emulator, _guard) = emulator();
    for scale in 0..=254u32 {
        let unit = (f64::from(scale) - 127.0).exp2();
        for bits in 0..=u16::MAX {
            let value = bf16::from_bits(bits);
            if !value.is_finite() {
                continue;
            }
            for rounding in [Rounding::Even, Rounding::TowardZero] {
                let is_even = rounding == Rounding::Even;
                let expected = nearest_code(value.to_f64().abs() / unit, value.is_sign_negative(), rounding);
                // SAFETY: takes and gives numbers.
                let exact = unsafe { (emulator.pack_exactly)(bits.into(), scale, is_even) };
                assert_eq!(exact, expected, "{value} under {scale}, {rounding:?}");
                // Below, subnormal elements may count, and the kernels take the exact way.
                if scale > 3 && scale <= 252 {
                    // Beside it an element with a scale of its own.
                    let other_scale = 256 - scale;
                    // SAFETY: as above.
                    let pair = unsafe { (emulator.pack_pair)(u32::from(bits) | 0xbf80_0000, scale, other_scale, is_even) };
                    let other = nearest_code((127.0 - f64::from(other_scale)).exp2(), true, rounding);
                    assert_eq!(pair, expected | other << 16, "{value} under {scale}, {rounding:?}");
                }
            }
        }
    }
}

#[test]
fn every_magnitude_gets_the_scale_of_the_cpu() {
    let (emulator, _guard) = emulator();
    for (rule, round_up) in [(ScaleRule::Even, 0x20), (ScaleRule::Floor, 0), (ScaleRule::Rceil, 0x3f)] {
        for bits in 0..0x7f80u16 {
            let mut values = [bf16::ZERO; BLOCK_ELEMENTS];
            values[usize::from(bits % 32)] = bf16::from_bits(bits);
            let (mut block, mut scale) = ([0; BLOCK_BYTES], [0]);
            mxfp4::pack(&values, rule.into(), None, &mut block, &mut scale).unwrap();
            // SAFETY: takes and gives numbers.
            let found = unsafe { (emulator.rule_scale)(bits.into(), round_up) };
            assert_eq!(found, u32::from(scale[0]), "{bits:#x} under {rule:?}");
        }
    }
}

#[test]
fn what_was_unpacked_is_packed_again_byte_for_byte() {
    let (_, _guard) = emulator();
    let gpu = emulated_gpu();
    let packed = Packed::random(&mut Random(3), 96 * 40);
    let mut values = vec![bf16::ZERO; packed.scales.len() * BLOCK_ELEMENTS];
    gpu.unpack_transposed(&packed.blocks, &packed.scales, 96, &mut values).unwrap();
    let mut again = Packed { blocks: vec![0; packed.blocks.len()], scales: vec![0; packed.scales.len()] };
    let hints = Some(packed.scales.as_slice());
    gpu.pack_transposed(&values, 96, ScaleRule::Hint.into(), hints, &mut again.blocks, &mut again.scales).unwrap();
    assert!(again == packed);
}

/// The bench on the emulator, which has no clock worth its name: that it runs, compares and prints.
#[test]
fn the_bench_of_the_codec_runs() {
    let libraries = std::env::join_paths(nvrtc::folders()).expect("paths without colons");
    let mut command = Command::new(built("examples/cuda_codec"));
    command.args(["2", "72", "96"]).env("LD_PRELOAD", env!("FT_EMULATED_CUDA")).env("LD_LIBRARY_PATH", libraries);
    let lines = succeed(&mut command);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    // A copy; and in both layouts unpacking, three rules, and hints for untouched and for updated weights.
    assert_eq!(lines.len(), 1 + 2 * 6);
    assert!(lines.iter().all(|line| line["device"] == "the host" && line["shape"] == "2x72x96"), "{lines:?}");
}
