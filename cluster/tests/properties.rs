//! Properties of histories and of the order of writes between sync key and setting, over random inputs.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::history::{Ancestry, History, Line};
use cluster::lsn::Lsn;
use cluster::name::{MemberName, Timeline};
use cluster::sync::{Applied, SyncState, SyncStep, step};
use proptest::prelude::*;
use std::collections::BTreeSet;
use world::name;

/// A server's past: timelines that rise, some skipped, each ending behind the one before.
fn past() -> impl Strategy<Value = (History, Timeline)> {
    (proptest::collection::vec((1u32..4, 1u64..1000), 0..6), 1u32..4).prop_map(|(steps, skip)| {
        let (mut timeline, mut end, mut lines) = (0, 0, Vec::new());
        for (rise, wal) in steps {
            timeline = if timeline == 0 { 1 } else { timeline + rise };
            end += wal;
            lines.push(Line { timeline: Timeline(timeline), switch: Lsn(end), reason: String::new(), timestamp: None, new_leader: None });
        }
        let present = if timeline == 0 { 1 } else { timeline + skip };
        (History(lines), Timeline(present))
    })
}

proptest! {
    #[test]
    fn a_history_up_to_its_timeline_has_no_gap_and_says_the_present((file, present) in past()) {
        let whole = file.clone().up_to(present);
        prop_assert_eq!(whole.current(), present);
        let timelines = whole.0.iter().map(|line| line.timeline.0).collect::<Vec<_>>();
        prop_assert_eq!(timelines, (1..present.0).collect::<Vec<_>>());
        prop_assert!(file.0.iter().all(|line| whole.0.contains(line)), "no line is lost");
        prop_assert_eq!(whole.clone().up_to(present), whole, "twice is once");
    }

    #[test]
    fn a_position_is_an_ancestor_up_to_the_fork_and_never_behind_it(
        (file, present) in past(), timeline in 1u32..20, lsn in 1u64..6000,
    ) {
        let whole = file.clone().up_to(present);
        let ancestry = whole.ancestry(present, Timeline(timeline), Lsn(lsn));
        let expected = if timeline == present.0 {
            Ancestry::Ancestor
        } else if timeline > present.0 {
            Ancestry::Unknown
        } else {
            match file.end_of(Timeline(timeline)) {
                Some(end) if lsn <= end.0 => Ancestry::Ancestor,
                Some(fork) => Ancestry::Diverged { fork },
                None => Ancestry::Diverged { fork: Lsn::INVALID },
            }
        };
        prop_assert_eq!(ancestry, expected);
        if ancestry == Ancestry::Ancestor && lsn > 1 {
            prop_assert_eq!(whole.ancestry(present, Timeline(timeline), Lsn(lsn - 1)), ancestry, "what is before it too");
        }
    }

    #[test]
    fn json_and_merging_lose_nothing((file, present) in past()) {
        let whole = file.up_to(present);
        prop_assert_eq!(History::from_json(&whole.to_json()), Some(whole.clone()));
        let told = History::default().merged(&whole, "then", "n1");
        prop_assert_eq!(told.merged(&whole, "now", "n2"), told, "lines known keep their time");
    }
}

/// What may happen between two writes.
#[derive(Debug, Clone)]
enum Happens {
    /// Nothing: the next step is taken.
    Step,
    /// Another wish.
    Wish(u8),
    /// The arbiter starts anew: what was confirmed is forgotten.
    ArbiterRestarts,
    /// Another node leads now; it finds the setting that its own server has.
    Leads { n: usize, setting: u8 },
}

const NAMES: [&str; 4] = ["n1", "n2", "n3", "n4"];

fn set(bits: u8, without: &str) -> BTreeSet<MemberName> {
    let chosen = |(at, who): (usize, &&'static str)| (bits & (1 << at) != 0 && *who != without).then(|| name(who));
    NAMES.iter().enumerate().filter_map(chosen).collect()
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => Just(Happens::Step),
        2 => (0u8..16).prop_map(Happens::Wish),
        1 => Just(Happens::ArbiterRestarts),
        1 => (0usize..4, 0u8..16).prop_map(|(n, setting)| Happens::Leads { n, setting }),
    ]
}

/// The leader's key, its setting, and which standbys confirmed a commit made under the setting.
#[derive(Debug)]
struct Pair {
    me: &'static str,
    key: SyncState,
    setting: BTreeSet<MemberName>,
    has_all: BTreeSet<MemberName>,
    confirmed: bool,
    wanted: BTreeSet<MemberName>,
}

impl Pair {
    fn step(&mut self) -> bool {
        let applied = Applied { names: self.setting.clone(), confirmed: self.confirmed };
        match step(&name(self.me), &self.key, &applied, &self.wanted) {
            SyncStep::Settled => return false,
            SyncStep::WriteKey(key) => self.key = key,
            SyncStep::Apply(names) => {
                self.has_all = &self.has_all & &names; // whom commits no longer wait for falls behind
                (self.setting, self.confirmed) = (names, false);
            }
            SyncStep::Confirm => (self.has_all, self.confirmed) = (self.setting.clone(), true),
        }
        true
    }

    /// On this every failover rests: who stands in the leader's own key has every acknowledged commit.
    fn holds(&self) -> bool {
        self.key.leader.as_deref() != Some(self.me)
            || self.key.standbys().all(|who| self.setting.contains(&name(who)) && self.has_all.contains(&name(who)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn after_each_single_write_every_standby_in_the_key_is_waited_for(story in proptest::collection::vec(happens(), 1..40)) {
        let mut pair = Pair {
            me: "n1",
            key: SyncState::default(),
            setting: BTreeSet::new(),
            has_all: BTreeSet::new(),
            confirmed: false,
            wanted: BTreeSet::new(),
        };
        for event in story {
            match event {
                Happens::Step => drop(pair.step()),
                Happens::Wish(bits) => pair.wanted = set(bits, pair.me),
                Happens::ArbiterRestarts => pair.confirmed = false,
                // The taking of the key resets it in the same write (`Judged::resets_sync`).
                Happens::Leads { n, setting } if NAMES[n] != pair.me => {
                    pair.me = NAMES[n];
                    pair.key = SyncState::of(&name(pair.me), &BTreeSet::new());
                    (pair.setting, pair.has_all) = (set(setting, pair.me), BTreeSet::new());
                    (pair.confirmed, pair.wanted) = (false, BTreeSet::new());
                }
                Happens::Leads { .. } => {}
            }
            prop_assert!(pair.holds(), "{:?}", pair);
        }
        let mut writes = 0;
        while pair.step() {
            writes += 1;
            prop_assert!(pair.holds() && writes < 8, "{:?}", pair);
        }
        prop_assert_eq!(&pair.key, &SyncState::of(&name(pair.me), &pair.wanted));
        prop_assert_eq!(&pair.setting, &pair.wanted);
    }
}
