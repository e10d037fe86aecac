//! The page in shared memory: the methods of `extension/src/shmem/tenure.rs`.

use cluster::fence::{self, Mode};
use cluster::time::Moment;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub mode: Mode,
    pub deadline: Moment,
    pub draining_since: Moment,
    pub term: i64,
    pub lease: i64,
    promised_until: Moment,
    taking: bool,
    /// The part of the deadline that stands on promises; for the invariants.
    pub by_promises_until: Moment,
}

impl Page {
    /// As a server starts.
    pub fn closed() -> Page {
        let never = Moment::default();
        Page {
            mode: Mode::Closed,
            deadline: never,
            draining_since: never,
            term: 0,
            lease: 0,
            promised_until: never,
            taking: false,
            by_promises_until: never,
        }
    }

    pub fn fence(&self) -> fence::Page {
        fence::Page {
            mode: self.mode,
            deadline: self.deadline,
            draining_since: self.draining_since,
            draining_until: Moment(std::time::Duration::MAX),
        }
    }

    pub fn open(&mut self, term: i64, lease: i64, deadline: Moment) {
        if matches!(self.mode, Mode::Open | Mode::Draining) && self.term == term {
            self.lease = lease;
            return self.renew(deadline);
        }
        (self.term, self.lease, self.deadline, self.mode) = (term, lease, deadline, Mode::Open);
    }

    pub fn renew(&mut self, deadline: Moment) {
        if matches!(self.mode, Mode::Open | Mode::Draining) {
            self.deadline = self.deadline.max(deadline);
        }
    }

    /// The tenure is about to rest on what may end sooner.
    pub fn shorten(&mut self, deadline: Moment) {
        self.deadline = self.deadline.min(deadline);
    }

    /// Everybody who could take the key has promised not to until then.
    pub fn extend(&mut self, until: Moment) {
        self.renew(until);
        self.by_promises_until = self.by_promises_until.max(until);
    }

    pub fn close(&mut self) {
        (self.mode, self.deadline, self.draining_since) = (Mode::Closed, Moment::default(), Moment::default());
    }

    pub fn promise(&mut self, until: Moment, now: Moment) -> bool {
        let leads = matches!(self.mode, Mode::Open | Mode::Draining) && now < self.deadline;
        if leads || self.taking {
            return false;
        }
        self.promised_until = self.promised_until.max(until);
        true
    }

    pub fn is_promised(&self, now: Moment) -> bool {
        now < self.promised_until
    }

    pub fn begin_taking(&mut self, now: Moment) -> bool {
        self.taking = !self.is_promised(now);
        self.taking
    }

    pub fn end_taking(&mut self) {
        self.taking = false;
    }
}
