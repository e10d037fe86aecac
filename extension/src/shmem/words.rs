//! Text in shared memory, as atomic words: a torn copy is wrong text that is thrown away, never a race.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Text as atomic words, `N` of them.
#[repr(C)]
pub(super) struct Words<const N: usize>([AtomicU64; N]);

impl<const N: usize> Words<N> {
    /// Writes as much of `bytes` as fits and says how much that was.
    pub(super) fn store(&self, bytes: &[u8]) -> usize {
        let bytes = &bytes[..bytes.len().min(N * 8)];
        for (word, chunk) in self.0.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(padded), Relaxed);
        }
        bytes.len()
    }

    /// Reads `length` bytes, at most all.
    pub(super) fn load(&self, length: usize) -> Vec<u8> {
        let length = length.min(N * 8);
        let mut bytes: Vec<u8> = self.0.iter().take(length.div_ceil(8)).flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}
