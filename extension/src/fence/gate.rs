//! The gate of a Citus server, seen from a statement: is it a distributed one of a client, and may it begin?
//!
//! A statement of a transaction that has not yet done distributed work waits, before it has taken anything from another node;
//! where a task goes Citus looks up when it runs, so what it was planned with does not matter. What other nodes' transactions send
//! here (Citus' own sessions) never waits: it belongs to a transaction that was let pass where it began.

use crate::guc;
use crate::shmem::{self, Work};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{CStr, c_void};

thread_local! {
    /// The most that this transaction has done of distributed work.
    static DONE: Cell<Option<Work>> = const { Cell::new(None) };
    /// Whether this session is a client's, once it was asked.
    static CLIENT: Cell<Option<bool>> = const { Cell::new(None) };
}

/// How Citus' sessions on other nodes call themselves, followed by the number of the backend that opened them.
const SESSIONS_OF_CITUS: [&[u8]; 3] = [b"citus_internal gpid=", b"citus_rebalancer gpid=", b"citus_run_command gpid="];

/// How Citus calls the methods of its plans' nodes.
const NODES_OF_CITUS: &[u8] = b"Citus";

/// A plan deeper than this is not looked at further: nobody's is, and the walk must end.
const DEPTH_MAX: u32 = 200;

/// Hears of the end of each transaction. For a server of a Citus group.
pub(super) fn register() {
    if applies() {
        // SAFETY: once, while the postmaster loads the library; backends inherit it.
        unsafe { pg_sys::RegisterResourceReleaseCallback(Some(resources_released), std::ptr::null_mut()) };
    }
}

/// Does this server belong to a Citus cluster? Nothing else is asked where it does not.
pub(super) fn applies() -> bool {
    guc::group().is_some()
}

/// Must this query be seen by [`enter`]? Calls nothing that could raise an ERROR or panic.
///
/// # Safety
/// `query` is about to start.
pub(super) unsafe fn asks(query: *mut pg_sys::QueryDesc, flags: i32) -> Option<Work> {
    // SAFETY: as demanded.
    unsafe {
        let planned = (*query).plannedstmt;
        let reads = (*planned).commandType == pg_sys::CmdType::CMD_SELECT && !(*planned).hasModifyingCTE && (*planned).rowMarks.is_null();
        let work = if reads { Work::Reads } else { Work::Writes };
        let explains = flags.cast_unsigned() & pg_sys::EXEC_FLAG_EXPLAIN_ONLY != 0;
        (!explains && DONE.get() < Some(work) && is_distributed(planned) && is_a_client()).then_some(work)
    }
}

/// Must this statement, which copies into a table, be seen by [`enter`]? Which tables are distributed only Citus knows, so all are taken
/// for that: one into another table waits too, for no longer than anybody.
pub(super) fn asks_copy() -> bool {
    DONE.get() < Some(Work::Writes) && is_a_client()
}

/// Waits while the gate is closed.
#[pgrx::pg_guard]
pub(super) extern "C-unwind" fn enter(work: Work) {
    let Some(page) = shmem::page_if_any() else { return };
    let waited = page.pass_gate(DONE.get(), work);
    DONE.set(Some(work));
    if waited {
        // The metadata changed meanwhile; a read may take no lock from here to where it looks.
        // SAFETY: inside a transaction, as every statement is.
        unsafe { pg_sys::AcceptInvalidationMessages() };
    }
}

/// Called at the end of a transaction after Citus has carried its commit to the other nodes, and at the end of lesser things too.
unsafe extern "C-unwind" fn resources_released(phase: pg_sys::ResourceReleasePhase::Type, _commit: bool, top: bool, _arg: *mut c_void) {
    if top
        && phase == pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS
        && let Some(done) = DONE.take()
        && let Some(page) = shmem::page_if_any()
    {
        page.leave_gate(done);
    }
}

/// Not a background or parallel worker, and no session that another node of the Citus cluster opened.
fn is_a_client() -> bool {
    // SAFETY: a pointer of this process.
    if unsafe { pg_sys::MyProcPort.is_null() } {
        return false;
    }
    // As it was at the session's first distributed statement: nobody walks past by a SET, and a name that only begins like theirs is a client's.
    // Who sends all of such a name in the startup packet passes for Citus. That costs courtesy (a statement in the way of a planned change), not safety.
    if let Some(client) = CLIENT.get() {
        return client;
    }
    // SAFETY: a setting of this process; a C string or null.
    let name = unsafe { if pg_sys::application_name.is_null() { &[][..] } else { CStr::from_ptr(pg_sys::application_name).to_bytes() } };
    let numbered =
        |start: &[u8]| name.strip_prefix(start).is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit));
    let client = !SESSIONS_OF_CITUS.into_iter().any(numbered);
    CLIENT.set(Some(client));
    client
}

/// Does the plan send anything to other nodes?
///
/// # Safety
/// `planned` is a planned statement.
unsafe fn is_distributed(planned: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as demanded; subplans is a list of plans, some of which may be null.
    unsafe { has_citus_node((*planned).planTree, DEPTH_MAX) || any((*planned).subplans, DEPTH_MAX) }
}

/// # Safety
/// `list` is a list of plans, or null.
unsafe fn any(list: *mut pg_sys::List, depth: u32) -> bool {
    // SAFETY: as demanded.
    unsafe {
        if list.is_null() {
            return false;
        }
        let length = usize::try_from((*list).length).unwrap_or(0);
        (0..length).any(|index| has_citus_node((*(*list).elements.add(index)).ptr_value.cast(), depth))
    }
}

/// # Safety
/// `plan` is a node of a plan, or null.
unsafe fn has_citus_node(plan: *mut pg_sys::Plan, depth: u32) -> bool {
    let (false, Some(depth)) = (plan.is_null(), depth.checked_sub(1)) else { return false };
    // SAFETY: as demanded; the tag says which node it is.
    unsafe {
        let here = match (*plan).type_ {
            pg_sys::NodeTag::T_CustomScan => {
                let scan = plan.cast::<pg_sys::CustomScan>();
                let name = (*(*scan).methods).CustomName;
                CStr::from_ptr(name).to_bytes().starts_with(NODES_OF_CITUS) || any((*scan).custom_plans, depth)
            }
            pg_sys::NodeTag::T_SubqueryScan => has_citus_node((*plan.cast::<pg_sys::SubqueryScan>()).subplan, depth),
            pg_sys::NodeTag::T_Append => any((*plan.cast::<pg_sys::Append>()).appendplans, depth),
            pg_sys::NodeTag::T_MergeAppend => any((*plan.cast::<pg_sys::MergeAppend>()).mergeplans, depth),
            _ => false,
        };
        here || has_citus_node((*plan).lefttree, depth) || has_citus_node((*plan).righttree, depth)
    }
}
