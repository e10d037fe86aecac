//! What of the SQL surface only the arbiter calls, and what only tests call: all of it for superusers.

use crate::fence::{session, standbys};
use crate::ground::error;
use crate::shmem::{self, boottime};
use cluster::time::Moment;
use pgrx::{pg_extern, pg_sys};
use std::time::Duration;

/// Longer than any planned change takes; who closes the gate says for how long.
const GATE_CLOSED_MAX: Duration = Duration::from_secs(600);
/// From the first transaction that waits to the server's stop; who drains says for how long.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Longer than any TTL that makes sense: who binds a member, or keeps its fence open, for longer than this did not mean it.
const PROMISED_MAX: Duration = Duration::from_secs(3600);

/// What only the arbiter may do.
pub fn demand_superuser(function: &str) {
    // SAFETY: looks at this session's role, inside a transaction.
    if !unsafe { pg_sys::superuser() } {
        error::superuser_only(function);
    }
}

/// This session is the arbiter's, until it ends.
#[pg_extern]
fn attach_arbiter() {
    demand_superuser("tenure_internal.attach_arbiter()");
    session::reopen_session();
    shmem::attach_arbiter();
}

/// Do commits of this server wait for standbys now, as its checkpointer has told the backends?
#[pg_extern]
fn standbys_awaited() -> bool {
    // Without the page nobody has looked whether this server's memory is laid out as the library takes it to be.
    let _ = shmem::page();
    standbys::standbys_awaited()
}

/// What the member key is to say besides (`cluster::described`): the lease worker has no SQL to find it out.
#[pg_extern]
fn describe(described: &str) -> bool {
    demand_superuser("tenure_internal.describe(text)");
    // At each look of the arbiter: one that is frozen is not counted on, though its session lives.
    shmem::page().presence.arbiter_looked();
    let new = shmem::page().described.write(described);
    if new {
        shmem::wake_worker();
    }
    new
}

/// A moment on this host's CLOCK_BOOTTIME.
fn moment(boottime_ns: i64) -> Moment {
    let moment = Moment::from_nanos(u64::try_from(boottime_ns).unwrap_or(0));
    if moment.since(boottime()) > PROMISED_MAX {
        error::invalid(
            "until_boottime_ns is more than an hour ahead".to_owned(),
            "It is counted in nanoseconds of CLOCK_BOOTTIME on this host.",
        );
    }
    moment
}

/// Promises the leader, which can't reach etcd, not to take its key until then (nanoseconds of
/// CLOCK_BOOTTIME on this host). False where this node leads or is taking the key.
#[pg_extern]
fn promise(until_boottime_ns: i64) -> bool {
    demand_superuser("tenure_internal.promise(bigint)");
    shmem::page().promise(moment(until_boottime_ns), boottime())
}

/// The promise that binds until then is over before its time. False where another binds by now.
#[pg_extern]
fn end_promise(until_boottime_ns: i64) -> bool {
    demand_superuser("tenure_internal.end_promise(bigint)");
    shmem::page().end_promise(moment(until_boottime_ns))
}

/// Every known member has promised not to race until then (nanoseconds of CLOCK_BOOTTIME on this host):
/// the fence may stay open as long. False where this node does not lead.
#[pg_extern]
fn extend_lease(until_boottime_ns: i64) -> bool {
    demand_superuser("tenure_internal.extend_lease(bigint)");
    let page = shmem::page();
    page.renew(moment(until_boottime_ns));
    // The next round of promises is asked for after this.
    shmem::renewal_was_sent_at(shmem::wall_ahead_ns());
    cluster::fence::may_acknowledge(page.fence(), page.fence_moment(boottime()))
}

/// Begins a switchover's drain, which ends by itself after so long, or with this session; says whether it began.
#[pg_extern]
fn drain(most_ms: i32) -> bool {
    demand_superuser("tenure_internal.drain(integer)");
    let now = boottime();
    let most = Duration::from_millis(u64::try_from(most_ms).unwrap_or(0)).min(DRAIN_MAX);
    shmem::belongs_to_this_session();
    shmem::page().drain(now, now + most, shmem::own_pid())
}

/// Calls a drain off; says whether there was one.
#[pg_extern]
fn undrain() -> bool {
    demand_superuser("tenure_internal.undrain()");
    shmem::page().undrain()
}

/// This server lets nobody commit any more until it is started again; says whether a drain has held new transactions until now.
#[pg_extern]
fn seal() -> bool {
    demand_superuser("tenure_internal.seal()");
    shmem::page().seal()
}

/// Distributed statements that begin here wait from now on, at most so long; reads too where `reads` says so. Then waits up to `patience_ms`
/// for transactions that had begun such work before, and gives how many have not ended.
#[pg_extern]
fn close_gate(most_ms: i32, reads: bool, patience_ms: i32) -> i32 {
    demand_superuser("tenure_internal.close_gate(integer, boolean, integer)");
    let page = shmem::page();
    let after = |milliseconds: i32| boottime() + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0)).min(GATE_CLOSED_MAX);
    shmem::belongs_to_this_session();
    page.gate.close(after(most_ms), reads, shmem::own_pid());
    i32::try_from(page.gate.await_ended(after(patience_ms))).unwrap_or(i32::MAX)
}

/// Before it is closed: waits up to `patience_ms` for transactions that have begun distributed work by now, those that only read too where `reads`
/// says so, while others begin. Gives how many have not ended.
#[pg_extern]
fn await_gate(reads: bool, patience_ms: i32) -> i32 {
    demand_superuser("tenure_internal.await_gate(boolean, integer)");
    let patience = Duration::from_millis(u64::try_from(patience_ms).unwrap_or(0)).min(GATE_CLOSED_MAX);
    i32::try_from(shmem::page().gate.await_earlier(reads, boottime() + patience)).unwrap_or(i32::MAX)
}

/// Those that wait go on; says whether the gate was closed.
#[pg_extern]
fn open_gate() -> bool {
    demand_superuser("tenure_internal.open_gate()");
    shmem::page().gate.open()
}

/// Tests only: sets the fence, the deadline counted from now.
#[cfg(feature = "test-hooks")]
#[pg_extern]
fn test_set_fence(mode: &str, deadline_ms: i32) {
    demand_superuser("tenure.test_set_fence(text, integer)");
    let page = shmem::page();
    let now = boottime();
    let deadline = now + Duration::from_millis(u64::try_from(deadline_ms).unwrap_or(0));
    let next = page.term() + 1;
    match mode {
        "open" => page.change(|tenure| tenure.open(next, 7, deadline)),
        "renew" => page.renew(deadline),
        "draining" => {
            page.change(|tenure| tenure.open(next, 7, deadline));
            page.drain(now, now + DRAIN_MAX, 0);
        }
        "closed" => page.change(|tenure| tenure.close()),
        other => error::invalid(format!("unknown fence \"{other}\""), "open, renew, draining or closed."),
    }
    page.events.record("test", &format!("fence set to {mode} for {deadline_ms} ms"), "", page.term());
}

/// Tests only: plays the worker, publishing a snapshot.
#[cfg(feature = "test-hooks")]
#[pg_extern]
fn test_publish(snapshot: &str) -> bool {
    demand_superuser("tenure.test_publish(text)");
    shmem::page().snapshot.publish(snapshot.as_bytes())
}

/// Tests only: plays the worker, answering the request that waits; gives that request.
#[cfg(feature = "test-hooks")]
#[pg_extern]
fn test_answer(answer: &str) -> Option<String> {
    demand_superuser("tenure.test_answer(text)");
    let (id, request) = shmem::page().mailbox.take()?;
    shmem::page().mailbox.answer(id, answer.to_owned());
    Some(request)
}
