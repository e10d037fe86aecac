//! What a deposition binds this server to: kept with its data, and asked by every WAL receiver before it streams.
//!
//! libpqwalreceiver is loaded while the postmaster starts, so its table of functions is there before any receiver runs, and receivers inherit ours in its place. A
//! receiver asks its upstream who it is in the same connection in which it streams after that: there it is told if it must not receive from that upstream.

use super::kept;
use crate::shmem::{page_if_any, wake_listener};
use cluster::deposition::{self, FILE};
use cluster::name::Timeline;
use cluster::standing::Bond;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int, c_long};
use std::path::Path;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a receiver waits for an upstream that is being promoted; then it ends, and Postgres tries again after `wal_retrieve_retry_interval`.
const PROMOTION: Duration = Duration::from_secs(5);
/// In milliseconds. Nothing in this protocol tells of a promotion, so it is asked for.
const ASK_EVERY: c_long = 20;

static ORIGINAL: AtomicPtr<pg_sys::WalReceiverFunctionsType> = AtomicPtr::new(std::ptr::null_mut());

/// What lies with the data. An error is a bond that can't be understood: it forbids everything.
pub fn kept() -> Result<Option<Bond>, String> {
    kept::read(FILE)
}

/// Keeps a bond so that no crash undoes it, or takes it away. Blocks: not for an async task.
pub fn keep(directory: &Path, bond: Option<&Bond>) -> Result<(), String> {
    if bond.is_some() && ORIGINAL.load(Relaxed).is_null() {
        return Err("no WAL receiver of this server would ask for it: libpqwalreceiver was not found when it started".to_owned());
    }
    kept::write(directory, FILE, bond)
}

/// Puts the check into the way of every WAL receiver. Called once, while the postmaster loads this library.
pub fn register() {
    // SAFETY: in the single-threaded postmaster, where libraries may be loaded; the copy lives as long as the process and its children.
    unsafe {
        pg_sys::load_file(c"libpqwalreceiver".as_ptr(), false);
        if pg_sys::WalReceiverFunctions.is_null() {
            return;
        }
        ORIGINAL.store(pg_sys::WalReceiverFunctions, Relaxed);
        let ours = pg_sys::WalReceiverFunctionsType {
            walrcv_identify_system: Some(identify_system),
            walrcv_disconnect: Some(disconnect),
            ..*pg_sys::WalReceiverFunctions
        };
        pg_sys::WalReceiverFunctions = Box::leak(Box::new(ours));
    }
}

/// This process is the WAL receiver; subscriptions use the same functions.
fn receives() -> bool {
    // SAFETY: set once, when the process begins.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_WAL_RECEIVER }
}

/// Waits, or until something wants this process. The latch stays as it is: the question that follows looks at it, and ends a process that is told to.
fn pause() {
    // SAFETY: the process' own latch.
    unsafe {
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, ASK_EVERY, pg_sys::PG_WAIT_EXTENSION);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn identify_system(connection: *mut pg_sys::WalReceiverConn, timeline: *mut pg_sys::TimeLineID) -> *mut c_char {
    let began = Instant::now();
    loop {
        // SAFETY: the method that was there before, with the caller's arguments; it raises ERRORs of its own, also where this process is to end.
        let (system, theirs) = unsafe {
            let Some(original) = ORIGINAL.load(Relaxed).as_ref().and_then(|functions| functions.walrcv_identify_system) else {
                return std::ptr::null_mut();
            };
            let system = pg_sys::ffi::pg_guard_ffi_boundary(|| original(connection, timeline));
            (system, Timeline(*timeline))
        };
        if !receives() {
            return system;
        }
        let why = match kept() {
            Ok(None) => return system,
            Ok(Some(bond)) if deposition::may_receive(&bond, theirs) => return system,
            Ok(Some(bond)) => format!("it deposed {} in term {}, and this upstream is on timeline {theirs}", bond.leader, bond.term),
            Err(why) => why,
        };
        if began.elapsed() > PROMOTION {
            crate::ground::error::does_not_receive(&why);
        }
        pause();
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn disconnect(connection: *mut pg_sys::WalReceiverConn) {
    // SAFETY: as above.
    unsafe {
        if let Some(original) = ORIGINAL.load(Relaxed).as_ref().and_then(|functions| functions.walrcv_disconnect) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| original(connection));
        }
    }
    if receives() && page_if_any().is_some() {
        wake_listener();
    }
}
