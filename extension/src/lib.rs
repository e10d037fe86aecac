//! pg_tenure inside the server: what is registered when the library is loaded, nothing else.
//!
//! Rooms, each of which uses those before it: [`ground`] settings, this server, and what users are told; [`shmem`] the page that all its processes
//! share; [`fence`] the hooks that ask it; [`worker`] the lease worker; [`functions`] the SQL surface.

use cluster::mark::Standing;
use ground::{guc, standing};
use pgrx::pg_sys;
use std::ffi::CStr;

pub mod fence;
pub mod functions;
pub mod ground;
pub mod shmem;
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
    shmem::register(fence::page::beginning);
    fence::register();
    worker::vitals::register();
    standing::warn_if_closed();
    if *standing::standing() == Standing::Managed {
        register_worker();
        fence::bond::register();
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
