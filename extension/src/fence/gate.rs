//! The gate of a Citus server, seen from a statement: is it one of a client that reaches other nodes ([`reach`]), and may it begin?
//!
//! A statement of a transaction that has not yet done distributed work waits, before it has taken anything from another node;
//! where a task goes Citus looks up when it runs, so what it was planned with does not matter. What other nodes' transactions send
//! here (Citus' own sessions) never waits: it belongs to a transaction that was let pass where it began.

use super::hooks::PREVIOUS;
use super::reach;
use crate::ground::guc;
use crate::shmem::{self, Passed, Work};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};

thread_local! {
    /// The most that this transaction has done of distributed work.
    static DONE: Cell<Option<Passed>> = const { Cell::new(None) };
    /// Whether this session is a client's, once it was asked.
    static CLIENT: Cell<Option<bool>> = const { Cell::new(None) };
    /// A statement is under way that may commit in between (VACUUM, CREATE INDEX CONCURRENTLY) and reach other nodes after that.
    static OUTLIVES_COMMITS: Cell<bool> = const { Cell::new(false) };
}

/// How Citus' sessions on other nodes call themselves, followed by the number of the backend that opened them.
const SESSIONS_OF_CITUS: [&[u8]; 3] = [b"citus_internal gpid=", b"citus_rebalancer gpid=", b"citus_run_command gpid="];

/// How the arbiter's sessions call themselves, which move the rows that others wait for.
const SESSIONS_OF_THE_ARBITER: &[u8] = b"tenure arbiter";

unsafe extern "C-unwind" {
    // See `statement.rs`: an ERROR from below goes on as it came.
    fn standard_planner(
        query: *mut pg_sys::Query,
        text: *const c_char,
        options: c_int,
        params: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
}

/// Hears of the end of each transaction, of queries that are planned and of functions that are called. For a server of a Citus group.
pub(super) fn register() {
    if applies() {
        // SAFETY: once, while the postmaster loads the library; backends inherit it. Every hook replaced here is called from its replacement.
        unsafe {
            pg_sys::RegisterResourceReleaseCallback(Some(resources_released), std::ptr::null_mut());
            let mut previous = PREVIOUS.get();
            (previous.planner, previous.object_access) = (pg_sys::planner_hook, pg_sys::object_access_hook);
            PREVIOUS.set(previous);
            pg_sys::planner_hook = Some(plan);
            pg_sys::object_access_hook = Some(object_accessed);
        }
    }
}

/// Does this server belong to a Citus cluster? Nothing else is asked where it does not.
pub(super) fn applies() -> bool {
    guc::group().is_some()
}

/// Is it new for this transaction to do such work, and not known that this session is none of a client's? Calls nothing that could raise
/// an ERROR or panic.
fn is_new(work: Work) -> bool {
    // SAFETY: a pointer of this process. Background and parallel workers have none.
    let connected = unsafe { !pg_sys::MyProcPort.is_null() };
    connected && CLIENT.get() != Some(false) && DONE.get().map(|done| done.work) < Some(work)
}

/// Must this query be seen by [`enter`]? Calls nothing that could raise an ERROR or panic. Also one that is only explained: Citus asks other
/// nodes for their plans.
///
/// # Safety
/// `query` is about to start.
pub(super) unsafe fn asks(query: *mut pg_sys::QueryDesc) -> Option<Work> {
    // SAFETY: as demanded.
    unsafe {
        let planned = (*query).plannedstmt;
        let reads = (*planned).commandType == pg_sys::CmdType::CMD_SELECT && !(*planned).hasModifyingCTE && (*planned).rowMarks.is_null();
        let work = if reads { Work::Reads } else { Work::Writes };
        (is_new(work) && reach::plan(planned)).then_some(work)
    }
}

/// Must this statement be seen by [`enter_utility`]? Calls nothing that could raise an ERROR or panic.
///
/// # Safety
/// `statement` is a utility statement.
pub(super) unsafe fn asks_utility(statement: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as demanded.
    is_new(Work::Writes) && unsafe { reach::utility(statement) }
}

/// Waits while the gate is closed.
#[pgrx::pg_guard]
pub(super) extern "C-unwind" fn enter(work: Work) {
    let Some(page) = shmem::page_if_any().filter(|_| is_a_client()) else { return };
    let (passed, waited) = page.gate.pass(DONE.get(), work);
    DONE.set(Some(passed));
    if waited {
        // The metadata changed meanwhile; a read may take no lock from here to where it looks.
        // SAFETY: inside a transaction, as every statement is.
        unsafe { pg_sys::AcceptInvalidationMessages() };
    }
}

/// The same for a statement without a plan.
///
/// # Safety
/// `statement` is a utility statement.
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn enter_utility(statement: *mut pg_sys::PlannedStmt) {
    // SAFETY: as demanded; inside a transaction, as those without one are not asked.
    if is_a_client() && unsafe { reach::utility_after_all(statement) } {
        OUTLIVES_COMMITS.set(true);
        enter(Work::Writes);
    }
}

/// Such a statement is over, and its transaction is not.
pub(super) fn utility_ended() {
    OUTLIVES_COMMITS.set(false);
}

unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: Postgres hands in a query that is about to be planned; the arguments go on as they came.
    unsafe {
        if is_new(Work::Writes)
            && let Some(table) = reach::inserts_into(query)
        {
            before_plan(table);
        }
        match PREVIOUS.get().planner {
            Some(previous) => previous(query, text, options, params),
            None => standard_planner(query, text, options, params),
        }
    }
}

/// # Safety
/// A query that inserts into this table is about to be planned.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_plan(table: pg_sys::Oid) {
    // SAFETY: inside a transaction, as all planning is.
    if is_a_client() && unsafe { reach::is_citus_table(table) } {
        enter(Work::Writes);
    }
}

unsafe extern "C-unwind" fn object_accessed(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    argument: *mut c_void,
) {
    if access == pg_sys::ObjectAccessType::OAT_FUNCTION_EXECUTE && reach::may_reach(object) && is_new(Work::Writes) {
        // SAFETY: a function is about to be called.
        unsafe { before_call(object) };
    }
    if let Some(previous) = PREVIOUS.get().object_access {
        // SAFETY: the arguments go on as they came.
        unsafe { previous(access, class, object, part, argument) };
    }
}

/// # Safety
/// This function is about to be called.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_call(function: pg_sys::Oid) {
    // SAFETY: inside a transaction, as all calls are.
    if is_a_client() && unsafe { reach::function(function) } {
        enter(Work::Writes);
    }
}

/// Called at the end of a transaction after Citus has carried its commit to the other nodes, and at the end of lesser things too.
unsafe extern "C-unwind" fn resources_released(phase: pg_sys::ResourceReleasePhase::Type, commit: bool, top: bool, _arg: *mut c_void) {
    if !top || phase != pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS || (commit && OUTLIVES_COMMITS.get()) {
        return;
    }
    OUTLIVES_COMMITS.set(false);
    if let Some(done) = DONE.take()
        && let Some(page) = shmem::page_if_any()
    {
        page.gate.leave(done);
    }
}

/// No session that another node of the Citus cluster opened, and not the arbiter's.
fn is_a_client() -> bool {
    // As it was at the session's first distributed statement: nobody walks past by a SET, and a name that only begins like theirs is a client's.
    // A client that sends all of such a name in the startup packet passes for Citus, also with Citus itself. That costs courtesy (a statement in the way
    // of a planned change), not safety.
    if let Some(client) = CLIENT.get() {
        return client;
    }
    // SAFETY: a setting of this process; a C string or null. Called inside a transaction.
    let (name, by_a_superuser) = unsafe {
        let name = if pg_sys::application_name.is_null() { &[][..] } else { CStr::from_ptr(pg_sys::application_name).to_bytes() };
        (name, pg_sys::superuser_arg(pg_sys::GetAuthenticatedUserId()))
    };
    let numbered =
        |start: &[u8]| name.strip_prefix(start).is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit));
    let by_the_arbiter = by_a_superuser && name.starts_with(SESSIONS_OF_THE_ARBITER);
    let client = !by_the_arbiter && !SESSIONS_OF_CITUS.into_iter().any(numbered);
    CLIENT.set(Some(client));
    client
}
