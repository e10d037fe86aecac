//! What the synchronous standbys have confirmed, read from Postgres' own shared memory.

use crate::ground::guc;
use cluster::confirmed::Levels;
use cluster::lsn::Lsn;
use pgrx::pg_sys;
use std::cell::Cell;

pub(super) const WAIT_FLUSH: usize = pg_sys::SYNC_REP_WAIT_FLUSH as usize;
pub(super) const WAIT_APPLY: usize = pg_sys::SYNC_REP_WAIT_APPLY as usize;

/// What the synchronous standbys have confirmed at the level this session awaits (at most `level_max`);
/// None where it awaits nothing.
pub(super) fn confirmed_by_standbys(level_max: usize) -> Option<u64> {
    use pg_sys::SyncCommitLevel::*;
    // SAFETY: settings of this process, and shared memory that exists for as long as the server; the
    // positions are aligned words that only grow, so a copy without the lock is an older truth at worst.
    unsafe {
        let level = match pg_sys::synchronous_commit.cast_unsigned() {
            SYNCHRONOUS_COMMIT_REMOTE_WRITE => pg_sys::SYNC_REP_WAIT_WRITE as usize,
            SYNCHRONOUS_COMMIT_REMOTE_FLUSH => WAIT_FLUSH,
            SYNCHRONOUS_COMMIT_REMOTE_APPLY => WAIT_APPLY,
            _ => return None,
        };
        if !standbys_to_await() || !standbys_defined() {
            return None;
        }
        Some(confirmed_at(level.min(level_max)))
    }
}

/// Do commits wait for standbys now?
pub fn standbys_awaited() -> bool {
    standbys_to_await() && standbys_defined()
}

/// Does this session's own copy of `synchronous_standby_names` name any?
pub(super) fn standbys_named() -> bool {
    // SAFETY: a setting of this process: a C string, or null.
    unsafe {
        let names = pg_sys::SyncRepStandbyNames;
        !names.is_null() && *names != 0
    }
}

/// Can there be synchronous standbys at all?
pub(super) fn standbys_to_await() -> bool {
    // SAFETY: a setting, and a pointer that is set before any backend runs.
    unsafe { pg_sys::max_wal_senders != 0 && !pg_sys::WalSndCtl.is_null() }
}

/// What the synchronous standbys have confirmed at this level.
///
/// # Safety
/// [`standbys_to_await`].
unsafe fn confirmed_at(level: usize) -> u64 {
    // SAFETY: as demanded; an aligned word that only grows.
    unsafe { (&raw const (*pg_sys::WalSndCtl).lsn).cast::<u64>().add(level).read_volatile() }
}

/// What the synchronous standbys have flushed, whatever this session awaits; None where there are none.
/// Unlike a commit this may be asked before the checkpointer has first looked at the setting, so until then
/// the setting itself counts in all releases.
pub fn flushed_by_standbys() -> Option<u64> {
    if !standbys_to_await() {
        return None;
    }
    // SAFETY: just asked.
    (standbys_defined() || !flags_are_two() && standbys_named()).then(|| unsafe { confirmed_at(WAIT_FLUSH) })
}

/// Is there anybody to await? Asked of shared memory rather than of this session's setting, which is
/// reread between statements only: when the last synchronous standby is struck from the list, the backends that
/// wait are let go, and that is no cancelled wait.
///
/// The byte after `lsn[3]` was a bool and became two flags in the minor releases of May 2025 (known,
/// defined); which one is running is asked of the server, not of the headers this was built with.
fn standbys_defined() -> bool {
    // SAFETY: `WalSndCtl` was checked by the caller; the byte lies after `lsn` in all releases from 13 on.
    let status = unsafe { status() };
    if !flags_are_two() {
        return status != 0;
    }
    // Before the checkpointer has looked at the setting, the setting itself counts, as in syncrep.c.
    if status & 1 == 0 { standbys_named() } else { status & 2 != 0 }
}

/// # Safety
/// [`standbys_to_await`].
unsafe fn status() -> u8 {
    // SAFETY: as demanded.
    unsafe { (&raw const (*pg_sys::WalSndCtl).lsn).add(1).cast::<u8>().read_volatile() }
}

/// All that is read here, for [`super::layout`]. Where [`standbys_to_await`].
pub(super) fn as_read() -> (Levels, u8) {
    // SAFETY: as demanded.
    unsafe { ([confirmed_at(0), confirmed_at(1), confirmed_at(2)].map(Lsn), status()) }
}

pub(super) fn flags_are_two() -> bool {
    thread_local! {
        static KNOWN: Cell<Option<bool>> = const { Cell::new(None) };
    }
    if let Some(known) = KNOWN.get() {
        return known;
    }
    let version: u32 = guc::of_postgres(c"server_version_num").and_then(|text| text.parse().ok()).unwrap_or(pg_sys::PG_VERSION_NUM);
    let first_minor = match version / 10_000 {
        14 => 18,
        15 => 13,
        16 => 9,
        17 => 5,
        _ => 0,
    };
    let two = version % 10_000 >= first_minor;
    KNOWN.set(Some(two));
    two
}

/// `SyncRepLock` in `lwlocknames.txt`: its number has been the same since PostgreSQL 10.
pub(super) const SYNC_REP_LOCK: usize = 32;

/// Lets the process that changes the synchronous standbys come to an end. When the last one is struck from the
/// list, the checkpointer first lets the waiting go and only then takes the flag back, both under this
/// lock: a backend that was just let go may still see the flag and would take that for a cancelled wait.
pub(super) fn wait_for_sync_rep_lock() {
    // SAFETY: the array exists for as long as the server; the lock is held for nothing but its turn, and
    // no other lock is held at the end of a commit.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(SYNC_REP_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        pg_sys::LWLockRelease(lock);
    }
}
