//! A model of random weights, streamed to disk: what training starts from, and what tests and benches read.
//!
//! Every element follows from the seed, the tensor's name and its place, so that the same seed gives the same bytes whatever the machine's
//! number of cores. Norms are 1; all else is normal, biases and sinks too, so that no part of a forward pass is hidden by a zero.

use std::path::{Path, PathBuf};

use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, ScaleRule, pack};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{CheckpointWriter, Config, ExpertStorage};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::safetensors::TensorSpec;

/// Elements that one draw of a stream's seed covers.
const CHUNK_ELEMENTS: usize = 1 << 16;

/// Elements in memory at a time.
const PIECE_ELEMENTS: usize = 1 << 23;

/// Bytes of a shard at most.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes a model of `config` with random weights of `initializer_range` and the tokenizer of gpt-oss.
///
/// `progress` sees the bytes of tensors written so far, and of all. Peak memory is a constant.
///
/// # Errors
/// Those of [`CheckpointWriter`]: a config that makes no model, a directory that holds something, a full disk.
pub fn write_random_model(
    directory: &Path,
    config: &Config,
    storage: ExpertStorage,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf> {
    let mut writer = CheckpointWriter::create(directory, config, storage, SHARD_BYTES)?;
    let total_bytes = writer.total_bytes();
    let specs = writer.specs().to_vec();
    let normal = Normal::new(config.initializer_range);
    let mut written_bytes = 0;
    for spec in &specs {
        let values = if spec.name.ends_with("norm.weight") { Values::Ones } else { Values::Normal(&normal) };
        let mut report = |bytes: usize| {
            written_bytes += bytes as u64;
            progress(written_bytes, total_bytes);
        };
        if let Some(name) = spec.name.strip_suffix("_blocks") {
            write_packed(&mut writer, name, spec, seed, &normal, &mut report)?;
        } else if !spec.name.ends_with("_scales") {
            write_plain(&mut writer, spec, seed, &values, &mut report)?;
        }
    }
    writer.write_tokenizer()?;
    writer.finish()
}

fn write_plain(
    writer: &mut CheckpointWriter,
    spec: &TensorSpec,
    seed: u64,
    values: &Values<'_>,
    report: &mut dyn FnMut(usize),
) -> Result<()> {
    let element_bytes = match spec.dtype {
        Dtype::F32 => 4,
        _ => 2,
    };
    for piece in pieces(spec.shape.iter().product()) {
        let mut bytes = vec![0; piece.len() * element_bytes];
        bytes.par_chunks_mut(CHUNK_ELEMENTS * element_bytes).enumerate().for_each(|(chunk, bytes)| {
            let drawn = values.draw(seed, &spec.name, piece.start / CHUNK_ELEMENTS + chunk, bytes.len() / element_bytes);
            for (bytes, value) in bytes.chunks_exact_mut(element_bytes).zip(drawn) {
                match spec.dtype {
                    Dtype::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                    Dtype::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                    _ => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                }
            }
        });
        writer.write_chunk(&spec.name, &bytes)?;
        report(bytes.len());
    }
    Ok(())
}

/// Draws the weights `name` and writes them as blocks and scales.
fn write_packed(
    writer: &mut CheckpointWriter,
    name: &str,
    blocks: &TensorSpec,
    seed: u64,
    normal: &Normal,
    report: &mut dyn FnMut(usize),
) -> Result<()> {
    let num_blocks = blocks.shape.iter().product::<usize>() / BLOCK_BYTES;
    let chunk_blocks = CHUNK_ELEMENTS / BLOCK_ELEMENTS;
    for piece in pieces(num_blocks * BLOCK_ELEMENTS) {
        let mut blocks = vec![0; piece.len() / 2];
        let mut scales = vec![0; piece.len() / BLOCK_ELEMENTS];
        let chunks = blocks.par_chunks_mut(chunk_blocks * BLOCK_BYTES).zip(scales.par_chunks_mut(chunk_blocks));
        let packed: std::result::Result<(), ft_quant::Error> = chunks.enumerate().try_for_each(|(chunk, (blocks, scales))| {
            let index = piece.start / CHUNK_ELEMENTS + chunk;
            let values = Values::Normal(normal).draw(seed, name, index, scales.len() * BLOCK_ELEMENTS);
            let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            pack(&values, ScaleRule::Even.into(), None, blocks, scales)
        });
        let path = writer.partial_path().to_owned();
        packed.map_err(|source| Error::Packed { tensor: format!("{name}_scales"), path, expert: 0, source })?;
        writer.write_chunk(&format!("{name}_blocks"), &blocks)?;
        writer.write_chunk(&format!("{name}_scales"), &scales)?;
        report(blocks.len() + scales.len());
    }
    Ok(())
}

/// Ranges of [`PIECE_ELEMENTS`], the last one shorter.
fn pieces(elements: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..elements).step_by(PIECE_ELEMENTS).map(move |start| start..elements.min(start + PIECE_ELEMENTS))
}

/// What a tensor is filled with.
#[derive(Clone, Copy)]
enum Values<'a> {
    Ones,
    Normal(&'a Normal),
}

impl Values<'_> {
    /// The `count` elements of a chunk of the tensor `name`.
    fn draw(self, seed: u64, name: &str, chunk: usize, count: usize) -> Vec<f32> {
        let Self::Normal(normal) = self else { return vec![1.0; count] };
        let mut state = stream(seed, name, chunk);
        let mut values = Vec::with_capacity(count + 3);
        while values.len() < count {
            let bits = next(&mut state);
            values.extend((0..4).map(|part| normal.quantiles[(bits >> (16 * part)) as usize & 0xffff]));
        }
        values.truncate(count);
        values
    }
}

/// The normal distribution as 65,536 values of equal probability: one draw is 16 bits and a look into a table.
struct Normal {
    quantiles: Vec<f32>,
}

impl Normal {
    /// The distribution of mean 0 and standard deviation `deviation`.
    ///
    /// The quantile function x(p) solves x' = sqrt(2 pi) exp(x^2 / 2) with x(1/2) = 0; fourth-order Runge-Kutta steps lead from there to the
    /// middle of each of 32,768 intervals, and symmetry gives the other half.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn new(deviation: f64) -> Self {
        const HALF: usize = 1 << 15;
        const SUBSTEPS: u32 = 16;
        let slope = |x: f64| std::f64::consts::TAU.sqrt() * (x * x / 2.0).exp();
        let mut quantiles = vec![0.0; 2 * HALF];
        let mut x = 0.0;
        let interval = 1.0 / (2 * HALF) as f64;
        for index in 0..HALF {
            // The first middle is half an interval away.
            let step = if index == 0 { interval / 2.0 } else { interval } / f64::from(SUBSTEPS);
            for _ in 0..SUBSTEPS {
                let first = slope(x);
                let second = slope(x + step / 2.0 * first);
                let third = slope(x + step / 2.0 * second);
                let fourth = slope(x + step * third);
                x += step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth);
            }
            quantiles[HALF + index] = (x * deviation) as f32;
            quantiles[HALF - 1 - index] = (-x * deviation) as f32;
        }
        Self { quantiles }
    }
}

/// The state of the stream for a chunk of a tensor. Source: FNV-1a, 64 bits, over seed, name and chunk.
fn stream(seed: u64, name: &str, chunk: usize) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes()).chain((chunk as u64).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The next 64 bits. Source: SplitMix64, Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    fn small() -> Config {
        let mut config = Config::nano();
        for (key, value) in [("hidden_size", "96"), ("vocab_size", "1000"), ("num_hidden_layers", "2")] {
            config.set(key, value).unwrap();
        }
        config
    }

    #[test]
    fn quantiles_have_the_moments_of_the_normal_distribution() {
        let normal = Normal::new(2.0);
        let moment = |power: i32| normal.quantiles.iter().map(|&x| (f64::from(x) / 2.0).powi(power)).sum::<f64>() / 65_536.0;
        assert!(moment(1).abs() < 1e-6, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 1e-3, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.02, "{}", moment(4));
        // Of the middle of the last interval: the quantile of 1 - 2^-17.
        assert!((f64::from(normal.quantiles[65_535]) / 2.0 - 4.324).abs() < 1e-2, "{}", normal.quantiles[65_535]);
    }

    #[test]
    fn models_are_read_back_and_depend_on_the_seed_alone() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, storage, seed| {
            let path = root.path().join(name);
            let mut last = (0, 0);
            write_random_model(&path, &small(), storage, seed, &mut |done, total| last = (done, total)).unwrap();
            assert_eq!(last.0, last.1);
            Checkpoint::open(&path).unwrap()
        };
        for storage in [ExpertStorage::Mxfp4, ExpertStorage::Float(Dtype::Bf16), ExpertStorage::Float(Dtype::F32)] {
            let [one, same, other] =
                [("one", 1), ("same", 1), ("other", 2)].map(|(name, seed)| write(&format!("{name}{storage:?}"), storage, seed));
            for spec in one.specs() {
                let bytes = |checkpoint: &Checkpoint| checkpoint.tensor(&spec.name).unwrap().bytes.to_vec();
                assert_eq!(bytes(&one), bytes(&same), "{}", spec.name);
                let is_norm = spec.name.ends_with("norm.weight");
                assert_eq!(bytes(&one) == bytes(&other), is_norm, "{}", spec.name);
            }
        }
    }
}
