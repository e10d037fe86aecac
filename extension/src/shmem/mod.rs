//! The page in shared memory: what backends read before they commit, and what they ask the worker.
//!
//! Nothing here takes a lock that a frozen process could keep from the lease worker: flags and
//! deadlines are atomics, a document has two buffers of which its writer takes the one nobody is
//! sent to, events sit in slots of their own, and the mailbox changes hands by compare-and-swap. The
//! texts are arrays of atomic words, so a torn copy is wrong text that is thrown away, never a race in
//! Rust's sense. Only the three condition variables are Postgres' own; they hold a spinlock for a few
//! instructions, and they are touched after the page itself has been written.

mod described;
mod events;
mod gate;
mod mailbox;
mod note;
mod presence;
mod recovered;
mod registration;
mod snapshot;
mod tenure;
mod timings;
mod words;

pub use events::Event;
pub use gate::{Passed, Work};
pub use keeper::renewal_was_sent_at;
pub use mailbox::AskError;
pub use presence::{
    arbiter_looked, attach_arbiter, attach_worker, belongs_to_this_session, own_pid, wake_arbiter, wake_listener, wake_worker,
};
pub use recovered::Recovered;
pub use registration::register;

use cluster::time::Moment;
use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64};
use std::time::Duration;

/// The page. All zero is "unmanaged"; [`register`] closes it where a scope is set, before any backend runs.
#[repr(C)]
pub struct Page {
    tenure: keeper::Tenure,
    worker_pid: AtomicI32,
    worker_seen_ns: AtomicU64,
    receiver_ends: AtomicU32,
    arbiter_pid: AtomicI32,
    arbiter_seen_ns: AtomicU64,
    etcd_seen_ns: AtomicU64,
    /// On a worker of a Citus cluster: the newest term of a coordinator.
    pub coordinator_term: AtomicI64,
    /// What the fence reads of this server was seen not to be what it is taken for: the page stays closed until the server starts again.
    distrusted: AtomicU32,
    /// See [`Recovered`].
    recovered_to: AtomicU64,
    /// Commits that had to wait for a renewal.
    pub commits_waited: AtomicU64,
    /// Commits that were refused; nothing of them was written.
    pub commits_refused: AtomicU64,
    /// Commits that became durable and were not acknowledged.
    pub commits_cut: AtomicU64,
    /// Statements that failed by the disk: full, or with an error.
    pub disk_errors: AtomicU64,
    /// Connections that were refused for want of a slot.
    pub connections_refused: AtomicU64,
    snapshot: snapshot::Snapshot,
    slots: snapshot::Slots,
    /// How long things took.
    pub timings: timings::Timings,
    events_written: AtomicU64,
    events: [events::EventSlot; events::EVENTS_MAX],
    mailbox: mailbox::Mailbox,
    described: described::Description,
    note: note::Note,
    gate: gate::Gate,
    renewed: UnsafeCell<pg_sys::ConditionVariable>,
    answered: UnsafeCell<pg_sys::ConditionVariable>,
}

static PAGE: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());

/// The page, or None before shared memory exists.
pub fn page_if_any() -> Option<&'static Page> {
    // SAFETY: set once by the startup hook to memory that outlives every process of the server; all fields are
    // atomics or condition variables, so shared references from many processes are sound.
    unsafe { PAGE.load(Relaxed).as_ref() }
}

/// The page. Every process that Postgres starts after the library was preloaded has it.
pub fn page() -> &'static Page {
    match page_if_any() {
        Some(page) => page,
        None => crate::error::not_preloaded(),
    }
}

/// CLOCK_BOOTTIME now: it goes on while the host sleeps, and nobody can set it.
pub fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Moment(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
}

/// The wall clock less CLOCK_BOOTTIME, in nanoseconds. The wall clock is read first: whatever comes in between makes less of it.
pub fn wall_ahead_ns() -> i64 {
    let wall_ns = wall_ns();
    wall_ns.saturating_sub(boottime_ns(boottime()))
}

/// The same, for a moment that was read just now: whatever came in between makes more of it.
fn wall_ahead_of_ns(now: Moment) -> i64 {
    wall_ns().saturating_sub(boottime_ns(now))
}

fn boottime_ns(moment: Moment) -> i64 {
    i64::try_from(moment.as_nanos()).unwrap_or(i64::MAX)
}

/// The wall clock, by libc's function, as Postgres reads its own.
fn wall_ns() -> i64 {
    let mut wall = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut wall) };
    wall.tv_sec.saturating_mul(1_000_000_000).saturating_add(wall.tv_nsec)
}

/// Should a broadcast be missed because its sender died.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// How a wait ended that the end of the session does not break off.
pub enum Waited<T> {
    /// With this.
    Done(T),
    /// The time was over.
    TooLong,
    /// The server stops, or somebody ends this session: the FATAL error is yet to come.
    SessionEnds,
}

/// As [`wait`], on the process' own latch: both a broadcast and SIGTERM set it, and which of them it was is looked at before Postgres
/// acts on the second.
fn wait_or_end<T>(
    variable: &UnsafeCell<pg_sys::ConditionVariable>,
    limit: Moment,
    longest: Duration,
    mut done: impl FnMut(Moment) -> Option<T>,
) -> Waited<T> {
    let outcome = loop {
        // SAFETY: as in `wait`. Whoever was woken has left the queue, so it is entered anew, before the question.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(variable.get()) };
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
fn wait<T>(
    variable: &UnsafeCell<pg_sys::ConditionVariable>,
    limit: Moment,
    longest: Duration,
    mut done: impl FnMut(Moment) -> Option<T>,
) -> Option<T> {
    // SAFETY: the variable was initialised by `startup`; this process has a PGPROC, as everything that
    // runs transactions or functions has; each prepare is followed by a cancel.
    unsafe { pg_sys::ConditionVariablePrepareToSleep(variable.get()) };
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
                variable.get(),
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
