//! Sessions between the nodes of a Citus cluster: each says in whose term it was opened, and a worker refuses those of a coordinator
//! that was deposed.
//!
//! A coordinator that was frozen and is thawed writes to workers without a commit of its own, and rolls back what it takes for
//! transactions left in doubt: its own fence is not asked. So the servers of the coordinator's group put their term into
//! libpq's default options (`PGOPTIONS`), from which every connection that Citus opens takes it: a session, once
//! opened, keeps the term of its beginning. A worker knows the newest coordinator's term from etcd
//! (`tenure/coordinator` of its own group, written before that one is promoted).

use super::subject::managed_page;
use crate::ground::server::in_recovery;
use crate::ground::{error, guc};
use crate::shmem::Page;
use cluster::citus::COORDINATOR;
use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;

/// Nothing was said yet.
const UNKNOWN: i64 = -1;

thread_local! {
    /// The term that this process says to servers it connects to.
    static SAID: Cell<i64> = const { Cell::new(UNKNOWN) };
    /// The coordinator's term in which this session was opened; 0: by nobody's.
    static OPENED_IN: Cell<i64> = const { Cell::new(UNKNOWN) };
}

/// On a server of the coordinator's group: whatever this process connects to from here on learns its term.
pub(super) fn say_term() {
    if guc::group() != Some(COORDINATOR) || !guc::say_term() {
        return;
    }
    if let Some(page) = managed_page() {
        // A primary that holds no term, as after a crash of one of its processes, is older than anybody who was elected.
        let term = if in_recovery() { 0 } else { page.token().max(1) };
        if SAID.get() != term {
            // SAFETY: a server process has one thread that reads or writes its environment: the lease worker, which has more, comes
            // here never, as it has no transactions and runs no statements.
            unsafe { std::env::set_var("PGOPTIONS", format!("-c tenure.coordinator_term={term}")) };
            SAID.set(term);
        }
    }
}

/// On a worker: refuses what comes through a session of a coordinator that was deposed.
pub(super) fn refuse_the_deposed(page: &Page) {
    let opened_in = opened_in();
    if opened_in != 0 && opened_in < page.coordinator_term() {
        error::deposed(opened_in, page.coordinator_term());
    }
}

/// Is there anything to ask of this session?
pub(super) fn is_a_coordinators() -> bool {
    opened_in() != 0
}

/// The setting is fixed when the session begins, so it is read once.
fn opened_in() -> i64 {
    let known = OPENED_IN.get();
    if known != UNKNOWN {
        return known;
    }
    let told = if guc::group().is_some_and(|group| group != COORDINATOR) { guc::coordinator_term() } else { 0 };
    OPENED_IN.set(told);
    told
}

impl Page {
    /// The newest coordinator's term that this server knows of.
    pub fn coordinator_term(&self) -> i64 {
        self.coordinator_term.load(SeqCst)
    }

    /// Worker: etcd says that a coordinator has this term.
    pub fn know_coordinator(&self, term: i64) {
        self.coordinator_term.fetch_max(term, SeqCst);
    }
}
