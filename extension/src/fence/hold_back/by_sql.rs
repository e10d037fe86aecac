//! A session that reads a logical slot by SQL (`pg_logical_slot_get_changes` and its kin) sees no commit that still waits for its standbys.
//!
//! These functions decode up to where this server's WAL was flushed when they began. Between that look and the first record
//! they throw away what they have cached, and that we hear: there it is awaited that those who are awaited have as much. The same happens
//! where a slot is moved by `pg_replication_slot_advance`.

use super::confirmed::{confirmed, decodes, pause};
use crate::ground::server::{flushed_here, in_recovery};
use crate::ground::{error, guc};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_void;
use std::time::Instant;

thread_local! {
    /// Refused, and the (sub)transaction is not yet undone: on its way out the function throws its caches away once more.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Hears of every relation whose cached facts are thrown away. Called once, while the postmaster loads the library.
pub fn register() {
    // SAFETY: the list belongs to this single-threaded process, and backends inherit it.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(thrown_away), pg_sys::Datum::from(0)) };
}

/// Called often, so what is asked first calls nothing.
unsafe extern "C-unwind" fn thrown_away(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    // SAFETY: pointers and flags of this process.
    let decodes = relation == pg_sys::InvalidOid && unsafe { !pg_sys::MyReplicationSlot.is_null() && !pg_sys::am_walsender };
    if decodes && !REFUSED.get() {
        wait_for_standbys();
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn wait_for_standbys() {
    if !decodes() || in_recovery() {
        return;
    }
    // SAFETY: the process is attached to shared memory.
    let (end, began) = (unsafe { flushed_here() }, Instant::now());
    loop {
        if confirmed().is_none_or(|confirmed| confirmed >= end) {
            return;
        }
        let over = began.elapsed() > guc::fence_wait();
        // SAFETY: a plain flag of this process.
        if over || unsafe { pg_sys::InterruptPending } != 0 {
            // An ERROR leaves from here, and the others that hear of what is thrown away would not be told: so all are told first.
            REFUSED.set(true);
            tell_all();
            pgrx::check_for_interrupts!();
            if over {
                error::not_shown_by_sql(end);
            }
            // It was something else than the end of this statement.
            REFUSED.set(false);
        }
        pause(10);
    }
}

fn tell_all() {
    // SAFETY: the callbacks call nothing; the last call is as the caller's own.
    unsafe {
        if !REGISTERED.replace(true) {
            pg_sys::RegisterXactCallback(Some(undone), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(part_undone), std::ptr::null_mut());
        }
        pg_sys::InvalidateSystemCaches();
    }
}

unsafe extern "C-unwind" fn undone(_event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    REFUSED.set(false);
}

unsafe extern "C-unwind" fn part_undone(
    event: pg_sys::SubXactEvent::Type,
    _this: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        REFUSED.set(false);
    }
}
