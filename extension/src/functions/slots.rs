//! Logical slots on standbys of PostgreSQL 14 to 16, which can't make any there: a copy of the primary's, in this server's own
//! shared memory, without a restart.
//!
//! The copy is a temporary slot of the arbiter's session. The server's own `pg_replication_slot_advance` decodes onwards from it;
//! when the arbiter has seen that it is safe (`cluster::slots::doubt`), it is made permanent. A session that ends before
//! takes its copy along.

use super::for_arbiter::demand_superuser;
use crate::ground::error;
use crate::shmem;
use pgrx::{pg_extern, pg_sys};
use std::ffi::CString;
use std::path::Path;

/// Takes what the lease worker is to publish of the slots. False where it is too long.
#[pg_extern]
fn note_slots(publication: &str) -> bool {
    demand_superuser("tenure_internal.note_slots(text)");
    shmem::page().slots.publish(publication.as_bytes())
}

/// A record of the running transactions in WAL: decoding becomes consistent at one. Postgres writes one every 15 s by
/// itself; a copy would wait that long for each of its steps.
#[pg_extern]
fn log_running_transactions() -> i64 {
    demand_superuser("tenure_internal.log_running_transactions()");
    // SAFETY: as the background writer and CHECKPOINT do it, in any process that may write WAL.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            error::invalid("recovery is in progress".to_owned(), "Only a primary writes WAL.");
        }
        if pg_sys::wal_level < pg_sys::WalLevel::WAL_LEVEL_REPLICA.cast_signed() {
            error::invalid("wal_level is minimal".to_owned(), "Standbys need replica or logical.");
        }
        let end = pg_sys::LogStandbySnapshot();
        pg_sys::XLogFlush(end);
        end.cast_signed()
    }
}

fn name_of(text: &str) -> pg_sys::NameData {
    let mut name = pg_sys::NameData::default();
    let last = name.data.len() - 1;
    for (to, from) in name.data[..last].iter_mut().zip(text.bytes()) {
        *to = from.cast_signed();
    }
    name
}

/// A temporary slot like the primary's. False where the WAL that it needs is not here.
#[pg_extern]
fn copy_slot(
    name: &str,
    plugin: &str,
    database: pg_sys::Oid,
    two_phase: bool,
    restart_lsn: i64,
    confirmed_flush_lsn: i64,
    catalog_xmin: i64,
) -> bool {
    demand_superuser("tenure_internal.copy_slot(...)");
    let Ok(name) = CString::new(name) else { error::invalid("a slot's name has no zero bytes".to_owned(), "") };
    let horizon = pg_sys::TransactionId::from(u32::try_from(catalog_xmin).unwrap_or(0));
    // SAFETY: the server's own functions, in a session; ReplicationSlotCreate raises an error unless the slot is then ours,
    // and nobody but its owner writes the fields of a slot, under its spinlock where others read them.
    unsafe {
        if !pg_sys::RecoveryInProgress() {
            error::invalid("recovery is not in progress".to_owned(), "A primary's slots are its own.");
        }
        if cfg!(any(feature = "pg17", feature = "pg18")) {
            error::invalid("this server copies logical slots itself".to_owned(), "See sync_replication_slots.");
        }
        pg_sys::CheckSlotRequirements();
        create(&name, two_phase);
        let plugin = name_of(plugin);
        let slot = pg_sys::MyReplicationSlot;
        let lock = &raw mut (*slot).mutex;
        acquire(lock);
        (*slot).data.database = database;
        (*slot).data.plugin = plugin;
        (*slot).data.restart_lsn = restart_lsn.cast_unsigned();
        (*slot).data.confirmed_flush = confirmed_flush_lsn.cast_unsigned();
        (*slot).data.catalog_xmin = horizon;
        (*slot).effective_catalog_xmin = horizon;
        release(lock);
        pg_sys::ReplicationSlotMarkDirty();
        pg_sys::ReplicationSlotSave();
        pg_sys::ReplicationSlotsComputeRequiredXmin(false);
        pg_sys::ReplicationSlotsComputeRequiredLSN();
        // Reserved first, then looked whether it was there to be reserved: nothing goes between the two.
        let there = segment_is_here(restart_lsn.cast_unsigned());
        pg_sys::ReplicationSlotRelease();
        if !there {
            drop_slot(&name);
        }
        there
    }
}

/// Makes this session's temporary copy permanent.
#[pg_extern]
fn keep_slot(name: &str) {
    demand_superuser("tenure_internal.keep_slot(text)");
    let Ok(name) = CString::new(name) else { error::invalid("a slot's name has no zero bytes".to_owned(), "") };
    // SAFETY: the server's own functions; acquiring raises an error unless the slot is there and ours.
    unsafe {
        acquire_slot(&name);
        if (*pg_sys::MyReplicationSlot).data.persistency == pg_sys::ReplicationSlotPersistency::RS_TEMPORARY {
            pg_sys::ReplicationSlotPersist();
        }
        pg_sys::ReplicationSlotRelease();
    }
}

/// The segment with this position is in pg_wal, on whichever timeline.
fn segment_is_here(lsn: u64) -> bool {
    // SAFETY: a setting that is fixed from the server's start on.
    let size = u64::from(unsafe { pg_sys::wal_segment_size }.cast_unsigned());
    let (segment, per_id) = (lsn / size, 0x1_0000_0000 / size);
    let tail = format!("{:08X}{:08X}", segment / per_id, segment % per_id);
    let Ok(entries) = std::fs::read_dir(Path::new("pg_wal")) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(|name| name.len() == 24 && name.ends_with(&tail)))
}

// The signatures differ between releases.

unsafe fn create(name: &CString, two_phase: bool) {
    use pg_sys::ReplicationSlotPersistency::RS_TEMPORARY;
    // SAFETY: as the caller demands.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16"))]
        pg_sys::ReplicationSlotCreate(name.as_ptr(), true, RS_TEMPORARY, two_phase);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pg_sys::ReplicationSlotCreate(name.as_ptr(), true, RS_TEMPORARY, two_phase, false, false);
    }
}

unsafe fn acquire_slot(name: &CString) {
    // SAFETY: as the caller demands.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true);
        #[cfg(feature = "pg18")]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, true);
    }
}

unsafe fn drop_slot(name: &CString) {
    // SAFETY: as the caller demands.
    unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) }
}

/// `SpinLockAcquire`, which is a macro: the lock's word is set by an atomic exchange on every platform that is served
/// (x86-64 and arm64), and `s_lock` waits where somebody has it.
unsafe fn acquire(lock: *mut pg_sys::slock_t) {
    // SAFETY: the lock lies in shared memory and is aligned.
    unsafe {
        if as_atomic(lock).swap(1, std::sync::atomic::Ordering::Acquire) != 0 {
            pg_sys::s_lock(lock.cast(), c"extension/src/functions/slots.rs".as_ptr(), 0, c"acquire".as_ptr());
        }
    }
}

unsafe fn release(lock: *mut pg_sys::slock_t) {
    // SAFETY: held by us.
    unsafe { as_atomic(lock).store(0, std::sync::atomic::Ordering::Release) }
}

#[cfg(target_arch = "x86_64")]
unsafe fn as_atomic<'a>(lock: *mut pg_sys::slock_t) -> &'a std::sync::atomic::AtomicU8 {
    // SAFETY: one byte here.
    unsafe { std::sync::atomic::AtomicU8::from_ptr(lock.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn as_atomic<'a>(lock: *mut pg_sys::slock_t) -> &'a std::sync::atomic::AtomicU32 {
    // SAFETY: an int here.
    unsafe { std::sync::atomic::AtomicU32::from_ptr(lock.cast()) }
}
