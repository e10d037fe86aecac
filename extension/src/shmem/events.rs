//! What was decided or happened here lately, for `tenure.events()`.

use super::words::Words;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, fence};

/// How many events are remembered.
const EVENTS_MAX: usize = 256;
const KIND_BYTES_MAX: usize = 32;
const EVENT_BYTES_MAX: usize = 200;
const CAUSE_BYTES_MAX: usize = 240;

/// One remembered event. `sequence` is odd while somebody writes, zero while it was never written.
#[repr(C)]
struct EventSlot {
    sequence: AtomicU64,
    ordinal: AtomicU64,
    at_unix_us: AtomicI64,
    term: AtomicI64,
    kind_length: AtomicU32,
    text_length: AtomicU32,
    cause_length: AtomicU32,
    kind: Words<{ KIND_BYTES_MAX / 8 }>,
    text: Words<{ EVENT_BYTES_MAX / 8 }>,
    cause: Words<{ CAUSE_BYTES_MAX / 8 }>,
}

/// Those that are remembered. A part of the page.
#[repr(C)]
pub struct Events {
    written: AtomicU64,
    slots: [EventSlot; EVENTS_MAX],
}

/// Something that was decided or happened here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unix time, microseconds.
    pub at_unix_us: i64,
    /// One word.
    pub kind: String,
    /// The term it happened in; 0 where there was none.
    pub term: i64,
    /// What was decided or happened.
    pub text: String,
    /// Why; empty where the text says it all.
    pub cause: String,
}

/// `text` cut to `most` bytes, between characters.
fn cut_text(text: &str, most: usize) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(most)]
}

impl Events {
    /// Remembers an event; the oldest is forgotten. From any process.
    pub fn record(&self, kind: &str, text: &str, cause: &str, term: i64) {
        // A slot that a frozen process is writing is passed over.
        for _ in 0..8 {
            let ordinal = self.written.fetch_add(1, SeqCst);
            let slot = &self.slots[usize::try_from(ordinal % EVENTS_MAX as u64).unwrap_or(0)];
            let sequence = slot.sequence.load(SeqCst);
            if sequence % 2 == 1 || slot.sequence.compare_exchange(sequence, sequence + 1, SeqCst, SeqCst).is_err() {
                continue;
            }
            fence(SeqCst);
            slot.ordinal.store(ordinal, Relaxed);
            slot.at_unix_us.store(jiff::Timestamp::now().as_microsecond(), Relaxed);
            slot.term.store(term, Relaxed);
            slot.kind_length.store(slot.kind.store(cut_text(kind, KIND_BYTES_MAX)) as u32, Relaxed);
            slot.text_length.store(slot.text.store(cut_text(text, EVENT_BYTES_MAX)) as u32, Relaxed);
            slot.cause_length.store(slot.cause.store(cut_text(cause, CAUSE_BYTES_MAX)) as u32, Relaxed);
            slot.sequence.store(sequence + 2, SeqCst);
            return;
        }
    }

    /// What is remembered, oldest first.
    pub fn all(&self) -> Vec<Event> {
        let mut events: Vec<(u64, Event)> = self.slots.iter().filter_map(EventSlot::read).collect();
        events.sort_by_key(|(ordinal, _)| *ordinal);
        events.into_iter().map(|(_, event)| event).collect()
    }
}

impl EventSlot {
    fn read(&self) -> Option<(u64, Event)> {
        for _ in 0..100 {
            let before = self.sequence.load(SeqCst);
            if before == 0 || before % 2 == 1 {
                return None;
            }
            let text = |words: Vec<u8>| String::from_utf8_lossy(&words).into_owned();
            let event = Event {
                at_unix_us: self.at_unix_us.load(Relaxed),
                kind: text(self.kind.load(self.kind_length.load(Relaxed) as usize)),
                term: self.term.load(Relaxed),
                text: text(self.text.load(self.text_length.load(Relaxed) as usize)),
                cause: text(self.cause.load(self.cause_length.load(Relaxed) as usize)),
            };
            let ordinal = self.ordinal.load(Relaxed);
            fence(Acquire);
            if self.sequence.load(SeqCst) == before {
                return Some((ordinal, event));
            }
        }
        None
    }
}
