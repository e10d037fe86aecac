//! What the arbiter wants the member key to say, for the lease worker, which has no SQL to find it out.

use super::words::Words;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

/// The longest text, in bytes: some hundred settings that wait for a restart.
const DESCRIPTION_BYTES_MAX: usize = 8 * 1024;

/// The text. `sequence` is odd while somebody writes, zero while nobody ever did.
#[repr(C)]
pub struct Description {
    sequence: AtomicU64,
    length: AtomicU64,
    bytes: Words<{ DESCRIPTION_BYTES_MAX / 8 }>,
}

impl Description {
    /// Arbiter: what the member key is to say besides. True if it is something new and was noted.
    pub fn write(&self, json: &str) -> bool {
        let sequence = self.sequence.load(SeqCst);
        let new = json.len() <= DESCRIPTION_BYTES_MAX && self.read().as_deref() != Some(json);
        if !new || sequence % 2 == 1 || self.sequence.compare_exchange(sequence, sequence + 1, SeqCst, SeqCst).is_err() {
            return false;
        }
        fence(SeqCst);
        self.length.store(self.bytes.store(json.as_bytes()) as u64, Relaxed);
        self.sequence.store(sequence + 2, SeqCst);
        true
    }

    /// What the arbiter said last; None where it said nothing since the server started, or is saying it now.
    pub fn read(&self) -> Option<String> {
        let before = self.sequence.load(SeqCst);
        if before == 0 || before % 2 == 1 {
            return None;
        }
        let bytes = self.bytes.load(usize::try_from(self.length.load(Relaxed)).unwrap_or(0));
        fence(Acquire);
        (self.sequence.load(SeqCst) == before).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}
