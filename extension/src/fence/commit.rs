//! Around a commit: before it, may it pass; after it, may it be acknowledged?

use super::hold_back::upstream;
use super::origin;
use super::standbys::{WAIT_APPLY, WAIT_FLUSH, confirmed_by_standbys, standbys_awaited, standbys_named, wait_for_sync_rep_lock};
use super::subject::managed_page;
use crate::ground::server::flushed_here;
use crate::ground::{error, guc};
use crate::shmem::{self, Page, Waited, boottime};
use cluster::fence::{Mode, Ruling, judge, may_acknowledge};
use cluster::time::Moment;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::time::Duration;

unsafe extern "C-unwind" {
    // Declared here and not taken from pgrx, whose binding saves the stack with sigsetjmp first: this one
    // only reads a variable, and it is asked at the end of every transaction.
    fn GetTopTransactionIdIfAny() -> pg_sys::TransactionId;
    // In a header that pgrx leaves out from PostgreSQL 16 on; the same function in all majors.
    fn assign_synchronous_commit(level: c_int, extra: *mut c_void);
}

/// What this backend must remember from before a commit until after it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Pending {
    /// The transaction has an xid, or ends a prepared one: somebody waits for an acknowledgement.
    writes: bool,
    /// It wrote WAL before its commit record. Where it did not (temporary and unlogged tables only),
    /// Postgres does not wait for a standby, and neither may we ask whether one confirmed.
    wrote_wal: bool,
    /// Standbys were to be awaited when it came to commit. Where they are named only while it commits,
    /// Postgres may have let it pass without a wait, and that is no cancelled one; an arbiter that counts on the new
    /// standby first sees that it has caught up with what was acknowledged until then.
    awaits_standbys: bool,
    /// End of the record by which a prepared transaction was ended.
    two_phase_end: Option<u64>,
    /// The session's own synchronous_commit, where this transaction uses another.
    changed_from: Option<c_int>,
}

impl Pending {
    const NONE: Self = Self { writes: false, wrote_wal: false, awaits_standbys: false, two_phase_end: None, changed_from: None };
}

thread_local! {
    static PENDING: Cell<Pending> = const { Cell::new(Pending::NONE) };
}

/// Most transactions only read. They are let go before the guard against panics, which costs more than the question.
pub(super) unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    origin::say_term();
    upstream::before_transactions_of_a_subscription();
    let ours = match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => has_xid(),
        XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => has_xid() || PENDING.get() != Pending::NONE,
        XACT_EVENT_ABORT => PENDING.get() != Pending::NONE,
        _ => false,
    };
    if ours {
        judged_event(event);
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn judged_event(event: pg_sys::XactEvent::Type) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT => before_commit("commit"),
        XACT_EVENT_PRE_PREPARE => before_commit("prepare the transaction"),
        XACT_EVENT_COMMIT => after_commit(committed_end),
        XACT_EVENT_PREPARE => after_commit(prepared_end),
        XACT_EVENT_ABORT => restore_synchronous_commit(PENDING.take()),
        // Parallel workers: their leader commits for them.
        _ => {}
    }
}

fn has_xid() -> bool {
    // SAFETY: reads this backend's transaction state; allowed at any time, raises nothing.
    unsafe { GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Nothing is written yet: an ERROR here is an ordinary abort.
fn before_commit(what: &str) {
    let Some(page) = managed_page() else { return };
    if exiting() {
        return set_synchronous_commit(pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH.cast_signed());
    }
    origin::refuse_the_deposed(page);
    admit(page, what, Began::WithItsTransaction);
    let mut pending = PENDING.get();
    pending.writes = true;
    // SAFETY: this backend's own position; zero until its transaction has written WAL.
    pending.wrote_wal = unsafe { pg_sys::XactLastRecEnd } != 0;
    PENDING.set(pending);
    prepare_to_await_standbys();
}

/// A session that ends drops its temporary tables in one last transaction. Nobody waits to hear of that,
/// and no signal can interrupt it, so it neither waits for the lease nor for a standby: a fast stop in a
/// switchover, or one without its synchronous standby, would wait for it in turn.
fn exiting() -> bool {
    // SAFETY: a plain flag of this process.
    unsafe { pg_sys::proc_exit_inprogress }
}

/// When what is to be committed began; a drain lets end what began before it.
#[derive(Clone, Copy)]
pub(super) enum Began {
    /// With the transaction of this backend.
    WithItsTransaction,
    /// Earlier, in whichever backend prepared it. It holds locks, and to end it is what a drain waits for.
    Earlier,
}

impl Began {
    /// As a moment on the fence's clock. Only a drain asks, so only then it is worked out.
    ///
    /// Postgres keeps the wall-clock time at which the transaction's first statement arrived; its age by
    /// the same clock, taken from now, is the moment. Should the wall clock be set in between, a transaction
    /// is let pass or held for the wrong side of the drain's beginning. That costs courtesy, not safety: the
    /// deadline is judged apart, and what is committed before the shutdown checkpoint the candidate has.
    fn at(self, mode: Mode, now: Moment) -> Moment {
        match (self, mode) {
            (Began::WithItsTransaction, Mode::Draining) => {
                // SAFETY: both only read the clock and this backend's transaction state.
                let age_us = unsafe { pg_sys::GetCurrentTimestamp() - pg_sys::GetCurrentTransactionStartTimestamp() };
                now - Duration::from_micros(u64::try_from(age_us).unwrap_or(0))
            }
            (Began::WithItsTransaction, _) => now,
            (Began::Earlier, _) => Moment::default(),
        }
    }
}

/// Lets a writer pass, holds it up to `tenure.fence_wait`, or raises the error.
pub(super) fn admit(page: &Page, what: &str, began: Began) {
    let ruling = |now| {
        let fence = page.fence();
        judge(fence, began.at(fence.mode, now), page.fence_moment(now))
    };
    let now = boottime();
    if ruling(now) == Ruling::Pass {
        return;
    }
    page.commits_waited.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let answer = page.wait_renewed_or_end(now + guc::fence_wait(), |now| match ruling(now) {
        Ruling::Wait => None,
        ruling => Some(ruling),
    });
    page.timings.commit_wait.observe(boottime().since(now));
    if matches!(answer, Waited::Done(Ruling::Pass)) {
        return;
    }
    page.commits_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    match answer {
        // Nothing is written. A connection that is lost here would leave its client to wonder, so it is told before it is.
        Waited::SessionEnds => error::refused_at_end(what),
        _ => error::refused(what, page.why_closed_now()),
    }
}

/// It is durable, and nobody has been told. An ERROR here would stop the server: from here on, only a
/// cut and log entries. Interrupts are held.
fn after_commit(end: impl FnOnce(Pending) -> End) {
    let pending = PENDING.take();
    // An xid can still be drawn after the look before the commit (NOTIFY does so).
    let awaited = || !exiting() && (pending.writes || pending.two_phase_end.is_some() || has_xid());
    let why = managed_page().filter(|_| awaited()).and_then(|page| why_not_acknowledge(page, || end(pending)));
    restore_synchronous_commit(pending);
    if let Some(why) = why {
        cut(&why);
    }
}

fn why_not_acknowledge(page: &Page, end: impl FnOnce() -> End) -> Option<String> {
    let fence = page.fence();
    let now = page.fence_moment(boottime());
    if !may_acknowledge(fence, now) {
        return Some(page.why_closed(fence, now));
    }
    let end = end();
    let confirmed = || match end {
        End::Nothing => true,
        End::At { end, level_max } => match confirmed_by_standbys(level_max) {
            None => true,
            Some(confirmed) => end <= confirmed,
        },
        End::After { start } => prepared_is_confirmed(start),
    };
    let confirmed = confirmed() || {
        wait_for_sync_rep_lock();
        confirmed()
    };
    (!confirmed).then(|| "The wait for synchronous replication ended before a standby had confirmed it.".to_owned())
}

/// COMMIT PREPARED or ROLLBACK PREPARED was carried out: its record is written, flushed and was awaited, but its own
/// (xid-less) transaction has yet to end, and only then the client is told. The record's end is XactLastRecEnd right
/// now: it is this backend's last record, and the transaction wrote nothing before (these commands refuse to run
/// inside a block).
pub(super) fn remember_end_of_prepared() {
    let mut pending = PENDING.get();
    // SAFETY: this backend's own position.
    pending.two_phase_end = Some(unsafe { pg_sys::XactLastRecEnd });
    PENDING.set(pending);
}

/// Where in the WAL the thing to be acknowledged ends.
#[derive(Clone, Copy)]
enum End {
    /// No standby was to be awaited.
    Nothing,
    /// Exactly here. Only a commit awaits more than the flush, hence the highest level that counts.
    At { end: u64, level_max: usize },
    /// Somewhere after this start of its record.
    After { start: u64 },
}

fn committed_end(pending: Pending) -> End {
    match pending.two_phase_end {
        _ if !pending.awaits_standbys => End::Nothing,
        Some(0) => End::Nothing,
        // COMMIT PREPARED and ROLLBACK PREPARED: taken right after the command, see `remember_end_of_prepared`.
        Some(end) => End::At { end, level_max: WAIT_APPLY },
        // SAFETY: this backend's own position, set by the commit that just took place.
        None if pending.wrote_wal => End::At { end: unsafe { pg_sys::XactLastCommitEnd }, level_max: WAIT_APPLY },
        None => End::Nothing,
    }
}

fn prepared_end(pending: Pending) -> End {
    // PREPARE leaves no end (XactLastRecEnd is reset, XactLastCommitEnd not set), only where this
    // backend's last record began.
    // SAFETY: this backend's own position.
    if pending.awaits_standbys { End::After { start: unsafe { pg_sys::ProcLastRecPtr } } } else { End::Nothing }
}

/// Has a standby flushed the whole PREPARE record that begins at `start`?
///
/// A flush position is the end of a record or the end of a page. Not page-aligned and past our start, it
/// is the end of ours or of a later one. Page-aligned it may stand in the middle of ours: then what is
/// flushed here, which includes our record, is awaited once more; that is a network round trip, seldom.
fn prepared_is_confirmed(start: u64) -> bool {
    let Some(confirmed) = confirmed_by_standbys(WAIT_FLUSH) else { return true };
    if confirmed <= start {
        return false;
    }
    if confirmed % u64::from(pg_sys::BLCKSZ) != 0 {
        return true;
    }
    // SAFETY: reads a shared position, then waits the way EndPrepare did; interrupts are held as that demands.
    let flushed = unsafe {
        let flushed = flushed_here();
        pg_sys::SyncRepWaitForLSN(flushed, false);
        flushed
    };
    confirmed_by_standbys(WAIT_FLUSH).is_none_or(|confirmed| confirmed >= flushed)
}

/// Ends the connection in place of the acknowledgement: the socket is shut, nothing more is sent, and the
/// backend ends at its next look at interrupts. So does a process without a client: it would act on its commit, as the
/// worker of a subscription's first copy does that then drops its slot at the publisher.
fn cut(why: &str) {
    shmem::page().commits_cut.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the first field of Port has been its socket in all releases, and it is open as long as the
    // backend runs. The flags are those that SIGTERM sets.
    let connected = unsafe {
        let port = pg_sys::MyProcPort;
        if !port.is_null() {
            let socket = rustix::fd::BorrowedFd::borrow_raw(*port.cast::<c_int>());
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone;
        }
        pg_sys::ProcDiePending = 1;
        pg_sys::InterruptPending = 1;
        !port.is_null()
    };
    error::cut(why, connected);
}

/// The last step before a commit, and before a prepared transaction is ended.
pub(super) fn prepare_to_await_standbys() {
    raise_synchronous_commit();
    let mut pending = PENDING.get();
    pending.awaits_standbys = confirmed_by_standbys(WAIT_APPLY).is_some();
    PENDING.set(pending);
}

/// Raises this transaction's synchronous_commit to the cluster's least one where standbys are awaited.
fn raise_synchronous_commit() {
    let least = guc::minimum_synchronous_commit() as c_int;
    // SAFETY: a setting of this process.
    let below = unsafe { pg_sys::synchronous_commit } < least;
    // A session rereads its own settings between statements only, and one long CALL is one statement: what the checkpointer
    // wrote into shared memory counts too, by which Postgres itself waits.
    if below && (standbys_named() || standbys_awaited()) {
        set_synchronous_commit(least);
    }
}

/// Uses `level` for this transaction. The variable and the assign hook's own copy in syncrep.c are set,
/// not the setting: nothing is stacked, reported or kept, and `restore_synchronous_commit` puts both back.
fn set_synchronous_commit(level: c_int) {
    let mut pending = PENDING.get();
    // SAFETY: a setting of this process; the assign hook only sets a variable.
    unsafe {
        pending.changed_from.get_or_insert(pg_sys::synchronous_commit);
        PENDING.set(pending);
        pg_sys::synchronous_commit = level;
        assign_synchronous_commit(level, std::ptr::null_mut());
    }
}

fn restore_synchronous_commit(pending: Pending) {
    if let Some(session) = pending.changed_from {
        // SAFETY: as where it was set.
        unsafe {
            pg_sys::synchronous_commit = session;
            assign_synchronous_commit(session, std::ptr::null_mut());
        }
    }
}
