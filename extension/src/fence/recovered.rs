//! After a restart: what recovery brought back is shown to nobody before the synchronous standbys have it again.
//!
//! A commit that waits for its standby is durable here and seen by nobody: its backend keeps its xid running.
//! A crash of any backend ends that: the postmaster restarts the server, recovery replays the commit record,
//! and no backend is left to hide it. A client that reads it then, and acts on it, may see it vanish with the next
//! failover. So statements of clients that touch tables wait until the synchronous standbys have flushed all
//! that was here when somebody first looked after recovery, a statement or the lease worker: that can only
//! be more than what was brought back, and it is what the next commit would have to wait for anyway.
//!
//! An operator who takes the last standby out of `synchronous_standby_names` lets these go, as the waiting commits
//! too. A promotion passes here too: its arbiter begins without synchronous standbys, so nothing is awaited.
//! Catalogs stay readable, so that `tenure.*` and `pg_stat_replication` can say what is being waited for.

use super::standbys::flushed_by_standbys;
use crate::ground::server::{flushed_here, in_recovery};
use crate::ground::{error, guc};
use crate::shmem::{Page, Recovered, boottime};
use pgrx::pg_sys;

/// Holds a client's statement up to `tenure.fence_wait`, or raises the error. One load where all is settled.
pub fn wait_until_settled(page: &Page) {
    if page.recovered.read() == Recovered::Settled || !for_a_client() || in_recovery() || settled(page) {
        return;
    }
    let limit = boottime() + guc::fence_wait();
    if page.wait_polling(limit, |_| settled(page).then_some(())).is_some() {
        return;
    }
    if let Recovered::To(end) = page.recovered.read() {
        error::not_settled(end, flushed_by_standbys().unwrap_or(0));
    }
}

/// The lease worker looks too, so that what counts is how things were at the start, not at the first statement:
/// standbys named only later have nothing to do with what recovery brought back.
pub fn look(page: &Page) {
    if page.recovered.read() != Recovered::Settled && !in_recovery() {
        settled(page);
    }
}

/// Others show nothing to anybody: autovacuum, workers of a parallel query or of an extension.
fn for_a_client() -> bool {
    // SAFETY: a pointer of this process; null where no client is connected.
    unsafe { !pg_sys::MyProcPort.is_null() }
}

/// Looks, and remembers once it is true.
fn settled(page: &Page) -> bool {
    // SAFETY: the process is attached to shared memory, and the server out of recovery, as the callers asked.
    let end = match page.recovered.read() {
        Recovered::NotLooked => page.recovered.look(unsafe { flushed_here() }),
        known => known,
    };
    let settled = match end {
        Recovered::Settled => true,
        Recovered::NotLooked => false,
        Recovered::To(end) => flushed_by_standbys().is_none_or(|confirmed| confirmed >= end),
    };
    if settled {
        page.recovered.settle();
    }
    settled
}
