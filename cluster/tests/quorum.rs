//! Nothing acknowledged is lost, whatever dies between two writes of key and setting: every sequence over three
//! standbys, random ones over five, and every vacancy with a quorum.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::lsn::Lsn;
use cluster::name::MemberName;
use cluster::quorum::{Applied, Goal, Method, Setting, SyncStep, Trust, step};
use cluster::race;
use cluster::standing::RaceStep;
use cluster::sync::SyncState;
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeSet, HashSet, VecDeque};
use world::{AFTER, candidate, config, member, name, sync_key, vacancy, word};

/// A set of standbys, one bit each.
type Set = u8;

const STANDBYS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn names(set: Set) -> BTreeSet<MemberName> {
    STANDBYS.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0).map(|(_, who)| name(who)).collect()
}

fn set(names: &BTreeSet<MemberName>) -> Set {
    STANDBYS.iter().enumerate().filter(|(_, who)| names.contains(&name(who))).map(|(at, _)| 1 << at).sum()
}

/// Sets of standbys that lack some acknowledged commit. A set in another one says nothing, so only the largest are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Missing(BTreeSet<Set>);

impl Missing {
    fn of(sets: impl IntoIterator<Item = Set>) -> Missing {
        let all: BTreeSet<Set> = sets.into_iter().collect();
        Missing(all.iter().copied().filter(|one| !all.iter().any(|other| other != one && one & other == *one)).collect())
    }

    /// What commits may be missing on that are acknowledged under this setting, of so many standbys.
    fn under(setting: &Setting, standbys: usize) -> Missing {
        let (all, named) = ((1 << standbys) - 1, set(&setting.names));
        Missing::of((0..=all).filter(|have| (have & named).count_ones() as usize >= setting.count).map(|have| all & !have))
    }

    fn and(&self, other: &Missing) -> Missing {
        Missing::of(self.0.iter().chain(&other.0).copied())
    }

    fn without(&self, standby: usize) -> Missing {
        Missing::of(self.0.iter().map(|one| one & !(1 << standby)))
    }
}

/// A primary, its key, and the worst of what can be true of its standbys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    standbys: usize,
    voters: Set,
    quorum: usize,
    method: bool,
    count: usize,
    named: Set,
    /// The settings that some process may still keep, by what they let be missing.
    kept: Missing,
    /// What is missing where: as bad as the settings kept allow, at all times.
    missing: Missing,
    /// No process keeps an older setting, and the arbiter knows.
    in_force: bool,
    /// Who is known to have caught up since.
    caught_up: Set,
}

impl World {
    /// Somebody leads since just now: it has everything, of its standbys nothing is known.
    fn begun(standbys: usize, setting: &Setting) -> World {
        let missing = Missing::of([(1 << standbys) - 1]);
        let mut world = World {
            standbys,
            voters: 0,
            quorum: 0,
            method: false,
            count: 0,
            named: 0,
            kept: Missing::default(),
            missing,
            in_force: false,
            caught_up: 0,
        };
        world.apply(setting);
        world.kept = Missing::under(setting, standbys);
        world
    }

    fn setting(&self) -> Setting {
        let method = if self.method { Method::Any } else { Method::First };
        Setting { method, count: self.count, names: names(self.named) }
    }

    fn trust(&self) -> Trust {
        Trust { quorum: self.quorum, voters: names(self.voters) }
    }

    fn apply(&mut self, setting: &Setting) {
        (self.method, self.count, self.named) = (setting.method == Method::Any, setting.count, set(&setting.names));
        self.kept = self.kept.and(&Missing::under(setting, self.standbys));
        self.missing = self.missing.and(&self.kept);
        (self.in_force, self.caught_up) = (false, 0);
    }

    /// The arbiter takes one step. False where there is nothing to do.
    fn step(&mut self, goal: &Goal) -> bool {
        let me = name("n1");
        let applied = Applied { setting: self.setting(), caught_up: names(self.caught_up) };
        match step(&me, &self.trust().key(&me, &SyncState::default()), &applied, goal) {
            SyncStep::Settled => return false,
            SyncStep::WriteKey(key) => {
                let trust = Trust::of(&key);
                (self.voters, self.quorum) = (set(&trust.voters), trust.quorum);
            }
            SyncStep::Apply(setting) => self.apply(&setting),
            SyncStep::Confirm if !self.in_force => {
                (self.in_force, self.kept) = (true, Missing::under(&self.setting(), self.standbys));
            }
            // A standby that is to be trusted catches up.
            SyncStep::Confirm => {
                let named: Vec<usize> = (0..self.standbys).filter(|at| self.named & (1 << at) != 0).collect();
                named.into_iter().for_each(|at| self.catch_up(at));
            }
        }
        true
    }

    /// This standby flushes everything there is, and the primary sees it; the next commit may pass it by again.
    fn catch_up(&mut self, standby: usize) {
        self.missing = self.missing.without(standby).and(&self.kept);
        if self.in_force {
            self.caught_up |= 1 << standby;
        }
    }

    /// The arbiter starts again: it knows the setting, and nothing of who keeps it.
    fn restart(&mut self) {
        (self.in_force, self.caught_up) = (false, 0);
    }

    /// The member that takes over has heard `quorum` other voters: among them and itself every acknowledged commit is found.
    fn loses_nothing(&self) -> bool {
        self.voters == 0 || self.missing.0.iter().all(|lack| (lack & self.voters).count_ones() as usize <= self.quorum)
    }

    /// From here the goal is reached, and each write on the way is sound.
    fn arrives(&self, goal: &Goal) {
        let mut world = self.clone();
        let mut steps = 0;
        while world.step(goal) {
            steps += 1;
            assert!(world.loses_nothing() && steps < 10, "{self:?} to {goal:?}: {world:?}");
        }
        assert_eq!((world.trust(), world.setting()), (goal.trust.clone(), goal.setting.clone()), "from {self:?}");
    }
}

fn settings(standbys: usize) -> Vec<Setting> {
    let mut all = vec![Setting::nobody()];
    for chosen in 1..1 << standbys {
        let names = names(chosen);
        all.push(Setting::of(Method::First, names.len(), names.clone()));
        all.extend((1..=names.len()).map(|count| Setting::of(Method::Any, count, names.clone())));
    }
    all
}

fn goal(setting: &Setting) -> Goal {
    Goal { setting: setting.clone(), trust: Trust::under(setting) }
}

/// Everything that can follow one event.
fn next(world: &World, goals: &[Goal]) -> Vec<World> {
    let mut all = Vec::new();
    for goal in goals {
        let mut then = world.clone();
        if then.step(goal) {
            all.push(then);
        }
    }
    for at in 0..world.standbys {
        let mut then = world.clone();
        then.catch_up(at);
        all.push(then);
    }
    let mut then = world.clone();
    then.restart();
    all.push(then);
    all
}

fn every_world(standbys: usize) -> usize {
    let goals: Vec<Goal> = settings(standbys).iter().map(goal).collect();
    let mut known: HashSet<World> = settings(standbys).iter().map(|setting| World::begun(standbys, setting)).collect();
    let mut open: VecDeque<World> = known.iter().cloned().collect();
    while let Some(world) = open.pop_front() {
        assert!(world.loses_nothing(), "{world:?}");
        goals.iter().for_each(|goal| world.arrives(goal));
        for then in next(&world, &goals) {
            if known.insert(then.clone()) {
                open.push_back(then);
            }
        }
    }
    known.len()
}

#[test]
fn with_two_standbys_no_sequence_of_steps_loses_an_acknowledged_commit() {
    assert!(every_world(2) > 100, "the enumeration reaches nothing");
}

#[test]
fn with_three_standbys_no_sequence_of_steps_loses_an_acknowledged_commit() {
    assert!(every_world(3) > 1000, "the enumeration reaches nothing");
}

/// What may happen between two writes.
#[derive(Debug, Clone)]
enum Happens {
    Step,
    Wish(usize),
    CatchUp(usize),
    Restart,
    Leads(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => Just(Happens::Step),
        2 => any::<usize>().prop_map(Happens::Wish),
        4 => (0usize..5).prop_map(Happens::CatchUp),
        1 => Just(Happens::Restart),
        1 => any::<usize>().prop_map(Happens::Leads),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn with_five_standbys_no_story_loses_an_acknowledged_commit(story in proptest::collection::vec(happens(), 1..60)) {
        let settings = settings(5);
        let mut world = World::begun(5, &Setting::nobody());
        let mut wanted = goal(&Setting::nobody());
        for event in story {
            match event {
                Happens::Step => drop(world.step(&wanted)),
                Happens::Wish(at) => wanted = goal(&settings[at % settings.len()]),
                Happens::CatchUp(at) => world.catch_up(at),
                Happens::Restart => world.restart(),
                // Taking the key resets it in the same write (`Judged::sync_becomes`).
                Happens::Leads(at) => world = World::begun(5, &settings[at % settings.len()]),
            }
            prop_assert!(world.loses_nothing(), "{:?}", world);
        }
        world.arrives(&wanted);
    }
}

/// Every vacancy of a leader with up to four voters, each dead, or alive with one of three positions, each barred from
/// standing or not: who takes the key has at least what every electorate must have, so every acknowledged commit.
#[test]
fn who_takes_the_key_with_a_quorum_has_what_was_acknowledged() {
    let mut taken = 0;
    for voters in 1..=4usize {
        for quorum in 0..voters {
            for bits in 0..7usize.pow(u32::try_from(voters).unwrap()) {
                // 0: dead; 1 to 3: stands with that much; 4 to 6: the same, but may not stand.
                let states: Vec<usize> = (0..voters).map(|at| bits / 7usize.pow(u32::try_from(at).unwrap()) % 7).collect();
                taken += usize::from(check(&states, quorum));
            }
        }
    }
    assert!(taken > 1000, "hardly any vacancy ends");
}

/// True if somebody takes the key.
fn check(states: &[usize], quorum: usize) -> bool {
    let lsn = |state: usize| Lsn(1000 * (1 + (state as u64 - 1) % 3));
    let mut view = vacancy();
    view.config = config(json!({"synchronous_mode": "quorum"}));
    view.sync = sync_key("n9", &STANDBYS[..states.len()].join(" "));
    view.sync.as_mut().unwrap().value.quorum = u32::try_from(quorum).unwrap();
    for (who, state) in STANDBYS.iter().zip(states).filter(|(_, state)| **state > 0) {
        view.members.insert(name(who), member(who, cluster::member::MemberRole::Replica, 1, lsn(*state)));
        let mut said = word(1, lsn(*state));
        (said.value.after, said.value.stands) = (AFTER, *state < 4);
        view.announcements.insert(name(who), said);
    }
    let mut takers = Vec::new();
    for (who, state) in STANDBYS.iter().zip(states).filter(|(_, state)| (1..4).contains(*state)) {
        let decision = race::decide(&view, &candidate(who, 1, lsn(*state)));
        if let RaceStep::Take(_) = decision.what {
            // What was acknowledged is on all voters but `quorum`, of the dead we assume the worst.
            let ahead = states.iter().filter(|other| **other == 0 || lsn(**other) > lsn(*state)).count();
            assert!(ahead < states.len() - quorum, "{states:?}, quorum {quorum}: {who} takes the key");
            takers.push(who);
        }
    }
    assert!(takers.len() <= 1, "{states:?}: {takers:?}");
    !takers.is_empty()
}
