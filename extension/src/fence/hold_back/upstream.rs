//! What the worker of a subscription confirms to its publisher: only what this server could acknowledge to a client.
//!
//! The worker reports a commit of its own as flushed as soon as it is on disk here. The publisher then never sends it again: neither to
//! this server nor to the next leader, which may not have it where the wait for the standbys was cancelled or cut. So the report
//! goes through our hands: its positions move on only while the fence is open, and once the synchronous standbys have
//! all that this server had when the worker said so. A worker that was ended and starts again finds in the origin's progress what was not
//! confirmed; that passes here too.

use super::confirmed::pause;
use crate::fence::standbys::flushed_by_standbys;
use crate::fence::subject::may_acknowledge_now;
use crate::ground::server::{flushed_here, in_recovery};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// As `StandbyReplyMessage`: `r`, then what was received, flushed and applied, eight bytes each.
const REPORT: u8 = b'r';
const FLUSHED: std::ops::Range<usize> = 9..17;
const APPLIED: std::ops::Range<usize> = 17..25;

/// A standby answers within a round trip; so the report is seldom late by more than that.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Past this the worker ends and connects again: a publisher that shuts down waits for reports.
const PATIENCE: Duration = Duration::from_secs(10);

static ORIGINAL: AtomicPtr<pg_sys::WalReceiverFunctionsType> = AtomicPtr::new(std::ptr::null_mut());

/// What this worker has reported, and what it may not report yet.
#[derive(Clone, Copy)]
struct Reported {
    /// The furthest that was reported as flushed.
    most: u64,
    /// Flushed upstream of it, where this server's WAL ended when the worker first said so, and when that was.
    held: Option<(u64, u64, Instant)>,
}

thread_local! {
    static REPORTED: Cell<Reported> = const { Cell::new(Reported { most: 0, held: None }) };
}

/// Puts itself between a subscription's worker and its publisher. Called at the end of each transaction, of which such a worker has one
/// before it connects; in every other process it is one load.
pub fn before_transactions_of_a_subscription() {
    // SAFETY: pointers of this process: null where nothing has loaded libpqwalreceiver, and where this is no background worker.
    if unsafe { !pg_sys::WalReceiverFunctions.is_null() && !pg_sys::MyBgworkerEntry.is_null() } && ORIGINAL.load(Relaxed).is_null() {
        install();
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn install() {
    // SAFETY: our own process; the copy lives as long as it.
    unsafe {
        if pg_sys::IsLogicalWorker() {
            ORIGINAL.store(pg_sys::WalReceiverFunctions, Relaxed);
            let ours = pg_sys::WalReceiverFunctionsType { walrcv_send: Some(send), ..*pg_sys::WalReceiverFunctions };
            pg_sys::WalReceiverFunctions = Box::leak(Box::new(ours));
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn send(connection: *mut pg_sys::WalReceiverConn, text: *const c_char, length: c_int) {
    let bytes = usize::try_from(length).unwrap_or(0);
    // SAFETY: the caller's message, `length` bytes of it.
    let mut message = if text.is_null() { Vec::new() } else { unsafe { std::slice::from_raw_parts(text.cast::<u8>(), bytes) }.to_vec() };
    if message.first() == Some(&REPORT) && message.len() >= APPLIED.end {
        let flushed = position(&message[FLUSHED]);
        let allowed = allowed(flushed);
        if allowed < flushed {
            let applied = position(&message[APPLIED]).min(allowed);
            message[FLUSHED].copy_from_slice(&allowed.to_be_bytes());
            message[APPLIED].copy_from_slice(&applied.to_be_bytes());
        }
    }
    // SAFETY: the method that was there before; it raises ERRORs of its own.
    unsafe {
        if let Some(original) = ORIGINAL.load(Relaxed).as_ref().and_then(|functions| functions.walrcv_send) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| original(connection, message.as_ptr().cast(), length));
        }
    }
}

fn position(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// How much of this may be reported now.
fn allowed(flushed: u64) -> u64 {
    let before = REPORTED.get();
    if flushed <= before.most || in_recovery() {
        return flushed;
    }
    // SAFETY: the process is attached to shared memory.
    let here = unsafe { flushed_here() };
    let began = Instant::now();
    let after = loop {
        if confirmed(here) {
            break Reported { most: flushed, held: None };
        }
        if began.elapsed() > ROUND_TRIP {
            break match before.held {
                Some((earlier, end, _)) if confirmed(end) => Reported { most: earlier, held: Some((flushed, here, began)) },
                held => Reported { most: before.most, held: held.or(Some((flushed, here, began))) },
            };
        }
        pause(1);
    };
    REPORTED.set(after);
    if let Some((held, _, since)) = after.held
        && since.elapsed() > PATIENCE
    {
        crate::ground::error::not_confirmed_upstream(held);
    }
    after.most
}

/// Could a commit that ends here be acknowledged?
fn confirmed(end: u64) -> bool {
    may_acknowledge_now() && flushed_by_standbys().is_none_or(|confirmed| confirmed >= end)
}
