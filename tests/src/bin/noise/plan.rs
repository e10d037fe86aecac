//! What noise there is and when, drawn from a seed: each kind by a plan of its own, so that they come by turns and overlap.

use std::fmt;
use std::ops::Range;
use std::time::Duration;
use stories::storm::random::Random;

/// Seconds for which a lasting kind is there, and for which it is not.
const WINDOW: Range<u64> = 10..41;

/// What lasts for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// A process for each node that wants a whole processor.
    Hog,
    /// Packets are lost.
    Lose,
    /// Packets are late.
    Delay,
}

/// What happens at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sudden {
    /// etcd forgets its history, and each member writes its file anew.
    Compact,
    /// etcd's leader hands over to another member.
    MoveEtcdLeader,
    /// CHECKPOINT on the leader.
    Checkpoint,
    /// A process that is no postmaster is frozen for two seconds.
    Freeze,
}

/// Whose packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of every node.
    Nodes,
    /// Of one node.
    Node(usize),
    /// Of one member of etcd.
    Etcd(usize),
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// For so long.
    Lasting(Lasting, Whose, Duration),
    /// Chosen among several by this number.
    Sudden(Sudden, usize),
}

/// Everything that happens, kind by kind, each in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// When, after the beginning.
    pub kinds: Vec<Vec<(Duration, What)>>,
}

impl Plan {
    /// The same seed, the same plan.
    pub fn new(seed: u64, lasts: Duration) -> Plan {
        let end = lasts.as_secs();
        let mut kinds = Vec::new();
        for (number, kind) in (1..).zip([Lasting::Hog, Lasting::Lose, Lasting::Delay]) {
            kinds.push(lasting(&mut Random::new(seed * 100 + number), kind, end));
        }
        let every = [(Sudden::Compact, 20..61), (Sudden::MoveEtcdLeader, 30..91), (Sudden::Checkpoint, 15..46)];
        for (number, (kind, pause)) in (11..).zip(every) {
            kinds.push(sudden(&mut Random::new(seed * 100 + number), kind, &pause, end));
        }
        let mut random = Random::new(seed * 100 + 21);
        let minutes = (0..end.div_ceil(60)).map(|minute| (minute * 60 + 3 + random.below(50), random.below(1_000_000) as usize));
        let frozen = minutes.filter(|(at, _)| at + 3 < end);
        kinds.push(frozen.map(|(at, choice)| (Duration::from_secs(at), What::Sudden(Sudden::Freeze, choice))).collect());
        Plan { kinds }
    }
}

fn within(random: &mut Random, range: &Range<u64>) -> u64 {
    range.start + random.below(range.end - range.start)
}

fn lasting(random: &mut Random, kind: Lasting, end: u64) -> Vec<(Duration, What)> {
    let mut planned = Vec::new();
    let mut at = within(random, &(2..20));
    loop {
        let window = within(random, &WINDOW);
        let whose = match random.below(10) {
            0..4 => Whose::Nodes,
            4..8 => Whose::Node(random.below(3) as usize),
            _ => Whose::Etcd(random.below(3) as usize),
        };
        if at + window > end {
            return planned;
        }
        planned.push((Duration::from_secs(at), What::Lasting(kind, whose, Duration::from_secs(window))));
        at += window + within(random, &WINDOW);
    }
}

fn sudden(random: &mut Random, kind: Sudden, pause: &Range<u64>, end: u64) -> Vec<(Duration, What)> {
    let mut planned = Vec::new();
    let mut at = within(random, pause);
    while at < end {
        planned.push((Duration::from_secs(at), What::Sudden(kind, random.below(1_000_000) as usize)));
        at += within(random, pause);
    }
    planned
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::Nodes => f.write_str("every node"),
            Whose::Node(number) => write!(f, "n{}", number + 1),
            Whose::Etcd(number) => write!(f, "e{}", number + 1),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<&(Duration, What)> = self.kinds.iter().flatten().collect();
        all.sort_by_key(|(at, _)| *at);
        for (at, what) in all {
            match what {
                What::Lasting(Lasting::Hog, _, lasts) => writeln!(f, "{:5} s Hog of every node for {} s", at.as_secs(), lasts.as_secs())?,
                What::Lasting(kind, whose, lasts) => writeln!(f, "{:5} s {kind:?} of {whose} for {} s", at.as_secs(), lasts.as_secs())?,
                What::Sudden(kind, choice) => writeln!(f, "{:5} s {kind:?} ({choice})", at.as_secs())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_plan_with_every_kind_and_one_freeze_a_minute() {
        let hour = Duration::from_secs(3600);
        let plan = Plan::new(7, hour);
        assert_eq!(plan, Plan::new(7, hour));
        assert_ne!(plan, Plan::new(8, hour));
        assert!(plan.kinds.iter().all(|kind| kind.len() >= 40), "{plan}");
        let frozen = plan.kinds.last().expect("the last kind");
        let minutes: Vec<u64> = frozen.iter().map(|(at, _)| at.as_secs() / 60).collect();
        assert_eq!(minutes, (0..60).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_lasts_beyond_the_end_and_kinds_overlap() {
        let plan = Plan::new(3, Duration::from_secs(3600));
        let windows: Vec<(usize, u64, u64)> = plan
            .kinds
            .iter()
            .enumerate()
            .flat_map(|(kind, planned)| {
                planned.iter().filter_map(move |(at, what)| match what {
                    What::Lasting(_, _, lasts) => Some((kind, at.as_secs(), (*at + *lasts).as_secs())),
                    What::Sudden(..) => None,
                })
            })
            .collect();
        assert!(windows.iter().all(|(_, _, end)| *end <= 3600));
        let overlap = |one: &(usize, u64, u64), other: &(usize, u64, u64)| one.0 != other.0 && one.1 < other.2 && other.1 < one.2;
        assert!(windows.iter().any(|one| windows.iter().any(|other| overlap(one, other))));
    }
}
