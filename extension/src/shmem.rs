//! The page in shared memory: what backends read before they commit, and what they ask the worker.
//!
//! Nothing here takes a lock that a frozen process could keep from the lease worker: flags and
//! deadlines are atomics, the snapshot has two buffers of which the worker writes the one nobody is
//! sent to, events sit in slots of their own, and the mailbox changes hands by compare-and-swap. The
//! texts are arrays of atomic words, so a torn copy is wrong text that is thrown away, never a race in
//! Rust's sense. Only the two condition variables are Postgres' own; they hold a spinlock for a few
//! instructions, and they are touched after the page itself has been written.

use crate::guc;
use cluster::fence::{Mode, Page as FencePage};
use cluster::time::Moment;
use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, fence};
use std::time::Duration;

/// The longest snapshot, in bytes: some three hundred members.
pub const SNAPSHOT_BYTES_MAX: usize = 128 * 1024;
/// How many events are remembered.
pub const EVENTS_MAX: usize = 256;
/// The longest request and the longest answer, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;
const KIND_BYTES_MAX: usize = 32;
const EVENT_BYTES_MAX: usize = 400;

/// Text as atomic words, `N` of them.
#[repr(C)]
struct Words<const N: usize>([AtomicU64; N]);

impl<const N: usize> Words<N> {
    /// Writes as much of `bytes` as fits and says how much that was.
    fn store(&self, bytes: &[u8]) -> usize {
        let bytes = &bytes[..bytes.len().min(N * 8)];
        for (word, chunk) in self.0.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(padded), Relaxed);
        }
        bytes.len()
    }

    /// Reads `length` bytes, at most all.
    fn load(&self, length: usize) -> Vec<u8> {
        let length = length.min(N * 8);
        let mut bytes: Vec<u8> = self.0.iter().take(length.div_ceil(8)).flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

/// One of the snapshot's two buffers.
#[repr(C)]
struct Buffer {
    length: AtomicU64,
    taken_at_ns: AtomicU64,
    bytes: Words<{ SNAPSHOT_BYTES_MAX / 8 }>,
}

/// One remembered event. `sequence` is odd while somebody writes, zero while it was never written.
#[repr(C)]
struct EventSlot {
    sequence: AtomicU64,
    ordinal: AtomicU64,
    at_unix_us: AtomicI64,
    term: AtomicI64,
    kind_length: AtomicU32,
    text_length: AtomicU32,
    kind: Words<{ KIND_BYTES_MAX / 8 }>,
    text: Words<{ EVENT_BYTES_MAX / 8 }>,
}

/// Whose turn it is at the mailbox; the low byte of its word, the request's number stands above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nobody's.
    Idle = 0,
    /// A backend writes its request.
    Filling = 1,
    /// The request waits for the worker.
    Asked = 2,
    /// The worker serves it.
    Working = 3,
    /// The answer waits for the backend.
    Answered = 4,
    /// The backend went away while the worker serves it; the answer goes nowhere.
    Abandoned = 5,
}

impl Turn {
    fn of(word: u64) -> Turn {
        match word & 0xff {
            1 => Turn::Filling,
            2 => Turn::Asked,
            3 => Turn::Working,
            4 => Turn::Answered,
            5 => Turn::Abandoned,
            _ => Turn::Idle,
        }
    }

    fn word(self, id: u64) -> u64 {
        id << 8 | self as u64
    }
}

#[repr(C)]
struct Mailbox {
    word: AtomicU64,
    requester_pid: AtomicI32,
    claimed_at_ns: AtomicU64,
    request_length: AtomicU64,
    answer_length: AtomicU64,
    request: Words<{ MESSAGE_BYTES_MAX / 8 }>,
    answer: Words<{ MESSAGE_BYTES_MAX / 8 }>,
}

/// The page. All zero is "unmanaged"; [`startup`] closes it where a scope is set, before any backend runs.
#[repr(C)]
pub struct Page {
    mode: AtomicU32,
    deadline_ns: AtomicU64,
    draining_since_ns: AtomicU64,
    term: AtomicI64,
    lease: AtomicI64,
    worker_pid: AtomicI32,
    worker_seen_ns: AtomicU64,
    arbiter_pid: AtomicI32,
    etcd_seen_ns: AtomicU64,
    /// Until when this node has promised the leader not to take its key (`failsafe_mode`).
    promised_until_ns: AtomicU64,
    /// The worker is taking the leader key at this moment.
    taking: AtomicU32,
    /// See [`Recovered`].
    recovered_to: AtomicU64,
    /// Commits that had to wait for a renewal.
    pub commits_waited: AtomicU64,
    /// Commits that were refused; nothing of them was written.
    pub commits_refused: AtomicU64,
    /// Commits that became durable and were not acknowledged.
    pub commits_cut: AtomicU64,
    snapshot_generation: AtomicU64,
    snapshots: [Buffer; 2],
    events_written: AtomicU64,
    events: [EventSlot; EVENTS_MAX],
    mailbox: Mailbox,
    renewed: UnsafeCell<pg_sys::ConditionVariable>,
    answered: UnsafeCell<pg_sys::ConditionVariable>,
}

static PAGE: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());

/// The page, or None before shared memory exists.
pub fn page_if_any() -> Option<&'static Page> {
    // SAFETY: set once by `startup` to memory that outlives every process of the server; all fields are
    // atomics or condition variables, so shared references from many processes are sound.
    unsafe { PAGE.load(Relaxed).as_ref() }
}

/// The page. Every process that Postgres starts after the library was preloaded has it.
pub fn page() -> &'static Page {
    match page_if_any() {
        Some(page) => page,
        None => crate::error::not_preloaded(),
    }
}

/// CLOCK_BOOTTIME now: it goes on while the host sleeps, and nobody can set it.
pub fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Moment(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
}

// ---- Registration ------------------------------------------------------------------------------

static PREVIOUS_STARTUP: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());
#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18"))]
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
pub fn register() {
    // SAFETY: the hook variables belong to this single-threaded process; the previous ones are called from ours.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18"))]
        {
            keep(&PREVIOUS_REQUEST, pg_sys::shmem_request_hook);
            pg_sys::shmem_request_hook = Some(request);
        }
        #[cfg(any(feature = "pg13", feature = "pg14"))]
        pg_sys::RequestAddinShmemSpace(size_of::<Page>());
        keep(&PREVIOUS_STARTUP, pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18"))]
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    call_previous(&PREVIOUS_REQUEST);
    // SAFETY: called from shmem_request_hook, the one place where this is allowed.
    unsafe { pg_sys::RequestAddinShmemSpace(size_of::<Page>()) };
}

/// `AddinShmemInitLock` in `lwlocknames.txt`: its number has been the same since PostgreSQL 9.6.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

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
            pg_sys::ConditionVariableInit((*page).renewed.get());
            pg_sys::ConditionVariableInit((*page).answered.get());
            // A server that belongs to a cluster starts closed, also after a crash of a backend.
            let mode = if guc::scope().is_some() { Mode::Closed } else { Mode::Unmanaged };
            (*page).mode.store(mode as u32, SeqCst);
            (*page).recovered_to.store(Recovered::NOT_LOOKED, SeqCst);
        }
        PAGE.store(page, Release);
        pg_sys::LWLockRelease(lock);
    }
}

// ---- The fence ---------------------------------------------------------------------------------

impl Page {
    /// What the fence judges by.
    ///
    /// The mode is read first, the deadline after it, and every writer works the other way round: a
    /// deadline is in place before the mode that refers to it, and the mode is closed before the deadline
    /// is taken away. So a reader that sees "open" sees the deadline of that tenure, or zero because it
    /// was closed meanwhile, or that of a tenure which began meanwhile and is just as true. A deadline
    /// can't be left over from an older tenure, because closing sets it to zero.
    pub fn fence(&self) -> FencePage {
        let mode = Mode::from_number(self.mode.load(SeqCst));
        let deadline = Moment::from_nanos(self.deadline_ns.load(SeqCst));
        let draining_since = Moment::from_nanos(self.draining_since_ns.load(SeqCst));
        FencePage { mode, deadline, draining_since }
    }

    /// The mode alone.
    pub fn mode(&self) -> Mode {
        Mode::from_number(self.mode.load(SeqCst))
    }

    /// Worker: this node leads with `term` on `lease` until `deadline`. Saying so again in the same term only
    /// renews, so a drain that began meanwhile (or before the worker was restarted) goes on.
    pub fn open(&self, term: i64, lease: i64, deadline: Moment) {
        match self.mode() {
            Mode::Unmanaged => return,
            Mode::Open | Mode::Draining if self.term.load(SeqCst) == term => {
                self.lease.store(lease, SeqCst);
                return self.renew(deadline);
            }
            Mode::Closed | Mode::Open | Mode::Draining => {}
        }
        self.term.store(term, SeqCst);
        self.lease.store(lease, SeqCst);
        self.deadline_ns.store(deadline.as_nanos(), SeqCst);
        self.mode.store(Mode::Open as u32, SeqCst);
        self.broadcast_renewed();
    }

    /// Worker: the lease was renewed. Only moves the deadline, and only forward: draining stays draining,
    /// closed stays closed.
    pub fn renew(&self, deadline: Moment) {
        if matches!(self.mode(), Mode::Open | Mode::Draining) {
            self.deadline_ns.fetch_max(deadline.as_nanos(), SeqCst);
            self.broadcast_renewed();
        }
    }

    /// Worker: this node leads no more.
    pub fn close(&self) {
        if self.mode() == Mode::Unmanaged {
            return;
        }
        self.mode.store(Mode::Closed as u32, SeqCst);
        self.deadline_ns.store(0, SeqCst);
        self.draining_since_ns.store(0, SeqCst);
        self.broadcast_renewed();
    }

    /// A switchover begins: transactions that began before `now` may end, others wait. False where the
    /// page is not open.
    pub fn drain(&self, now: Moment) -> bool {
        if self.mode() != Mode::Open {
            return false;
        }
        self.draining_since_ns.store(now.as_nanos(), SeqCst);
        self.mode.compare_exchange(Mode::Open as u32, Mode::Draining as u32, SeqCst, SeqCst).is_ok()
    }

    /// The switchover was called off; who waits goes on. False where nothing was draining.
    pub fn undrain(&self) -> bool {
        let undrained = self.mode.compare_exchange(Mode::Draining as u32, Mode::Open as u32, SeqCst, SeqCst).is_ok();
        if undrained {
            self.broadcast_renewed();
        }
        undrained
    }

    /// Arbiter, in `failsafe_mode`: the leader can't reach etcd, and this node promises not to take its
    /// key until `until`. False, and nothing is promised, where this node leads or is taking the key.
    ///
    /// Each side writes its own word first and reads the other's after that, all sequentially
    /// consistent: of a promise and a take at the same instant, at least one sees the other.
    pub fn promise(&self, until: Moment, now: Moment) -> bool {
        let before = self.promised_until_ns.fetch_max(until.as_nanos(), SeqCst);
        let leads = matches!(self.mode(), Mode::Open | Mode::Draining) && now < self.fence().deadline;
        if leads || self.taking.load(SeqCst) != 0 {
            self.promised_until_ns.store(before, SeqCst);
            return false;
        }
        true
    }

    /// This node has promised not to take the leader key.
    pub fn is_promised(&self, now: Moment) -> bool {
        now.as_nanos() < self.promised_until_ns.load(SeqCst)
    }

    /// Worker: the key is about to be taken. False where a promise forbids it.
    pub fn begin_taking(&self, now: Moment) -> bool {
        self.taking.store(1, SeqCst);
        let free = !self.is_promised(now);
        if !free {
            self.taking.store(0, SeqCst);
        }
        free
    }

    /// Worker: the take has ended, one way or the other.
    pub fn end_taking(&self) {
        self.taking.store(0, SeqCst);
    }

    /// The term of the present or last tenure; 0 before the first.
    pub fn term(&self) -> i64 {
        self.term.load(SeqCst)
    }

    /// The etcd lease; 0 where there is none.
    pub fn lease(&self) -> i64 {
        self.lease.load(SeqCst)
    }

    /// Worker: the node's etcd lease, also while it does not lead.
    pub fn set_lease(&self, lease: i64) {
        self.lease.store(lease, SeqCst);
    }

    fn broadcast_renewed(&self) {
        // SAFETY: initialised by `startup`, lives as long as the server.
        unsafe { pg_sys::ConditionVariableBroadcast(self.renewed.get()) };
    }

    /// Sleeps until `done` says Some, `limit` has come, or an interrupt raises its error. Called in
    /// backends; `done` is asked again at each renewal.
    pub fn wait_renewed<T>(&self, limit: Moment, done: impl FnMut(Moment) -> Option<T>) -> Option<T> {
        wait(&self.renewed, limit, LONGEST_SLEEP, done)
    }
}

// ---- What recovery brought back ------------------------------------------------------------------

/// How far recovery went when this server last started, until the synchronous standbys have that again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// They have it, or nobody is to be awaited.
    Settled,
    /// Nobody has looked since the server started.
    NotLooked,
    /// The standbys have to confirm up to here.
    To(u64),
}

impl Recovered {
    const SETTLED: u64 = 0;
    const NOT_LOOKED: u64 = u64::MAX;
}

impl Page {
    /// What is to be awaited before tables are shown.
    pub fn recovered(&self) -> Recovered {
        match self.recovered_to.load(SeqCst) {
            Recovered::SETTLED => Recovered::Settled,
            Recovered::NOT_LOOKED => Recovered::NotLooked,
            end => Recovered::To(end),
        }
    }

    /// The first to look says how far the server is; who comes second finds that. Gives what counts.
    pub fn look_at_recovered(&self, end: u64) -> Recovered {
        let _ = self.recovered_to.compare_exchange(Recovered::NOT_LOOKED, end, SeqCst, SeqCst);
        self.recovered()
    }

    /// Nothing is to be awaited until the server starts again.
    pub fn settle_recovered(&self) {
        self.recovered_to.store(Recovered::SETTLED, SeqCst);
    }

    /// Asks until `done` says Some, `limit` has come, or an interrupt raises its error. A walsender tells nobody
    /// but those who commit how far a standby is, so this looks every few milliseconds.
    pub fn wait_polling<T>(&self, limit: Moment, done: impl FnMut(Moment) -> Option<T>) -> Option<T> {
        wait(&self.renewed, limit, Duration::from_millis(10), done)
    }
}

/// Should a broadcast be missed because its sender died.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// One level-triggered wait: asks, sleeps until broadcast or limit (at most `longest`), asks again. An error
/// raised by an interrupt leaves the queue in the abort that follows.
fn wait<T>(
    variable: &UnsafeCell<pg_sys::ConditionVariable>,
    limit: Moment,
    longest: Duration,
    mut done: impl FnMut(Moment) -> Option<T>,
) -> Option<T> {
    // SAFETY: the variable was initialised by `startup`; this process has a PGPROC, as everything that
    // runs transactions or functions has; each prepare is followed by a cancel.
    unsafe { pg_sys::ConditionVariablePrepareToSleep(variable.get()) };
    let outcome = loop {
        let now = boottime();
        if let Some(outcome) = done(now) {
            break Some(outcome);
        }
        if now >= limit {
            break None;
        }
        let sleep_ms = limit.since(now).as_millis().saturating_add(1).min(longest.as_millis());
        // SAFETY: as above.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(
                variable.get(),
                std::ffi::c_long::try_from(sleep_ms).unwrap_or(1000),
                pg_sys::PG_WAIT_EXTENSION,
            );
        }
    };
    // SAFETY: as above.
    unsafe {
        pg_sys::ConditionVariableCancelSleep();
    }
    outcome
}

// ---- Who is there ------------------------------------------------------------------------------

/// This process' id.
fn own_pid() -> i32 {
    // SAFETY: set once at process start.
    unsafe { pg_sys::MyProcPid }
}

fn alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// Worker: says that this process is the lease worker, until it ends.
pub fn attach_worker() {
    page().worker_pid.store(own_pid(), SeqCst);
    // SAFETY: the callback is guarded and touches atomics only.
    unsafe { pg_sys::before_shmem_exit(Some(detach_worker), pg_sys::Datum::from(0)) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach_worker(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any() {
        let _ = page.worker_pid.compare_exchange(own_pid(), 0, SeqCst, SeqCst);
    }
}

/// Backend: this session is the arbiter's, until it ends. Then a drain it asked for ends too, so that
/// an arbiter that dies in a switchover does not leave the primary's clients waiting.
pub fn attach_arbiter() {
    let page = page();
    if page.arbiter_pid.swap(own_pid(), SeqCst) != own_pid() {
        // SAFETY: the callback is guarded and touches atomics and a condition variable that outlives us.
        unsafe { pg_sys::before_shmem_exit(Some(detach_arbiter), pg_sys::Datum::from(0)) };
    }
    wake_worker();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach_arbiter(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(page) = page_if_any()
        && page.arbiter_pid.compare_exchange(own_pid(), 0, SeqCst, SeqCst).is_ok()
    {
        page.undrain();
        wake_worker();
    }
}

/// Makes the lease worker look again. False where there is none.
pub fn wake_worker() -> bool {
    let pid = page().worker_pid.load(SeqCst);
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::USR2).is_ok())
}

/// Makes the arbiter look again: one byte to its socket, never waiting. Whether it arrives is the
/// arbiter's business; it looks by itself too.
pub fn wake_arbiter() {
    let Some(path) = guc::wake_socket() else { return };
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    if socket.set_nonblocking(true).is_ok() {
        let _ = socket.send_to(b"w", path);
    }
}

impl Page {
    /// The lease worker's process; None where there is none.
    pub fn worker_pid(&self) -> Option<i32> {
        Some(self.worker_pid.load(SeqCst)).filter(|pid| *pid != 0 && alive(*pid))
    }

    /// The backend of the attached arbiter; None where none is attached.
    pub fn arbiter_pid(&self) -> Option<i32> {
        Some(self.arbiter_pid.load(SeqCst)).filter(|pid| *pid != 0)
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

// ---- The snapshot ------------------------------------------------------------------------------

impl Page {
    /// Worker, the only writer: publishes what it knows of the cluster, as JSON. False where it is too long.
    ///
    /// Generation n lies in buffer n % 2. Generation n + 1 is written into the other one, so a reader
    /// that finds the same generation before and after its copy has copied one whole snapshot; and a
    /// worker that is frozen while it writes leaves the last one readable.
    pub fn publish_snapshot(&self, json: &[u8]) -> bool {
        if json.len() > SNAPSHOT_BYTES_MAX {
            return false;
        }
        let next = self.snapshot_generation.load(SeqCst) + 1;
        let buffer = &self.snapshots[usize::from(next % 2 == 1)];
        // Keeps the words below from being written before the last generation was announced.
        fence(SeqCst);
        let length = buffer.bytes.store(json);
        buffer.length.store(length as u64, Relaxed);
        buffer.taken_at_ns.store(boottime().as_nanos(), Relaxed);
        self.snapshot_generation.store(next, SeqCst);
        true
    }

    /// The last snapshot and when it was taken; None where there was none since the server started.
    pub fn read_snapshot(&self) -> Option<(Vec<u8>, u64)> {
        // Each turn in vain means that the worker published twice during one copy.
        for _ in 0..100 {
            let generation = self.snapshot_generation.load(SeqCst);
            if generation == 0 {
                return None;
            }
            let buffer = &self.snapshots[usize::from(generation % 2 == 1)];
            let length = usize::try_from(buffer.length.load(Relaxed)).unwrap_or(0);
            let taken_at_ns = buffer.taken_at_ns.load(Relaxed);
            let bytes = buffer.bytes.load(length);
            fence(Acquire);
            if self.snapshot_generation.load(SeqCst) == generation {
                return Some((bytes, taken_at_ns));
            }
        }
        None
    }
}

// ---- Events ------------------------------------------------------------------------------------

/// Something that was decided or happened here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unix time, microseconds.
    pub at_unix_us: i64,
    /// One word.
    pub kind: String,
    /// The term it happened in; 0 where there was none.
    pub term: i64,
    /// The sentence.
    pub text: String,
}

/// `text` cut to `most` bytes, between characters.
fn cut_text(text: &str, most: usize) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(most)]
}

impl Page {
    /// Remembers an event; the oldest is forgotten. From any process.
    pub fn record_event(&self, kind: &str, text: &str, term: i64) {
        // A slot that a frozen process is writing is passed over.
        for _ in 0..8 {
            let ordinal = self.events_written.fetch_add(1, SeqCst);
            let slot = &self.events[usize::try_from(ordinal % EVENTS_MAX as u64).unwrap_or(0)];
            let sequence = slot.sequence.load(SeqCst);
            if sequence % 2 == 1 || slot.sequence.compare_exchange(sequence, sequence + 1, SeqCst, SeqCst).is_err() {
                continue;
            }
            fence(SeqCst);
            slot.ordinal.store(ordinal, Relaxed);
            slot.at_unix_us.store(jiff::Timestamp::now().as_microsecond(), Relaxed);
            slot.term.store(term, Relaxed);
            slot.kind_length.store(slot.kind.store(cut_text(kind, KIND_BYTES_MAX)) as u32, Relaxed);
            slot.text_length.store(slot.text.store(cut_text(text, EVENT_BYTES_MAX)) as u32, Relaxed);
            slot.sequence.store(sequence + 2, SeqCst);
            return;
        }
    }

    /// What is remembered, oldest first.
    pub fn events(&self) -> Vec<Event> {
        let mut events: Vec<(u64, Event)> = self.events.iter().filter_map(EventSlot::read).collect();
        events.sort_by_key(|(ordinal, _)| *ordinal);
        events.into_iter().map(|(_, event)| event).collect()
    }
}

impl EventSlot {
    fn read(&self) -> Option<(u64, Event)> {
        for _ in 0..100 {
            let before = self.sequence.load(SeqCst);
            if before == 0 || before % 2 == 1 {
                return None;
            }
            let text = |words: Vec<u8>| String::from_utf8_lossy(&words).into_owned();
            let event = Event {
                at_unix_us: self.at_unix_us.load(Relaxed),
                kind: text(self.kind.load(self.kind_length.load(Relaxed) as usize)),
                term: self.term.load(Relaxed),
                text: text(self.text.load(self.text_length.load(Relaxed) as usize)),
            };
            let ordinal = self.ordinal.load(Relaxed);
            fence(Acquire);
            if self.sequence.load(SeqCst) == before {
                return Some((ordinal, event));
            }
        }
        None
    }
}

// ---- The mailbox -------------------------------------------------------------------------------

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No scope is set.
    #[error("this server is not part of a cluster: tenure.scope is empty")]
    Unmanaged,
    /// Nobody is there to ask.
    #[error("the pg_tenure lease worker is not running")]
    NoWorker,
    /// Another session's request occupies the mailbox.
    #[error("the pg_tenure lease worker is busy with another request")]
    Busy,
    /// The request does not fit.
    #[error("the request is {bytes} bytes long, and at most {MESSAGE_BYTES_MAX} fit")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The worker did not begin; nothing was done.
    #[error("the pg_tenure lease worker did not take up the request within {timeout_ms} ms")]
    NotTaken {
        /// How long was waited.
        timeout_ms: u64,
    },
    /// The worker began, and how it ended is not known.
    #[error("the pg_tenure lease worker did not answer within {timeout_ms} ms")]
    NotAnswered {
        /// How long was waited.
        timeout_ms: u64,
    },
}

/// A backend's hold on the mailbox; leaving in any way, also by an error, gives it back.
struct Claim<'a> {
    mailbox: &'a Mailbox,
    id: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let change =
            |from: Turn, to: Turn| self.mailbox.word.compare_exchange(from.word(self.id), to.word(self.id), SeqCst, SeqCst).is_ok();
        // In the order in which the turns follow each other, so that none can be missed between two tries.
        let _ = change(Turn::Filling, Turn::Idle)
            || change(Turn::Asked, Turn::Idle)
            || change(Turn::Working, Turn::Abandoned)
            || change(Turn::Answered, Turn::Idle);
    }
}

impl Mailbox {
    /// Takes the mailbox where it is free, or where its holder is gone without giving it back.
    fn claim(&self, now: Moment) -> Option<Claim<'_>> {
        /// Longer than any request is waited for: its backend was ended between two instructions.
        const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
        let word = self.word.load(SeqCst);
        let forgotten = || {
            let claimed_at = Moment::from_nanos(self.claimed_at_ns.load(SeqCst));
            !alive(self.requester_pid.load(SeqCst)) || now.since(claimed_at) > FORGOTTEN_AFTER
        };
        let free = match Turn::of(word) {
            Turn::Idle => true,
            Turn::Filling | Turn::Asked | Turn::Answered => forgotten(),
            // The worker's turn: it gives the mailbox back, or a new worker does.
            Turn::Working | Turn::Abandoned => false,
        };
        let id = (word >> 8) + 1;
        if !free || self.word.compare_exchange(word, Turn::Filling.word(id), SeqCst, SeqCst).is_err() {
            return None;
        }
        self.requester_pid.store(own_pid(), SeqCst);
        self.claimed_at_ns.store(now.as_nanos(), SeqCst);
        Some(Claim { mailbox: self, id })
    }
}

impl Page {
    /// Backend: asks the worker and waits for its answer, open to cancellation.
    pub fn ask(&self, json: &str, timeout_ms: u64) -> Result<String, AskError> {
        if self.mode() == Mode::Unmanaged {
            return Err(AskError::Unmanaged);
        }
        if self.worker_pid().is_none() {
            return Err(AskError::NoWorker);
        }
        if json.len() > MESSAGE_BYTES_MAX {
            return Err(AskError::TooLong { bytes: json.len() });
        }
        let mailbox = &self.mailbox;
        let limit = boottime() + Duration::from_millis(timeout_ms);
        let claim = wait(&self.answered, limit, LONGEST_SLEEP, |now| mailbox.claim(now)).ok_or(AskError::Busy)?;
        let id = claim.id;
        let length = mailbox.request.store(json.as_bytes());
        mailbox.request_length.store(length as u64, SeqCst);
        if mailbox.word.compare_exchange(Turn::Filling.word(id), Turn::Asked.word(id), SeqCst, SeqCst).is_err() {
            return Err(AskError::Busy);
        }
        wake_worker();
        let answer = wait(&self.answered, limit, LONGEST_SLEEP, |_| {
            (mailbox.word.load(SeqCst) == Turn::Answered.word(id)).then(|| mailbox.answer.load(mailbox.answer_length.load(SeqCst) as usize))
        });
        let taken = mailbox.word.load(SeqCst) != Turn::Asked.word(id);
        drop(claim);
        self.broadcast_answered();
        match answer {
            Some(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
            None if taken => Err(AskError::NotAnswered { timeout_ms }),
            None => Err(AskError::NotTaken { timeout_ms }),
        }
    }

    /// Worker: the request that waits, with its number; None where none does.
    pub fn take_request(&self) -> Option<(u64, String)> {
        let mailbox = &self.mailbox;
        let word = mailbox.word.load(SeqCst);
        let id = word >> 8;
        if Turn::of(word) != Turn::Asked || mailbox.word.compare_exchange(word, Turn::Working.word(id), SeqCst, SeqCst).is_err() {
            return None;
        }
        let bytes = mailbox.request.load(mailbox.request_length.load(SeqCst) as usize);
        Some((id, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Worker: answers request `id`. An answer too long is replaced by an error that says so.
    pub fn answer(&self, id: u64, json: String) {
        let mailbox = &self.mailbox;
        let json = if json.len() > MESSAGE_BYTES_MAX { r#"{"error":"the answer is too long for shared memory"}"#.to_owned() } else { json };
        let length = mailbox.answer.store(json.as_bytes());
        mailbox.answer_length.store(length as u64, SeqCst);
        let change = |from: Turn, to: Turn| mailbox.word.compare_exchange(from.word(id), to.word(id), SeqCst, SeqCst).is_ok();
        let _ = change(Turn::Working, Turn::Answered) || change(Turn::Abandoned, Turn::Idle);
        self.broadcast_answered();
    }

    /// Worker, once at its start: gives back what its predecessor left in the middle.
    pub fn forget_request(&self) {
        let word = self.mailbox.word.load(SeqCst);
        if matches!(Turn::of(word), Turn::Working | Turn::Abandoned) {
            self.answer(word >> 8, r#"{"error":"the lease worker was restarted while it served the request","hint":"Look at tenure.status() and tenure.events() before trying again."}"#.to_owned());
        }
    }

    fn broadcast_answered(&self) {
        // SAFETY: initialised by `startup`, lives as long as the server.
        unsafe { pg_sys::ConditionVariableBroadcast(self.answered.get()) };
    }
}
