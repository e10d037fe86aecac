//! The cluster as the lease worker last saw it, for SQL to read.

use super::words::Words;
use super::{Page, boottime};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

/// The longest snapshot, in bytes: some three hundred members.
const SNAPSHOT_BYTES_MAX: usize = 128 * 1024;

/// One of the snapshot's two buffers.
#[repr(C)]
pub(super) struct Buffer {
    length: AtomicU64,
    taken_at_ns: AtomicU64,
    bytes: Words<{ SNAPSHOT_BYTES_MAX / 8 }>,
}

impl Page {
    /// Worker, the only writer: publishes what it knows of the cluster, as JSON. False where it is too long.
    ///
    /// Generation n lies in buffer n % 2. Generation n + 1 is written into the other one, so a reader
    /// that finds the same generation before and after its copy has copied one whole snapshot; and a
    /// worker that is frozen while it writes leaves the last one readable.
    pub fn publish_snapshot(&self, json: &[u8]) -> bool {
        if json.len() > SNAPSHOT_BYTES_MAX {
            return false;
        }
        let next = self.snapshot_generation.load(SeqCst) + 1;
        let buffer = &self.snapshots[usize::from(next % 2 == 1)];
        // Keeps the words below from being written before the last generation was announced.
        fence(SeqCst);
        let length = buffer.bytes.store(json);
        buffer.length.store(length as u64, Relaxed);
        buffer.taken_at_ns.store(boottime().as_nanos(), Relaxed);
        self.snapshot_generation.store(next, SeqCst);
        true
    }

    /// The last snapshot and when it was taken; None where there was none since the server started.
    pub fn read_snapshot(&self) -> Option<(Vec<u8>, u64)> {
        // Each turn in vain means that the worker published twice during one copy.
        for _ in 0..100 {
            let generation = self.snapshot_generation.load(SeqCst);
            if generation == 0 {
                return None;
            }
            let buffer = &self.snapshots[usize::from(generation % 2 == 1)];
            let length = usize::try_from(buffer.length.load(Relaxed)).unwrap_or(0);
            let taken_at_ns = buffer.taken_at_ns.load(Relaxed);
            let bytes = buffer.bytes.load(length);
            fence(Acquire);
            if self.snapshot_generation.load(SeqCst) == generation {
                return Some((bytes, taken_at_ns));
            }
        }
        None
    }
}
