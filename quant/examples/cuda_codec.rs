//! How fast the MXFP4 kernels are on this machine's GPU, against a copy from device to device.
//!
//! ```text
//! cargo run --release -p ft-quant --example cuda_codec [EXPERTS OUTPUTS INPUTS]
//! ```
//!
//! Without sizes: the experts of a layer of gpt-oss-20b, 32 of 5760 x 2880 and of 2880 x 2880. Every result is first compared with the CPU's,
//! bit for bit. Prints a JSON object a line: milliseconds are the median of many launches by the device's own clock, bytes are those
//! that have to be read and written, `of_copy` is their rate over that of the copy, which reads and writes as many values.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use ft_quant::cuda::{DeviceBuffer, Gpu, Layout, PackedPointers, STATUS_BYTES};
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, Packing, ScaleRule, pack, pack_transposed, unpack, unpack_transposed};
use half::bf16;

/// Launches that are timed, after those that warm up.
const LAUNCHES: usize = 50;
const WARM_UP: usize = 5;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            let _ = writeln!(std::io::stderr().lock(), "error: {text}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let gpu = Gpu::open(0)?;
    match sizes[..] {
        [] => {
            measure(&gpu, 32, 5760, 2880)?;
            measure(&gpu, 32, 2880, 2880)
        }
        [num_experts, outputs, inputs] if inputs % BLOCK_ELEMENTS == 0 => measure(&gpu, num_experts, outputs, inputs),
        _ => Err("expected EXPERTS OUTPUTS INPUTS, with INPUTS a multiple of 32".into()),
    }
}

fn measure(gpu: &Gpu, num_experts: usize, outputs: usize, inputs: usize) -> Result<(), Box<dyn Error>> {
    let shape = format!("{num_experts}x{outputs}x{inputs}");
    let row_blocks = inputs / BLOCK_ELEMENTS;
    let rows = Layout::Rows { num_blocks: num_experts * outputs * row_blocks };
    let columns = Layout::Columns { num_experts, outputs, row_blocks };
    let value_bytes = rows.num_blocks() * BLOCK_ELEMENTS * 2;
    let (from, to) = (gpu.allocate(value_bytes)?, gpu.allocate(value_bytes)?);
    let copy_ms = median_ms(gpu, || Ok(gpu.copy(&from, &to)?))?;
    let copy_rate = report(gpu, &shape, "copy", 2 * value_bytes, copy_ms, None)?;
    drop(to);
    for (layout, name) in [(rows, "rows"), (columns, "columns")] {
        let case = Case { gpu, layout, shape: &shape, copy_rate };
        // Weights on the grid of their scales, and after a small update.
        let weights = random_weights(rows.num_blocks() * BLOCK_ELEMENTS, 0.0);
        let source = case.packed_by_the_cpu(&weights, ScaleRule::Floor.into(), None)?;
        let mut on_grid = vec![bf16::ZERO; weights.len()];
        case.unpacked_by_the_cpu(&source, &mut on_grid)?;
        case.unpack(&format!("unpack {name}"), &source, &on_grid, &from)?;
        for rule in [ScaleRule::Even, ScaleRule::Rceil, ScaleRule::Mse] {
            case.pack(&format!("pack {name} {rule:?}"), &weights, rule.into(), None, &from)?;
        }
        case.pack(&format!("pack {name} Hint, untouched"), &on_grid, ScaleRule::Hint.into(), Some(&source.scales), &from)?;
        let updated: Vec<bf16> = on_grid
            .iter()
            .zip(random_weights(weights.len(), 0.5))
            .map(|(weight, update)| bf16::from_f32(weight.to_f32() + update.to_f32() * 0.03))
            .collect();
        case.pack(&format!("pack {name} Hint, updated"), &updated, ScaleRule::Hint.into(), Some(&source.scales), &from)?;
    }
    Ok(())
}

/// Blocks and scales in host memory.
struct Packed {
    blocks: Vec<u8>,
    scales: Vec<u8>,
}

/// What all measurements of a layout share.
struct Case<'a> {
    gpu: &'a Gpu,
    layout: Layout,
    shape: &'a str,
    copy_rate: f64,
}

impl Case<'_> {
    /// Blocks of an expert, and its outputs where values lie transposed.
    fn expert(&self) -> (usize, Option<usize>) {
        match self.layout {
            Layout::Rows { num_blocks } => (num_blocks, None),
            Layout::Columns { outputs, row_blocks, .. } => (outputs * row_blocks, Some(outputs)),
        }
    }

    fn packed_by_the_cpu(&self, values: &[bf16], packing: Packing, hints: Option<&[u8]>) -> Result<Packed, ft_quant::Error> {
        let (count, outputs) = self.expert();
        let num_blocks = self.layout.num_blocks();
        let mut packed = Packed { blocks: vec![0; num_blocks * BLOCK_BYTES], scales: vec![0; num_blocks] };
        let chunks = packed.blocks.chunks_mut(count * BLOCK_BYTES).zip(packed.scales.chunks_mut(count));
        for (expert, ((blocks, scales), values)) in chunks.zip(values.chunks(count * BLOCK_ELEMENTS)).enumerate() {
            let hints = hints.map(|hints| &hints[expert * count..][..count]);
            match outputs {
                None => pack(values, packing, hints, blocks, scales)?,
                Some(outputs) => pack_transposed(values, outputs, packing, hints, blocks, scales)?,
            }
        }
        Ok(packed)
    }

    fn unpacked_by_the_cpu(&self, packed: &Packed, values: &mut [bf16]) -> Result<(), ft_quant::Error> {
        let (count, outputs) = self.expert();
        let chunks = packed.blocks.chunks(count * BLOCK_BYTES).zip(packed.scales.chunks(count));
        for ((blocks, scales), values) in chunks.zip(values.chunks_mut(count * BLOCK_ELEMENTS)) {
            match outputs {
                None => unpack(blocks, scales, values)?,
                Some(outputs) => unpack_transposed(blocks, scales, outputs, values)?,
            }
        }
        Ok(())
    }

    fn unpack(&self, name: &str, source: &Packed, expected: &[bf16], values: &DeviceBuffer) -> Result<(), Box<dyn Error>> {
        let (gpu, layout) = (self.gpu, self.layout);
        let (blocks, scales, status) = (on_device(gpu, &source.blocks)?, on_device(gpu, &source.scales)?, status(gpu)?);
        let packed = PackedPointers { blocks: blocks.address(), scales: scales.address() };
        let launch = || {
            // SAFETY: the stream is the device's own, the buffers have the sizes of the layout and live until they were read.
            Ok(unsafe { gpu.unpack_on(gpu.stream(), layout, packed, values.address(), status.address()) }?)
        };
        launch()?;
        same(name, &from_device(gpu, values, expected.len() * 2)?, bytes_of(expected))?;
        same(name, &from_device(gpu, &status, STATUS_BYTES)?, &[0xff; STATUS_BYTES])?;
        let num_bytes = blocks.num_bytes() + scales.num_bytes() + expected.len() * 2;
        report(gpu, self.shape, name, num_bytes, median_ms(gpu, launch)?, Some(self.copy_rate))?;
        Ok(())
    }

    fn pack(
        &self,
        name: &str,
        source: &[bf16],
        packing: Packing,
        hints: Option<&[u8]>,
        values: &DeviceBuffer,
    ) -> Result<(), Box<dyn Error>> {
        let (gpu, layout) = (self.gpu, self.layout);
        let expected = self.packed_by_the_cpu(source, packing, hints)?;
        gpu.write(values, bytes_of(source))?;
        let (blocks, scales, status) = (gpu.allocate(expected.blocks.len())?, gpu.allocate(expected.scales.len())?, status(gpu)?);
        let hints = hints.map(|hints| on_device(gpu, hints)).transpose()?;
        let packed = PackedPointers { blocks: blocks.address(), scales: scales.address() };
        let launch = || {
            let hints = hints.as_ref().map(DeviceBuffer::address);
            // SAFETY: as for `unpack`; there are as many hints as scales.
            Ok(unsafe { gpu.pack_on(gpu.stream(), layout, packing, values.address(), hints, packed, status.address()) }?)
        };
        launch()?;
        same(name, &from_device(gpu, &blocks, blocks.num_bytes())?, &expected.blocks)?;
        same(name, &from_device(gpu, &scales, scales.num_bytes())?, &expected.scales)?;
        same(name, &from_device(gpu, &status, STATUS_BYTES)?, &[0xff; STATUS_BYTES])?;
        let num_bytes = source.len() * 2 + blocks.num_bytes() + scales.num_bytes() + hints.as_ref().map_or(0, DeviceBuffer::num_bytes);
        report(gpu, self.shape, name, num_bytes, median_ms(gpu, launch)?, Some(self.copy_rate))?;
        Ok(())
    }
}

/// Sums of four uniform numbers, as broad as the weights of a model.
fn random_weights(count: usize, seed: f32) -> Vec<bf16> {
    use rayon::prelude::*;
    let weight = |index: usize| {
        let mut bits = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(seed.to_bits());
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let sum: u32 = (bits ^ (bits >> 31)).to_le_bytes().chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        bf16::from_f32((sum as f32 - 131_070.0) / 1.0e6)
    };
    (0..count).into_par_iter().map(weight).collect()
}

fn bytes_of(values: &[bf16]) -> &[u8] {
    // SAFETY: every bf16 is two bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn on_device(gpu: &Gpu, bytes: &[u8]) -> Result<DeviceBuffer, Box<dyn Error>> {
    let buffer = gpu.allocate(bytes.len())?;
    gpu.write(&buffer, bytes)?;
    Ok(buffer)
}

fn status(gpu: &Gpu) -> Result<DeviceBuffer, Box<dyn Error>> {
    on_device(gpu, &[0xff; STATUS_BYTES])
}

fn from_device(gpu: &Gpu, buffer: &DeviceBuffer, num_bytes: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = vec![0; num_bytes];
    gpu.read(buffer, &mut bytes)?;
    Ok(bytes)
}

fn same(name: &str, found: &[u8], expected: &[u8]) -> Result<(), Box<dyn Error>> {
    // Whole slices are compared faster than bytes.
    if found == expected {
        return Ok(());
    }
    let index = found.iter().zip(expected).position(|(found, expected)| found != expected).unwrap_or(0);
    Err(format!("{name}: byte {index} is {:?} on the device and {:?} on the CPU", found.get(index), expected.get(index)).into())
}

fn median_ms(gpu: &Gpu, launch: impl Fn() -> Result<(), Box<dyn Error>>) -> Result<f32, Box<dyn Error>> {
    for _ in 0..WARM_UP {
        launch()?;
    }
    let mut times = Vec::with_capacity(LAUNCHES);
    for _ in 0..LAUNCHES {
        // While one launch runs the next is queued, so that the host's time to do so is not counted.
        launch()?;
        let timer = gpu.start_timer()?;
        launch()?;
        times.push(timer.elapsed_ms()?);
    }
    times.sort_by(f32::total_cmp);
    Ok(times[LAUNCHES / 2])
}

/// Prints a line, and gives the rate in bytes a second.
fn report(
    gpu: &Gpu,
    shape: &str,
    kernel: &str,
    num_bytes: usize,
    milliseconds: f32,
    copy_rate: Option<f64>,
) -> Result<f64, Box<dyn Error>> {
    let rate = num_bytes as f64 / (f64::from(milliseconds) / 1e3);
    let of_copy = copy_rate.map_or(String::new(), |copy_rate| format!(", \"of_copy\": {:.3}", rate / copy_rate));
    let (device, rate_text) = (gpu.name()?, format!("{:.1}", rate / 1e9));
    writeln!(
        std::io::stdout().lock(),
        "{{\"device\": {device:?}, \"shape\": \"{shape}\", \"kernel\": \"{kernel}\", \"bytes\": {num_bytes}, \"ms\": {milliseconds:.4}, \
         \"gigabytes_per_second\": {rate_text}{of_copy}}}"
    )?;
    Ok(rate)
}
