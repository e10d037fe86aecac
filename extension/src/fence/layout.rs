//! Are things where this build takes them to be? It was made with the headers of one minor release, and another one may run.
//!
//! Two tests, neither of which can wait for anything. When shared memory is laid out, before any other process: the queues of waiting
//! commits are empty then, each pointing at itself, so the words that the fence reads must begin right after them; and locks that are
//! known by their number have the names that they should have. Later, every second, by the lease worker of a primary: what the fence reads
//! is compared with what the server's own functions say, those that `pg_stat_replication` shows ([`cluster::confirmed`]).

use super::standbys::{self, SYNC_REP_LOCK};
use crate::ground::server::{flushed_here, in_recovery};
use crate::shmem::ADDIN_SHMEM_INIT_LOCK;
use cluster::confirmed::{Levels, Look, confirmed};
use cluster::lsn::{CHECKPOINT_RECORD_BYTES, Lsn};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::mem::offset_of;

// The record's header, the header of its data, its data.
const _: () = assert!(size_of::<pg_sys::CheckPoint>() as u64 + 24 + 2 == CHECKPOINT_RECORD_BYTES);

const QUEUES: usize = pg_sys::NUM_SYNC_REP_WAIT_MODE as usize;
/// Each has two pointers: the first that waits, and the last.
const QUEUE_BYTES: usize = 2 * size_of::<usize>();

/// Looks at shared memory that was laid out just now; why it is not what this build was made for, if it is not.
pub fn as_built() -> Result<(), String> {
    for (number, name) in [(ADDIN_SHMEM_INIT_LOCK, c"AddinShmemInit"), (SYNC_REP_LOCK, c"SyncRep")] {
        // SAFETY: the server's own table of names; it gives a C string that is never freed.
        let found = unsafe { CStr::from_ptr(pg_sys::GetLWLockIdentifier(pg_sys::PG_WAIT_LWLOCK, number as u16)) };
        if found != name {
            return Err(format!("lock {number} is {}, not {}", found.to_string_lossy(), name.to_string_lossy()));
        }
    }
    // SAFETY: shared memory was laid out by this very process, and nobody else uses it yet; what is read lies inside of the structure.
    unsafe {
        let control = pg_sys::WalSndCtl;
        if control.is_null() {
            return Err("there is no memory of the walsenders".to_owned());
        }
        for queue in 0..QUEUES {
            let head = control.cast::<u8>().add(queue * QUEUE_BYTES);
            let [first, last] = head.cast::<[usize; 2]>().read();
            if first != head.addr() || last != head.addr() {
                return Err(format!("queue {queue} of waiting commits is not where it was"));
            }
        }
        let positions = (&raw const (*control).lsn).cast::<[u64; QUEUES]>().read();
        if offset_of!(pg_sys::WalSndCtlData, lsn) != QUEUES * QUEUE_BYTES || positions != [0; QUEUES] {
            return Err("the positions that standbys confirmed do not follow the queues of waiting commits".to_owned());
        }
    }
    Ok(())
}

/// What there is to compare on a primary; None on a standby, whose standbys confirm nothing to it.
pub fn look() -> Option<Look> {
    if in_recovery() || !standbys::standbys_to_await() {
        return None;
    }
    let said = said();
    let (read, status) = standbys::as_read();
    // SAFETY: the process is attached to shared memory.
    let flushed = Lsn(unsafe { flushed_here() });
    // SAFETY: set when the server started and never again.
    let segment = u64::from(unsafe { pg_sys::wal_segment_size }.cast_unsigned());
    Some(Look { read, status, flags_are_two: standbys::flags_are_two(), flushed, segment, said })
}

/// By the server's own functions, which know what they were built with. They take each walsender's spinlock for some loads.
fn said() -> Option<Levels> {
    let mut candidates: *mut pg_sys::SyncRepStandbyData = std::ptr::null_mut();
    // SAFETY: the setting as this process parsed it, null where it is empty; the function fills memory of ours, which is freed here.
    unsafe {
        let (count, quorum) = match pg_sys::SyncRepConfig.as_ref() {
            Some(config) => (usize::try_from(config.num_sync).unwrap_or(0), u32::from(config.syncrep_method) == pg_sys::SYNC_REP_QUORUM),
            None => return None,
        };
        let length = usize::try_from(pg_sys::SyncRepGetCandidateStandbys(&raw mut candidates)).unwrap_or(0);
        if candidates.is_null() {
            return None;
        }
        let of = |standby: &pg_sys::SyncRepStandbyData| [Lsn(standby.write), Lsn(standby.flush), Lsn(standby.apply)];
        let standbys: Vec<Levels> = std::slice::from_raw_parts(candidates, length).iter().map(of).collect();
        pg_sys::pfree(candidates.cast());
        confirmed(quorum, count, &standbys)
    }
}
