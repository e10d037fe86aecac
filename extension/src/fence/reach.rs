//! What of a statement reaches other nodes of a Citus cluster: its plan, the table that it inserts into, the functions that it calls, or,
//! of a statement without a plan, its kind.
//!
//! In doubt it does: who waits at the gate for nothing waits for as long as others do, who passes it wrongly meets an error.

use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};

/// How Citus calls the methods of its plans' nodes.
const NODES_OF_CITUS: &[u8] = b"Citus";

/// A plan deeper than this is not looked at further: nobody's is, and the walk must end.
const DEPTH_MAX: u32 = 200;

thread_local! {
    /// Functions that were asked for, and whether they reach other nodes.
    static FUNCTIONS: RefCell<BTreeMap<u32, bool>> = const { RefCell::new(BTreeMap::new()) };
}

/// Does the plan send anything to other nodes? Calls nothing that could raise an ERROR or panic.
///
/// # Safety
/// `planned` is a planned statement.
pub(super) unsafe fn plan(planned: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as demanded; subplans is a list of plans, some of which may be null.
    unsafe { has_citus_node((*planned).planTree, DEPTH_MAX) || any((*planned).subplans, DEPTH_MAX) }
}

/// # Safety
/// `list` is a list of plans, or null.
unsafe fn any(list: *mut pg_sys::List, depth: u32) -> bool {
    // SAFETY: as demanded.
    unsafe { pointers::<pg_sys::Plan>(list).any(|plan| has_citus_node(plan, depth)) }
}

/// # Safety
/// `list` is a list of pointers to this, or null.
unsafe fn pointers<T>(list: *mut pg_sys::List) -> impl Iterator<Item = *mut T> {
    // SAFETY: as demanded.
    let length = if list.is_null() { 0 } else { usize::try_from(unsafe { (*list).length }).unwrap_or(0) };
    // SAFETY: as demanded; the index is below the length.
    (0..length).map(move |index| unsafe { (*(*list).elements.add(index)).ptr_value.cast() })
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

/// The table that this query inserts into, if it does. While it plans INSERT ... SELECT, Citus locks the shards of that table: who then
/// waits at the gate would keep the arbiter that closed it from going on. Calls nothing that could raise an ERROR or panic.
///
/// # Safety
/// `query` is about to be planned.
pub(super) unsafe fn inserts_into(query: *mut pg_sys::Query) -> Option<pg_sys::Oid> {
    // SAFETY: as demanded; resultRelation counts from 1, and 0 is none.
    unsafe {
        let index = usize::try_from((*query).resultRelation).ok()?.checked_sub(1)?;
        if (*query).commandType != pg_sys::CmdType::CMD_INSERT {
            return None;
        }
        let entry = pointers::<pg_sys::RangeTblEntry>((*query).rtable).nth(index)?;
        Some((*entry).relid).filter(|relation| is_somebodys(*relation))
    }
}

/// Not one of Postgres' own.
fn is_somebodys(object: pg_sys::Oid) -> bool {
    object.to_u32() >= pg_sys::FirstNormalObjectId
}

/// Is this table one of Citus', distributed or on every node?
///
/// # Safety
/// In a transaction, where an ERROR may be raised.
pub(super) unsafe fn is_citus_table(relation: pg_sys::Oid) -> bool {
    // SAFETY: as demanded; the columns are those of all releases of Citus.
    unsafe { is_in(c"pg_dist_partition", c"pg_dist_partition_logical_relid_index", &[relation]) }
}

/// Is there a row in this catalog of Citus' whose first columns are these?
///
/// # Safety
/// As for [`is_citus_table`]; the index begins with columns of type oid.
unsafe fn is_in(catalog: &CStr, index: &CStr, columns: &[pg_sys::Oid]) -> bool {
    // SAFETY: as demanded; the relation is closed where no ERROR was raised, and by the transaction's end where one was.
    unsafe {
        let schema = pg_sys::Oid::from(pg_sys::PG_CATALOG_NAMESPACE);
        let named = |name: &CStr| pg_sys::get_relname_relid(name.as_ptr(), schema);
        let (catalog, index) = (named(catalog), named(index));
        if catalog == pg_sys::InvalidOid || index == pg_sys::InvalidOid {
            return false;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(catalog, lock);
        let mut keys = [pg_sys::ScanKeyData::default(); 2];
        let mut count = 0;
        for (key, (number, column)) in keys.iter_mut().zip((1..).zip(columns)) {
            let equal = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
            pg_sys::ScanKeyInit(key, number, equal, pg_sys::Oid::from(pg_sys::F_OIDEQ), pg_sys::Datum::from(*column));
            count += 1;
        }
        let scan = pg_sys::systable_beginscan(relation, index, true, std::ptr::null_mut(), count, keys.as_mut_ptr());
        let found = !pg_sys::systable_getnext(scan).is_null();
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        found
    }
}

/// May this function be one of an extension's? Calls nothing that could raise an ERROR or panic.
pub(super) fn may_reach(function: pg_sys::Oid) -> bool {
    is_somebodys(function)
}

/// Functions of Citus that stay on their node, of those that are volatile. What begins or ends with one of the others is its own machinery.
const STAY: [&str; 30] = [
    "citus_backend_gpid",
    "citus_calculate_gpid",
    "citus_executor_name",
    "citus_get_active_worker_nodes",
    "citus_is_coordinator",
    "citus_is_primary_node",
    "citus_job_list",
    "citus_job_status",
    "citus_local_disk_space_stats",
    "citus_query_stats",
    "citus_rebalance_status",
    "citus_remote_connection_stats",
    "citus_server_id",
    "citus_stat_counters",
    "citus_stat_statements",
    "citus_stat_tenants_local",
    "citus_stat_tenants_local_internal",
    "column_name_to_column",
    "column_to_column_name",
    "distributed_tables_colocated",
    "dump_local_wait_edges",
    "get_colocated_shard_array",
    "get_colocated_table_array",
    "get_current_transaction_id",
    "get_missing_time_partition_ranges",
    "get_shard_id_for_distribution_column",
    "local_blocked_processes",
    "master_get_active_worker_nodes",
    "relation_is_a_known_shard",
    "time_partition_range",
];
const STAY_THAT_BEGIN: [&str; 5] = ["worker_", "citus_internal_", "read_intermediate_result", "citus_json", "pg_"];
const STAY_THAT_END: [&str; 4] = ["_invalidate", "_trigger", "_ffunc", "_sfunc"];

/// Is this a function of Citus' that goes to other nodes? Those that are not volatile don't.
///
/// # Safety
/// As for [`is_citus_table`].
pub(super) unsafe fn function(function: pg_sys::Oid) -> bool {
    if let Some(known) = FUNCTIONS.with_borrow(|functions| functions.get(&function.to_u32()).copied()) {
        return known;
    }
    // SAFETY: as demanded; a name is a C string, or null.
    let reaches = unsafe {
        let citus = pg_sys::get_extension_oid(c"citus".as_ptr(), true);
        let is_its = citus != pg_sys::InvalidOid && pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, function) == citus;
        is_its && pg_sys::func_volatile(function).cast_unsigned() == pg_sys::PROVOLATILE_VOLATILE && {
            let name = pg_sys::get_func_name(function);
            !name.is_null() && !stays(&CStr::from_ptr(name).to_string_lossy())
        }
    };
    FUNCTIONS.with_borrow_mut(|functions| functions.insert(function.to_u32(), reaches));
    reaches
}

fn stays(name: &str) -> bool {
    STAY.contains(&name)
        || STAY_THAT_BEGIN.iter().any(|start| name.starts_with(start))
        || STAY_THAT_END.iter().any(|end| name.ends_with(end))
}

/// May this statement without a plan, or whose plan is not all, reach other nodes? Most of what changes a catalog does: roles, schemas,
/// types and tables are the same on all nodes. What runs queries is judged by them. Calls nothing that could raise an ERROR or panic.
///
/// # Safety
/// `statement` is a utility statement.
pub(super) unsafe fn utility(statement: *mut pg_sys::PlannedStmt) -> bool {
    use pg_sys::NodeTag::*;
    // SAFETY: as demanded; the tag says what the node is.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            // Transactions and sessions; also in a transaction that has failed, where no catalog can be read.
            T_TransactionStmt | T_VariableSetStmt | T_VariableShowStmt | T_ConstraintsSetStmt | T_DiscardStmt | T_LoadStmt => false,
            T_ListenStmt | T_UnlistenStmt | T_NotifyStmt => false,
            // Queries in them are planned and started as queries are.
            T_PrepareStmt | T_ExecuteStmt | T_DeallocateStmt | T_DeclareCursorStmt | T_FetchStmt | T_ClosePortalStmt => false,
            T_ExplainStmt | T_CreateTableAsStmt | T_RefreshMatViewStmt | T_DoStmt => false,
            T_CopyStmt => (*node.cast::<pg_sys::CopyStmt>()).is_from,
            // The server's own.
            T_CheckPointStmt | T_AlterSystemStmt => false,
            _ => true,
        }
    }
}

/// A second look at one of those: false where it is about tables that are not Citus', or calls a procedure that runs here.
///
/// # Safety
/// As for [`is_citus_table`]; `statement` is a utility statement.
pub(super) unsafe fn utility_after_all(statement: *mut pg_sys::PlannedStmt) -> bool {
    use pg_sys::NodeTag::*;
    // SAFETY: as demanded; the tag says what the node is.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            T_VacuumStmt => {
                let tables = (*node.cast::<pg_sys::VacuumStmt>()).rels;
                tables.is_null() || pointers::<pg_sys::VacuumRelation>(tables).any(|table| names_citus_table((*table).relation))
            }
            T_IndexStmt => names_citus_table((*node.cast::<pg_sys::IndexStmt>()).relation),
            T_CallStmt => {
                let call = (*node.cast::<pg_sys::CallStmt>()).funcexpr;
                call.is_null() || is_in(c"pg_dist_object", c"pg_dist_object_pkey", &[pg_sys::ProcedureRelationId, (*call).funcid])
            }
            _ => true,
        }
    }
}

/// # Safety
/// As for [`is_citus_table`]; `name` is a table's name, or null.
unsafe fn names_citus_table(name: *mut pg_sys::RangeVar) -> bool {
    // SAFETY: as demanded; without a lock, as the statement itself looks again.
    unsafe {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let relation = |name| pg_sys::RangeVarGetRelidExtended(name, pg_sys::NoLock as c_int, flags, None, std::ptr::null_mut());
        // Where it is not there, or not named, the statement says so, or is about them all.
        name.is_null() || is_citus_table(relation(name))
    }
}
