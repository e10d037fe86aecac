//! The page: all that processes of this server share, and what is asked of several of its parts at once.
//!
//! Its parts have files of their own. The tenure is `keeper`'s (`keeper::Tenure`); here processes of a server change it and wait for it.

use super::clock::{boottime, wall_ahead_of_ns};
use super::condition::{Condition, LONGEST_SLEEP, Waited};
use super::described::Description;
use super::events::Events;
use super::gate::Gate;
use super::mailbox::Mailbox;
use super::note::Note;
use super::presence::Presence;
use super::recovered::RecoveredTo;
use super::snapshot::{Slots, Snapshot};
use super::timings::Timings;
use crate::ground::error::{self, AskError};
use cluster::closed::Closed;
use cluster::fence::{Mode, Page as FencePage, by_wall_clock};
use cluster::time::Moment;
use keeper::Tenure;
use std::ops::Deref;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64};
use std::time::Duration;

/// The page. All zero is "unmanaged"; [`super::register`] closes it where a scope is set, before any backend runs.
#[repr(C)]
pub struct Page {
    tenure: Tenure,
    /// The lease worker and the arbiter.
    pub presence: Presence,
    /// On a worker of a Citus cluster: the newest term of a coordinator.
    pub coordinator_term: AtomicI64,
    /// What the fence reads of this server was seen not to be what it is taken for: the page stays closed until the server starts again.
    distrusted: AtomicU32,
    /// What recovery brought back.
    pub recovered: RecoveredTo,
    /// Commits that had to wait for a renewal.
    pub commits_waited: AtomicU64,
    /// Commits that were refused; nothing of them was written.
    pub commits_refused: AtomicU64,
    /// Commits that became durable and were not acknowledged.
    pub commits_cut: AtomicU64,
    /// Statements that failed by the disk: full, or with an error.
    pub disk_errors: AtomicU64,
    /// Connections that were refused for want of a slot.
    pub connections_refused: AtomicU64,
    /// The cluster, for SQL.
    pub snapshot: Snapshot,
    /// The slots, for the worker.
    pub slots: Slots,
    /// How long things took.
    pub timings: Timings,
    /// What happened here lately.
    pub events: Events,
    /// Requests of SQL's.
    pub mailbox: Mailbox,
    /// What the arbiter wants the member key to say.
    pub described: Description,
    /// Why this server does not lead.
    pub note: Note,
    /// Where distributed statements wait.
    pub gate: Gate,
    renewed: Condition,
}

static PAGE: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());

/// This is the page, in this process and in those that it starts.
///
/// # Safety
/// The page was laid out, and outlives every process of the server.
pub(super) unsafe fn set_page(page: *mut Page) {
    PAGE.store(page, Release);
}

/// The page, or None before shared memory exists.
pub fn page_if_any() -> Option<&'static Page> {
    // SAFETY: set once by the startup hook to memory that outlives every process of the server; all fields are
    // atomics or condition variables, so shared references from many processes are sound.
    unsafe { PAGE.load(Relaxed).as_ref() }
}

/// The page. Every process that Postgres starts after the library was preloaded has it.
pub fn page() -> &'static Page {
    match page_if_any() {
        Some(page) => page,
        None => error::not_preloaded(),
    }
}

/// What is read of the tenure, and changes for which nobody waits. The others go through [`Page::change`].
impl Deref for Page {
    type Target = Tenure;

    fn deref(&self) -> &Tenure {
        &self.tenure
    }
}

impl Page {
    /// What a page of zeros begins with.
    ///
    /// # Safety
    /// No other process uses the page yet.
    pub(super) unsafe fn begin(&self, mode: Mode) {
        // SAFETY: as demanded.
        unsafe {
            self.renewed.initialise();
            self.mailbox.initialise();
            self.gate.initialise();
        }
        self.tenure.begin(mode);
        self.recovered.begin();
    }

    /// Changes the tenure and wakes all that wait for it.
    pub fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T {
        let answer = change(&self.tenure);
        self.renewed.broadcast();
        answer
    }

    /// The moment that the fence judges by: now, or later where the wall clock says so (`cluster::fence::by_wall_clock`).
    pub fn fence_moment(&self, now: Moment) -> Moment {
        by_wall_clock(now, self.tenure.wall_ahead_ns(), wall_ahead_of_ns(now))
    }

    /// As [`Tenure::renew`].
    pub fn renew(&self, deadline: Moment) {
        self.change(|tenure| tenure.renew(deadline));
    }

    /// What the fence reads of this server can't be relied on: no worker opens the page any more until the server starts again.
    pub fn distrust(&self) {
        self.distrusted.store(1, SeqCst);
    }

    /// See [`Page::distrust`].
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.load(SeqCst) != 0
    }

    /// As [`Tenure::undrain`].
    pub fn undrain(&self) -> bool {
        self.change(Tenure::undrain)
    }

    /// As [`Tenure::seal`].
    pub fn seal(&self) -> bool {
        self.change(|tenure| tenure.seal(boottime))
    }

    /// As [`Tenure::undrain_of`].
    pub fn undrain_of(&self, pid: i32) {
        self.change(|tenure| tenure.undrain_of(pid));
    }

    /// As [`Tenure::end_overdue_drain`].
    pub fn end_overdue_drain(&self, now: Moment) {
        if self.tenure.end_overdue_drain(now) {
            self.change(|_| ());
        }
    }

    /// Sleeps until `done` says Some, `limit` has come, or an interrupt raises its error. Called in
    /// backends; `done` is asked again at each renewal.
    pub fn wait_renewed<T>(&self, limit: Moment, done: impl FnMut(Moment) -> Option<T>) -> Option<T> {
        self.renewed.wait(limit, LONGEST_SLEEP, done)
    }

    /// As [`Page::wait_renewed`], but the end of this session is an answer and no error: a session that has written nothing yet can say so.
    pub fn wait_renewed_or_end<T>(&self, limit: Moment, done: impl FnMut(Moment) -> Option<T>) -> Waited<T> {
        self.renewed.wait_or_end(limit, LONGEST_SLEEP, done)
    }

    /// Asks until `done` says Some, `limit` has come, or an interrupt raises its error. A walsender tells only the backends
    /// that commit how far a standby is, so this looks every few milliseconds.
    pub fn wait_polling<T>(&self, limit: Moment, done: impl FnMut(Moment) -> Option<T>) -> Option<T> {
        self.renewed.wait(limit, Duration::from_millis(10), done)
    }

    /// Why a page that was judged at this moment did not let somebody write.
    pub fn why_closed(&self, page: FencePage, now: Moment) -> String {
        let closed = Closed {
            page,
            now,
            has_led: self.term() != 0,
            holds_for_another: self.held_until().is_some(),
            sealed: self.is_sealed(),
            worker: self.presence.worker_pid().is_some(),
            etcd_age: self.presence.etcd_seen_at().map(|seen| boottime().since(seen)),
            note: &self.note.read(),
        };
        closed.to_string()
    }

    /// The same, of the page as it is now.
    pub fn why_closed_now(&self) -> String {
        self.why_closed(self.fence(), self.fence_moment(boottime()))
    }

    /// Backend: asks the worker and waits for its answer, open to cancellation.
    pub fn ask(&self, json: &str, timeout_ms: u64) -> Result<String, AskError> {
        if self.mode() == Mode::Unmanaged {
            return Err(AskError::Unmanaged);
        }
        if self.presence.worker_pid().is_none() {
            return Err(AskError::NoWorker);
        }
        self.mailbox.ask(json, timeout_ms, || self.presence.wake_worker())
    }
}
