//! The gate: while a planned change of a Citus worker is under way, distributed statements of transactions that have not yet done
//! distributed work wait here. Closed by the arbiter for a bounded time, so that one that died or froze holds nobody for ever.

use super::clock::boottime;
use super::condition::Condition;
use cluster::time::Moment;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use std::time::Duration;

/// What a distributed statement does, and the most that a transaction has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Work {
    /// It only reads.
    Reads,
    /// It changes something, or may.
    Writes,
}

/// A transaction under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// The most that it has done.
    pub work: Work,
    /// In which of the two counts it is.
    round: usize,
}

/// Transactions under way of one round; only those of clients are counted.
#[repr(C)]
struct Round {
    /// Those that have read and not written.
    reading: AtomicU32,
    /// Those that have written.
    writing: AtomicU32,
}

impl Round {
    fn count(&self, work: Work) -> &AtomicU32 {
        match work {
            Work::Reads => &self.reading,
            Work::Writes => &self.writing,
        }
    }

    fn under_way(&self, reads: bool) -> u32 {
        let reading = if reads { self.reading.load(SeqCst) } else { 0 };
        reading + self.writing.load(SeqCst)
    }
}

/// Part of the page. All zero is "open, and nobody is under way".
#[repr(C)]
pub struct Gate {
    /// Until when statements wait; 0: they don't.
    closed_until_ns: AtomicU64,
    /// The backend that closed it.
    closed_by: AtomicI32,
    /// Reads wait too.
    holds_reads: AtomicU32,
    /// Which round new transactions are counted in. It changes when somebody waits for those that are under way while the gate is open: there
    /// are always others under way then, and those that began later are not waited for.
    round: AtomicU32,
    rounds: [Round; 2],
    /// So many wait for transactions to end while the gate is open. One that is ended while it waits stays counted, which costs a broadcast per
    /// transaction and nothing else.
    awaited: AtomicU32,
    /// The gate was opened, or a transaction ended while it was closed.
    changed: Condition,
}

/// Should a broadcast be missed because its sender died.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

impl Gate {
    /// Called once, when the page is made.
    ///
    /// # Safety
    /// No other process uses the page yet.
    pub(super) unsafe fn initialise(&self) {
        // SAFETY: as demanded.
        unsafe { self.changed.initialise() };
    }

    fn present_round(&self) -> usize {
        usize::from(!self.round.load(SeqCst).is_multiple_of(2))
    }

    fn count(&self, passed: Passed) -> &AtomicU32 {
        self.rounds[passed.round].count(passed.work)
    }

    /// Until when a transaction that has done `done` waits before it does `work`; None where it need not.
    fn closed_for(&self, done: Option<Passed>, work: Work) -> Option<Moment> {
        let until = self.closed_until_ns.load(SeqCst);
        if until == 0 {
            return None;
        }
        let holds_reads = self.holds_reads.load(SeqCst) != 0;
        // A session that is waited for is not held; where reads are not held, nobody waits for those that have read.
        let under_way = done.is_some() && holds_reads;
        let held = work == Work::Writes || holds_reads;
        let until = Moment::from_nanos(until);
        (held && !under_way && boottime() < until).then_some(until)
    }

    fn under_way(&self) -> u32 {
        let reads = self.holds_reads.load(SeqCst) != 0;
        self.rounds.iter().map(|round| round.under_way(reads)).sum()
    }

    /// Backend: its transaction, which has done `done`, is about to do `work` for the first time. Counts it as under way,
    /// or waits until the gate is open. True where it waited.
    ///
    /// It counts itself first and looks at the gate then; the arbiter, which closes the gate, does it the other way round. So at least one of two
    /// that come at the same instant sees the other.
    pub fn pass(&self, done: Option<Passed>, work: Work) -> (Passed, bool) {
        let mut waited = false;
        let passed = loop {
            // It stays in the round in which it began.
            let passed = Passed { work, round: done.map_or_else(|| self.present_round(), |done| done.round) };
            self.count(passed).fetch_add(1, SeqCst);
            let Some(until) = self.closed_for(done, work) else { break passed };
            self.count(passed).fetch_sub(1, SeqCst);
            self.changed.broadcast();
            waited = true;
            // An interrupt's ERROR leaves from here, where this transaction is not counted.
            self.changed.wait(until, LONGEST_SLEEP, |_| self.closed_for(done, work).is_none().then_some(()));
        };
        if let Some(done) = done {
            self.count(done).fetch_sub(1, SeqCst);
        }
        (passed, waited)
    }

    /// Backend: its transaction, which did `done`, is over.
    pub fn leave(&self, done: Passed) {
        self.count(done).fetch_sub(1, SeqCst);
        if self.awaited.load(SeqCst) != 0 || self.closed_until_ns.load(SeqCst) != 0 {
            self.changed.broadcast();
        }
    }

    /// Arbiter: distributed statements wait until then, reads too where `reads` says so, or until the session `pid` ends. Closing it
    /// again moves the end.
    pub fn close(&self, until: Moment, reads: bool, pid: i32) {
        self.closed_by.store(pid, SeqCst);
        self.holds_reads.store(reads.into(), SeqCst);
        self.closed_until_ns.store(until.as_nanos(), SeqCst);
    }

    /// Arbiter: who waits goes on. False where the gate was open.
    pub fn open(&self) -> bool {
        let was_closed = self.closed_until_ns.swap(0, SeqCst) != 0;
        if was_closed {
            self.changed.broadcast();
        }
        was_closed
    }

    /// The session `pid` ends, and whom it held goes on.
    pub fn open_of(&self, pid: i32) {
        if self.closed_by.compare_exchange(pid, 0, SeqCst, SeqCst).is_ok() {
            self.open();
        }
    }

    /// Arbiter: waits until transactions under way have ended, or until `limit`. Gives how many have not.
    pub fn await_ended(&self, limit: Moment) -> u32 {
        self.changed.wait(limit, LONGEST_SLEEP, |_| (self.under_way() == 0).then_some(()));
        self.under_way()
    }

    /// Arbiter, before it closes the gate: waits until the transactions that are under way now have ended, or until `limit`, while others begin.
    /// Gives how many have not.
    pub fn await_earlier(&self, reads: bool, limit: Moment) -> u32 {
        let earlier = &self.rounds[self.present_round()];
        self.round.fetch_add(1, SeqCst);
        self.awaited.fetch_add(1, SeqCst);
        self.changed.wait(limit, LONGEST_SLEEP, |_| (earlier.under_way(reads) == 0).then_some(()));
        self.awaited.fetch_sub(1, SeqCst);
        earlier.under_way(reads)
    }
}
