//! What the lease worker sees of its own server, through server functions and shared memory only.

use cluster::lsn::Lsn;
use cluster::name::{SystemId, Timeline};
use pgrx::pg_sys;

/// Where this server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// Out of recovery.
    Primary {
        /// Its timeline.
        timeline: Timeline,
        /// Flushed so far.
        flushed: Lsn,
    },
    /// In recovery.
    Standby {
        /// The newest timeline received or replayed.
        timeline: Timeline,
        /// Received and flushed so far; invalid where nothing was received since the start.
        received: Lsn,
        /// Replayed so far.
        replayed: Lsn,
        /// The WAL receiver is connected and streams.
        streaming: bool,
    },
}

impl Server {
    /// Out of recovery.
    pub fn is_primary(self) -> bool {
        matches!(self, Server::Primary { .. })
    }

    /// The newest timeline here.
    pub fn timeline(self) -> Timeline {
        match self {
            Server::Primary { timeline, .. } | Server::Standby { timeline, .. } => timeline,
        }
    }

    /// The furthest position here.
    pub fn position(self) -> Lsn {
        match self {
            Server::Primary { flushed, .. } => flushed,
            Server::Standby { received, replayed, .. } => received.max(replayed),
        }
    }

    /// The WAL receiver is connected and streams.
    pub fn streaming(self) -> bool {
        matches!(self, Server::Standby { streaming: true, .. })
    }
}

#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18"))]
fn flushed() -> (Lsn, Timeline) {
    let mut timeline = 0;
    // SAFETY: a server function that reads shared memory; not in recovery, as it demands.
    let lsn = unsafe { pg_sys::GetFlushRecPtr(&raw mut timeline) };
    (Lsn(lsn), Timeline(timeline))
}

#[cfg(any(feature = "pg13", feature = "pg14"))]
fn flushed() -> (Lsn, Timeline) {
    // SAFETY: as above; RecoveryInProgress() has set up ThisTimeLineID in this process.
    unsafe { (Lsn(pg_sys::GetFlushRecPtr()), Timeline(pg_sys::ThisTimeLineID)) }
}

/// Looks at the server.
pub fn server() -> Server {
    // SAFETY: server functions that read shared memory under their own locks, allowed in any process
    // attached to it; the pointers are to locals.
    unsafe {
        if !pg_sys::RecoveryInProgress() {
            let (flushed, timeline) = flushed();
            return Server::Primary { timeline, flushed };
        }
        let (mut replay_timeline, mut receive_timeline) = (0, 0);
        let replayed = Lsn(pg_sys::GetXLogReplayRecPtr(&raw mut replay_timeline));
        let received = Lsn(pg_sys::GetWalRcvFlushRecPtr(std::ptr::null_mut(), &raw mut receive_timeline));
        let streaming = (*pg_sys::WalRcv).walRcvState == pg_sys::WalRcvState::WALRCV_STREAMING;
        Server::Standby { timeline: Timeline(replay_timeline.max(receive_timeline)), received, replayed, streaming }
    }
}

/// A WAL receiver is there, or is being started.
pub fn receiver_running() -> bool {
    // SAFETY: reads shared memory under its spinlock.
    unsafe { pg_sys::WalRcvRunning() }
}

/// Asks the WAL receiver to end. Not `ShutdownWalRcv()`: that waits for it, and one that is frozen
/// would take the lease worker with it. The caller looks again.
pub fn stop_receiver() {
    // SAFETY: `pid` is one word; a stale one names a process of the past, which the kernel refuses or,
    // at worst, a process of ours that takes SIGTERM as "end", as any server process may.
    let pid = unsafe { (*pg_sys::WalRcv).pid };
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Whose data this is.
pub fn system_id() -> SystemId {
    // SAFETY: reads the control file's copy in shared memory.
    SystemId(unsafe { pg_sys::GetSystemIdentifier() }.to_string())
}

/// The timeline in `pg_control`: that of the last completed checkpoint. Behind the server's own until
/// the first checkpoint after a promotion, and until then no rewind may use this server as its source.
pub fn checkpointed_timeline() -> Option<Timeline> {
    let mut whole = false;
    // SAFETY: reads global/pg_control, which is replaced in one write, into memory that is freed here.
    unsafe {
        let control = pg_sys::get_controlfile(pg_sys::DataDir, &raw mut whole);
        if control.is_null() {
            return None;
        }
        let timeline = (*control).checkPointCopy.ThisTimeLineID;
        pg_sys::pfree(control.cast());
        whole.then_some(Timeline(timeline))
    }
}
