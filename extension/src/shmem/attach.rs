//! Processes of this server that say on the page who they are, until they end; and what ends with them.

use super::clock::wall_ahead_ns;
use super::page::{page, page_if_any};
use super::presence::own_pid;
use keeper::renewal_was_sent_at;
use pgrx::pg_sys;
use std::cell::Cell;

/// Worker: says that this process is the lease worker, until it ends.
pub fn attach_worker() {
    page().presence.worker_begins();
    renewal_was_sent_at(wall_ahead_ns());
    // SAFETY: the callback is guarded and touches atomics only.
    unsafe { pg_sys::before_shmem_exit(Some(detach_worker), pg_sys::Datum::from(0)) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach_worker(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any() {
        page.presence.worker_ends();
    }
}

/// Backend: a drain that this session begins, and a gate that it closes, end with it: a process that dies in the middle of a planned change, or
/// a person that tried the function by hand, does not leave the primary's clients waiting.
pub fn belongs_to_this_session() {
    if !ENDS_WITH_US.replace(true) {
        // SAFETY: the callback is guarded and touches atomics and condition variables that outlive us.
        unsafe { pg_sys::before_shmem_exit(Some(end_what_is_ours), pg_sys::Datum::from(0)) };
    }
}

thread_local! {
    static ENDS_WITH_US: Cell<bool> = const { Cell::new(false) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn end_what_is_ours(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any() {
        page.undrain_of(own_pid());
        page.gate.open_of(own_pid());
    }
}

/// Backend: this session is the arbiter's, until it ends.
pub fn attach_arbiter() {
    if page().presence.arbiter_attaches() {
        // SAFETY: the callback is guarded and touches atomics.
        unsafe { pg_sys::before_shmem_exit(Some(detach_arbiter), pg_sys::Datum::from(0)) };
    }
    wake_worker();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach_arbiter(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any()
        && page.presence.arbiter_leaves()
    {
        wake_worker();
    }
}

/// Makes the lease worker look again. False where there is none.
pub fn wake_worker() -> bool {
    page().presence.wake_worker()
}

/// WAL receiver: its connection ended, and the lease worker is to listen whether the leader lives. SIGUSR2 as for every other wake.
pub fn wake_listener() {
    page().presence.receiver_ended();
    wake_worker();
}
