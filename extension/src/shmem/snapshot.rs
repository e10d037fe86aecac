//! Documents that are read whole while they are replaced: the cluster as the lease worker last saw it, for SQL to
//! read; and the slots as the arbiter last saw them, for the worker to publish.

use super::words::Words;
use super::{Page, boottime};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

/// The longest snapshot: some three hundred members; in words of eight bytes.
const SNAPSHOT_WORDS_MAX: usize = 16 * 1024;
/// The longest word on slots: some three hundred; in words of eight bytes.
const SLOTS_WORDS_MAX: usize = 4 * 1024;

/// The cluster, for SQL.
pub(super) type Snapshot = Document<SNAPSHOT_WORDS_MAX>;
/// The slots, for the worker.
pub(super) type Slots = Document<SLOTS_WORDS_MAX>;

/// A text with one writer and any number of readers.
#[repr(C)]
pub(super) struct Document<const N: usize> {
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
    fn publish(&self, json: &[u8]) -> bool {
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
    fn read(&self) -> Option<(Vec<u8>, u64)> {
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

impl Page {
    /// Worker, the only writer: publishes what it knows of the cluster, as JSON. False where it is too long.
    pub fn publish_snapshot(&self, json: &[u8]) -> bool {
        self.snapshot.publish(json)
    }

    /// The last snapshot and when it was taken; None where there was none since the server started.
    pub fn read_snapshot(&self) -> Option<(Vec<u8>, u64)> {
        self.snapshot.read()
    }

    /// Arbiter, the only writer: hands the worker what is to be published of the slots, as JSON. False where it is too long.
    pub fn note_slots(&self, json: &[u8]) -> bool {
        self.slots.publish(json)
    }

    /// What the arbiter last said of the slots since the server started.
    pub fn read_slots(&self) -> Option<Vec<u8>> {
        self.slots.read().map(|(json, _)| json)
    }
}
