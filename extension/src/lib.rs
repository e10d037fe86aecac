//! pg_tenure inside the server: what is registered when the library is loaded, nothing else.
//!
//! Rooms in reading order: [`guc`] the settings, [`standing`] whose server this is, [`shmem`] the page that backends read, [`fence`] the
//! hooks that ask it, [`recovered`] what a restart brought back, [`functions`] the SQL surface, [`wait_for_lsn`] reads that wait for a write, [`vitals`] how the server is, [`slots`] logical slots on standbys, [`hold_back`] no subscriber ahead of them, [`error`] what users are told, [`worker`] the
//! lease worker (`keeper`'s loops, with [`here`] as their host), [`hear`] whether the leader lives and [`bond`] from whom a receiver must not stream, [`groups`] what a Citus coordinator shows of the other groups.

use cluster::mark::Standing;
use pgrx::pg_sys;
use std::ffi::CStr;

pub mod bond;
pub mod error;
pub mod fence;
pub mod functions;
pub mod groups;
pub mod guc;
pub mod hear;
pub mod here;
pub mod hold_back;
pub mod mailbox;
pub mod observe;
pub mod publish;
pub mod recovered;
pub mod shmem;
pub mod signals;
pub mod slots;
pub mod standing;
pub mod vitals;
pub mod wait_for_lsn;
pub mod worker;

pgrx::pg_module_magic!();

/// Called by Postgres when it loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: a plain flag that only the process itself changes.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        // CREATE EXTENSION in a cluster that is about to be taken over: its primary, another program's yet, has to have the functions that the
        // standbys' arbiters call. Nothing is registered; whatever asks for the page is told what is missing.
        return;
    }
    guc::register();
    shmem::register();
    fence::register();
    hold_back::register();
    vitals::register();
    standing::warn_if_closed();
    if *standing::standing() == Standing::Managed {
        register_worker();
        bond::register();
    }
}

/// Registers the lease worker: shared memory only, from the moment the server is consistent, back one
/// second after it ended. By hand, because pgrx's builder ties the start time to SPI.
fn register_worker() {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: pg_sys::BGWORKER_SHMEM_ACCESS.cast_signed(),
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: 1,
        ..Default::default()
    };
    write_name(&mut worker.bgw_name, c"pg_tenure lease worker");
    write_name(&mut worker.bgw_type, c"pg_tenure lease worker");
    write_name(&mut worker.bgw_library_name, c"pg_tenure");
    write_name(&mut worker.bgw_function_name, c"tenure_lease_worker_main");
    // SAFETY: a complete registration, during shared_preload_libraries; Postgres copies it.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut worker) };
}

/// Copies a name into one of the fixed fields, which are zeroed and longer than any name above.
fn write_name(field: &mut [std::ffi::c_char], name: &CStr) {
    let last = field.len() - 1;
    for (to, from) in field[..last].iter_mut().zip(name.to_bytes()) {
        *to = *from as std::ffi::c_char;
    }
}
