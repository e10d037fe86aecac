//! Why this server does not lead, as the lease worker saw it last: for a client that is refused.

use super::words::Words;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

const NOTE_BYTES_MAX: usize = 256;

/// The text. `sequence` is odd while the worker writes.
#[repr(C)]
pub struct Note {
    sequence: AtomicU64,
    length: AtomicU64,
    bytes: Words<{ NOTE_BYTES_MAX / 8 }>,
}

impl Note {
    /// Worker, which alone writes it: what is so now. Empty where there is nothing to say.
    pub fn write(&self, why: &str) {
        if self.read() == why {
            return;
        }
        // A worker that was killed in the middle leaves it odd.
        let writing = self.sequence.load(SeqCst) | 1;
        self.sequence.store(writing, SeqCst);
        fence(SeqCst);
        let text = &why.as_bytes()[..why.floor_char_boundary(NOTE_BYTES_MAX)];
        self.length.store(self.bytes.store(text) as u64, Relaxed);
        self.sequence.store(writing + 1, SeqCst);
    }

    /// What was noted last; empty while it is being written.
    pub(super) fn read(&self) -> String {
        let before = self.sequence.load(SeqCst);
        if before % 2 == 1 {
            return String::new();
        }
        let bytes = self.bytes.load(usize::try_from(self.length.load(Relaxed)).unwrap_or(0));
        fence(Acquire);
        if self.sequence.load(SeqCst) == before { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() }
    }
}
