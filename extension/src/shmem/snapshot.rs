//! Documents that are read whole while they are replaced: the cluster as the lease worker last saw it, for SQL to
//! read; and the slots as the arbiter last saw them, for the worker to publish.

use super::clock::boottime;
use super::words::Words;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

/// The longest snapshot: some three hundred members; in words of eight bytes.
const SNAPSHOT_WORDS_MAX: usize = 16 * 1024;
/// The longest word on slots: some three hundred; in words of eight bytes.
const SLOTS_WORDS_MAX: usize = 4 * 1024;

/// The cluster, for SQL; the lease worker alone writes it.
pub type Snapshot = Document<SNAPSHOT_WORDS_MAX>;
/// The slots, for the worker; the arbiter's session alone writes it.
pub type Slots = Document<SLOTS_WORDS_MAX>;

/// A text with one writer and any number of readers.
#[repr(C)]
pub struct Document<const N: usize> {
    generation: AtomicU64,
    buffers: [Buffer<N>; 2],
}

#[repr(C)]
struct Buffer<const N: usize> {
    length: AtomicU64,
    taken_at_ns: AtomicU64,
    bytes: Words<N>,
}

impl<const N: usize> Document<N> {
    /// Replaces the text. False where it is too long.
    ///
    /// Generation n lies in buffer n % 2. Generation n + 1 is written into the other one, so a reader
    /// that finds the same generation before and after its copy has copied one whole text; and a
    /// writer that is frozen while it writes leaves the last one readable.
    pub fn publish(&self, json: &[u8]) -> bool {
        if json.len() > N * 8 {
            return false;
        }
        let next = self.generation.load(SeqCst) + 1;
        let buffer = &self.buffers[usize::from(next % 2 == 1)];
        // Keeps the words below from being written before the last generation was announced.
        fence(SeqCst);
        let length = buffer.bytes.store(json);
        buffer.length.store(length as u64, Relaxed);
        buffer.taken_at_ns.store(boottime().as_nanos(), Relaxed);
        self.generation.store(next, SeqCst);
        true
    }

    /// The last text and when it was written; None where there was none since the server started.
    pub fn read(&self) -> Option<(Vec<u8>, u64)> {
        // Each turn in vain means that two were published during one copy.
        for _ in 0..100 {
            let generation = self.generation.load(SeqCst);
            if generation == 0 {
                return None;
            }
            let buffer = &self.buffers[usize::from(generation % 2 == 1)];
            let length = usize::try_from(buffer.length.load(Relaxed)).unwrap_or(0);
            let taken_at_ns = buffer.taken_at_ns.load(Relaxed);
            let bytes = buffer.bytes.load(length);
            fence(Acquire);
            if self.generation.load(SeqCst) == generation {
                return Some((bytes, taken_at_ns));
            }
        }
        None
    }
}
