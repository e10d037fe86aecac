//! Hearing: a leader by a node's own ears, never by etcd. When it counts as lost, and how soon to try again.

use crate::leader::Term;
use crate::time::Moment;
use std::time::Duration;

/// A leader that gave no sign for so many periods is lost; a question is answered late until then.
pub const PERIODS: u32 = 3;

/// The leader is listened to at most this often, whatever the TTL.
pub const PERIOD_MINIMUM: Duration = Duration::from_millis(200);

/// A refused connection is tried once more after this long: one refusal may be a listener that is being replaced.
pub const REFUSED_AGAIN: Duration = Duration::from_millis(50);

/// How often the leader is listened to, and how long one try takes. An answer may take [`PERIODS`] of them: what was asked by one try is heard by a later one.
pub fn period(ttl: Duration) -> Duration {
    (ttl / 20).max(PERIOD_MINIMUM)
}

/// What one try to hear the leader gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its WAL came, or its arbiter or its Postgres answered: it lives, whatever it is busy with. So long before the try ended.
    Heard(Duration),
    /// The host answers, and neither process is there.
    Refused,
    /// Nothing at all.
    Silent,
}

/// What this node knows of the leader by its own ears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ears {
    /// Not enough to say.
    #[default]
    Unsure,
    /// It was heard at the last try.
    Hears,
    /// It is lost.
    Lost,
}

/// The answers of one leader in one term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hearing {
    term: Term,
    first: Option<Moment>,
    last: Option<Moment>,
    tried: Option<Moment>,
    awake: Option<Moment>,
    refused: u32,
    silent: u32,
    told: Ears,
}

impl Hearing {
    /// Notes what a try gave that began at `began` and ended at `ended`. A try that took far longer than it may, or began far later than it should, says more
    /// of this node, which was held up itself, than of the leader: silence is counted from then.
    #[must_use]
    pub fn noted(self, term: Term, answer: Answer, began: Moment, ended: Moment, period: Duration) -> Hearing {
        let before = if self.term == term { self } else { Hearing { term, ..Hearing::default() } };
        let slept = before.tried.is_some_and(|tried| began.since(tried) > period * 2);
        let hung = ended.since(began) > period * 2;
        let awake = if hung { Some(ended) } else { before.awake.max(slept.then_some(began)) };
        let before = Hearing { tried: Some(ended), awake, ..before };
        match answer {
            Answer::Heard(ago) => {
                let at = ended - ago;
                Hearing { first: before.first.or(Some(at)), last: before.last.max(Some(at)), refused: 0, silent: 0, ..before }
            }
            _ if hung => before,
            Answer::Refused => Hearing { refused: before.refused + 1, ..before },
            Answer::Silent => Hearing { silent: before.silent + 1, ..before },
        }
    }

    /// What that comes to. A leader is lost that refused twice in a row, or has given no sign for [`PERIODS`] in which this node was awake, although asked twice within them.
    /// A leader that was never heard in its term, or not for a TTL yet, is not lost: the cluster is just coming up.
    pub fn ears(&self, term: Term, now: Moment, ttl: Duration) -> Ears {
        let (Some(first), Some(last)) = (self.first.filter(|_| self.term == term), self.last) else { return Ears::Unsure };
        if self.refused + self.silent == 0 {
            return Ears::Hears;
        }
        let known = last.since(first) >= ttl;
        let quiet = now.since(self.awake.map_or(last, |awake| awake.max(last)));
        let silent = self.refused + self.silent >= 2 && quiet >= period(ttl) * PERIODS;
        if known && (self.refused >= 2 || silent) { Ears::Lost } else { Ears::Unsure }
    }

    /// What it comes to now, where that is news since this was asked last: the leader is lost, or was and is not any more, or was heard and is not. Silence becomes a loss
    /// by the time that passes, also between two tries, so what is news is judged by what was told and not by the try before.
    pub fn news(&mut self, now: Moment, ttl: Duration) -> Option<Ears> {
        let ears = self.ears(self.term, now, ttl);
        let before = std::mem::replace(&mut self.told, ears);
        (ears != before && (ears == Ears::Lost || before != Ears::Unsure)).then_some(ears)
    }

    /// How soon to try again.
    pub fn again(&self, ttl: Duration) -> Duration {
        match (self.refused, self.silent) {
            (1, 0) => REFUSED_AGAIN,
            // A try that gave silence took its period already.
            (_, 1..) => Duration::from_millis(10),
            _ => period(ttl),
        }
    }
}
