//! How the page comes to be: asked for while the library is loaded, laid out once before any backend runs.

use super::page::{Page, set_page};
use cluster::fence::Mode;
use pgrx::pg_sys;
use std::sync::OnceLock;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

/// `AddinShmemInitLock` in `lwlocknames.txt`: its number has been the same since PostgreSQL 9.6.
pub const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// How a page begins: judged once shared memory is there, by those that know the server's data and its release.
pub struct Beginning {
    /// Closed on a cluster's data.
    pub mode: Mode,
    /// A deposition binds this server.
    pub is_bound: bool,
    /// It has said a word that counts in a vacancy.
    pub has_spoken: bool,
    /// Why what the fence reads of this server can't be relied on.
    pub unknown_release: Option<String>,
}

/// Given to [`register`], which is called before any hook is.
static BEGINNING: OnceLock<fn() -> Beginning> = OnceLock::new();

/// Nobody has judged: nobody may write.
const UNJUDGED: Beginning = Beginning { mode: Mode::Closed, is_bound: true, has_spoken: true, unknown_release: None };

static PREVIOUS_STARTUP: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());
#[cfg(not(feature = "pg14"))]
static PREVIOUS_REQUEST: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());

type Hook = Option<unsafe extern "C-unwind" fn()>;

fn keep(slot: &AtomicPtr<std::ffi::c_void>, hook: Hook) {
    slot.store(hook.map_or(std::ptr::null_mut(), |hook| hook as *mut std::ffi::c_void), Relaxed);
}

/// Calls the hook that was there before ours.
fn call_previous(slot: &AtomicPtr<std::ffi::c_void>) {
    let previous = slot.load(Relaxed);
    if !previous.is_null() {
        // SAFETY: `keep` stored exactly this type of function; Postgres calls hooks of this kind without arguments.
        unsafe {
            let hook: unsafe extern "C-unwind" fn() = std::mem::transmute(previous);
            pg_sys::ffi::pg_guard_ffi_boundary(|| hook());
        }
    }
}

/// Asks for the shared memory and hooks its creation. Called while the postmaster loads the library.
pub fn register(beginning: fn() -> Beginning) {
    BEGINNING.get_or_init(|| beginning);
    // SAFETY: the hook variables belong to this single-threaded process; the previous ones are called from ours.
    unsafe {
        #[cfg(not(feature = "pg14"))]
        {
            keep(&PREVIOUS_REQUEST, pg_sys::shmem_request_hook);
            pg_sys::shmem_request_hook = Some(request);
        }
        #[cfg(feature = "pg14")]
        pg_sys::RequestAddinShmemSpace(size_of::<Page>());
        keep(&PREVIOUS_STARTUP, pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[cfg(not(feature = "pg14"))]
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    call_previous(&PREVIOUS_REQUEST);
    // SAFETY: called from shmem_request_hook, the one place where this is allowed.
    unsafe { pg_sys::RequestAddinShmemSpace(size_of::<Page>()) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup() {
    call_previous(&PREVIOUS_STARTUP);
    let mut found = false;
    // SAFETY: shmem_startup_hook is where shared memory is handed out, under this lock. The block is at
    // least as large as asked for and aligned to a cache line; zero bytes are a valid `Page`.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let page: *mut Page = pg_sys::ShmemInitStruct(c"pg_tenure".as_ptr(), size_of::<Page>(), &raw mut found).cast();
        if !found {
            std::ptr::write_bytes(page, 0, 1);
            let made: &Page = &*page;
            let beginning = BEGINNING.get().map_or(UNJUDGED, |judge| judge());
            made.begin(beginning.mode);
            if beginning.is_bound {
                made.deposes_by_its_bond();
            }
            if beginning.has_spoken {
                made.has_spoken();
            }
            if let Some(why) = beginning.unknown_release {
                made.distrust();
                pgrx::warning!("pg_tenure does not know this release of PostgreSQL: {why}");
            }
        }
        set_page(page);
        pg_sys::LWLockRelease(lock);
    }
}
