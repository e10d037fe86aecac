//! What recovery brought back, until the synchronous standbys have it again.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

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

/// [`Recovered`] as a word of the page.
#[repr(transparent)]
pub struct RecoveredTo(AtomicU64);

const SETTLED: u64 = 0;
const NOT_LOOKED: u64 = u64::MAX;

impl RecoveredTo {
    /// The server starts.
    pub(super) fn begin(&self) {
        self.0.store(NOT_LOOKED, SeqCst);
    }

    /// What is to be awaited before tables are shown.
    pub fn read(&self) -> Recovered {
        match self.0.load(SeqCst) {
            SETTLED => Recovered::Settled,
            NOT_LOOKED => Recovered::NotLooked,
            end => Recovered::To(end),
        }
    }

    /// The first process that looks says how far the server is; the second one finds that. Gives what counts.
    pub fn look(&self, end: u64) -> Recovered {
        let _ = self.0.compare_exchange(NOT_LOOKED, end, SeqCst, SeqCst);
        self.read()
    }

    /// Nothing is to be awaited until the server starts again.
    pub fn settle(&self) {
        self.0.store(SETTLED, SeqCst);
    }
}
