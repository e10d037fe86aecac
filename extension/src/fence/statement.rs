//! What is asked before a statement: the end of a prepared transaction, and, where reads are held, queries and COPY TO.

use super::commit::{Began, admit, prepare_to_await_standbys, remember_end_of_prepared};
use super::hooks::PREVIOUS;
use super::session::{EXPLAIN, begin_explaining, end_explaining, made_read_only, maybe_reopen_session};
use super::subject::managed_page;
use super::{gate, origin, outside, recovered};
use crate::ground::server::in_recovery;
use crate::ground::{error, guc};
use crate::shmem::{Page, Recovered, boottime};
use cluster::fence::may_acknowledge;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int};

unsafe extern "C-unwind" {
    // pgrx's own bindings of these catch every ERROR from below and raise it again without its position,
    // context, constraint and table names. A hook that every statement passes must not do that.
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
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
}

pub(super) unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    origin::say_term();
    // SAFETY: Postgres hands in a utility statement.
    let (gated, ends_prepared) = unsafe {
        let gated = gate::applies() && gate::asks_utility(statement);
        if gated {
            gate::enter_utility(statement);
        }
        (gated, is_ours(statement) && before_utility(statement))
    };
    let mut explain = EXPLAIN;
    // SAFETY: the arguments go on as they came, to the hook that was there or to the standard; `explain` lives until they return or raise.
    unsafe {
        begin_explaining(&raw mut explain);
        match PREVIOUS.get().utility {
            Some(previous) => previous(statement, text, read_only_tree, context, params, environment, destination, completion),
            None => standard_ProcessUtility(statement, text, read_only_tree, context, params, environment, destination, completion),
        }
        end_explaining(&raw mut explain);
    }
    if gated {
        gate::utility_ended();
    }
    if ends_prepared {
        after_utility();
    }
}

/// May this statement be one of those that [`before_utility`] looks at? Most are not, and the guard costs more
/// than the question, which calls nothing that could raise an ERROR or panic.
///
/// # Safety
/// `statement` is a utility statement.
unsafe fn is_ours(statement: *mut pg_sys::PlannedStmt) -> bool {
    use pg_sys::TransactionStmtKind::*;
    // SAFETY: as demanded; the tag says what the node is.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            _ if made_read_only() || origin::is_a_coordinators() => true,
            pg_sys::NodeTag::T_TransactionStmt => {
                matches!((*node.cast::<pg_sys::TransactionStmt>()).kind, TRANS_STMT_COMMIT_PREPARED | TRANS_STMT_ROLLBACK_PREPARED)
            }
            pg_sys::NodeTag::T_CopyStmt => !(*node.cast::<pg_sys::CopyStmt>()).is_from,
            tag => outside::what(tag).is_some(),
        }
    }
}

/// Judges what has no xid of its own. True where the statement ends a prepared transaction.
///
/// # Safety
/// `statement` is a utility statement.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_utility(statement: *mut pg_sys::PlannedStmt) -> bool {
    use pg_sys::TransactionStmtKind::*;
    let Some(page) = managed_page() else { return false };
    origin::refuse_the_deposed(page);
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
                recovered::wait_until_settled(page);
                if guc::fence_reads() {
                    admit_read(page);
                }
                false
            }
            tag => {
                if let Some(what) = outside::what(tag).filter(|_| !in_recovery()) {
                    admit(page, what, Began::WithItsTransaction);
                }
                false
            }
        }
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn after_utility() {
    remember_end_of_prepared();
}

// ---- Reads -------------------------------------------------------------------------------------

pub(super) unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    origin::say_term();
    if queries_are_held() {
        // SAFETY: Postgres hands in a query that is about to start.
        unsafe { before_executor_start(query) };
    }
    if gate::applies() {
        // SAFETY: as above.
        if let Some(work) = unsafe { gate::asks(query) } {
            gate::enter(work);
        }
    }
    let mut explain = EXPLAIN;
    // SAFETY: the arguments go on as they came, to the hook that was there or to the standard; `explain` lives until they return or raise.
    unsafe {
        begin_explaining(&raw mut explain);
        match PREVIOUS.get().executor_start {
            Some(previous) => previous(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
        end_explaining(&raw mut explain);
    }
}

/// Is there anything to ask before a query? As with [`is_ours`], most often not.
fn queries_are_held() -> bool {
    made_read_only()
        || origin::is_a_coordinators()
        || managed_page().is_some_and(|page| guc::fence_reads() || page.recovered.read() != Recovered::Settled)
}

/// # Safety
/// `query` is about to start.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_executor_start(query: *mut pg_sys::QueryDesc) {
    let Some(page) = managed_page() else { return };
    origin::refuse_the_deposed(page);
    maybe_reopen_session(page);
    let fenced = guc::fence_reads();
    if !fenced && page.recovered.read() == Recovered::Settled {
        return;
    }
    // SAFETY: as demanded; parallel workers start what their leader was let start.
    if unsafe { pg_sys::ParallelWorkerNumber < 0 && reads_tables((*query).plannedstmt) } {
        recovered::wait_until_settled(page);
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
    let may_read = |now| may_acknowledge(page.fence(), page.fence_moment(now));
    let now = boottime();
    if may_read(now) || in_recovery() {
        return;
    }
    if page.wait_renewed(now + guc::fence_wait(), |now| may_read(now).then_some(())).is_none() {
        error::refused("read tables", page.why_closed_now());
    }
}
