//! A condition variable of Postgres' in shared memory, and the waits on it: each asks, sleeps, and asks again.

use super::clock::boottime;
use cluster::time::Moment;
use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::time::Duration;

/// Should a broadcast be missed because its sender died.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Part of the page. It holds a spinlock for a few instructions, and is touched after the words that it tells of were written.
#[repr(transparent)]
pub(super) struct Condition(UnsafeCell<pg_sys::ConditionVariable>);

/// How a wait ended that the end of the session does not break off.
pub enum Waited<T> {
    /// With this.
    Done(T),
    /// The time was over.
    TooLong,
    /// The server stops, or somebody ends this session: the FATAL error is yet to come.
    SessionEnds,
}

impl Condition {
    /// Called once, when the page is made.
    ///
    /// # Safety
    /// No other process uses the page yet.
    pub(super) unsafe fn initialise(&self) {
        // SAFETY: as demanded.
        unsafe { pg_sys::ConditionVariableInit(self.0.get()) };
    }

    /// Wakes all that wait.
    pub(super) fn broadcast(&self) {
        // SAFETY: initialised with the page, lives as long as the server.
        unsafe { pg_sys::ConditionVariableBroadcast(self.0.get()) };
    }

    /// As [`Condition::wait`], on the process' own latch: both a broadcast and SIGTERM set it, and which of them it was is looked at before
    /// Postgres acts on the second.
    pub(super) fn wait_or_end<T>(&self, limit: Moment, longest: Duration, mut done: impl FnMut(Moment) -> Option<T>) -> Waited<T> {
        let outcome = loop {
            // SAFETY: as in `wait`. A process that was woken has left the queue, so it enters the queue again, before the question.
            unsafe { pg_sys::ConditionVariablePrepareToSleep(self.0.get()) };
            let now = boottime();
            if let Some(outcome) = done(now) {
                break Waited::Done(outcome);
            }
            if now >= limit {
                break Waited::TooLong;
            }
            // SAFETY: a flag that a signal handler of this process sets.
            if unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() } != 0 {
                break Waited::SessionEnds;
            }
            let sleep_ms = limit.since(now).as_millis().saturating_add(1).min(longest.as_millis());
            // SAFETY: the process' own latch.
            unsafe {
                let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
                let sleep_ms = std::ffi::c_long::try_from(sleep_ms).unwrap_or(1000);
                pg_sys::WaitLatch(pg_sys::MyLatch, events.cast_signed(), sleep_ms, pg_sys::PG_WAIT_EXTENSION);
                pg_sys::ResetLatch(pg_sys::MyLatch);
                if (&raw const pg_sys::ProcDiePending).read_volatile() == 0 {
                    // A cancelled statement, or what else another process wants of this one.
                    pgrx::check_for_interrupts!();
                }
            }
        };
        // SAFETY: as in `wait`.
        unsafe {
            pg_sys::ConditionVariableCancelSleep();
        }
        outcome
    }

    /// One level-triggered wait: asks, sleeps until broadcast or limit (at most `longest`), asks again. An error
    /// raised by an interrupt leaves the queue in the abort that follows.
    pub(super) fn wait<T>(&self, limit: Moment, longest: Duration, mut done: impl FnMut(Moment) -> Option<T>) -> Option<T> {
        // SAFETY: the variable was initialised by `startup`; this process has a PGPROC, as everything that
        // runs transactions or functions has; each prepare is followed by a cancel.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(self.0.get()) };
        let outcome = loop {
            let now = boottime();
            if let Some(outcome) = done(now) {
                break Some(outcome);
            }
            if now >= limit {
                break None;
            }
            let sleep_ms = limit.since(now).as_millis().saturating_add(1).min(longest.as_millis());
            // SAFETY: as above.
            unsafe {
                pg_sys::ConditionVariableTimedSleep(
                    self.0.get(),
                    std::ffi::c_long::try_from(sleep_ms).unwrap_or(1000),
                    pg_sys::PG_WAIT_EXTENSION,
                );
            }
        };
        // SAFETY: as above.
        unsafe {
            pg_sys::ConditionVariableCancelSleep();
        }
        outcome
    }
}
