//! The hooks that ask the page: may this commit pass, may it be acknowledged, may this be read?
//!
//! | hook | asks | when the answer is no |
//! |---|---|---|
//! | before commit, before prepare | may it pass? | waits `tenure.fence_wait`, then an ERROR; nothing is written |
//! | utility: COMMIT PREPARED, ROLLBACK PREPARED | the same, they have no xid of their own | the same |
//! | after commit, after prepare | may it be acknowledged? | the connection is cut |
//! | executor start, utility: COPY TO | with `tenure.fence_reads`: may it be read? | waits, then an ERROR |
//! | the same | after a restart: do the standbys have it again? ([`crate::recovered`]) | waits, then an ERROR |
//! | authentication | is the fence closed? | the session starts read-only |
//!
//! Order: of the statement hooks, ours comes first and then whatever was there before, so that a refused
//! statement has not run anywhere; at authentication we come last. Transaction callbacks run in reverse order of registration, before
//! the commit record is written, and after it is durable and replicated; there we stand alone.
//!
//! The three hooks that call onward are two functions each: a plain one, which holds nothing that needs
//! dropping, so that an ERROR from below jumps over it untouched; and a guarded one, which does our part
//! and turns a panic into an ERROR.
//!
//! Who is judged: every process under a postmaster whose transaction has an xid, autovacuum and other
//! extensions' background workers included. Who is not: parallel workers (their leader commits, and
//! their events have other names), the startup process and walsenders (no xid), single-user mode and
//! initdb (`IsUnderPostmaster` is false), servers without a scope.

use crate::error;
use crate::guc;
use crate::recovered;
use crate::shmem::{self, Page, Recovered, boottime};
use cluster::fence::{Mode, Verdict, judge, may_acknowledge};
use cluster::time::Moment;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::time::Duration;

unsafe extern "C-unwind" {
    // pgrx binds neither the variable nor its type. `Port` stays opaque.
    static mut ClientAuthentication_hook: AuthenticationHook;

    // pgrx's own bindings of these catch every ERROR from below and raise it anew without its position,
    // context, constraint and table names. A hook that every statement passes must not do that.
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
    #[cfg(not(feature = "pg13"))]
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
    #[cfg(feature = "pg13")]
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

type AuthenticationHook = Option<unsafe extern "C-unwind" fn(port: *mut pg_sys::Port, status: c_int)>;

/// What this backend must remember from before a commit until after it.
#[derive(Clone, Copy, Default)]
struct Pending {
    /// The transaction has an xid, or ends a prepared one: somebody waits for an acknowledgement.
    writes: bool,
    /// It wrote WAL before its commit record. Where it did not (temporary and unlogged tables only),
    /// Postgres does not wait for a standby, and neither may we ask whether one confirmed.
    wrote_wal: bool,
    /// Standbys were to be awaited when it came to commit. Where they are named only while it commits,
    /// Postgres may have let it pass without a wait, and that is no cancelled one; whoever counts on the new
    /// standby first sees that it has caught up with what was acknowledged until then.
    awaits_standbys: bool,
    /// End of the record by which a prepared transaction was ended.
    two_phase_end: Option<u64>,
    /// The session's own synchronous_commit, where this transaction uses another.
    changed_from: Option<c_int>,
}

thread_local! {
    static PENDING: Cell<Pending> = const { Cell::new(Pending { writes: false, wrote_wal: false, awaits_standbys: false, two_phase_end: None, changed_from: None }) };
    /// This session was made read-only because the fence was closed when it began.
    static MADE_READ_ONLY: Cell<bool> = const { Cell::new(false) };
    static PREVIOUS: Cell<Previous> = const { Cell::new(Previous { utility: None, executor_start: None, authentication: None }) };
}

/// The hooks that were there before ours.
#[derive(Clone, Copy)]
struct Previous {
    utility: pg_sys::ProcessUtility_hook_type,
    executor_start: pg_sys::ExecutorStart_hook_type,
    authentication: AuthenticationHook,
}

/// Puts the hooks in place. Called once, while the postmaster loads the library; backends inherit them.
pub fn register() {
    // SAFETY: single-threaded, and every hook replaced here is called from its replacement.
    unsafe {
        PREVIOUS.set(Previous {
            utility: pg_sys::ProcessUtility_hook,
            executor_start: pg_sys::ExecutorStart_hook,
            authentication: ClientAuthentication_hook,
        });
        pg_sys::ProcessUtility_hook = Some(utility);
        pg_sys::ExecutorStart_hook = Some(executor_start);
        ClientAuthentication_hook = Some(authentication);
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
    }
}

/// The page where this process is subject to it.
fn managed_page() -> Option<&'static Page> {
    // SAFETY: a plain flag of this process.
    let under_postmaster = unsafe { pg_sys::IsUnderPostmaster };
    shmem::page_if_any().filter(|page| under_postmaster && page.mode() != Mode::Unmanaged)
}

// ---- Commit ------------------------------------------------------------------------------------

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
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
    // SAFETY: reads this backend's transaction state; allowed at any time.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Nothing is written yet: an ERROR here is an ordinary abort.
fn before_commit(what: &str) {
    let Some(page) = managed_page() else { return };
    if !has_xid() {
        return;
    }
    if exiting() {
        return set_synchronous_commit(pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH.cast_signed());
    }
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
enum Began {
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
fn admit(page: &Page, what: &str, began: Began) {
    let verdict = |now| {
        let fence = page.fence();
        judge(fence, began.at(fence.mode, now), now)
    };
    let now = boottime();
    if verdict(now) == Verdict::Pass {
        return;
    }
    page.commits_waited.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let answer = page.wait_renewed(now + guc::fence_wait(), |now| match verdict(now) {
        Verdict::Wait => None,
        verdict => Some(verdict),
    });
    if answer != Some(Verdict::Pass) {
        page.commits_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        error::refused(what, page.fence(), boottime());
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
    let now = boottime();
    let fence = page.fence();
    if !may_acknowledge(fence, now) {
        return Some(error::why_closed(fence, now));
    }
    let end = end();
    let confirmed = || match end {
        End::Nothing => true,
        End::At { end, level_max } => match confirmed_by_standbys(level_max) {
            None => true,
            Some(confirmed) => end <= confirmed,
        },
        End::Behind { start } => prepared_is_confirmed(start),
    };
    let confirmed = confirmed() || {
        wait_for_sync_rep_lock();
        confirmed()
    };
    (!confirmed).then(|| "The wait for synchronous replication ended before a standby had confirmed it.".to_owned())
}

/// `SyncRepLock` in `lwlocknames.txt`: its number has been the same since PostgreSQL 10.
const SYNC_REP_LOCK: usize = 32;

/// Lets whoever changes the synchronous standbys come to an end. When the last one is struck from the
/// list, the checkpointer first lets the waiting go and only then takes the flag back, both under this
/// lock: who was just let go may still see the flag and would take that for a cancelled wait.
fn wait_for_sync_rep_lock() {
    // SAFETY: the array exists for as long as the server; the lock is held for nothing but its turn, and
    // no other lock is held at the end of a commit.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(SYNC_REP_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        pg_sys::LWLockRelease(lock);
    }
}

/// Where in the WAL the thing to be acknowledged ends.
#[derive(Clone, Copy)]
enum End {
    /// No standby was to be awaited.
    Nothing,
    /// Exactly here. Only a commit awaits more than the flush, hence the highest level that counts.
    At { end: u64, level_max: usize },
    /// Somewhere behind this start of its record.
    Behind { start: u64 },
}

fn committed_end(pending: Pending) -> End {
    match pending.two_phase_end {
        _ if !pending.awaits_standbys => End::Nothing,
        Some(0) => End::Nothing,
        // COMMIT PREPARED and ROLLBACK PREPARED: taken right after the command, see `after_utility`.
        Some(end) => End::At { end, level_max: WAIT_APPLY },
        // SAFETY: this backend's own position, set by the commit that just took place.
        None if pending.wrote_wal => End::At { end: unsafe { pg_sys::XactLastCommitEnd }, level_max: WAIT_APPLY },
        None => End::Nothing,
    }
}

fn prepared_end(pending: Pending) -> End {
    // PREPARE leaves no end behind (XactLastRecEnd is reset, XactLastCommitEnd not set), only where this
    // backend's last record began.
    // SAFETY: this backend's own position.
    if pending.awaits_standbys { End::Behind { start: unsafe { pg_sys::ProcLastRecPtr } } } else { End::Nothing }
}

const WAIT_FLUSH: usize = pg_sys::SYNC_REP_WAIT_FLUSH as usize;
const WAIT_APPLY: usize = pg_sys::SYNC_REP_WAIT_APPLY as usize;

/// What the synchronous standbys have confirmed at the level this session awaits (at most `level_max`);
/// None where it awaits nothing.
fn confirmed_by_standbys(level_max: usize) -> Option<u64> {
    use pg_sys::SyncCommitLevel::*;
    // SAFETY: settings of this process, and shared memory that exists for as long as the server; the
    // positions are aligned words that only grow, so a copy without the lock is an older truth at worst.
    unsafe {
        let level = match pg_sys::synchronous_commit.cast_unsigned() {
            SYNCHRONOUS_COMMIT_REMOTE_WRITE => pg_sys::SYNC_REP_WAIT_WRITE as usize,
            SYNCHRONOUS_COMMIT_REMOTE_FLUSH => WAIT_FLUSH,
            SYNCHRONOUS_COMMIT_REMOTE_APPLY => WAIT_APPLY,
            _ => return None,
        };
        if !standbys_to_await() || !standbys_defined() {
            return None;
        }
        Some(confirmed_at(level.min(level_max)))
    }
}

/// Can there be synchronous standbys at all?
fn standbys_to_await() -> bool {
    // SAFETY: a setting, and a pointer that is set before any backend runs.
    unsafe { pg_sys::max_wal_senders != 0 && !pg_sys::WalSndCtl.is_null() }
}

/// What the synchronous standbys have confirmed at this level.
///
/// # Safety
/// [`standbys_to_await`].
unsafe fn confirmed_at(level: usize) -> u64 {
    // SAFETY: as demanded; an aligned word that only grows.
    unsafe { (&raw const (*pg_sys::WalSndCtl).lsn).cast::<u64>().add(level).read_volatile() }
}

/// What the synchronous standbys have flushed, whatever this session awaits; None where there are none.
/// Unlike a commit this may be asked before the checkpointer has first looked at the setting, so until then
/// the setting itself counts in all releases.
pub fn flushed_by_standbys() -> Option<u64> {
    if !standbys_to_await() {
        return None;
    }
    // SAFETY: a setting of this process.
    let by_setting = unsafe { !pg_sys::SyncRepStandbyNames.is_null() && *pg_sys::SyncRepStandbyNames != 0 };
    // SAFETY: just asked.
    (standbys_defined() || !flags_are_two() && by_setting).then(|| unsafe { confirmed_at(WAIT_FLUSH) })
}

/// Is there anybody to await? Asked of shared memory rather than of this session's setting, which is
/// reread between statements only: when the last synchronous standby is struck from the list, those who
/// wait are let go, and that is no cancelled wait.
///
/// The byte behind `lsn[3]` was a bool and became two flags in the minor releases of May 2025 (known,
/// defined); which one is running is asked of the server, not of the headers this was built with.
fn standbys_defined() -> bool {
    // SAFETY: `WalSndCtl` was checked by the caller; the byte lies behind `lsn` in all releases from 13 on.
    let (status, by_setting) = unsafe {
        let byte = (&raw const (*pg_sys::WalSndCtl).lsn).add(1).cast::<u8>().read_volatile();
        let names = pg_sys::SyncRepStandbyNames;
        (u32::from(byte), !names.is_null() && *names != 0)
    };
    if !flags_are_two() {
        return status != 0;
    }
    // Before the checkpointer has looked at the setting, the setting itself counts, as in syncrep.c.
    if status & 1 == 0 { by_setting } else { status & 2 != 0 }
}

fn flags_are_two() -> bool {
    thread_local! {
        static KNOWN: Cell<Option<bool>> = const { Cell::new(None) };
    }
    if let Some(known) = KNOWN.get() {
        return known;
    }
    let version: u32 = guc::of_postgres(c"server_version_num").and_then(|text| text.parse().ok()).unwrap_or(pg_sys::PG_VERSION_NUM);
    let first_minor = match version / 10_000 {
        13 => 21,
        14 => 18,
        15 => 13,
        16 => 9,
        17 => 5,
        _ => 0,
    };
    let two = version % 10_000 >= first_minor;
    KNOWN.set(Some(two));
    two
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

/// How far this server has flushed.
///
/// # Safety
/// In a process attached to shared memory.
pub unsafe fn flushed_here() -> u64 {
    // SAFETY: as demanded.
    unsafe {
        #[cfg(any(feature = "pg13", feature = "pg14"))]
        return pg_sys::GetFlushRecPtr();
        #[cfg(not(any(feature = "pg13", feature = "pg14")))]
        return pg_sys::GetFlushRecPtr(std::ptr::null_mut());
    }
}

/// Ends the connection in place of the acknowledgement: the socket is shut, nothing more is sent, and the
/// backend ends at its next look at interrupts.
fn cut(why: &str) {
    shmem::page().commits_cut.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the first field of Port has been its socket in all releases, and it is open as long as the
    // backend runs. The flags are those that SIGTERM sets.
    let connected = unsafe {
        let port = pg_sys::MyProcPort;
        if port.is_null() {
            false
        } else {
            let socket = rustix::fd::BorrowedFd::borrow_raw(*port.cast::<c_int>());
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone;
            pg_sys::ProcDiePending = 1;
            pg_sys::InterruptPending = 1;
            true
        }
    };
    error::cut(why, connected);
}

// ---- The least synchronous_commit --------------------------------------------------------------

/// The last step before a commit, and before a prepared transaction is ended.
fn prepare_to_await_standbys() {
    raise_synchronous_commit();
    let mut pending = PENDING.get();
    pending.awaits_standbys = confirmed_by_standbys(WAIT_APPLY).is_some();
    PENDING.set(pending);
}

/// Raises this transaction's synchronous_commit to the cluster's least one where standbys are awaited.
fn raise_synchronous_commit() {
    let least = guc::minimum_synchronous_commit() as c_int;
    // SAFETY: settings of this process.
    let below = unsafe {
        let names = pg_sys::SyncRepStandbyNames;
        pg_sys::synchronous_commit < least && !names.is_null() && *names != 0
    };
    if below {
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
        pg_sys::assign_synchronous_commit(level, std::ptr::null_mut());
    }
}

fn restore_synchronous_commit(pending: Pending) {
    if let Some(session) = pending.changed_from {
        // SAFETY: as where it was set.
        unsafe {
            pg_sys::synchronous_commit = session;
            pg_sys::assign_synchronous_commit(session, std::ptr::null_mut());
        }
    }
}

// ---- Utility commands --------------------------------------------------------------------------

#[cfg(not(feature = "pg13"))]
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: Postgres hands in a utility statement.
    let ends_prepared = unsafe { before_utility(statement) };
    // SAFETY: the arguments go on as they came, to the hook that was there or to the standard.
    unsafe {
        match PREVIOUS.get().utility {
            Some(previous) => previous(statement, text, read_only_tree, context, params, environment, destination, completion),
            None => standard_ProcessUtility(statement, text, read_only_tree, context, params, environment, destination, completion),
        }
    }
    after_utility(ends_prepared);
}

#[cfg(feature = "pg13")]
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: Postgres hands in a utility statement.
    let ends_prepared = unsafe { before_utility(statement) };
    // SAFETY: the arguments go on as they came, to the hook that was there or to the standard.
    unsafe {
        match PREVIOUS.get().utility {
            Some(previous) => previous(statement, text, context, params, environment, destination, completion),
            None => standard_ProcessUtility(statement, text, context, params, environment, destination, completion),
        }
    }
    after_utility(ends_prepared);
}

/// Judges what has no xid of its own. True where the statement ends a prepared transaction.
///
/// # Safety
/// `statement` is a utility statement.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_utility(statement: *mut pg_sys::PlannedStmt) -> bool {
    use pg_sys::TransactionStmtKind::*;
    let Some(page) = managed_page() else { return false };
    maybe_reopen_session(page);
    // SAFETY: as demanded; the tag says what the node is.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            pg_sys::NodeTag::T_TransactionStmt => {
                let what = match (*node.cast::<pg_sys::TransactionStmt>()).kind {
                    TRANS_STMT_COMMIT_PREPARED => "commit the prepared transaction",
                    TRANS_STMT_ROLLBACK_PREPARED => "roll back the prepared transaction",
                    _ => return false,
                };
                if in_recovery() {
                    // Postgres' own refusal is the better one.
                    return false;
                }
                admit(page, what, Began::Earlier);
                prepare_to_await_standbys();
                true
            }
            pg_sys::NodeTag::T_CopyStmt if !(*node.cast::<pg_sys::CopyStmt>()).is_from => {
                recovered::hold(page);
                if guc::fence_reads() {
                    admit_read(page);
                }
                false
            }
            _ => false,
        }
    }
}

/// The command's record is written, flushed and was awaited, but its own (xid-less) transaction has yet
/// to end, and only then the client is told. The record's end is XactLastRecEnd right now: it is this
/// backend's last record, and the transaction wrote nothing before (these commands refuse to run
/// inside a block).
#[pgrx::pg_guard]
extern "C-unwind" fn after_utility(ends_prepared: bool) {
    if !ends_prepared {
        return;
    }
    let mut pending = PENDING.get();
    // SAFETY: this backend's own position.
    pending.two_phase_end = Some(unsafe { pg_sys::XactLastRecEnd });
    PENDING.set(pending);
}

// ---- Reads -------------------------------------------------------------------------------------

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: Postgres hands in a query that is about to start.
    unsafe { before_executor_start(query) };
    // SAFETY: the arguments go on as they came, to the hook that was there or to the standard.
    unsafe {
        match PREVIOUS.get().executor_start {
            Some(previous) => previous(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
    }
}

/// # Safety
/// `query` is about to start.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_executor_start(query: *mut pg_sys::QueryDesc) {
    let Some(page) = managed_page() else { return };
    maybe_reopen_session(page);
    let fenced = guc::fence_reads();
    if !fenced && page.recovered() == Recovered::Settled {
        return;
    }
    // SAFETY: as demanded; parallel workers start what their leader was let start.
    if unsafe { pg_sys::ParallelWorkerNumber < 0 && reads_tables((*query).plannedstmt) } {
        recovered::hold(page);
        if fenced {
            admit_read(page);
        }
    }
}

/// Does the plan read anything but catalogs? Catalogs stay readable, so that `tenure.*`, drivers and
/// psql go on working; what functions read comes back here as a query of its own.
///
/// # Safety
/// `plan` is a planned statement.
unsafe fn reads_tables(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as demanded; relationOids is a list of oids, or null.
    unsafe {
        let list = (*plan).relationOids;
        if list.is_null() {
            return false;
        }
        let length = usize::try_from((*list).length).unwrap_or(0);
        (0..length).any(|index| (*(*list).elements.add(index)).oid_value.to_u32() >= pg_sys::FirstNormalObjectId)
    }
}

/// Lets a reader pass while the lease runs, also while draining; standbys are not the fence's business.
fn admit_read(page: &Page) {
    let may_read = |now| may_acknowledge(page.fence(), now);
    let now = boottime();
    if may_read(now) || in_recovery() {
        return;
    }
    if page.wait_renewed(now + guc::fence_wait(), |now| may_read(now).then_some(())).is_none() {
        error::refused("read tables", page.fence(), boottime());
    }
}

/// This server is a standby, or still recovering.
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory; every process under a postmaster may call it.
    unsafe { pg_sys::RecoveryInProgress() }
}

// ---- Sessions ----------------------------------------------------------------------------------

unsafe extern "C-unwind" fn authentication(port: *mut pg_sys::Port, status: c_int) {
    if let Some(previous) = PREVIOUS.get().authentication {
        // SAFETY: the hook that was there before, with the arguments as they came.
        unsafe { previous(port, status) };
    }
    after_authentication(status);
}

/// Here the older hooks come first: whom they turn away we have nothing to say to.
#[pgrx::pg_guard]
extern "C-unwind" fn after_authentication(status: c_int) {
    let Some(page) = managed_page() else { return };
    if status != pg_sys::STATUS_OK.cast_signed() {
        return;
    }
    // SAFETY: set while the startup packet was read, before authentication.
    if unsafe { pg_sys::am_walsender } {
        // SAFETY: the callback is guarded. on_proc_exit runs after the walsender has given its slot in
        // shared memory back, so that the arbiter, once woken, sees it gone.
        unsafe { pg_sys::on_proc_exit(Some(standby_left), pg_sys::Datum::from(0)) };
        return;
    }
    if may_acknowledge(page.fence(), boottime()) || in_recovery() {
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
fn set_read_only(value: &std::ffi::CStr) {
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

/// A session that began read-only because the fence was closed becomes read-write at its first
/// statement after the fence opened; pooled connections would stay read-only for ever otherwise.
/// (Where that statement is one of several sent as one, its transaction stays read-only, and the next is
/// read-write.)
fn maybe_reopen_session(page: &Page) {
    if MADE_READ_ONLY.get() && may_acknowledge(page.fence(), boottime()) {
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
