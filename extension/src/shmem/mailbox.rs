//! One request at a time from a backend to the lease worker; the mailbox changes hands by compare-and-swap.

use super::clock::boottime;
use super::condition::{Condition, LONGEST_SLEEP};
use super::presence::{alive, own_pid};
use super::words::Words;
use crate::ground::error::AskError;
use cluster::time::Moment;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// The longest request and the longest answer, in bytes.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// The bits of a request's number that say whose it is; a process id has 22 at most.
const PID_BITS: u32 = 24;

/// The number of the next request: counted on, with the process that asks in its low bits. So who holds the mailbox is known at the
/// instant at which it is taken.
fn next_request(last: u64, pid: i32) -> u64 {
    let count = (last >> PID_BITS).wrapping_add(1) & u64::from(u32::MAX);
    count << PID_BITS | u64::from(pid.cast_unsigned()) & ((1 << PID_BITS) - 1)
}

/// Who asks.
fn requester(id: u64) -> i32 {
    i32::try_from(id & ((1 << PID_BITS) - 1)).unwrap_or(0)
}

/// Whose turn it is at the mailbox; the low byte of its word, the request's number stands above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nobody's.
    Idle = 0,
    /// A backend writes its request.
    Filling = 1,
    /// The request waits for the worker.
    Requested = 2,
    /// The worker serves it.
    Working = 3,
    /// The answer waits for the backend.
    Answered = 4,
    /// The backend went away while the worker serves it; the answer goes nowhere.
    Abandoned = 5,
}

impl Turn {
    fn of(word: u64) -> Turn {
        match word & 0xff {
            1 => Turn::Filling,
            2 => Turn::Requested,
            3 => Turn::Working,
            4 => Turn::Answered,
            5 => Turn::Abandoned,
            _ => Turn::Idle,
        }
    }

    fn word(self, id: u64) -> u64 {
        id << 8 | self as u64
    }
}

/// Part of the page. All zero is "nobody's".
#[repr(C)]
pub struct Mailbox {
    word: AtomicU64,
    claimed_at_ns: AtomicU64,
    request_length: AtomicU64,
    answer_length: AtomicU64,
    request: Words<{ MESSAGE_BYTES_MAX / 8 }>,
    answer: Words<{ MESSAGE_BYTES_MAX / 8 }>,
    answered: Condition,
}

/// A backend's hold on the mailbox; leaving in any way, also by an error, gives it back.
struct Claim<'a> {
    mailbox: &'a Mailbox,
    id: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let change =
            |from: Turn, to: Turn| self.mailbox.word.compare_exchange(from.word(self.id), to.word(self.id), SeqCst, SeqCst).is_ok();
        // In the order in which the turns follow each other, so that none can be missed between two tries.
        let _ = change(Turn::Filling, Turn::Idle)
            || change(Turn::Requested, Turn::Idle)
            || change(Turn::Working, Turn::Abandoned)
            || change(Turn::Answered, Turn::Idle);
    }
}

impl Mailbox {
    /// Called once, when the page is made.
    ///
    /// # Safety
    /// No other process uses the page yet.
    pub(super) unsafe fn initialise(&self) {
        // SAFETY: as demanded.
        unsafe { self.answered.initialise() };
    }

    /// Takes the mailbox where it is free, or where its holder is gone without giving it back.
    fn claim(&self, now: Moment) -> Option<Claim<'_>> {
        /// Longer than any request is waited for: its backend was ended between two instructions.
        const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
        let word = self.word.load(SeqCst);
        let forgotten = || {
            let claimed_at = Moment::from_nanos(self.claimed_at_ns.load(SeqCst));
            !alive(requester(word >> 8)) || now.since(claimed_at) > FORGOTTEN_AFTER
        };
        let free = match Turn::of(word) {
            Turn::Idle => true,
            Turn::Filling | Turn::Requested | Turn::Answered => forgotten(),
            // The worker's turn: it gives the mailbox back, or a new worker does.
            Turn::Working | Turn::Abandoned => false,
        };
        if !free {
            return None;
        }
        // Before the word: a process that sees the word sees a time that is not older. One that does not get it has only made its holder's look younger.
        self.claimed_at_ns.store(now.as_nanos(), SeqCst);
        let id = next_request(word >> 8, own_pid());
        if self.word.compare_exchange(word, Turn::Filling.word(id), SeqCst, SeqCst).is_err() {
            return None;
        }
        Some(Claim { mailbox: self, id })
    }

    /// Backend: asks the worker, once it was woken, and waits for its answer, open to cancellation.
    pub(super) fn ask(&self, json: &str, timeout_ms: u64, wake_worker: impl FnOnce() -> bool) -> Result<String, AskError> {
        if json.len() > MESSAGE_BYTES_MAX {
            return Err(AskError::TooLong { bytes: json.len(), most: MESSAGE_BYTES_MAX });
        }
        let limit = boottime() + Duration::from_millis(timeout_ms);
        let claim = self.answered.wait(limit, LONGEST_SLEEP, |now| self.claim(now)).ok_or(AskError::Busy)?;
        let id = claim.id;
        let length = self.request.store(json.as_bytes());
        self.request_length.store(length as u64, SeqCst);
        if self.word.compare_exchange(Turn::Filling.word(id), Turn::Requested.word(id), SeqCst, SeqCst).is_err() {
            return Err(AskError::Busy);
        }
        wake_worker();
        let answer = self.answered.wait(limit, LONGEST_SLEEP, |_| {
            (self.word.load(SeqCst) == Turn::Answered.word(id)).then(|| self.answer.load(self.answer_length.load(SeqCst) as usize))
        });
        let taken = self.word.load(SeqCst) != Turn::Requested.word(id);
        drop(claim);
        self.answered.broadcast();
        match answer {
            Some(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
            None if taken => Err(AskError::NotAnswered { timeout_ms }),
            None => Err(AskError::NotTaken { timeout_ms }),
        }
    }

    /// Worker: the request that waits, with its number; None where none does.
    pub fn take(&self) -> Option<(u64, String)> {
        let word = self.word.load(SeqCst);
        let id = word >> 8;
        if Turn::of(word) != Turn::Requested || self.word.compare_exchange(word, Turn::Working.word(id), SeqCst, SeqCst).is_err() {
            return None;
        }
        let bytes = self.request.load(self.request_length.load(SeqCst) as usize);
        Some((id, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Worker: answers request `id`. An answer too long is replaced by an error that says so.
    pub fn answer(&self, id: u64, json: String) {
        let json = if json.len() > MESSAGE_BYTES_MAX { r#"{"error":"the answer is too long for shared memory"}"#.to_owned() } else { json };
        let length = self.answer.store(json.as_bytes());
        self.answer_length.store(length as u64, SeqCst);
        let change = |from: Turn, to: Turn| self.word.compare_exchange(from.word(id), to.word(id), SeqCst, SeqCst).is_ok();
        let _ = change(Turn::Working, Turn::Answered) || change(Turn::Abandoned, Turn::Idle);
        self.answered.broadcast();
    }

    /// Worker, once at its start: gives back what its predecessor left in the middle.
    pub fn forget(&self) {
        let word = self.word.load(SeqCst);
        if matches!(Turn::of(word), Turn::Working | Turn::Abandoned) {
            self.answer(word >> 8, r#"{"error":"the lease worker was restarted while it served the request","hint":"Look at tenure.status() and tenure.events() before trying again."}"#.to_owned());
        }
    }
}
