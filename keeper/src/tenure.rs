//! The tenure on the page: mode, deadline, term, drain, and promises not to take it over.
//!
//! Every field is an atomic, so the page may lie in memory that many processes share, and a process that is frozen or killed in the middle
//! of a change holds nobody up. A process that waits for a change is woken by the one that made it: [`crate::Host::change`].

use cluster::citus;
use cluster::fence::{Mode, Page as FencePage};
use cluster::time::Moment;
use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64};

/// A promise that is said again until the same moment moves by a nanosecond each time; two that are meant to differ are further apart.
const SAID_AGAIN_NS: u64 = 1000;

/// What the fence goes by. All zero is "unmanaged".
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tenure {
    mode: AtomicU32,
    deadline_ns: AtomicU64,
    /// The wall clock less CLOCK_BOOTTIME before the renewal was sent that the deadline goes by.
    wall_ahead_ns: AtomicI64,
    draining_since_ns: AtomicU64,
    draining_until_ns: AtomicU64,
    /// The backend that began the drain; 0 where the worker did.
    drain_pid: AtomicI32,
    term: AtomicI64,
    /// Which making of the cluster's keys the worker's last view was of.
    generation: AtomicU32,
    /// The term with the making of the keys that it is of: what is compared with others' terms ([`citus::order`]).
    token: AtomicI64,
    lease: AtomicI64,
    /// Until when this node has promised the leader not to take its key (`failsafe_mode`).
    promised_until_ns: AtomicU64,
    /// Until when this node leads a standby cluster; 0 where it does not.
    held_until_ns: AtomicU64,
    /// The worker began the drain, because the cluster is to follow another one.
    demoting: AtomicU32,
    /// See [`Tenure::seal`]. Set once; nothing takes it back.
    sealed: AtomicU32,
    /// The worker is taking the leader key at this moment.
    taking: AtomicU32,
    /// This server is bound by a deposition, or is about to be.
    deposing: AtomicU32,
    /// This server has said a word that counts for a vacancy ([`cluster::failsafe::Spoken`]), or is about to.
    spoken: AtomicU32,
}

/// The words of a page at one look, for people and for judges; the fence asks [`Tenure::fence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The mode.
    pub mode: Mode,
    /// The deadline; zero where it is closed.
    pub deadline: Moment,
    /// The term of the present or last tenure.
    pub term: i64,
    /// The term with the making of the keys that it is of.
    pub token: i64,
    /// Its lease.
    pub lease: i64,
}

thread_local! {
    /// What the wall clock was ahead before the last renewal was sent that succeeded, in this process.
    static WALL_AHEAD_NS: Cell<Option<i64>> = const { Cell::new(None) };
}

/// For a process that keeps a lease: a renewal that was sent after this look at the wall clock (less CLOCK_BOOTTIME, in nanoseconds) has succeeded, and deadlines
/// go by it from here on. A lease that was made or found since then is judged by the earlier look, which can only close too early.
pub fn renewal_was_sent_at(wall_ahead_ns: i64) {
    WALL_AHEAD_NS.set(Some(wall_ahead_ns));
}

impl Tenure {
    /// As a server starts: on a cluster's data it is closed until the worker opens it.
    pub fn begin(&self, mode: Mode) {
        self.mode.store(mode as u32, SeqCst);
    }

    /// How far the wall clock was ahead before the renewal was sent that the deadline goes by, in nanoseconds.
    pub fn wall_ahead_ns(&self) -> i64 {
        self.wall_ahead_ns.load(SeqCst)
    }

    /// After a deadline was stored: a reader that sees the new look has the new deadline, or an older one which that renewal has made true as well.
    fn store_wall_clock(&self) {
        if let Some(ahead) = WALL_AHEAD_NS.get() {
            self.wall_ahead_ns.store(ahead, SeqCst);
        }
    }

    /// As it is now.
    pub fn look(&self) -> Look {
        let fence = self.fence();
        Look { mode: fence.mode, deadline: fence.deadline, term: self.term(), token: self.token(), lease: self.lease() }
    }

    /// What the fence judges by.
    ///
    /// The mode is read first, the deadline after it, and every writer works the other way round: a
    /// deadline is in place before the mode that refers to it, and the mode is closed before the deadline
    /// is taken away. So a reader that sees "open" sees the deadline of that tenure, or zero because it
    /// was closed meanwhile, or that of a tenure which began meanwhile and is just as true. A deadline
    /// can't be left over from an older tenure, because closing sets it to zero.
    pub fn fence(&self) -> FencePage {
        let mode = self.mode();
        let deadline = Moment::from_nanos(self.deadline_ns.load(SeqCst));
        let [draining_since, draining_until] = if mode == Mode::Draining {
            [&self.draining_since_ns, &self.draining_until_ns].map(|moment| Moment::from_nanos(moment.load(SeqCst)))
        } else {
            [Moment::default(); 2]
        };
        FencePage { mode, deadline, draining_since, draining_until }
    }

    /// The mode alone.
    ///
    /// The seal is read after the word: a process that sees a word that was written after the seal (a drain that ended with its session, a worker that
    /// opens) sees the seal too.
    pub fn mode(&self) -> Mode {
        match Mode::from_number(self.mode.load(SeqCst)) {
            Mode::Unmanaged => Mode::Unmanaged,
            _ if self.is_sealed() => Mode::Closed,
            mode => mode,
        }
    }

    /// Worker: this node leads with `term` on `lease` until `deadline`. Saying so again in the same term of the same keys only
    /// renews, so a drain that began meanwhile (or before the worker was restarted) goes on. Keys that were made again may begin with the very
    /// number of the term before: that is another tenure.
    pub fn open(&self, term: i64, lease: i64, deadline: Moment) {
        // One word: a process that read a new generation beside an old term would speak for a tenure that never was.
        let token = citus::order(self.generation.load(SeqCst), term);
        match self.mode() {
            Mode::Unmanaged => return,
            Mode::Open | Mode::Draining if self.term.load(SeqCst) == term && self.token.load(SeqCst) == token => {
                self.lease.store(lease, SeqCst);
                return self.renew(deadline);
            }
            Mode::Closed | Mode::Open | Mode::Draining => {}
        }
        self.held_until_ns.store(0, SeqCst);
        self.term.store(term, SeqCst);
        self.token.store(token, SeqCst);
        self.lease.store(lease, SeqCst);
        self.deadline_ns.store(deadline.as_nanos(), SeqCst);
        self.store_wall_clock();
        self.mode.store(Mode::Open as u32, SeqCst);
    }

    /// Worker: the keys as they are from here on, before anything is opened by them.
    pub fn know_generation(&self, generation: u32) {
        self.generation.store(generation, SeqCst);
    }

    /// Worker: the lease was renewed. Only moves the deadline, and only forward: draining stays draining,
    /// closed stays closed.
    pub fn renew(&self, deadline: Moment) {
        if matches!(self.mode(), Mode::Open | Mode::Draining) {
            self.deadline_ns.fetch_max(deadline.as_nanos(), SeqCst);
            self.store_wall_clock();
        }
    }

    /// Worker: the tenure is about to rest on what may end sooner. Only moves the deadline, and only back.
    pub fn shorten(&self, deadline: Moment) {
        self.deadline_ns.fetch_min(deadline.as_nanos(), SeqCst);
    }

    /// Worker: this node leads no more.
    pub fn close(&self) {
        if self.mode() == Mode::Unmanaged {
            return;
        }
        self.mode.store(Mode::Closed as u32, SeqCst);
        self.deadline_ns.store(0, SeqCst);
        self.draining_since_ns.store(0, SeqCst);
        self.held_until_ns.store(0, SeqCst);
    }

    /// Worker: this node leads a standby cluster until `deadline`. The fence stays closed: no commit is to be
    /// acknowledged here, also not if somebody promotes the server by hand.
    pub fn stay_closed_until(&self, deadline: Moment) {
        if self.mode() != Mode::Closed {
            self.close();
        }
        self.held_until_ns.store(deadline.as_nanos(), SeqCst);
    }

    /// Worker: the cluster is to follow another one, and this server is primary still. True where the drain began now.
    pub fn drain_for_demotion(&self, now: Moment) -> bool {
        let begun = self.drain(now, Moment::from_nanos(u64::MAX), 0);
        if begun {
            self.demoting.store(1, SeqCst);
        }
        begun
    }

    /// Worker: the cluster follows nobody. Ends a drain that was begun for that, also by a worker before this one.
    pub fn forget_demotion(&self) {
        if self.demoting.swap(0, SeqCst) != 0 {
            self.undrain();
        }
    }

    /// Until when this node leads a standby cluster; None where it does not.
    pub fn held_until(&self) -> Option<Moment> {
        let until = self.held_until_ns.load(SeqCst);
        (until != 0 && self.mode() == Mode::Closed).then(|| Moment::from_nanos(until))
    }

    /// A switchover begins: transactions that began before `now` may end, others wait, until `until` or until the session `pid` ends.
    /// False where the page is not open.
    pub fn drain(&self, now: Moment, until: Moment, pid: i32) -> bool {
        self.end_overdue_drain(now);
        if self.mode() != Mode::Open {
            return false;
        }
        self.draining_since_ns.store(now.as_nanos(), SeqCst);
        self.draining_until_ns.store(until.as_nanos(), SeqCst);
        self.drain_pid.store(pid, SeqCst);
        self.mode.compare_exchange(Mode::Open as u32, Mode::Draining as u32, SeqCst, SeqCst).is_ok()
    }

    /// The switchover was called off; what waits goes on. False where nothing was draining.
    pub fn undrain(&self) -> bool {
        self.mode.compare_exchange(Mode::Draining as u32, Mode::Open as u32, SeqCst, SeqCst).is_ok()
    }

    /// The server is about to be stopped, and another database system is to go on from its last commit: this one lets nobody commit any more
    /// until it is started again, whatever else is ended, opened or renewed. True where a drain has held new transactions until now without a gap.
    pub fn seal(&self, now: impl FnOnce() -> Moment) -> bool {
        self.sealed.store(1, SeqCst);
        // Looked at after the seal: a drain that is still in force now was so at the moment of the seal.
        let [since, until] = [&self.draining_since_ns, &self.draining_until_ns].map(|moment| Moment::from_nanos(moment.load(SeqCst)));
        let word = Mode::from_number(self.mode.load(SeqCst));
        word == Mode::Draining && (since..until).contains(&now())
    }

    /// See [`Tenure::seal`].
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(SeqCst) != 0
    }

    /// The session `pid` ends, and with it the drain that it began.
    pub fn undrain_of(&self, pid: i32) {
        if self.drain_pid.compare_exchange(pid, 0, SeqCst, SeqCst).is_ok() {
            self.undrain();
        }
    }

    /// A drain whose time is over holds nobody; this says so on the page too. True where it did.
    pub fn end_overdue_drain(&self, now: Moment) -> bool {
        let fence = self.fence();
        fence.mode == Mode::Draining && !fence.drains(now) && self.undrain()
    }

    /// Arbiter, in `failsafe_mode`: the leader can't reach etcd, and this node promises not to take its
    /// key until `until`. False, and nothing is promised, where this node leads, is taking the key, deposes the leader or has said a word that counts.
    ///
    /// Each side writes its own word first and reads the other's after that, all sequentially
    /// consistent: of a promise and a take at the same instant, at least one sees the other.
    pub fn promise(&self, until: Moment, now: Moment) -> bool {
        let said = self.say_promise(until);
        let leads = matches!(self.mode(), Mode::Open | Mode::Draining) && now < self.fence().deadline;
        let has_a_word = self.deposing.load(SeqCst) != 0 || self.spoken.load(SeqCst) != 0;
        if leads || self.taking.load(SeqCst) != 0 || has_a_word {
            self.take_promise_back(said);
            return false;
        }
        true
    }

    /// Writes a promise; gives what stood there before, and what stands there now: a value that nobody wrote before, so that a session that takes it back
    /// takes back no other promise. Several sessions may promise at once, one of them a backend that was frozen since before the others began.
    fn say_promise(&self, until: Moment) -> (u64, u64) {
        let longer = |before: u64| if before < until.as_nanos() { until.as_nanos() } else { before.saturating_add(1) };
        let before = match self.promised_until_ns.fetch_update(SeqCst, SeqCst, |before| Some(longer(before))) {
            Ok(before) | Err(before) => before,
        };
        (before, longer(before))
    }

    /// Only where nobody has promised since: a session that did counts on what stands there.
    fn take_promise_back(&self, (before, said): (u64, u64)) {
        let _ = self.promised_until_ns.compare_exchange(said, before, SeqCst, SeqCst);
    }

    /// Arbiter: this promise is over before its time. False where it is another that binds by now.
    pub fn end_promise(&self, until: Moment) -> bool {
        let until = until.as_nanos();
        // Said again, a promise lies some nanoseconds later.
        let ours = |promised: u64| (until..until.saturating_add(SAID_AGAIN_NS)).contains(&promised).then_some(0);
        self.promised_until_ns.fetch_update(SeqCst, SeqCst, ours).is_ok()
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

    /// Worker: the key is in this node's name, and the page may be about to open by it. Said before promises are looked at.
    pub fn begin_opening(&self) {
        self.taking.store(1, SeqCst);
    }

    /// Worker: the take, or the opening, has ended, one way or the other.
    pub fn end_taking(&self) {
        self.taking.store(0, SeqCst);
    }

    /// Worker: this server is about to bind itself by a deposition. False where a promise forbids it; the two exclude each other like a promise and a take.
    pub fn begin_deposing(&self, now: Moment) -> bool {
        let before = self.deposing.swap(1, SeqCst);
        let free = !self.is_promised(now);
        if !free {
            self.deposing.store(before, SeqCst);
        }
        free
    }

    /// Worker: this server is bound, since before this page or this worker began.
    pub fn deposes_by_its_bond(&self) {
        self.deposing.store(1, SeqCst);
    }

    /// Worker: it is bound no more.
    pub fn end_deposing(&self) {
        self.deposing.store(0, SeqCst);
    }

    /// Worker: this server is about to say a word that counts for a vacancy. False where a promise forbids it; the two exclude each other like a promise and
    /// a take.
    pub fn begin_speaking(&self, now: Moment) -> bool {
        let before = self.spoken.swap(1, SeqCst);
        let free = !self.is_promised(now);
        if !free {
            self.spoken.store(before, SeqCst);
        }
        free
    }

    /// Worker: this server has said such a word, before this page or this worker began.
    pub fn has_spoken(&self) {
        self.spoken.store(1, SeqCst);
    }

    /// Worker: the vacancy is over, or the word was not said.
    pub fn end_speaking(&self) {
        self.spoken.store(0, SeqCst);
    }

    /// The term of the present or last tenure; 0 before the first.
    pub fn term(&self) -> i64 {
        self.term.load(SeqCst)
    }

    /// The same, ordered also where the cluster's keys were made again and revisions began again; 0 before the first.
    pub fn token(&self) -> i64 {
        self.token.load(SeqCst)
    }

    /// The etcd lease; 0 where there is none.
    pub fn lease(&self) -> i64 {
        self.lease.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn an_equal_term_of_keys_that_were_made_anew_is_another_tenure() {
        let page = Tenure::default();
        page.begin(Mode::Closed);
        page.know_generation(1);
        page.open(7, 100, at(10));
        let first = page.token();
        assert!(page.drain(at(1), at(5), 0));
        page.open(7, 100, at(12));
        assert_eq!((page.mode(), page.token()), (Mode::Draining, first), "said again, it only renews");
        page.know_generation(2);
        page.open(7, 100, at(14));
        assert!(page.token() > first, "fencing_token grows with the making of the keys");
        assert_eq!((page.mode(), page.term(), page.token()), (Mode::Open, 7, citus::order(2, 7)));
    }

    #[test]
    fn nothing_opens_a_page_that_is_sealed() {
        let sealed = |drained: bool| {
            let page = Tenure::default();
            page.begin(Mode::Closed);
            page.open(7, 100, at(20));
            assert!(!drained || page.drain(at(1), at(5), 42));
            page
        };
        // (a drain is in force, when the seal is set, the drain has held until then)
        for (drained, now, held) in [(true, 2, true), (true, 5, false), (false, 2, false)] {
            let page = sealed(drained);
            assert_eq!(page.seal(|| at(now)), held, "{drained} {now}");
            // (the drain by its session's end, the drain by hand)
            for by_hand in [false, true] {
                page.renew(at(30));
                if by_hand {
                    page.undrain();
                } else {
                    page.undrain_of(42);
                }
                assert_eq!((page.mode(), page.fence().mode), (Mode::Closed, Mode::Closed));
            }
            page.close();
            page.open(8, 101, at(40));
            assert!(!page.drain(at(3), at(9), 0) && !page.end_overdue_drain(at(19)));
            assert_eq!(page.fence().mode, Mode::Closed, "{drained} {now}");
            let (began, later) = (at(0), at(2));
            assert_eq!(cluster::fence::judge(page.fence(), began, later), cluster::fence::Ruling::Wait, "who began before it too");
        }
        let alone = Tenure::default();
        assert!(!alone.seal(|| at(1)));
        assert_eq!(alone.mode(), Mode::Unmanaged, "a server of no cluster is nobody's to close");
    }

    #[test]
    fn a_promise_that_is_refused_takes_no_other_one_back() {
        // (until when the refused one was to bind, until when the other one binds)
        for (refused, given) in [(20, 30), (20, 20), (20, 10)] {
            let page = Tenure::default();
            page.begin(Mode::Closed);
            assert!(page.begin_taking(at(1)));
            // Its backend is frozen after its word, while the take ends and another session promises.
            let said = page.say_promise(at(refused));
            page.end_taking();
            assert!(page.promise(at(given), at(1)));
            page.take_promise_back(said);
            assert!(page.is_promised(at(given - 1)), "refused {refused}, given {given}");
        }
        let page = Tenure::default();
        page.begin(Mode::Closed);
        assert!(page.begin_taking(at(1)));
        assert!(!page.promise(at(20), at(1)) && !page.is_promised(at(2)), "alone, it leaves nothing");
        page.end_taking();
        page.begin_opening();
        assert!(!page.promise(at(20), at(1)), "and none is given while the page may be about to open");
        page.end_taking();
        assert!(page.promise(at(20), at(1)) && page.promise(at(20), at(1)));
        assert!(page.end_promise(at(20)));
        assert!(page.begin_speaking(at(1)));
        assert!(!page.promise(at(20), at(1)) && !page.is_promised(at(1)), "nor once it has a word in a vacancy");
        page.end_speaking();
        assert!(page.promise(at(20), at(1)) && !page.begin_speaking(at(19)), "and who has promised has no word");
        assert!(page.promise(at(21), at(1)), "of which nothing is left");
        assert!(page.end_promise(at(21)) && page.promise(at(20), at(1)));
        assert!(!page.end_promise(at(19)) && page.end_promise(at(20)) && !page.is_promised(at(1)));
    }
}
