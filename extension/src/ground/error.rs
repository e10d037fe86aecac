//! What users are told: our errors with their SQLSTATE, detail and hint, in one place.

use cluster::lsn::Lsn;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};
use std::ffi::{CString, c_char, c_int};

unsafe extern "C-unwind" {
    // pgrx binds neither.
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
}

const WHERE_TO_GO: &str =
    "Connect to the leader, for example with target_session_attrs=read-write; tenure.lease() shows the state of this server.";

/// Raises the error; never returns.
fn raise(report: ErrorReport) -> ! {
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// The library was loaded by a session instead of the postmaster.
pub fn not_preloaded() -> ! {
    raise(
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pg_tenure must be loaded via shared_preload_libraries",
            "_PG_init",
        )
        .set_detail("Its page in shared memory and its commit fence exist only from the start of the server.")
        .set_hint("Add pg_tenure to shared_preload_libraries and restart the server."),
    )
}

/// A commit, a prepared transaction's end, or a fenced read was refused; nothing was written.
pub fn refused(what: &str, why: String) -> ! {
    raise(
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            format!("cannot {what} because this server is not the leader"),
            "fence",
        )
        .set_detail(why)
        .set_hint(WHERE_TO_GO),
    )
}

/// In a session that is read-only because of the fence, Postgres says that it is read-only, and this says why.
pub fn explain_read_only(why: String) {
    let detail = CString::new(why).unwrap_or_default();
    let hint = CString::new(WHERE_TO_GO).unwrap_or_default();
    // SAFETY: called by an error's context callback, so there is an error to add to; both copy what they are given.
    unsafe {
        errdetail_internal(c"%s".as_ptr(), detail.as_ptr());
        errhint(c"%s".as_ptr(), hint.as_ptr());
    }
}

/// A commit waited at the fence when the server was told to stop. Of class 40, which says that the whole transaction is rolled back and may
/// be tried again: drivers and frameworks know it.
pub fn refused_at_end(what: &str) -> ! {
    raise(
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            format!("cannot {what} because this server is about to stop"),
            "fence",
        )
        .set_detail("The commit waited for the end of a planned change or for the leader lease. The transaction is rolled back, and nothing of it is written.")
        .set_hint("Connect to the leader, for example with target_session_attrs=read-write, and run the transaction again."),
    )
}

/// A session between nodes of a Citus cluster whose coordinator is one no more. The session ends, so that nobody keeps it for later.
pub fn deposed(opened_in: i64, newest: i64) -> ! {
    let report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION,
        "terminating connection because the coordinator that opened it was deposed",
        "fence",
    );
    report
        .set_detail(format!("It was opened in term {opened_in}, and a coordinator was promoted in term {newest}."))
        .set_hint(WHERE_TO_GO)
        .report(PgLogLevel::FATAL);
    unreachable!("a FATAL does not return")
}

/// Tables are not shown yet: what recovery brought back is not on the synchronous standbys.
pub fn not_settled(recovered_to: u64, confirmed: u64) -> ! {
    let (wanted, seen) = (Lsn(recovered_to), Lsn(confirmed));
    raise(
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW,
            "cannot read or write tables because the synchronous standbys do not have yet what recovery brought back",
            "recovered",
        )
        .set_detail(format!("Recovery brought this server to {wanted}, and its synchronous standbys have confirmed {seen}."))
        .set_hint("Try again; pg_stat_replication shows the standbys. Taking a lost one out of synchronous_standby_names ends the wait."),
    )
}

/// The log entry for a commit that was durable but could not be acknowledged.
pub fn cut(why: &str, connected: bool) {
    let message = if connected {
        "connection was closed instead of acknowledging a commit"
    } else {
        "a background process is ended instead of acknowledging a commit to it"
    };
    ErrorReport::new(PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION, message, "fence")
        .set_detail(format!("{why} Whether the commit is part of the cluster's history can't be told from here."))
        .set_hint("The client must look whether its transaction took place before it tries again.")
        .report(PgLogLevel::LOG);
}

/// A function only superusers may call.
pub fn superuser_only(function: &str) -> ! {
    raise(
        ErrorReport::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be superuser to call {function}"), "functions")
            .set_hint("It is the arbiter that calls this function."),
    )
}

/// An argument that can't be used.
pub fn invalid(message: String, hint: &str) -> ! {
    raise(ErrorReport::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, "functions").set_hint(hint))
}

/// A transaction whose snapshot is older than the wait would not see what it waited for.
pub fn waits_in_vain() -> ! {
    raise(
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "tenure.wait_for_lsn() can't be called in a transaction of isolation level REPEATABLE READ or SERIALIZABLE",
            "wait_for_lsn",
        )
        .set_detail("Such a transaction sees the database as it was before the wait.")
        .set_hint("Call it before BEGIN, as a statement of its own."),
    )
}

/// A logical walsender waited in vain for the standbys.
pub fn held_back(position: u64) -> ! {
    let message = format!("standbys have not confirmed {}, which a subscriber was to get", Lsn(position));
    let hint = "It connects again and goes on where it was; see that the standbys stream.";
    raise(ErrorReport::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message, "hold_back").set_hint(hint))
}

/// A WAL receiver found what it must not receive from.
pub fn does_not_receive(why: &str) -> ! {
    let message = format!("this server does not receive WAL from here: {why}");
    let hint = "It streams again once a later primary leads, or once the deposition is called off.";
    raise(ErrorReport::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message, "bond").set_hint(hint))
}

/// The worker of a subscription waited in vain for what it is to confirm to its publisher.
pub fn not_confirmed_upstream(position: u64) -> ! {
    let message = format!("the publisher is not told that {} arrived: this server may not acknowledge it", Lsn(position));
    let hint =
        "The subscription connects again and goes on where it was; see that this server leads and that its synchronous standbys stream.";
    raise(ErrorReport::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message, "hold_back").set_hint(hint))
}

/// Changes up to there were to be shown by SQL.
pub fn not_shown_by_sql(position: u64) -> ! {
    let message = format!("standbys have not confirmed {}, up to which changes were to be read", Lsn(position));
    let hint = "Nothing was read and the slot was not moved; see that the standbys stream, and try again.";
    raise(ErrorReport::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message, "hold_back").set_hint(hint))
}

/// The lease worker answered that it can't be done.
pub fn declined(message: String, hint: Option<String>) -> ! {
    let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message, "functions");
    raise(match hint {
        Some(hint) => report.set_hint(hint),
        None => report,
    })
}

/// Why a request to the lease worker got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No scope is set.
    #[error("this server is not part of a cluster: tenure.scope is empty")]
    Unmanaged,
    /// Nobody is there to ask.
    #[error("the pg_tenure lease worker is not running")]
    NoWorker,
    /// Another session's request occupies the mailbox.
    #[error("the pg_tenure lease worker is busy with another request")]
    Busy,
    /// The request does not fit.
    #[error("the request is {bytes} bytes long, and at most {most} fit")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest.
        most: usize,
    },
    /// The worker did not begin; nothing was done.
    #[error("the pg_tenure lease worker did not take up the request within {timeout_ms} ms")]
    NotTaken {
        /// How long was waited.
        timeout_ms: u64,
    },
    /// The worker began, and how it ended is not known.
    #[error("the pg_tenure lease worker did not answer within {timeout_ms} ms")]
    NotAnswered {
        /// How long was waited.
        timeout_ms: u64,
    },
}

/// The lease worker could not be asked.
pub fn unanswered(error: &AskError) -> ! {
    let (code, hint) = match error {
        AskError::Unmanaged => {
            (PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "Set tenure.scope and tenure.name, and restart the server.")
        }
        AskError::NoWorker => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "It is started again within a second; if not, the server log says why: look for \"pg_tenure lease worker\".",
        ),
        AskError::Busy => (PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "Another session's request is being served; try again."),
        AskError::TooLong { .. } => (PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "Shorten the request."),
        AskError::NotTaken { .. } => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "Nothing was done. tenure.lease() shows how old the last answer from etcd is.",
        ),
        AskError::NotAnswered { .. } => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "The request may still take effect: look at tenure.status() and tenure.events() before trying again.",
        ),
    };
    raise(ErrorReport::new(code, error.to_string(), "functions").set_hint(hint))
}

/// No snapshot of the cluster was published since the server started.
pub fn nothing_known_yet() {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, "nothing is known of the cluster yet", "functions")
        .set_hint("The lease worker has not read etcd since the server started; tenure.lease() shows its state.")
        .report(PgLogLevel::NOTICE);
}
