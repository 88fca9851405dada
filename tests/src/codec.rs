//! The CUDA codec against that of the CPU, on whatever device a [`Gpu`] stands for: the same bytes and the same errors.

use ft_quant::cuda::{CudaError, DeviceBuffer, Gpu, Layout, PackedPointers, STATUS_BYTES};
use ft_quant::mxfp4::{self, BLOCK_BYTES, BLOCK_ELEMENTS, Packing, Rounding, ScaleRule};
use half::bf16;

/// Every rule with every rounding.
#[must_use]
pub fn packings() -> Vec<Packing> {
    let rules = [ScaleRule::Hint, ScaleRule::Even, ScaleRule::Mse, ScaleRule::Floor, ScaleRule::Rceil];
    rules.into_iter().flat_map(|rule| [Rounding::Even, Rounding::TowardZero].map(|rounding| Packing { rule, rounding })).collect()
}

/// Random numbers that are the same every time. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, figure 1.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is at most 2^16.
    pub fn below(&mut self, limit: u16) -> u16 {
        (self.bits() % u64::from(limit)) as u16
    }
}

/// Finite values that are awkward to pack, block by block: near each other or all over the range, on ties, subnormal, at the largest bf16,
/// and zeros of both signs.
pub fn awkward_values(random: &mut Random, num_blocks: usize) -> Vec<bf16> {
    let mut values = Vec::with_capacity(num_blocks * BLOCK_ELEMENTS);
    for _ in 0..num_blocks {
        let kind = random.below(12);
        let exponent = random.below(255);
        for element in 0..BLOCK_ELEMENTS {
            let sign = random.below(2) << 15;
            let near = (exponent.saturating_sub(random.below(7)) << 7) | random.below(128);
            let magnitude = match kind {
                0..3 => near,
                // Few bits of mantissa: values of the grid, and halfway between them.
                3 | 4 => near & 0x7fe0,
                5 => random.below(0x7f80),
                6 => random.below(0x200),
                7 => 0x7f7f - random.below(0x180),
                // One at 4 units and the rest at a quarter: the scale below loses 1 at the one and gains more at the rest.
                8 => (if element == 0 { exponent.max(4) } else { exponent.max(4) - 4 }) << 7,
                // Exact under the scales 253 and 254, which only a hint can give.
                9 => [0, 0x7e00, 0x7e80, 0x7ec0][usize::from(random.below(4))],
                10 => [0, 0, 0, near][usize::from(random.below(4))],
                _ => 0,
            };
            values.push(bf16::from_bits(sign | magnitude));
        }
    }
    values
}

/// Scales to start from: mostly those of `scales` or near them, some from anywhere but 255.
pub fn awkward_hints(random: &mut Random, scales: &[u8]) -> Vec<u8> {
    let near = |random: &mut Random, scale: u8| (i32::from(scale) + i32::from(random.below(9)) - 3).clamp(0, 254) as u8;
    let hint = |&scale: &u8| match random.below(8) {
        0..2 => scale,
        2..7 => near(random, scale),
        _ => random.below(255) as u8,
    };
    scales.iter().map(hint).collect()
}

/// A packed matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// 16 bytes a block.
    pub blocks: Vec<u8>,
    /// A byte a block.
    pub scales: Vec<u8>,
}

impl Packed {
    fn new(num_blocks: usize) -> Self {
        Self { blocks: vec![0x5a; num_blocks * BLOCK_BYTES], scales: vec![0x5a; num_blocks] }
    }

    /// Random blocks, with scales from 0 to 252 and all of them alike.
    pub fn random(random: &mut Random, num_blocks: usize) -> Self {
        let blocks = (0..num_blocks * BLOCK_BYTES).map(|_| random.below(256) as u8).collect();
        Self { blocks, scales: (0..num_blocks).map(|_| random.below(253) as u8).collect() }
    }
}

/// What the CPU says, as the device should.
fn expected<T>(result: Result<T, ft_quant::Error>) -> Result<T, CudaError> {
    result.map_err(CudaError::from)
}

/// Packs rows and columns of `values` on both sides and compares. `outputs` divides the values into whole blocks.
///
/// # Panics
/// When they differ.
pub fn compare_pack(gpu: &Gpu, values: &[bf16], outputs: usize, packing: Packing, hints: Option<&[u8]>) {
    let num_blocks = values.len() / BLOCK_ELEMENTS;
    let case = || format!("{packing:?}, {num_blocks} blocks, {outputs} outputs, hints {}", hints.is_some());
    let (mut here, mut there) = (Packed::new(num_blocks), Packed::new(num_blocks));
    let cpu = mxfp4::pack(values, packing, hints, &mut here.blocks, &mut here.scales);
    let cuda = gpu.pack(values, packing, hints, &mut there.blocks, &mut there.scales);
    assert_same(&cuda, &expected(cpu), &there, &here, &case());
    // As they are, where blocks are mixed of everything, and so that the blocks of columns are those of the rows.
    for (values, what) in [(values, "mixed"), (&transposed(values, outputs), "transposed")] {
        let (mut here, mut there) = (Packed::new(num_blocks), Packed::new(num_blocks));
        let cpu = mxfp4::pack_transposed(values, outputs, packing, hints, &mut here.blocks, &mut here.scales);
        let cuda = gpu.pack_transposed(values, outputs, packing, hints, &mut there.blocks, &mut there.scales);
        assert_same(&cuda, &expected(cpu), &there, &here, &format!("{what}, {}", case()));
    }
}

/// Rows of `outputs` as columns.
fn transposed(values: &[bf16], outputs: usize) -> Vec<bf16> {
    let inputs = values.len() / outputs;
    (0..values.len()).map(|place| values[place % outputs * inputs + place / outputs]).collect()
}

fn assert_same(cuda: &Result<(), CudaError>, cpu: &Result<(), CudaError>, there: &Packed, here: &Packed, case: &str) {
    assert_eq!(cuda, cpu, "{case}");
    // What a failed call leaves is not defined.
    if cpu.is_ok() && there != here {
        let differs = |block: &usize| {
            let bytes = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            there.scales[*block] != here.scales[*block] || there.blocks[bytes.clone()] != here.blocks[bytes]
        };
        let block = (0..here.scales.len()).find(differs).unwrap_or(0);
        panic!("{case}: block {block} differs, its scale is {} on the CPU and {} on the device", here.scales[block], there.scales[block]);
    }
}

/// Unpacks rows and columns on both sides and compares.
///
/// # Panics
/// When they differ.
pub fn compare_unpack(gpu: &Gpu, packed: &Packed, outputs: usize) {
    let mut here = vec![bf16::NAN; packed.scales.len() * BLOCK_ELEMENTS];
    let mut there = here.clone();
    let case = format!("{} blocks, {outputs} outputs", packed.scales.len());
    let cpu = mxfp4::unpack(&packed.blocks, &packed.scales, &mut here);
    assert_eq!(gpu.unpack(&packed.blocks, &packed.scales, &mut there), expected(cpu), "{case}");
    assert!(cpu.is_err() || bits(&here) == bits(&there), "{case}: values differ");
    let cpu = mxfp4::unpack_transposed(&packed.blocks, &packed.scales, outputs, &mut here);
    assert_eq!(gpu.unpack_transposed(&packed.blocks, &packed.scales, outputs, &mut there), expected(cpu), "{case}");
    assert!(cpu.is_err() || bits(&here) == bits(&there), "{case}: transposed values differ");
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Packs and unpacks several experts with one launch each, in place on the device, and compares with the CPU expert by expert.
///
/// # Panics
/// When they differ, or the device fails.
pub fn compare_experts(gpu: &Gpu, num_experts: usize, outputs: usize, row_blocks: usize, packing: Packing) {
    let mut random = Random((num_experts * outputs * row_blocks) as u64);
    let layout = Layout::Columns { num_experts, outputs, row_blocks };
    let (num_blocks, expert_blocks) = (layout.num_blocks(), outputs * row_blocks);
    let rows = awkward_values(&mut random, num_blocks);
    let values: Vec<bf16> = rows.chunks(expert_blocks * BLOCK_ELEMENTS).flat_map(|expert| transposed(expert, outputs)).collect();
    let mut here = Packed::new(num_blocks);
    let hints: Vec<u8> = (0..num_blocks).map(|_| random.below(255) as u8).collect();
    for expert in 0..num_experts {
        let blocks = expert * expert_blocks..(expert + 1) * expert_blocks;
        let values = &values[blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS];
        let (bytes, hints) = (blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES, &hints[blocks.clone()]);
        mxfp4::pack_transposed(values, outputs, packing, Some(hints), &mut here.blocks[bytes], &mut here.scales[blocks])
            .expect("these are numbers");
    }
    let buffer = |bytes: &[u8]| {
        let buffer = gpu.allocate(bytes.len()).expect("the device does what it is told");
        gpu.write(&buffer, bytes).expect("the device does what it is told");
        buffer
    };
    let read = |buffer: &DeviceBuffer| {
        let mut bytes = vec![0; buffer.num_bytes()];
        gpu.read(buffer, &mut bytes).expect("the device does what it is told");
        bytes
    };
    let little_endian = |values: &[bf16]| -> Vec<u8> { values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect() };
    let there = Packed::new(num_blocks);
    let (blocks, scales) = (buffer(&there.blocks), buffer(&there.scales));
    let (from, hints, status) = (buffer(&little_endian(&values)), buffer(&hints), buffer(&[0xff; STATUS_BYTES]));
    let packed = PackedPointers { blocks: blocks.address(), scales: scales.address() };
    // SAFETY: the stream is the device's own; the buffers have the sizes of the layout and live until they were read.
    unsafe { gpu.pack_on(gpu.stream(), layout, packing, from.address(), Some(hints.address()), packed, status.address()) }
        .expect("the device does what it is told");
    assert_eq!(read(&status), [0xff; STATUS_BYTES]);
    let there = Packed { blocks: read(&blocks), scales: read(&scales) };
    let case = format!("{layout:?}, {packing:?}");
    assert_same(&Ok(()), &Ok(()), &there, &here, &case);

    let to = buffer(&vec![0x5a; values.len() * 2]);
    // SAFETY: as above.
    unsafe { gpu.unpack_on(gpu.stream(), layout, packed, to.address(), status.address()) }.expect("the device does what it is told");
    let back = read(&to);
    let mut expected = vec![bf16::ZERO; expert_blocks * BLOCK_ELEMENTS];
    for (expert, back) in back.chunks(expert_blocks * BLOCK_ELEMENTS * 2).enumerate() {
        let blocks = expert * expert_blocks..(expert + 1) * expert_blocks;
        let bytes = blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES;
        // A large hint may be kept on the way here, where what it holds is exact.
        mxfp4::unpack_transposed(&here.blocks[bytes], &here.scales[blocks], outputs, &mut expected).expect("these are numbers");
        assert!(back == little_endian(&expected), "{case}: values of expert {expert} differ");
    }
    assert_eq!(read(&status), [0xff; STATUS_BYTES]);
}

/// All comparisons, with every rule and rounding, on shapes that do not fill the kernels' tiles, and on what is refused.
///
/// # Panics
/// When the device differs from the CPU.
pub fn compare_all(gpu: &Gpu) {
    let mut random = Random(1);
    // The last ones are more than a grid of one multiprocessor covers at once.
    let shapes = [(1, 1), (2, 1), (3, 2), (8, 3), (63, 8), (64, 8), (65, 9), (66, 7), (72, 17), (130, 3), (201, 91), (200, 90)];
    for (outputs, row_blocks) in shapes {
        let num_blocks = outputs * row_blocks;
        compare_unpack(gpu, &Packed::random(&mut random, num_blocks), outputs);
        let values = awkward_values(&mut random, num_blocks);
        for packing in packings() {
            compare_pack(gpu, &values, outputs, packing, None);
            if packing.rule != ScaleRule::Hint {
                continue;
            }
            let hints = awkward_hints(&mut random, &scales_of(&values));
            compare_pack(gpu, &values, outputs, packing, Some(&hints));
        }
    }
    for packing in packings() {
        compare_experts(gpu, 3, 40, 9, packing);
        compare_experts(gpu, 2, 67, 3, packing);
    }
    compare_refusals(gpu, &mut random);
}

/// The scales of rows of `values`.
fn scales_of(values: &[bf16]) -> Vec<u8> {
    let mut packed = Packed::new(values.len() / BLOCK_ELEMENTS);
    mxfp4::pack(values, ScaleRule::Floor.into(), None, &mut packed.blocks, &mut packed.scales).expect("these are numbers");
    packed.scales
}

/// Values, scales and hints that stand for no number, several at a time.
fn compare_refusals(gpu: &Gpu, random: &mut Random) {
    let (outputs, num_blocks) = (66, 66 * 11);
    for _ in 0..20 {
        let mut values = awkward_values(random, num_blocks);
        for _ in 0..=random.below(4) {
            let index = usize::from(random.below((num_blocks * BLOCK_ELEMENTS) as u16));
            values[index] = [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY][index % 3];
        }
        let mut hints = vec![127; num_blocks];
        for packing in packings() {
            compare_pack(gpu, &values, outputs, packing, Some(&hints));
        }
        for _ in 0..3 {
            hints[usize::from(random.below(num_blocks as u16))] = 255;
        }
        compare_pack(gpu, &values, outputs, ScaleRule::Hint.into(), Some(&hints));
        compare_pack(gpu, &values, outputs, ScaleRule::Mse.into(), Some(&hints));

        let mut packed = Packed::random(random, num_blocks);
        for _ in 0..=random.below(4) {
            let index = usize::from(random.below(num_blocks as u16));
            packed.scales[index] = [253, 254, 255][index % 3];
            if index.is_multiple_of(2) {
                // Nothing in the block exceeds bf16.
                packed.blocks[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES].fill(0x91);
            }
        }
        compare_unpack(gpu, &packed, outputs);
    }
}
