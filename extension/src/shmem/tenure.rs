//! The tenure on the page (`keeper::Tenure`), as processes of a server change it and wait for it.

use super::{LONGEST_SLEEP, Page, Waited, boottime, wait, wait_or_end, wall_ahead_of_ns};
use cluster::fence::by_wall_clock;
use cluster::time::Moment;
use keeper::Tenure;
use pgrx::pg_sys;
use std::ops::Deref;
use std::sync::atomic::Ordering::SeqCst;

/// What is read of the tenure, and changes for which nobody waits. The others go through [`Page::change`].
impl Deref for Page {
    type Target = Tenure;

    fn deref(&self) -> &Tenure {
        &self.tenure
    }
}

impl Page {
    /// Changes the tenure and wakes who waits for it.
    pub fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T {
        let answer = change(&self.tenure);
        // SAFETY: initialised by `startup`, lives as long as the server.
        unsafe { pg_sys::ConditionVariableBroadcast(self.renewed.get()) };
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
        wait(&self.renewed, limit, LONGEST_SLEEP, done)
    }

    /// As [`Page::wait_renewed`], but the end of this session is an answer and no error: who has written nothing yet can say so.
    pub fn wait_renewed_or_end<T>(&self, limit: Moment, done: impl FnMut(Moment) -> Option<T>) -> Waited<T> {
        wait_or_end(&self.renewed, limit, LONGEST_SLEEP, done)
    }
}
