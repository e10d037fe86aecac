//! What recovery brought back, until the synchronous standbys have it again.

use super::{Page, wait};
use cluster::time::Moment;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

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
    pub(super) const SETTLED: u64 = 0;
    pub(super) const NOT_LOOKED: u64 = u64::MAX;
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
