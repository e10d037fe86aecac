//! What was seen, and the sums over several runs: medians, counts, ratios.

use super::rounds::{CONTENDERS, Contender, EVENTS, Event, Manager, PATRONI_FAST, Round, SETTINGS, Setting};
use std::collections::BTreeMap;
use std::time::Duration;
use stories::delays::{self, Delays};
use stories::verdict::Verdict;
use stories::workload::Ledger;

/// One event in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What.
    pub event: Event,
    /// To whom.
    pub contender: Contender,
    /// In which mode, and how the writer came.
    pub setting: Setting,
    /// The longest time without an acknowledged commit; at a cold start, the whole of it.
    pub pause: Duration,
    /// Of the writer's commits, from when each was due.
    pub delays: Delays,
    /// By SQLSTATE, or in words where no server said one.
    pub errors: BTreeMap<String, usize>,
    /// How many commits.
    pub acknowledged: usize,
    /// Of these, not there in the end.
    pub lost: usize,
    /// There more than once.
    pub doubled: usize,
    /// What an idle node costs; None but for [`Event::Idle`].
    pub idle: Option<Idle>,
}

impl Seen {
    /// Before anything was seen of this event.
    pub fn nothing(event: Event, round: &Round) -> Seen {
        Seen {
            event,
            contender: round.contender,
            setting: round.setting,
            pause: Duration::ZERO,
            delays: Delays::default(),
            errors: BTreeMap::new(),
            acknowledged: 0,
            lost: 0,
            doubled: 0,
            idle: None,
        }
    }

    /// With what a writer was told, and what is there of it.
    pub fn with(self, ledger: &Ledger, verdict: &Verdict) -> Seen {
        Seen {
            pause: ledger.longest_pause(),
            delays: Delays::of(ledger),
            errors: delays::errors(ledger),
            acknowledged: ledger.acknowledged().count(),
            lost: verdict.lost.len(),
            doubled: verdict.doubled.len(),
            ..self
        }
    }
}

/// What a node costs that has nothing to do, and what its cluster costs etcd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Idle {
    /// Resident memory of the agent, KiB, the mean of the nodes.
    pub agent_resident_kib: u64,
    /// Its share where pages are shared.
    pub agent_proportional_kib: u64,
    /// Private memory of what works inside of Postgres besides; none is zero.
    pub inside_private_kib: u64,
    /// Processor time of both, milliseconds a minute and node.
    pub processor_ms: u64,
    /// What etcd was asked by all nodes together, in a minute.
    pub etcd_requests: u64,
    /// etcd's processor time, milliseconds a minute.
    pub etcd_processor_ms: u64,
}

/// All runs of one event with one contender.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// What.
    pub event: Event,
    /// To whom.
    pub contender: Contender,
    /// In which mode, and how the writer came.
    pub setting: Setting,
    /// In ascending order.
    pub pauses: Vec<Duration>,
    /// The middle of each.
    pub delays: Delays,
    /// Of all runs together.
    pub errors: BTreeMap<String, usize>,
    /// The same.
    pub acknowledged: usize,
    /// The same.
    pub lost: usize,
    /// The same.
    pub doubled: usize,
    /// Patroni's middle pause in its fastest setting, for the same event in the same setting, divided by this one.
    pub ratio: Option<f64>,
    /// Of the middle run.
    pub idle: Option<Idle>,
}

impl Summary {
    /// The middle pause; of an even number the longer of the two in the middle.
    pub fn pause(&self) -> Duration {
        middle(&self.pauses)
    }
}

fn middle<T: Copy + Default>(sorted: &[T]) -> T {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn middle_of(seen: &[&Seen], of: impl Fn(&Seen) -> Duration) -> Duration {
    let mut all: Vec<Duration> = seen.iter().map(|one| of(one)).collect();
    all.sort();
    middle(&all)
}

/// In the order of the tables: settings, events, contenders.
pub fn summaries(seen: &[Seen]) -> Vec<Summary> {
    let mut all = Vec::new();
    for setting in SETTINGS {
        for event in EVENTS {
            let of = |contender: Contender| {
                seen.iter().filter(move |one| (one.setting, one.event, one.contender) == (setting, event, contender)).collect::<Vec<_>>()
            };
            let theirs = of(PATRONI_FAST);
            let compared = (!theirs.is_empty() && event != Event::Idle).then(|| middle_of(&theirs, |one| one.pause));
            for contender in CONTENDERS {
                let runs = of(contender);
                if !runs.is_empty() {
                    all.push(summary(&runs, compared.filter(|_| contender.manager != Manager::Patroni)));
                }
            }
        }
    }
    all
}

fn summary(runs: &[&Seen], compared: Option<Duration>) -> Summary {
    let mut pauses: Vec<Duration> = runs.iter().map(|one| one.pause).collect();
    pauses.sort();
    let mut errors = BTreeMap::new();
    for (what, count) in runs.iter().flat_map(|one| &one.errors) {
        *errors.entry(what.clone()).or_default() += count;
    }
    let pause = middle(&pauses);
    let ratio = compared.filter(|_| !pause.is_zero()).map(|theirs| theirs.as_secs_f64() / pause.as_secs_f64());
    let delays = Delays {
        p50: middle_of(runs, |one| one.delays.p50),
        p99: middle_of(runs, |one| one.delays.p99),
        max: middle_of(runs, |one| one.delays.max),
    };
    let total = |of: fn(&Seen) -> usize| runs.iter().map(|one| of(one)).sum();
    Summary {
        event: runs[0].event,
        contender: runs[0].contender,
        setting: runs[0].setting,
        delays,
        errors,
        acknowledged: total(|one| one.acknowledged),
        lost: total(|one| one.lost),
        doubled: total(|one| one.doubled),
        ratio,
        idle: runs[runs.len() / 2].idle,
        pauses,
    }
}

/// Fixed figures that nobody measured, for tests of what is drawn from them.
#[cfg(test)]
pub fn sample() -> Vec<Seen> {
    use super::rounds::{ASYNCHRONOUS, AUTO_FAILOVER, AUTO_FAILOVER_FAST, OURS, OURS_DEPOSING, QUORUM};
    let seen = |event, contender: Contender, quorum, pause: u64, lost, errors: &[(&str, usize)]| Seen {
        event,
        contender,
        setting: if quorum { QUORUM } else { ASYNCHRONOUS },
        pause: Duration::from_millis(pause),
        delays: Delays { p50: Duration::from_millis(2), p99: Duration::from_millis(pause / 2), max: Duration::from_millis(pause + 9) },
        errors: errors.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect(),
        acknowledged: 150,
        lost,
        doubled: 0,
        idle: None,
    };
    let idle = |contender, idle| Seen { idle: Some(idle), acknowledged: 0, ..seen(Event::Idle, contender, false, 0, 0, &[]) };
    vec![
        seen(Event::Switchover, OURS, false, 300, 0, &[("57P01", 2)]),
        seen(Event::Switchover, OURS, false, 200, 0, &[("57P01", 1), ("connection lost", 1)]),
        seen(Event::Switchover, PATRONI_FAST, false, 2400, 0, &[("57P01", 1)]),
        seen(Event::Switchover, OURS, false, 250, 0, &[]),
        seen(Event::AgentFrozen, OURS, false, 40, 0, &[]),
        seen(Event::AgentFrozen, PATRONI_FAST, false, 20, 1770, &[]),
        seen(Event::NodeKilled, OURS_DEPOSING, true, 350, 0, &[("connection lost", 1)]),
        seen(Event::NodeKilled, OURS, true, 9500, 0, &[("connection lost", 1)]),
        seen(Event::NodeKilled, PATRONI_FAST, true, 20000, 0, &[("connection lost", 1)]),
        seen(Event::NodeKilled, AUTO_FAILOVER_FAST, true, 9000, 0, &[]),
        seen(Event::NodeKilled, AUTO_FAILOVER, true, 58000, 0, &[]),
        Seen { setting: ASYNCHRONOUS.through_haproxy(), ..seen(Event::Switchover, OURS, false, 1100, 0, &[("57P01", 1)]) },
        Seen { setting: ASYNCHRONOUS.through_haproxy(), ..seen(Event::Switchover, PATRONI_FAST, false, 3300, 0, &[]) },
        idle(
            OURS,
            Idle {
                agent_resident_kib: 10_342,
                agent_proportional_kib: 9_216,
                inside_private_kib: 1_024,
                processor_ms: 110,
                etcd_requests: 72,
                etcd_processor_ms: 900,
            },
        ),
        idle(
            PATRONI_FAST,
            Idle {
                agent_resident_kib: 49_152,
                agent_proportional_kib: 36_864,
                inside_private_kib: 0,
                processor_ms: 200,
                etcd_requests: 180,
                etcd_processor_ms: 1_000,
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rounds::{ASYNCHRONOUS, OURS, QUORUM};

    #[test]
    fn the_middle_is_taken_of_each_figure_by_itself_and_counts_are_added() {
        let all = summaries(&sample());
        let ours = all
            .iter()
            .find(|one| one.event == Event::Switchover && one.contender == OURS && one.setting == ASYNCHRONOUS)
            .expect("it is there");
        assert_eq!(ours.pause(), Duration::from_millis(250));
        assert_eq!((ours.delays.p99.as_millis(), ours.delays.max.as_millis()), (125, 259));
        assert_eq!(ours.errors, BTreeMap::from([("57P01".to_owned(), 3), ("connection lost".to_owned(), 1)]));
        assert_eq!((ours.acknowledged, ours.lost, ours.doubled), (450, 0, 0));
        assert_eq!(ours.ratio.map(|ratio| (ratio * 10.0).round()), Some(96.0));
    }

    #[test]
    fn a_ratio_needs_both_sides_in_the_same_setting() {
        let mut seen = sample();
        seen.retain(|one| !(one.contender == PATRONI_FAST && one.setting == QUORUM));
        let all = summaries(&seen);
        assert!(
            all.iter()
                .filter(|one| one.setting == QUORUM || one.contender.manager == Manager::Patroni || one.idle.is_some())
                .all(|one| one.ratio.is_none())
        );
        assert!(summaries(&[]).is_empty());
    }
}
