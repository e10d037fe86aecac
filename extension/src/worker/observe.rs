//! What the lease worker sees of its own server, through server functions and shared memory only.

use crate::fence::standbys::flushed_by_standbys;
use cluster::host::Address;
use cluster::lsn::Lsn;
use cluster::name::{SystemId, Timeline};
use keeper::OwnServer;
use pgrx::pg_sys;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

#[cfg(not(feature = "pg14"))]
fn flushed() -> (Lsn, Timeline) {
    let mut timeline = 0;
    // SAFETY: a server function that reads shared memory; not in recovery, as it demands.
    let lsn = unsafe { pg_sys::GetFlushRecPtr(&raw mut timeline) };
    (Lsn(lsn), Timeline(timeline))
}

#[cfg(feature = "pg14")]
fn flushed() -> (Lsn, Timeline) {
    // SAFETY: as above; RecoveryInProgress() has set up ThisTimeLineID in this process.
    unsafe { (Lsn(pg_sys::GetFlushRecPtr()), Timeline(pg_sys::ThisTimeLineID)) }
}

/// Looks at the server.
pub fn server() -> OwnServer {
    // SAFETY: server functions that read shared memory under their own locks, allowed in any process
    // attached to it; the pointers are to locals.
    unsafe {
        if !pg_sys::RecoveryInProgress() {
            // Before what is flushed is read they have confirmed no more than that.
            let confirmed = flushed_by_standbys().map(Lsn);
            let (flushed, timeline) = flushed();
            return OwnServer::Primary { timeline, flushed, confirmed };
        }
        // Before the positions: they are to be the end, or more.
        let end_known = end_was_read();
        let (mut replay_timeline, mut receive_timeline) = (0, 0);
        let replayed = Lsn(pg_sys::GetXLogReplayRecPtr(&raw mut replay_timeline));
        let received = Lsn(pg_sys::GetWalRcvFlushRecPtr(std::ptr::null_mut(), &raw mut receive_timeline));
        let streaming = (*pg_sys::WalRcv).walRcvState == pg_sys::WalRcvState::WALRCV_STREAMING;
        let timeline = Timeline(replay_timeline.max(receive_timeline));
        OwnServer::Standby { timeline, received, replayed, streaming, end_known }
    }
}

/// The end of the WAL on disk was found since the server started; shared memory, and with it what this rests on, begins
/// again with each start, and so does every process.
static END_SEEN: AtomicBool = AtomicBool::new(false);

/// Has the startup process read everything that lies here?
///
/// After a start in recovery the WAL on disk may go on for gigabytes past the replay, and all of it may have been
/// confirmed to a primary before. Shared memory tells where replay is, not where that end is; but it tells when the startup
/// process has come to it. That process asks for streaming only when no further record can be read, neither from the
/// archive nor from `pg_wal`, of any timeline that it knows, and when every record before has been applied: it reads the next
/// one after it applied the last, and the read-ahead of PostgreSQL 15 and later hands over what it has decoded before it
/// tries the next source. So either of two marks is enough:
///
/// * A WAL receiver was asked for (`receiveStart`, zero until then). From then on what comes is counted by the receiver.
/// * Without an upstream none is asked for. Then the startup process, having tried every source, sleeps for
///   `wal_retrieve_retry_interval`, in a wait event that nothing else uses.
///
/// Nothing that was confirmed is past either: a receiver confirms what it flushed, in whole records or parts of one, and a
/// commit waits for the end of its record. Replay that is paused or delayed (`recovery_min_apply_delay`) comes to the end late.
///
/// # Safety
/// In a process attached to shared memory.
unsafe fn end_was_read() -> bool {
    if END_SEEN.load(Ordering::Relaxed) {
        return true;
    }
    // SAFETY: one word, in memory that lives as long as the server.
    let seen =
        anybody_waits(|event| event == RETRY_SLEEP) || unsafe { std::ptr::read_volatile(&raw const (*pg_sys::WalRcv).receiveStart) != 0 };
    if seen {
        // The positions are read after this.
        fence(Ordering::Acquire);
        END_SEEN.store(true, Ordering::Relaxed);
    }
    seen
}

/// Does any process of the server wait for such an event?
fn anybody_waits(wanted: impl Fn(u32) -> bool) -> bool {
    // SAFETY: one word each, in memory that lives as long as the server; the processes' array has `allProcCount` entries.
    unsafe {
        let procs = &*pg_sys::ProcGlobal;
        let waits = |at: usize| std::ptr::read_volatile(&raw const (*procs.allProcs.add(at)).wait_event_info);
        (0..procs.allProcCount as usize).any(|at| wanted(waits(at)))
    }
}

/// Does any process wait for WAL to come to the disk: by writing or flushing it, or for another that does? A primary's sessions, or
/// a standby's receiver.
pub fn anybody_waits_for_wal() -> bool {
    use pg_sys::WaitEventIO as Io;
    let io = [Io::WAIT_EVENT_WAL_SYNC, Io::WAIT_EVENT_WAL_WRITE, Io::WAIT_EVENT_WAL_INIT_SYNC, Io::WAIT_EVENT_WAL_INIT_WRITE];
    anybody_waits(|event| event == WAL_WRITE_LOCK || io.contains(&event))
}

/// The lock of the process that writes WAL: of all releases the eighth.
const WAL_WRITE_LOCK: u32 = pg_sys::PG_WAIT_LWLOCK | 8;

/// The startup process has tried every source of WAL and sleeps before the next round.
const RETRY_SLEEP: u32 = pg_sys::WaitEventTimeout::WAIT_EVENT_RECOVERY_RETRIEVE_RETRY_INTERVAL;

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

/// How long ago the WAL receiver that streams from this host and port got its last message. Read without its lock: a wrong word costs one try.
///
/// A receiver that begins calls itself streaming, and sets the time of its last message, before it has connected, and until then the host is that of
/// the receiver before it. It is ready to be displayed once it has connected.
pub fn receiver_heard(from: &Address) -> Option<Duration> {
    // SAFETY: words in shared memory, as above; the host is a string that ends within its field, and one that is being written is another one.
    unsafe {
        let receiver = pg_sys::WalRcv;
        let streams = std::ptr::read_volatile(&raw const (*receiver).walRcvState) == pg_sys::WalRcvState::WALRCV_STREAMING
            && std::ptr::read_volatile(&raw const (*receiver).ready_to_display);
        let sender = std::ptr::read_volatile(&raw const (*receiver).sender_host);
        let sender = CStr::from_bytes_until_nul(&sender.map(|letter| letter as u8)).ok()?.to_owned();
        let same = sender.to_bytes() == from.host.as_bytes()
            && std::ptr::read_volatile(&raw const (*receiver).sender_port) == i32::from(from.port);
        let last = std::ptr::read_volatile(&raw const (*receiver).lastMsgReceiptTime);
        let ago_us = u64::try_from(pg_sys::GetCurrentTimestamp() - last).ok()?;
        (streams && same).then(|| Duration::from_micros(ago_us))
    }
}

/// Whose data this is.
pub fn system_id() -> SystemId {
    // SAFETY: reads the control file's copy in shared memory.
    SystemId(unsafe { pg_sys::GetSystemIdentifier() }.to_string())
}

/// The timeline in `pg_control`: that of the last completed checkpoint. Older than the server's own until
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
