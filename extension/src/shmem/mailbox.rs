//! One request at a time from a backend to the lease worker; the mailbox changes hands by compare-and-swap.

use super::presence::{alive, own_pid, wake_worker};
use super::words::Words;
use super::{LONGEST_SLEEP, Page, boottime, wait};
use cluster::fence::Mode;
use cluster::time::Moment;
use pgrx::pg_sys;
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
    Asked = 2,
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
            2 => Turn::Asked,
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

#[repr(C)]
pub(super) struct Mailbox {
    word: AtomicU64,
    claimed_at_ns: AtomicU64,
    request_length: AtomicU64,
    answer_length: AtomicU64,
    request: Words<{ MESSAGE_BYTES_MAX / 8 }>,
    answer: Words<{ MESSAGE_BYTES_MAX / 8 }>,
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No scope is set.
    #[error("this server is not part of a cluster: tenure.scope is empty")]
    Unmanaged,
    /// Nobody is there to ask.
    #[error("the pg_tenure lease worker is not running")]
    NoWorker,
    /// Another session's request occupies the mailbox.
    #[error("the pg_tenure lease worker is busy with another request")]
    Busy,
    /// The request does not fit.
    #[error("the request is {bytes} bytes long, and at most {MESSAGE_BYTES_MAX} fit")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The worker did not begin; nothing was done.
    #[error("the pg_tenure lease worker did not take up the request within {timeout_ms} ms")]
    NotTaken {
        /// How long was waited.
        timeout_ms: u64,
    },
    /// The worker began, and how it ended is not known.
    #[error("the pg_tenure lease worker did not answer within {timeout_ms} ms")]
    NotAnswered {
        /// How long was waited.
        timeout_ms: u64,
    },
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
            || change(Turn::Asked, Turn::Idle)
            || change(Turn::Working, Turn::Abandoned)
            || change(Turn::Answered, Turn::Idle);
    }
}

impl Mailbox {
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
            Turn::Filling | Turn::Asked | Turn::Answered => forgotten(),
            // The worker's turn: it gives the mailbox back, or a new worker does.
            Turn::Working | Turn::Abandoned => false,
        };
        if !free {
            return None;
        }
        // Before the word: whoever sees the word sees a time that is not older. Who does not get it has only made its holder's look younger.
        self.claimed_at_ns.store(now.as_nanos(), SeqCst);
        let id = next_request(word >> 8, own_pid());
        if self.word.compare_exchange(word, Turn::Filling.word(id), SeqCst, SeqCst).is_err() {
            return None;
        }
        Some(Claim { mailbox: self, id })
    }
}

impl Page {
    /// Backend: asks the worker and waits for its answer, open to cancellation.
    pub fn ask(&self, json: &str, timeout_ms: u64) -> Result<String, AskError> {
        if self.mode() == Mode::Unmanaged {
            return Err(AskError::Unmanaged);
        }
        if self.worker_pid().is_none() {
            return Err(AskError::NoWorker);
        }
        if json.len() > MESSAGE_BYTES_MAX {
            return Err(AskError::TooLong { bytes: json.len() });
        }
        let mailbox = &self.mailbox;
        let limit = boottime() + Duration::from_millis(timeout_ms);
        let claim = wait(&self.answered, limit, LONGEST_SLEEP, |now| mailbox.claim(now)).ok_or(AskError::Busy)?;
        let id = claim.id;
        let length = mailbox.request.store(json.as_bytes());
        mailbox.request_length.store(length as u64, SeqCst);
        if mailbox.word.compare_exchange(Turn::Filling.word(id), Turn::Asked.word(id), SeqCst, SeqCst).is_err() {
            return Err(AskError::Busy);
        }
        wake_worker();
        let answer = wait(&self.answered, limit, LONGEST_SLEEP, |_| {
            (mailbox.word.load(SeqCst) == Turn::Answered.word(id)).then(|| mailbox.answer.load(mailbox.answer_length.load(SeqCst) as usize))
        });
        let taken = mailbox.word.load(SeqCst) != Turn::Asked.word(id);
        drop(claim);
        self.broadcast_answered();
        match answer {
            Some(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
            None if taken => Err(AskError::NotAnswered { timeout_ms }),
            None => Err(AskError::NotTaken { timeout_ms }),
        }
    }

    /// Worker: the request that waits, with its number; None where none does.
    pub fn take_request(&self) -> Option<(u64, String)> {
        let mailbox = &self.mailbox;
        let word = mailbox.word.load(SeqCst);
        let id = word >> 8;
        if Turn::of(word) != Turn::Asked || mailbox.word.compare_exchange(word, Turn::Working.word(id), SeqCst, SeqCst).is_err() {
            return None;
        }
        let bytes = mailbox.request.load(mailbox.request_length.load(SeqCst) as usize);
        Some((id, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Worker: answers request `id`. An answer too long is replaced by an error that says so.
    pub fn answer(&self, id: u64, json: String) {
        let mailbox = &self.mailbox;
        let json = if json.len() > MESSAGE_BYTES_MAX { r#"{"error":"the answer is too long for shared memory"}"#.to_owned() } else { json };
        let length = mailbox.answer.store(json.as_bytes());
        mailbox.answer_length.store(length as u64, SeqCst);
        let change = |from: Turn, to: Turn| mailbox.word.compare_exchange(from.word(id), to.word(id), SeqCst, SeqCst).is_ok();
        let _ = change(Turn::Working, Turn::Answered) || change(Turn::Abandoned, Turn::Idle);
        self.broadcast_answered();
    }

    /// Worker, once at its start: gives back what its predecessor left in the middle.
    pub fn forget_request(&self) {
        let word = self.mailbox.word.load(SeqCst);
        if matches!(Turn::of(word), Turn::Working | Turn::Abandoned) {
            self.answer(word >> 8, r#"{"error":"the lease worker was restarted while it served the request","hint":"Look at tenure.status() and tenure.events() before trying again."}"#.to_owned());
        }
    }

    fn broadcast_answered(&self) {
        // SAFETY: initialised by `startup`, lives as long as the server.
        unsafe { pg_sys::ConditionVariableBroadcast(self.answered.get()) };
    }
}
