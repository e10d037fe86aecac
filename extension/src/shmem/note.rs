//! Why this server does not lead, as the lease worker saw it last: for who is refused.

use super::words::Words;
use super::{Page, boottime};
use cluster::closed::Closed;
use cluster::fence::Page as FencePage;
use cluster::time::Moment;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

const NOTE_BYTES_MAX: usize = 256;

/// The text. `sequence` is odd while the worker writes.
#[repr(C)]
pub(super) struct Note {
    sequence: AtomicU64,
    length: AtomicU64,
    bytes: Words<{ NOTE_BYTES_MAX / 8 }>,
}

impl Page {
    /// Worker, which alone writes it: what is so now. Empty where there is nothing to say.
    pub fn note(&self, why: &str) {
        if self.noted() == why {
            return;
        }
        let note = &self.note;
        // A worker that was killed in the middle leaves it odd.
        let writing = note.sequence.load(SeqCst) | 1;
        note.sequence.store(writing, SeqCst);
        fence(SeqCst);
        let text = &why.as_bytes()[..why.floor_char_boundary(NOTE_BYTES_MAX)];
        note.length.store(note.bytes.store(text) as u64, Relaxed);
        note.sequence.store(writing + 1, SeqCst);
    }

    /// What was noted last; empty while it is being written.
    fn noted(&self) -> String {
        let note = &self.note;
        let before = note.sequence.load(SeqCst);
        if before % 2 == 1 {
            return String::new();
        }
        let bytes = note.bytes.load(usize::try_from(note.length.load(Relaxed)).unwrap_or(0));
        fence(Acquire);
        if note.sequence.load(SeqCst) == before { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() }
    }

    /// Why a page that was judged at this moment did not let somebody write.
    pub fn why_closed(&self, page: FencePage, now: Moment) -> String {
        let closed = Closed {
            page,
            now,
            has_led: self.term() != 0,
            holds_for_another: self.held_until().is_some(),
            sealed: self.is_sealed(),
            worker: self.worker_pid().is_some(),
            etcd_age: self.etcd_seen_at().map(|seen| boottime().since(seen)),
            note: &self.noted(),
        };
        closed.to_string()
    }
}
