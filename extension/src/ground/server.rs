//! What any process of this server may ask it: is it in recovery, how far has it flushed, where is its data?

use pgrx::pg_sys;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// This server is a standby, or still recovering.
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory; every process under a postmaster may call it.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// How far this server has flushed.
///
/// # Safety
/// In a process attached to shared memory.
pub unsafe fn flushed_here() -> u64 {
    // SAFETY: as demanded.
    unsafe {
        #[cfg(feature = "pg14")]
        return pg_sys::GetFlushRecPtr();
        #[cfg(not(feature = "pg14"))]
        return pg_sys::GetFlushRecPtr(std::ptr::null_mut());
    }
}

/// The data directory, in every process.
pub fn data_directory() -> Option<PathBuf> {
    // SAFETY: a C string that the process set before it loaded any library, and never changes; null before the server has one.
    let path = unsafe { pg_sys::DataDir };
    if path.is_null() {
        return None;
    }
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(path) };
    Some(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
}
