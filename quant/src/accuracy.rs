//! What packing cost: how far the blocks are from the values that they stand for.
//!
//! The blocks are unpacked again for it, so that the bytes are judged and not the intention.

use rayon::prelude::*;

use crate::error::Error;
use crate::float::Float;
use crate::mxfp4::measure::{Columns, Sums, check, measure, measure_rows};
use crate::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, VALUES, check_length};

/// Outputs that a thread measures at a time.
const CHUNK_OUTPUTS: usize = 256;

/// Floats that a thread measures at a time.
const CHUNK_FLOATS: usize = 1 << 16;

/// Blocks that a thread sums up at a time.
const CHUNK_BLOCKS: usize = 1 << 12;

/// The sum of the squares of what the two codes of a byte stand for.
static SQUARES: [f32; 256] = {
    let mut squares = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (VALUES[byte & 0xf], VALUES[byte >> 4]);
        squares[byte] = low * low + high * high;
        byte += 1;
    }
    squares
};

/// Sums over the elements and blocks of a tensor, from which its measures follow. Sums of several parts are added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Accuracy {
    /// Elements measured.
    pub elements: u64,
    /// Sum of the squared values.
    pub signal: f64,
    /// Sum of the squared differences between a value and what its code stands for.
    pub noise: f64,
    /// Sum of the squares of what the codes stand for.
    pub packed_signal: f64,
    /// Sum of the products of a value and what its code stands for.
    pub product: f64,
    /// The largest difference.
    pub largest_error: f64,
    /// The largest magnitude of a value.
    pub largest_value: f64,
    /// Elements beyond 6 units of their block's scale, which are packed as 6.
    pub clipped: u64,
    /// Elements packed as zero that were not zero.
    pub flushed: u64,
    /// Blocks by the magnitude code, 0 to 7, of their largest element.
    pub largest_codes: [u64; 8],
    /// Blocks that were compared with those of another packing.
    pub compared_blocks: u64,
    /// Of the compared blocks' elements, those whose code differs.
    pub changed_codes: u64,
    /// Of the compared blocks' scales, those that differ.
    pub changed_scales: u64,
}

impl Accuracy {
    /// Measures a matrix whose blocks lie along its columns, with the threads of the current rayon pool; the sums do not depend on their
    /// number.
    ///
    /// # Shapes
    /// `values` [in, out] with `outputs` as out and in = 32 s, finite; `blocks` [out, s, 16] and `scales` [out, s].
    ///
    /// # Errors
    /// [`Error::PartialBlock`] or [`Error::Length`] when the slices do not fit each other, [`Error::ReservedScale`].
    pub fn of_transposed<T: Float>(values: &[T], outputs: usize, blocks: &[u8], scales: &[u8]) -> Result<Self, Error> {
        check(values.len(), outputs, blocks.len(), scales.len())?;
        check_scales(scales)?;
        if values.is_empty() {
            return Ok(Self::default());
        }
        let row_blocks = values.len() / outputs / BLOCK_ELEMENTS;
        let chunk_blocks = CHUNK_OUTPUTS * row_blocks;
        let chunks = blocks.par_chunks(chunk_blocks * BLOCK_BYTES).zip(scales.par_chunks(chunk_blocks)).enumerate();
        Ok(total(chunks.map(|(chunk, (blocks, scales))| {
            let (first, blocks) = (chunk * CHUNK_OUTPUTS, blocks.as_chunks().0);
            Self::of_columns(&Columns { values, outputs, first, row_blocks, blocks, scales })
        })))
    }

    /// Measures blocks of neighbouring values.
    ///
    /// # Shapes
    /// With n blocks: `values` has 32 n elements, finite, `blocks` 16 n bytes, `scales` n.
    ///
    /// # Errors
    /// As [`Accuracy::of_transposed`].
    pub fn of<T: Float>(values: &[T], blocks: &[u8], scales: &[u8]) -> Result<Self, Error> {
        check(values.len(), scales.len(), blocks.len(), scales.len())?;
        check_scales(scales)?;
        let chunks = values.par_chunks(CHUNK_OUTPUTS * BLOCK_ELEMENTS).zip(blocks.par_chunks(CHUNK_OUTPUTS * BLOCK_BYTES));
        Ok(total(chunks.zip(scales.par_chunks(CHUNK_OUTPUTS)).map(|((values, blocks), scales)| {
            let mut part = Self::default();
            measure_rows(values.as_chunks().0, blocks.as_chunks().0, scales, &mut |sums, units| part.add_blocks(sums, units));
            part
        })))
    }

    /// The sums of blocks that were unpacked: every value is what its code stands for, so that the blocks alone tell all.
    ///
    /// # Shapes
    /// With n blocks: `blocks` has 16 n bytes, `scales` n.
    ///
    /// # Errors
    /// [`Error::Length`] when the slices do not fit each other, [`Error::ReservedScale`].
    pub fn of_unpacked(blocks: &[u8], scales: &[u8]) -> Result<Self, Error> {
        check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
        check_scales(scales)?;
        let chunks = blocks.par_chunks(CHUNK_BLOCKS * BLOCK_BYTES).zip(scales.par_chunks(CHUNK_BLOCKS));
        Ok(total(chunks.map(|(blocks, scales)| {
            let mut part = Self { elements: (scales.len() * BLOCK_ELEMENTS) as u64, ..Self::default() };
            for (block, &scale) in blocks.as_chunks::<BLOCK_BYTES>().0.iter().zip(scales) {
                // Multiples of a quarter, exact in any order.
                let squares: f32 = block.iter().map(|&byte| SQUARES[usize::from(byte)]).sum();
                let largest = block.iter().fold(0, |largest: u8, byte| largest.max(byte & 7).max(byte >> 4 & 7));
                let unit = value(scale);
                part.signal += f64::from(squares) * unit * unit;
                part.largest_value = part.largest_value.max(f64::from(VALUES[usize::from(largest)]) * unit);
                part.largest_codes[usize::from(largest)] += 1;
            }
            part.packed_signal = part.signal;
            part.product = part.signal;
            part
        })))
    }

    /// Measures values that were rounded to another float, or came back from some other form.
    ///
    /// # Errors
    /// [`Error::Length`] when there are not as many of one as of the other.
    pub fn of_floats<T: Float, R: Float>(values: &[T], rounded: &[R]) -> Result<Self, Error> {
        check_length("rounded", values.len(), rounded.len())?;
        let chunks = values.par_chunks(CHUNK_FLOATS).zip(rounded.par_chunks(CHUNK_FLOATS));
        Ok(total(chunks.map(|(values, rounded)| {
            let mut part = Self { elements: values.len() as u64, ..Self::default() };
            for (value, rounded) in values.iter().zip(rounded) {
                let (value, rounded) = (f64::from(value.to_f32()), f64::from(rounded.to_f32()));
                part.signal += value * value;
                part.noise += (value - rounded) * (value - rounded);
                part.packed_signal += rounded * rounded;
                part.product += value * rounded;
                part.largest_error = part.largest_error.max((value - rounded).abs());
                part.largest_value = part.largest_value.max(value.abs());
                part.flushed += u64::from(rounded == 0.0 && value != 0.0);
            }
            part
        })))
    }

    /// Counts where two packings of the same values differ.
    ///
    /// # Shapes
    /// With n blocks: `blocks` and `other_blocks` have 16 n bytes, `scales` and `other_scales` n.
    ///
    /// # Errors
    /// [`Error::Length`] when the slices do not fit each other.
    pub fn compare(&mut self, blocks: &[u8], scales: &[u8], other_blocks: &[u8], other_scales: &[u8]) -> Result<(), Error> {
        check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
        check_length("other_blocks", blocks.len(), other_blocks.len())?;
        check_length("other_scales", scales.len(), other_scales.len())?;
        self.compared_blocks += scales.len() as u64;
        let chunks = blocks.par_chunks(1 << 16).zip(other_blocks.par_chunks(1 << 16));
        self.changed_codes += chunks.map(|(blocks, others)| differing_codes(blocks, others)).sum::<u64>();
        self.changed_scales += scales.iter().zip(other_scales).map(|(scale, other)| u64::from(scale != other)).sum::<u64>();
        Ok(())
    }

    /// Signal to quantization noise in dB, 10 log10 of the ratio of their powers; nothing where there is no noise.
    #[must_use]
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }

    /// The root of noise over signal; 0 where there is neither.
    #[must_use]
    pub fn relative_error(&self) -> f64 {
        if self.noise > 0.0 { (self.noise / self.signal).sqrt() } else { 0.0 }
    }

    /// Cosine of the angle between the values and what the codes stand for; 1 where both are zero.
    #[must_use]
    pub fn cosine(&self) -> f64 {
        let norms = (self.signal * self.packed_signal).sqrt();
        if norms > 0.0 { (self.product / norms).min(1.0) } else { f64::from(u8::from(self.noise == 0.0)) }
    }

    /// Blocks measured.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.largest_codes.iter().sum()
    }

    fn of_columns<T: Float>(columns: &Columns<'_, T>) -> Self {
        let mut part = Self::default();
        measure(columns, &mut |sums, units| part.add_blocks(sums, units));
        part
    }

    /// Adds the sums of as many blocks as there are `units`, the values of their scales.
    fn add_blocks(&mut self, sums: &Sums, units: &[f64]) {
        self.elements += (units.len() * BLOCK_ELEMENTS) as u64;
        for (lane, unit) in units.iter().enumerate() {
            let squared = unit * unit;
            self.signal += f64::from(sums.signal[lane]) * squared;
            self.noise += f64::from(sums.noise[lane]) * squared;
            self.packed_signal += f64::from(sums.packed_signal[lane]) * squared;
            self.product += f64::from(sums.product[lane]) * squared;
            self.largest_error = self.largest_error.max(f64::from(sums.largest_error[lane]) * unit);
            self.largest_value = self.largest_value.max(f64::from(sums.largest_value[lane]) * unit);
            self.clipped += u64::from(sums.clipped[lane]);
            self.flushed += u64::from(sums.flushed[lane]);
            self.largest_codes[usize::from(sums.largest_code[lane])] += 1;
        }
    }
}

/// The sum of the parts, in their order whatever the threads do.
fn total(parts: impl IndexedParallelIterator<Item = Accuracy>) -> Accuracy {
    parts.collect::<Vec<_>>().into_iter().fold(Accuracy::default(), std::ops::Add::add)
}

impl std::ops::Add for Accuracy {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.elements += other.elements;
        self.signal += other.signal;
        self.noise += other.noise;
        self.packed_signal += other.packed_signal;
        self.product += other.product;
        self.largest_error = self.largest_error.max(other.largest_error);
        self.largest_value = self.largest_value.max(other.largest_value);
        self.clipped += other.clipped;
        self.flushed += other.flushed;
        for (count, more) in self.largest_codes.iter_mut().zip(other.largest_codes) {
            *count += more;
        }
        self.compared_blocks += other.compared_blocks;
        self.changed_codes += other.changed_codes;
        self.changed_scales += other.changed_scales;
        self
    }
}

/// What a scale byte other than 255 stands for.
fn value(scale: u8) -> f64 {
    f64::from_bits((u64::from(scale) + 1023 - 127) << 52)
}

fn check_scales(scales: &[u8]) -> Result<(), Error> {
    scales.iter().position(|&scale| scale == u8::MAX).map_or(Ok(()), |index| Err(Error::ReservedScale { index }))
}

fn differing_codes(blocks: &[u8], others: &[u8]) -> u64 {
    let count = |(byte, other): (&u8, &u8)| {
        let changed = byte ^ other;
        u64::from(changed & 0xf != 0) + u64::from(changed & 0xf0 != 0)
    };
    blocks.iter().zip(others).map(count).sum()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::mxfp4::{ScaleRule, pack, pack_transposed, unpack};

    /// Values with outliers, zeros and a column of its own magnitude for each output.
    fn values(inputs: usize, outputs: usize) -> Vec<bf16> {
        let value = |index: usize| {
            let angle = (index as f32 * 0.731).sin() * (index as f32 * 0.0173).cos();
            let outlier = if index.is_multiple_of(97) { 11.0 } else { 1.0 };
            bf16::from_f32(angle * outlier * ((index % outputs % 9) as f32 - 4.0).exp2())
        };
        (0..inputs * outputs).map(value).collect()
    }

    /// The sums one element after the other, in f64.
    fn by_definition(values: &[bf16], blocks: &[u8], scales: &[u8]) -> Accuracy {
        let mut unpacked = vec![bf16::ZERO; values.len()];
        unpack(blocks, scales, &mut unpacked).unwrap();
        let mut sums = Accuracy { elements: values.len() as u64, ..Accuracy::default() };
        for (index, (value, packed)) in values.iter().zip(&unpacked).map(|(value, packed)| (value.to_f64(), packed.to_f64())).enumerate() {
            let unit = (f64::from(scales[index / BLOCK_ELEMENTS]) - 127.0).exp2();
            sums.signal += value * value;
            sums.noise += (value - packed).powi(2);
            sums.packed_signal += packed * packed;
            sums.product += value * packed;
            sums.largest_error = sums.largest_error.max((value - packed).abs());
            sums.largest_value = sums.largest_value.max(value.abs());
            sums.clipped += u64::from(value.abs() > 6.0 * unit);
            sums.flushed += u64::from(packed == 0.0 && value != 0.0);
        }
        for block in blocks.as_chunks::<BLOCK_BYTES>().0 {
            let largest = block.iter().flat_map(|byte| [byte & 7, byte >> 4 & 7]).max().unwrap();
            sums.largest_codes[usize::from(largest)] += 1;
        }
        sums
    }

    fn assert_close(found: &Accuracy, expected: &Accuracy) {
        for (found, expected) in [
            (found.signal, expected.signal),
            (found.noise, expected.noise),
            (found.packed_signal, expected.packed_signal),
            (found.product, expected.product),
        ] {
            // Blocks are summed in f32: 32 terms of one sign.
            assert!((found - expected).abs() <= 2e-6 * expected.abs(), "{found} instead of {expected}");
        }
        let exact = |sums: &Accuracy| Accuracy { signal: 0.0, noise: 0.0, packed_signal: 0.0, product: 0.0, ..*sums };
        assert_eq!(exact(found), exact(expected));
    }

    #[test]
    fn sums_are_those_of_the_definition_along_rows_and_columns() {
        let (inputs, outputs) = (96, 301);
        let columns = values(inputs, outputs);
        let rows: Vec<bf16> = (0..outputs).flat_map(|output| columns.iter().skip(output).step_by(outputs).copied()).collect();
        for rule in [ScaleRule::Even, ScaleRule::Floor, ScaleRule::Rceil] {
            let (mut blocks, mut scales) = (vec![0; columns.len() / 2], vec![0; columns.len() / BLOCK_ELEMENTS]);
            pack_transposed(&columns, outputs, rule.into(), None, &mut blocks, &mut scales).unwrap();
            let expected = by_definition(&rows, &blocks, &scales);
            assert!(expected.noise > 0.0 && expected.flushed > 0 && (expected.clipped > 0) == (rule != ScaleRule::Rceil), "{expected:?}");
            assert_close(&Accuracy::of_transposed(&columns, outputs, &blocks, &scales).unwrap(), &expected);
            assert_close(&Accuracy::of(&rows, &blocks, &scales).unwrap(), &expected);
            let single = |values: &[bf16]| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>();
            assert_close(&Accuracy::of_transposed(&single(&columns), outputs, &blocks, &scales).unwrap(), &expected);
            assert_close(&Accuracy::of(&single(&rows), &blocks, &scales).unwrap(), &expected);
        }
    }

    #[test]
    fn what_is_exact_has_no_noise() {
        let blocks: Vec<u8> = (0..64 * BLOCK_BYTES).map(|index| (index * 41 % 256) as u8).collect();
        let scales: Vec<u8> = (0..64).map(|index| index * 3 + 2).collect();
        let mut values = vec![bf16::ZERO; 64 * BLOCK_ELEMENTS];
        unpack(&blocks, &scales, &mut values).unwrap();
        let exact = Accuracy::of(&values, &blocks, &scales).unwrap();
        assert_eq!((exact.noise, exact.sqnr_db(), exact.relative_error(), exact.blocks()), (0.0, None, 0.0, 64));
        assert!((exact.cosine() - 1.0).abs() < 1e-12);
        let told = Accuracy::of_unpacked(&blocks, &scales).unwrap();
        assert_close(&told, &exact);
        assert_eq!((told.sqnr_db(), told.cosine()), (None, 1.0));
        assert_eq!(Accuracy::of_unpacked(&[0; 32], &[0, 255]).unwrap_err(), Error::ReservedScale { index: 1 });
        let nothing = Accuracy::of::<bf16>(&[], &[], &[]).unwrap();
        assert_eq!((nothing.sqnr_db(), nothing.relative_error(), nothing.cosine()), (None, 0.0, 1.0));
    }

    #[test]
    fn measures_follow_from_the_sums() {
        let sums = Accuracy { elements: 2, signal: 25.0, noise: 0.25, packed_signal: 20.25, product: 22.5, ..Accuracy::default() };
        assert!((sums.sqnr_db().unwrap() - 20.0).abs() < 1e-12);
        assert!((sums.relative_error() - 0.1).abs() < 1e-15);
        assert!((sums.cosine() - 1.0).abs() < 1e-15);
        let doubled = sums + sums;
        assert_eq!((doubled.elements, doubled.signal, doubled.sqnr_db()), (4, 50.0, sums.sqnr_db()));
    }

    #[test]
    fn changes_are_counted_code_by_code() {
        let values = values(64, 10);
        let (mut blocks, mut scales) = (vec![0; 320], vec![0; 20]);
        pack(&values, ScaleRule::Even.into(), None, &mut blocks, &mut scales).unwrap();
        let (mut others, mut other_scales) = (blocks.clone(), scales.clone());
        others[3] ^= 0x11;
        others[200] ^= 0x80;
        other_scales[7] ^= 1;
        let mut sums = Accuracy::default();
        sums.compare(&blocks, &scales, &others, &other_scales).unwrap();
        assert_eq!((sums.compared_blocks, sums.changed_codes, sums.changed_scales), (20, 3, 1));
        let error = sums.compare(&blocks, &scales, &others, &other_scales[1..]).unwrap_err();
        assert_eq!(error, Error::Length { slice: "other_scales", expected: 20, found: 19 });
    }

    #[test]
    fn floats_are_measured_against_their_rounding() {
        let values = [1.0f32, 1.001, -3.0, 1e-41];
        let rounded = values.map(bf16::from_f32);
        let sums = Accuracy::of_floats(&values, &rounded).unwrap();
        assert!(((sums.largest_error - f64::from(1.001f32 - 1.0)).abs() < 1e-9) && sums.elements == 4 && sums.flushed == 1);
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        let values = values(32, 2);
        let error = Accuracy::of_transposed(&values, 2, &[0; 31], &[0; 2]).unwrap_err();
        assert_eq!(error, Error::Length { slice: "blocks", expected: 32, found: 31 });
        let error = Accuracy::of_transposed(&values, 4, &[0; 32], &[0; 2]).unwrap_err();
        assert_eq!(error, Error::PartialBlock { block: 32, found: 16 });
        assert_eq!(Accuracy::of(&values, &[0; 32], &[0, 255]).unwrap_err(), Error::ReservedScale { index: 1 });
    }
}
