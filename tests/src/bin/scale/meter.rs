//! What the members saw: renewals, keys taken, leaders dropped, and what was said; and what follows from it.

use cluster::time::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// A renewal that succeeded: a keep-alive and the linearizable read after it.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    /// Of a member of this group.
    pub group: usize,
    /// That leads.
    pub leads: bool,
    /// When the answer was there.
    pub ended: Moment,
    /// From the question.
    pub took: Duration,
}

impl Renewal {
    fn sent(&self) -> Moment {
        self.ended - self.took
    }
}

/// A leader that was dropped.
#[derive(Debug, Clone, Copy)]
pub struct Dropped {
    /// It led this group.
    pub group: usize,
    /// When.
    pub at: Moment,
    /// Until when its lease counted, for itself.
    pub lease_ends: Moment,
}

/// One for all threads.
#[derive(Default)]
pub struct Meter {
    renewals: Mutex<Vec<Renewal>>,
    taken: Mutex<Vec<(usize, Moment)>>,
    dropped: Mutex<Vec<Dropped>>,
    said: Mutex<BTreeMap<String, usize>>,
    complete: AtomicUsize,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().expect("nobody panicked with the lock")
}

impl Meter {
    /// A renewal succeeded.
    pub fn renewed(&self, renewal: Renewal) {
        lock(&self.renewals).push(renewal);
    }

    /// A member of this group took the leader key.
    pub fn took(&self, group: usize, at: Moment) {
        lock(&self.taken).push((group, at));
    }

    /// A leader is gone.
    pub fn dropped(&self, dropped: Dropped) {
        lock(&self.dropped).push(dropped);
    }

    /// A worker tells something; numbers differ each time.
    pub fn said(&self, line: &str) {
        let gist: String = line.chars().filter(|letter| !letter.is_ascii_digit()).take(160).collect();
        *lock(&self.said).entry(gist).or_default() += 1;
    }

    /// What was said since the last time, and how often, the most frequent first.
    pub fn take_said(&self) -> Vec<(String, usize)> {
        let mut said: Vec<_> = std::mem::take(&mut *lock(&self.said)).into_iter().collect();
        said.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        said
    }

    /// A group has its leader, and its members run.
    pub fn is_complete(&self) {
        self.complete.fetch_add(1, Ordering::SeqCst);
    }

    /// So many groups are complete.
    pub fn complete(&self) -> usize {
        self.complete.load(Ordering::SeqCst)
    }

    /// The renewals that ended in this span.
    pub fn renewals(&self, from: Moment, to: Moment) -> Renewals {
        let mut took: Vec<Duration> =
            lock(&self.renewals).iter().filter(|one| (from..to).contains(&one.ended)).map(|one| one.took).collect();
        took.sort();
        Renewals { took }
    }

    /// Of each group whose leader has sent and got a renewal since then: how long after it the first one was there.
    pub fn first_renewals_since(&self, then: Moment) -> BTreeMap<usize, Duration> {
        let mut first = BTreeMap::new();
        for one in lock(&self.renewals).iter().filter(|one| one.leads && one.sent() >= then) {
            let after = one.ended.since(then);
            first.entry(one.group).and_modify(|known: &mut Duration| *known = after.min(*known)).or_insert(after);
        }
        first
    }

    /// The groups whose leader's lease had run out, by its own count, before it was renewed.
    pub fn lapsed(&self, from: Moment, to: Moment, ttl: Duration) -> usize {
        let mut last: BTreeMap<usize, Moment> = BTreeMap::new();
        let mut lapsed = BTreeSet::new();
        for one in lock(&self.renewals).iter().filter(|one| one.leads && one.ended < to) {
            let before = last.insert(one.group, one.sent());
            if before.is_some_and(|before| one.ended > before + ttl) && one.ended >= from {
                lapsed.insert(one.group);
            }
        }
        lapsed.len()
    }

    /// The groups in which a member took the leader key in this span.
    pub fn taken(&self, from: Moment, to: Moment) -> usize {
        lock(&self.taken).iter().filter(|(_, at)| (from..to).contains(at)).map(|(group, _)| *group).collect::<BTreeSet<_>>().len()
    }

    /// How many leaders were dropped.
    pub fn count_of_dropped(&self) -> usize {
        lock(&self.dropped).len()
    }

    /// Of each leader that was dropped and has a successor: how long after the drop, and after the lease's end (before it: zero), and when.
    pub fn successions(&self) -> Vec<Succession> {
        let taken = lock(&self.taken);
        let of = |dropped: &Dropped| {
            let (_, at) = taken.iter().find(|(group, at)| *group == dropped.group && *at >= dropped.at)?;
            Some(Succession { at: *at, after_drop: at.since(dropped.at), after_lease: at.since(dropped.lease_ends) })
        };
        lock(&self.dropped).iter().filter_map(of).collect()
    }
}

/// A successor has the key.
#[derive(Debug, Clone, Copy)]
pub struct Succession {
    /// When.
    pub at: Moment,
    /// How long after its predecessor was dropped.
    pub after_drop: Duration,
    /// How long after that one's lease had run out by its own count.
    pub after_lease: Duration,
}

/// What renewals of a span took, sorted.
#[derive(Debug, Clone, Default)]
pub struct Renewals {
    took: Vec<Duration>,
}

impl Renewals {
    /// So many.
    pub fn count(&self) -> usize {
        self.took.len()
    }

    /// The one that so many of a thousand do not exceed.
    pub fn at(&self, of_thousand: usize) -> Duration {
        quantile(&self.took, of_thousand)
    }
}

/// Of sorted spans the one that so many of a thousand do not exceed; zero where there is none.
pub fn quantile(sorted: &[Duration], of_thousand: usize) -> Duration {
    let at = (sorted.len() * of_thousand).div_ceil(1000).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    fn renewed(meter: &Meter, group: usize, leads: bool, ended: u64, took: u64) {
        meter.renewed(Renewal { group, leads, ended: at(ended), took: Duration::from_millis(took) });
    }

    #[test]
    fn only_a_leaders_renewal_that_was_sent_since_counts_as_its_first() {
        let meter = Meter::default();
        renewed(&meter, 1, true, 1010, 20);
        assert!(meter.first_renewals_since(at(1000)).is_empty(), "it was sent before");
        renewed(&meter, 1, false, 1100, 20);
        assert!(meter.first_renewals_since(at(1000)).is_empty(), "a standby's");
        renewed(&meter, 1, true, 1300, 20);
        renewed(&meter, 1, true, 3800, 20);
        assert_eq!(meter.first_renewals_since(at(1000)), [(1, Duration::from_millis(300))].into());
    }

    #[test]
    fn a_lease_lapses_where_the_next_renewal_comes_after_its_end() {
        let meter = Meter::default();
        for (group, second) in [(1, 10_980), (2, 10_990)] {
            renewed(&meter, group, true, 1000, 15);
            renewed(&meter, group, true, second, 5);
        }
        assert_eq!(meter.lapsed(at(1000), at(20_000), Duration::from_secs(10)), 1);
        assert_eq!(meter.lapsed(at(1000), at(10_985), Duration::from_secs(10)), 0);
    }

    #[test]
    fn a_succession_is_counted_from_the_drop_and_from_the_leases_end() {
        let meter = Meter::default();
        meter.took(1, at(500));
        meter.dropped(Dropped { group: 1, at: at(1000), lease_ends: at(9000) });
        assert!(meter.successions().is_empty(), "that was before");
        meter.took(1, at(9400));
        let seen: Vec<_> = meter.successions().iter().map(|one| (one.after_drop.as_millis(), one.after_lease.as_millis())).collect();
        assert_eq!(seen, [(8400, 400)]);
    }

    #[test]
    fn quantiles_are_of_what_was_seen() {
        let hundred: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!([500, 990, 1000].map(|of| quantile(&hundred, of).as_millis()), [50, 99, 100]);
        assert_eq!(quantile(&[], 990), Duration::ZERO);
    }
}
