//! Who is there: the lease worker and the arbiter, when they were last seen, and how they are woken.

use super::clock::boottime;
use crate::ground::guc;
use cluster::time::Moment;
use pgrx::pg_sys;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use std::time::Duration;

/// Part of the page. All zero is "nobody".
#[repr(C)]
pub struct Presence {
    worker_pid: AtomicI32,
    worker_seen_ns: AtomicU64,
    receiver_ends: AtomicU32,
    arbiter_pid: AtomicI32,
    arbiter_seen_ns: AtomicU64,
    etcd_seen_ns: AtomicU64,
}

/// This process' id.
pub fn own_pid() -> i32 {
    // SAFETY: set once at process start.
    unsafe { pg_sys::MyProcPid }
}

pub(super) fn alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
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

impl Presence {
    /// Worker: it is there.
    pub(super) fn worker_begins(&self) {
        self.worker_pid.store(own_pid(), SeqCst);
    }

    /// Worker: it is gone, unless another one has come already.
    pub(super) fn worker_ends(&self) {
        let _ = self.worker_pid.compare_exchange(own_pid(), 0, SeqCst, SeqCst);
    }

    /// Backend: this session is the arbiter's. True where it was not before.
    pub(super) fn arbiter_attaches(&self) -> bool {
        self.arbiter_looked();
        self.arbiter_pid.swap(own_pid(), SeqCst) != own_pid()
    }

    /// Backend: this session is the arbiter's no more. True where it was.
    pub(super) fn arbiter_leaves(&self) -> bool {
        self.arbiter_pid.compare_exchange(own_pid(), 0, SeqCst, SeqCst).is_ok()
    }

    /// Backend: the arbiter has looked after this server just now.
    pub fn arbiter_looked(&self) {
        self.arbiter_seen_ns.store(boottime().as_nanos(), SeqCst);
    }

    /// Makes the lease worker look again. False where there is none.
    pub(super) fn wake_worker(&self) -> bool {
        let pid = self.worker_pid.load(SeqCst);
        rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::USR2).is_ok())
    }

    /// WAL receiver: its connection ended.
    pub(super) fn receiver_ended(&self) {
        self.receiver_ends.fetch_add(1, SeqCst);
    }

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
