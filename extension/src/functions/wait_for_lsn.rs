//! `tenure.wait_for_lsn`: a read that wants to see a write of its own waits until this server has replayed it.

use crate::ground::error;
use crate::ground::server::{flushed_here, in_recovery};
use pgrx::datum::Interval;
use pgrx::{pg_extern, pg_sys};
use std::ffi::{c_int, c_long};
use std::time::{Duration, Instant};

/// The first pause; then each is twice the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(1);

/// The longest pause. Up to PostgreSQL 18 the startup process wakes nobody when it has replayed something (its condition variable
/// tells of pausing only, and walsenders are woken for their own sake), so the position has to be looked at: one spinlock each time. Four
/// milliseconds are little beside the trip of a client, and 250 looks a second of each one that waits are nothing.
const PAUSE_LONGEST: Duration = Duration::from_millis(4);

/// True once this server has replayed (as primary: flushed) up to there, false where that took longer than the time given.
#[pg_extern]
fn wait_for_lsn(lsn: i64, timeout: Interval) -> bool {
    // Declared as pg_lsn, which is these 64 bits without a sign.
    let wanted = lsn.cast_unsigned();
    // SAFETY: a setting of this process.
    if unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ.cast_signed() {
        error::waits_in_vain();
    }
    let Ok(patience_us) = u64::try_from(timeout.as_micros()) else {
        error::invalid("the timeout is negative".to_owned(), "Give a time of 0 or more, for example '5 s'.");
    };
    let (began, patience) = (Instant::now(), Duration::from_micros(patience_us));
    let mut pause = PAUSE_FIRST;
    loop {
        if reached() >= wanted {
            return true;
        }
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(pause.min(left));
        pgrx::check_for_interrupts!();
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// What a query that begins now sees, as a position. Asked again each time: this server may be promoted meanwhile.
fn reached() -> u64 {
    // SAFETY: both read shared memory, in a backend.
    unsafe { if in_recovery() { pg_sys::GetXLogReplayRecPtr(std::ptr::null_mut()) } else { flushed_here() } }
}

/// Sleeps, or until something wants this process.
fn sleep(time: Duration) {
    let milliseconds = c_long::try_from(time.as_millis().max(1)).unwrap_or(1);
    // SAFETY: the process' own latch.
    unsafe {
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
