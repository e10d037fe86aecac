//! Who is there: the lease worker and the arbiter, when they were last seen, and how they are woken.

use super::{Page, boottime, page, page_if_any, renewal_was_sent_at, wall_ahead_ns};
use crate::guc;
use cluster::time::Moment;
use pgrx::pg_sys;
use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// This process' id.
pub fn own_pid() -> i32 {
    // SAFETY: set once at process start.
    unsafe { pg_sys::MyProcPid }
}

pub(super) fn alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// Worker: says that this process is the lease worker, until it ends.
pub fn attach_worker() {
    page().worker_pid.store(own_pid(), SeqCst);
    renewal_was_sent_at(wall_ahead_ns());
    // SAFETY: the callback is guarded and touches atomics only.
    unsafe { pg_sys::before_shmem_exit(Some(detach_worker), pg_sys::Datum::from(0)) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach_worker(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any() {
        let _ = page.worker_pid.compare_exchange(own_pid(), 0, SeqCst, SeqCst);
    }
}

/// Backend: a drain that this session begins, and a gate that it closes, end with it: whoever dies in the middle of a planned change, or
/// tried the function by hand, does not leave the primary's clients waiting.
pub fn belongs_to_this_session() {
    if !ENDS_WITH_US.replace(true) {
        // SAFETY: the callback is guarded and touches atomics and condition variables that outlive us.
        unsafe { pg_sys::before_shmem_exit(Some(end_what_is_ours), pg_sys::Datum::from(0)) };
    }
}

thread_local! {
    static ENDS_WITH_US: Cell<bool> = const { Cell::new(false) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn end_what_is_ours(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any() {
        page.undrain_of(own_pid());
        page.open_gate_of(own_pid());
    }
}

/// Backend: the arbiter has looked after this server just now.
pub fn arbiter_looked() {
    page().arbiter_seen_ns.store(boottime().as_nanos(), SeqCst);
}

/// Backend: this session is the arbiter's, until it ends.
pub fn attach_arbiter() {
    arbiter_looked();
    let page = page();
    if page.arbiter_pid.swap(own_pid(), SeqCst) != own_pid() {
        // SAFETY: the callback is guarded and touches atomics.
        unsafe { pg_sys::before_shmem_exit(Some(detach_arbiter), pg_sys::Datum::from(0)) };
    }
    wake_worker();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach_arbiter(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any()
        && page.arbiter_pid.compare_exchange(own_pid(), 0, SeqCst, SeqCst).is_ok()
    {
        wake_worker();
    }
}

/// Makes the lease worker look again. False where there is none.
pub fn wake_worker() -> bool {
    let pid = page().worker_pid.load(SeqCst);
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::USR2).is_ok())
}

/// WAL receiver: its connection ended, and the lease worker is to listen whether the leader lives. SIGUSR2 as for every other wake.
pub fn wake_listener() {
    page().receiver_ends.fetch_add(1, SeqCst);
    wake_worker();
}

/// Makes the arbiter look again: one byte to its socket, never waiting. Whether it arrives is the
/// arbiter's business; it looks by itself too.
pub fn wake_arbiter() {
    let Some(path) = guc::wake_socket() else { return };
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    let (Some(directory), Some(name)) = (Path::new(&path).parent(), Path::new(&path).file_name()) else { return };
    // By its directory's descriptor, as a socket's path has at most 107 bytes.
    let Ok(directory) = std::fs::File::open(directory) else { return };
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    if socket.set_nonblocking(true).is_ok() {
        let _ = socket.send_to(b"w", short);
    }
}

impl Page {
    /// How many connections of WAL receivers have ended.
    pub fn receiver_ends(&self) -> u32 {
        self.receiver_ends.load(SeqCst)
    }

    /// The lease worker's process; None where there is none.
    pub fn worker_pid(&self) -> Option<i32> {
        Some(self.worker_pid.load(SeqCst)).filter(|pid| *pid != 0 && alive(*pid))
    }

    /// The backend of the attached arbiter; None where none is attached.
    pub fn arbiter_pid(&self) -> Option<i32> {
        Some(self.arbiter_pid.load(SeqCst)).filter(|pid| *pid != 0)
    }

    /// An arbiter is attached and has looked after this server within so much time.
    pub fn arbiter_attends(&self, now: Moment, within: Duration) -> bool {
        let seen = Moment::from_nanos(self.arbiter_seen_ns.load(SeqCst));
        self.arbiter_pid().is_some() && now.since(seen) <= within
    }

    /// Worker: it went round its loop.
    pub fn worker_seen(&self, now: Moment) {
        self.worker_seen_ns.store(now.as_nanos(), SeqCst);
    }

    /// When the worker last went round its loop.
    pub fn worker_seen_at(&self) -> Option<Moment> {
        Some(self.worker_seen_ns.load(SeqCst)).filter(|at| *at != 0).map(Moment::from_nanos)
    }

    /// Worker: etcd answered.
    pub fn etcd_seen(&self, now: Moment) {
        self.etcd_seen_ns.store(now.as_nanos(), SeqCst);
    }

    /// When etcd last answered.
    pub fn etcd_seen_at(&self) -> Option<Moment> {
        Some(self.etcd_seen_ns.load(SeqCst)).filter(|at| *at != 0).map(Moment::from_nanos)
    }
}
