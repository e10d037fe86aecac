//! From what the lease worker sees in shared memory, a few times a second: how long does a flush of WAL take, how late is its own timer?

use crate::lsn::Lsn;
use crate::time::Moment;
use std::collections::VecDeque;
use std::time::Duration;

/// What ended longer ago says nothing of now.
const WINDOW: Duration = Duration::from_secs(3);

/// How long flushes of WAL take.
///
/// Between two looks either the end of what is flushed has moved, or nobody waits for it, or the same flush is still under way. That
/// some session waits is asked for, as WAL that nobody waits for may lie unflushed for as long as it likes. (The insert position
/// would say less, and it is read with a lock that every writer takes.)
#[derive(Debug, Clone, Default)]
pub struct Flushes {
    flushed: Lsn,
    /// Since when somebody has waited while nothing moved.
    waits_since: Option<Moment>,
    /// Flushes that ended: when, and how long they took.
    ended: VecDeque<(Moment, Duration)>,
}

impl Flushes {
    /// One look: up to where WAL is flushed, and whether anybody waits for a flush.
    pub fn look(&mut self, now: Moment, flushed: Lsn, somebody_waits: bool) {
        if flushed != self.flushed || !somebody_waits {
            let took = self.waits_since.map_or(Duration::ZERO, |since| now.since(since));
            self.ended.push_back((now, took));
            self.flushed = flushed;
            self.waits_since = None;
        }
        if somebody_waits {
            self.waits_since.get_or_insert(now);
        }
        while self.ended.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            self.ended.pop_front();
        }
    }

    /// The shortest of those that ended within the last seconds; one fast flush shows that the disk is able to. Where none ended: how long
    /// the present one has been going on.
    pub fn shortest(&self, now: Moment) -> Duration {
        let under_way = self.waits_since.map_or(Duration::ZERO, |since| now.since(since));
        self.ended.iter().map(|(_, took)| *took).min().unwrap_or(under_way)
    }
}

/// By how much a timer is late, over its last turns.
#[derive(Debug, Clone, Default)]
pub struct Lateness(VecDeque<Duration>);

impl Lateness {
    /// So many turns are kept.
    const TURNS: usize = 15;

    /// A turn came so much later than it was due.
    pub fn note(&mut self, late: Duration) {
        if self.0.len() == Self::TURNS {
            self.0.pop_front();
        }
        self.0.push_back(late);
    }

    /// The median; zero until there are enough: one late turn is nothing.
    pub fn usual(&self) -> Duration {
        let mut turns: Vec<Duration> = self.0.iter().copied().collect();
        turns.sort();
        if turns.len() < Self::TURNS { Duration::ZERO } else { turns[Self::TURNS / 2] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    /// Looks every 250 ms: where WAL is, and whether somebody waits; gives what is told at the end.
    fn check(looks: &[(u64, bool)], expected_ms: u64) {
        let mut flushes = Flushes::default();
        let mut now = at(0);
        for (lsn, waits) in looks {
            now = now + Duration::from_millis(250);
            flushes.look(now, Lsn(*lsn), *waits);
        }
        assert_eq!(flushes.shortest(now), Duration::from_millis(expected_ms), "{looks:?}");
    }

    #[test]
    fn a_flush_is_as_long_as_somebody_waits_and_nothing_moves() {
        check(&[], 0);
        // Idle, or WAL that nobody waits for.
        check(&[(10, false); 40], 0);
        // Busy: it moves at each look, which is as fine as this can see.
        check(&(0..40).map(|n| (n, true)).collect::<Vec<_>>(), 250);
        // It hangs: the first look saw it move, from then on nothing.
        check(&[(10, true); 41], 10_000);
        // Each takes a second.
        check(&(0..40).map(|n| (n / 4, true)).collect::<Vec<_>>(), 1000);
        // One that was long among fast ones is none.
        let mixed: Vec<_> = (0..8).map(|n| (n, true)).chain([(8, true); 8]).chain([(9, true)]).collect();
        check(&mixed, 250);
    }

    #[test]
    fn one_late_turn_is_nothing() {
        let mut late = Lateness::default();
        (0..7).for_each(|_| late.note(Duration::from_secs(2)));
        assert_eq!(late.usual(), Duration::ZERO);
        (0..8).for_each(|_| late.note(Duration::ZERO));
        assert_eq!(late.usual(), Duration::ZERO);
        (0..8).for_each(|_| late.note(Duration::from_secs(1)));
        assert_eq!(late.usual(), Duration::from_secs(1));
    }
}
