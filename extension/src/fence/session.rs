//! Where a session begins: read-only while the fence is closed, read-write again once it is open; read-only for good where it can never
//! write.

use super::hold_back::walsender;
use super::hooks::PREVIOUS;
use super::origin;
use super::subject::managed_page;
use crate::ground::server::in_recovery;
use crate::ground::{error, guc};
use crate::shmem::{self, Page, boottime};
use cluster::fence::may_acknowledge;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};

thread_local! {
    /// This session was made read-only because the fence was closed when it began.
    static MADE_READ_ONLY: Cell<bool> = const { Cell::new(false) };
}

pub(super) unsafe extern "C-unwind" fn authentication(port: *mut pg_sys::Port, status: c_int) {
    if let Some(previous) = PREVIOUS.get().authentication {
        // SAFETY: the hook that was there before, with the arguments as they came.
        unsafe { previous(port, status) };
    }
    after_authentication(status);
}

/// Here the older hooks come first: to a client that they turn away we have nothing to say.
#[pgrx::pg_guard]
extern "C-unwind" fn after_authentication(status: c_int) {
    origin::say_term();
    let Some(page) = managed_page() else { return };
    if status != pg_sys::STATUS_OK.cast_signed() {
        return;
    }
    // SAFETY: set while the startup packet was read, before authentication.
    if unsafe { pg_sys::am_walsender } {
        // SAFETY: the callback is guarded. on_proc_exit runs after the walsender has given its slot in
        // shared memory back, so that the arbiter, once woken, sees it gone.
        unsafe { pg_sys::on_proc_exit(Some(standby_left), pg_sys::Datum::from(0)) };
        // SAFETY: as above.
        if unsafe { pg_sys::am_db_walsender } {
            walsender::install();
        }
        return;
    }
    if guc::sessions_read_only() {
        // As of when this process was forked: authentication may take longer than a promotion. A client that looks for a server that takes writes is not
        // to take this session for one, in the moment before the arbiter ends it.
        set_read_only(c"on");
        return;
    }
    if may_acknowledge(page.fence(), page.fence_moment(boottime())) || in_recovery() {
        return;
    }
    set_read_only(c"on");
    MADE_READ_ONLY.set(true);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn standby_left(_code: c_int, _arg: pg_sys::Datum) {
    shmem::wake_arbiter();
}

/// As if the client had asked for it in its startup packet: the first report of settings tells libpq,
/// options that the client really sent still win (the arbiter sends
/// `options=-c default_transaction_read_only=off`), and so does SET.
fn set_read_only(value: &CStr) {
    // SAFETY: constant C strings and a setting that exists.
    unsafe {
        pg_sys::SetConfigOption(
            c"default_transaction_read_only".as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_CLIENT,
        );
    }
}

/// The fence was closed when this session began, and it has not been reopened.
pub(super) fn made_read_only() -> bool {
    MADE_READ_ONLY.get()
}

/// While a statement of such a session is looked at: what Postgres says of read-only gets the reason. To be taken off again by
/// [`end_explaining`]; an ERROR takes it off by itself.
pub(super) const EXPLAIN: pg_sys::ErrorContextCallback =
    pg_sys::ErrorContextCallback { previous: std::ptr::null_mut(), callback: Some(explain), arg: std::ptr::null_mut() };

/// # Safety
/// `context` stays where it is until [`end_explaining`] or an ERROR.
pub(super) unsafe fn begin_explaining(context: *mut pg_sys::ErrorContextCallback) {
    if made_read_only() {
        // SAFETY: the way of all of Postgres' context callbacks, in the one thread of this process.
        unsafe {
            (*context).previous = pg_sys::error_context_stack;
            pg_sys::error_context_stack = context;
        }
    }
}

/// # Safety
/// The same `context` that was begun with.
pub(super) unsafe fn end_explaining(context: *mut pg_sys::ErrorContextCallback) {
    // SAFETY: as above. Where it was not put on the stack it is not there.
    unsafe {
        if pg_sys::error_context_stack == context {
            pg_sys::error_context_stack = (*context).previous;
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn explain(_arg: *mut c_void) {
    // SAFETY: called for an error that is being raised.
    let code = unsafe { pg_sys::geterrcode() };
    if code != PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION as c_int || in_recovery() {
        return;
    }
    if let Some(page) = managed_page() {
        error::explain_read_only(page.why_closed_now());
    }
}

/// A session that began read-only because the fence was closed becomes read-write at its first
/// statement after the fence opened; pooled connections would stay read-only for ever otherwise.
/// (Where that statement is one of several sent as one, its transaction stays read-only, and the next is
/// read-write.)
pub(super) fn maybe_reopen_session(page: &Page) {
    if MADE_READ_ONLY.get() && may_acknowledge(page.fence(), page.fence_moment(boottime())) {
        reopen_session();
    }
}

/// Takes back what `authentication` did; for the arbiter's own session at once.
pub fn reopen_session() {
    if !MADE_READ_ONLY.replace(false) {
        return;
    }
    set_read_only(c"off");
    // SAFETY: flags of this backend. Outside of a block nobody can have said READ ONLY for this
    // transaction, so it follows the default that was just changed (unless the user set that).
    unsafe {
        if !pg_sys::DefaultXactReadOnly && !pg_sys::IsTransactionBlock() {
            pg_sys::XactReadOnly = false;
        }
    }
}
