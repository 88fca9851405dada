//! Memory that starts at a cache line, used again and again.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::mpsc::Receiver;

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use half::bf16;

/// A cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes that start at a cache line: numbers of any type can be written to them, past the caches too.
#[derive(Debug)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    length: usize,
}

impl Buffer {
    /// As many numbers as fit, which is a whole number of them.
    pub(crate) fn values<T: Pod>(&self) -> &[T] {
        cast_slice(self)
    }

    /// As many numbers as fit, which is a whole number of them.
    pub(crate) fn values_mut<T: Pod>(&mut self) -> &mut [T] {
        cast_slice_mut(self)
    }

    /// As many bf16 as fit.
    pub(crate) fn as_bf16(&self) -> &[bf16] {
        self.values()
    }

    /// As many bf16 as fit.
    pub(crate) fn as_bf16_mut(&mut self) -> &mut [bf16] {
        self.values_mut()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// Buffers that have done their work: fresh memory would have to be cleared by the system first.
pub(crate) struct Pool {
    spent: Receiver<Buffer>,
    free: RefCell<Vec<Buffer>>,
}

impl Pool {
    /// A pool of the buffers that come through `spent`.
    pub(crate) fn new(spent: Receiver<Buffer>) -> Self {
        Self { spent, free: RefCell::default() }
    }

    /// A buffer of `length` bytes of no particular value.
    pub(crate) fn take(&self, length: usize) -> Buffer {
        let mut free = self.free.borrow_mut();
        free.extend(self.spent.try_iter());
        let lines = length.div_ceil(size_of::<Line>());
        match free.iter().position(|buffer| buffer.lines.len() == lines) {
            Some(index) => Buffer { length, ..free.swap_remove(index) },
            None => Buffer { lines: vec![Line::zeroed(); lines], length },
        }
    }

    /// Keeps a buffer that was not put out.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        self.free.borrow_mut().push(buffer);
    }
}
