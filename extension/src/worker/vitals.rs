//! How this server is, seen from inside: how long WAL takes to the disk, what fails by the disk, who is refused, how late a timer is.

use super::observe;
use super::state::Here;
use crate::shmem::{boottime, page, page_if_any};
use cluster::health::{Flushes, Lateness, Vitals, rounded};
use cluster::time::Moment;
use keeper::OwnServer;
use pgrx::pg_sys;
use std::cell::Cell;
use std::convert::Infallible;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A few loads for each process of the server; thresholds are seconds.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What was counted longer ago is over.
const OF_LATE: Duration = Duration::from_secs(10);

thread_local! {
    /// Who listened to messages before us.
    static PREVIOUS: Cell<pg_sys::emit_log_hook_type> = const { Cell::new(None) };
}

/// Puts the hook in place. Called once, while the postmaster loads the library; all processes inherit it.
pub fn register() {
    // SAFETY: single-threaded; the hook replaced here is called from its replacement.
    unsafe {
        PREVIOUS.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(message);
    }
}

/// Counts what tells of the server's own state. It runs in the middle of whatever went wrong, before shared memory may be there: it
/// compares and adds, and nothing else.
unsafe extern "C-unwind" fn message(error: *mut pg_sys::ErrorData) {
    // SAFETY: as Postgres gives it.
    let (level, code) = unsafe { ((*error).elevel, (*error).sqlerrcode) };
    if level >= pgrx::PgLogLevel::ERROR as i32
        && let Some(page) = page_if_any()
    {
        if code == DISK_FULL || code == IO_ERROR {
            page.disk_errors.fetch_add(1, Relaxed);
        } else if code == TOO_MANY_CONNECTIONS {
            page.connections_refused.fetch_add(1, Relaxed);
        }
    }
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: it was in our place.
        unsafe { previous(error) };
    }
}

/// An SQLSTATE as Postgres packs it: six bits for each character.
const fn state(text: &[u8; 5]) -> i32 {
    let (mut packed, mut at) = (0, 5);
    while at > 0 {
        at -= 1;
        packed = packed << 6 | (text[at] as i32 - '0' as i32) & 0x3F;
    }
    packed
}

const DISK_FULL: i32 = state(b"53100");
const IO_ERROR: i32 = state(b"58030");
const TOO_MANY_CONNECTIONS: i32 = state(b"53300");

/// A counter and when it last grew.
struct Lately {
    count: u64,
    grew: Option<Moment>,
}

impl Lately {
    fn of(counter: &AtomicU64) -> Lately {
        Lately { count: counter.load(Relaxed), grew: None }
    }

    /// It has grown a short while ago.
    fn has_grown(&mut self, counter: &AtomicU64, now: Moment) -> bool {
        let count = counter.load(Relaxed);
        if count != self.count {
            (self.count, self.grew) = (count, Some(now));
        }
        self.grew.is_some_and(|at| now.since(at) < OF_LATE)
    }
}

/// Looks for as long as the future is polled. What is news wakes the turns, which write the member key.
pub async fn watch(here: &Here) -> Infallible {
    let (mut flushes, mut lateness) = (Flushes::default(), Lateness::default());
    let (mut errors, mut refused) = (Lately::of(&page().disk_errors), Lately::of(&page().connections_refused));
    loop {
        let due = boottime() + LOOK_EVERY;
        tokio::time::sleep(LOOK_EVERY).await;
        let now = boottime();
        lateness.note(now.since(due));
        // The processes that wait are looked at first: had the flush ended in between, its end would be seen.
        let waits = observe::anybody_waits_for_wal();
        let flushed = match observe::server() {
            OwnServer::Primary { flushed, .. } => flushed,
            OwnServer::Standby { received, .. } => received,
        };
        flushes.look(now, flushed, waits);
        let seen = Vitals {
            flush_ms: rounded(flushes.shortest(now)),
            late_ms: rounded(lateness.usual()),
            disk_errors: errors.has_grown(&page().disk_errors, now),
            refused: refused.has_grown(&page().connections_refused, now),
            ..Vitals::default()
        };
        if here.vitals.replace(Some(seen.clone())).as_ref() != Some(&seen) {
            here.wake.notify_one();
        }
    }
}
