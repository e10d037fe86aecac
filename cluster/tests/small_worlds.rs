//! Small worlds, whole: every view of three members, and what all of them do about it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::config::SynchronousMode;
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::MemberName;
use cluster::race::{self, HEAD_START, PATIENCE};
use cluster::standing::{self, Candidate, RaceStep};
use cluster::view::{Announcement, ClusterView, Versioned};
use std::time::Duration;
use world::*;

/// What a member of a small world is.
#[derive(Debug, Clone, Copy)]
struct Node {
    primary: bool,
    timeline: u32,
    lsn: Lsn,
    nofailover: bool,
    arbiter: bool,
    in_sync: bool,
    announced: bool,
}

/// Absent, and every running member. Two cuts that lose nothing: a primary needs no arbiter (the
/// tables hold that), and `in_sync` counts only with a sync key.
fn nodes(sync: bool) -> Vec<Option<Node>> {
    let mut all = vec![None];
    for bits in 0u32..128 {
        let bit = |n: u32| bits & (1 << n) != 0;
        let node = Node {
            primary: bit(0),
            timeline: if bit(1) { 2 } else { 1 },
            lsn: if bit(2) { HIGH } else { LOW },
            nofailover: bit(3),
            arbiter: !bit(4),
            in_sync: bit(5),
            announced: bit(6),
        };
        if (node.primary && !node.arbiter) || (!sync && node.in_sync) {
            continue;
        }
        all.push(Some(node));
    }
    all
}

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// A vacancy: what every member sees, and what each knows of itself.
struct World {
    view: ClusterView,
    racers: Vec<Candidate>,
}

fn world(nodes: [Option<Node>; 3], sync: bool, forked: bool, optime: Lsn) -> World {
    let mut view = vacancy();
    let mut racers = Vec::new();
    let mut in_sync = Vec::new();
    view.status = status(optime);
    if forked {
        view.history = history(&[(1, FORK)]);
    }
    for (who, node) in NAMES.into_iter().zip(nodes) {
        let Some(node) = node else { continue };
        let role = if node.primary { MemberRole::Primary } else { MemberRole::Replica };
        let mut entry = member(who, role, node.timeline, node.lsn);
        let mut racer = candidate(who, node.timeline, node.lsn);
        if node.nofailover {
            entry.member.tags = tags(r#"{"nofailover":true}"#);
            racer.tags = entry.member.tags.clone();
        }
        racer.primary = node.primary;
        racer.arbiter = node.arbiter;
        racer.streaming = !node.primary && !node.announced;
        racer.vacant_for = Duration::ZERO;
        if node.in_sync {
            in_sync.push(who);
        }
        view.members.insert(name(who), entry);
        racers.push(racer);
    }
    if sync {
        view.config = sync_mode();
        view.sync = sync_key("n9", &in_sync.join(" "));
    }
    for (who, node) in NAMES.into_iter().zip(nodes) {
        let Some(node) = node.filter(|node| node.announced) else { continue };
        let racer = racers.iter().find(|racer| racer.name.as_str() == who).unwrap();
        let refused = standing::may_stand(&view, racer).err();
        let mut said = word(node.timeline, node.lsn);
        said.value.stands = refused.is_none();
        said.value.why = refused.map(|why| why.to_string());
        said.value.primary = node.primary;
        said.value.priority = racer.tags.failover_priority();
        view.announcements.insert(name(who), said);
    }
    World { view, racers }
}

/// The fittest of those that may stand, told from the facts alone.
fn fittest(world: &World) -> Option<MemberName> {
    let words = world
        .racers
        .iter()
        .filter(|racer| standing::may_stand(&world.view, racer).is_ok())
        .map(|racer| {
            let said = Announcement {
                primary: racer.primary,
                priority: racer.tags.failover_priority(),
                ..word(racer.timeline.0, racer.lsn).value
            };
            (racer.name.clone(), said)
        })
        .collect::<Vec<_>>();
    words.iter().max_by_key(|(name, said)| standing::fitness(name, said)).map(|(name, _)| name.clone())
}

/// Runs the race until somebody takes the key or nobody will; says who took it.
fn run(world: &mut World) -> Option<MemberName> {
    const TICK: Duration = Duration::from_millis(400);
    let rounds = (HEAD_START + PATIENCE).div_duration_f32(TICK).ceil() as u32 + 4;
    for _ in 0..rounds {
        let steps = world.racers.iter().map(|racer| race::decide(&world.view, racer).what).collect::<Vec<_>>();
        let takes = steps.iter().filter(|step| matches!(step, RaceStep::Take(_))).count();
        assert!(takes <= 1, "two take the key in one view");
        for (at, step) in steps.into_iter().enumerate() {
            let racer = &mut world.racers[at];
            racer.vacant_for += TICK;
            match step {
                RaceStep::Take(judged) => {
                    assert_eq!(judged.after, AFTER);
                    return Some(racer.name.clone());
                }
                RaceStep::Announce(value) => {
                    racer.streaming = false;
                    let said = Versioned { value, revision: 10 };
                    world.view.announcements.insert(racer.name.clone(), said);
                }
                RaceStep::Wait(wait) => assert!(wait > Duration::ZERO, "a wait that does not wait"),
                RaceStep::Rest | RaceStep::Depose(_) | RaceStep::CallOff(_) | RaceStep::Tell(_) => {
                    panic!("nobody leads, and it does nothing about that")
                }
            }
        }
    }
    None
}

/// One vacancy from its first moment to its end.
fn check_vacancy(nodes: [Option<Node>; 3], sync: bool, forked: bool, optime: Lsn) {
    let mut world = world(nodes, sync, forked, optime);
    let expected = fittest(&world);
    let took = run(&mut world);
    assert_eq!(took, expected, "the one that took the key, and the fittest that may");
    if let Some(took) = &took {
        if world.view.config().synchronous_mode() != SynchronousMode::Off {
            assert!(world.view.sync.as_ref().unwrap().value.may_lead(took), "not in the sync key");
        }
        return;
    }
    for racer in &world.racers {
        let said = world.view.announcements.get(&racer.name).expect("nobody is silent for good");
        assert!(!said.value.stands && said.value.why.is_some(), "{} gives no reason", racer.name);
    }
}

/// Prints the world a panic came from.
fn told<T: std::fmt::Debug>(world: T, check: impl FnOnce() + std::panic::UnwindSafe) {
    if let Err(panic) = std::panic::catch_unwind(check) {
        println!("in the world {world:#?}");
        std::panic::resume_unwind(panic);
    }
}

fn every_vacancy(sync: bool, forked: bool) {
    let all = nodes(sync);
    // Names only break ties: in the larger half each set of three comes in one order.
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate().skip(if sync { i } else { 0 }) {
            for c in all.iter().skip(if sync { j } else { 0 }) {
                for optime in [LOW, HIGH] {
                    let three = [*c, *b, *a];
                    told((three, sync, forked, optime), move || check_vacancy(three, sync, forked, optime));
                }
            }
        }
    }
}

#[test]
fn every_vacancy_ends_with_the_fittest_or_with_everybodys_reason() {
    every_vacancy(false, false);
}

#[test]
fn every_vacancy_behind_a_fork_ends_with_the_fittest_or_with_everybodys_reason() {
    every_vacancy(false, true);
}

#[test]
fn every_vacancy_in_sync_mode_ends_with_a_member_of_the_sync_key_or_with_everybodys_reason() {
    every_vacancy(true, false);
}

#[test]
fn every_vacancy_in_sync_mode_behind_a_fork_ends_with_a_member_of_the_sync_key_or_with_reasons() {
    every_vacancy(true, true);
}

/// What else a member of a vacancy can be: its key, and how it stands to the request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Odd {
    Absent,
    /// Runs, with its WAL this far.
    Runs(Lsn),
    /// Runs as primary.
    Primary(Lsn),
    /// Runs, with a timeline that the history does not know yet.
    Ahead,
    /// Runs, and can't be promoted.
    NoArbiter(Lsn),
    /// Runs, but its member key ran out (it has a new lease).
    NoKey(Lsn),
    /// Announced that it stands; then its Postgres went down, and the arbiter keeps its lease.
    Down(Lsn),
}

#[derive(Debug, Clone, Copy)]
enum Requested {
    Nobody,
    Failover(&'static str),
    Switchover(&'static str),
}

fn check_odd(odd: [Odd; 3], asked: Requested, sync: bool, announced: u8) {
    let mut view = vacancy();
    view.status = status(LOW);
    let mut racers = Vec::new();
    for (at, (who, odd)) in NAMES.into_iter().zip(odd).enumerate() {
        let (timeline, lsn) = match odd {
            Odd::Absent => continue,
            Odd::Ahead => (2, LOW),
            Odd::Runs(lsn) | Odd::Primary(lsn) | Odd::NoArbiter(lsn) | Odd::NoKey(lsn) | Odd::Down(lsn) => (1, lsn),
        };
        let role = match odd {
            Odd::Primary(_) => MemberRole::Primary,
            _ => MemberRole::Replica,
        };
        let mut entry = member(who, role, timeline, lsn);
        let mut racer = candidate(who, timeline, lsn);
        racer.vacant_for = Duration::ZERO;
        racer.primary = matches!(odd, Odd::Primary(_));
        racer.arbiter = !matches!(odd, Odd::NoArbiter(_));
        let mut said = word(timeline, lsn);
        said.value.primary = racer.primary;
        said.value.stands = racer.arbiter;
        if matches!(odd, Odd::Down(_)) {
            entry.member.state = MemberState::Crashed;
        }
        if !matches!(odd, Odd::NoKey(_)) {
            view.members.insert(name(who), entry);
        }
        if announced & (1 << at) != 0 || matches!(odd, Odd::Down(_)) {
            view.announcements.insert(name(who), said);
        }
        if !matches!(odd, Odd::Down(_)) {
            racers.push(racer);
        }
    }
    view.failover = match asked {
        Requested::Nobody => None,
        Requested::Failover(to) => request(None, Some(to)),
        Requested::Switchover(to) => request(Some("n9"), Some(to)),
    };
    if sync {
        view.config = sync_mode();
        view.sync = sync_key("n9", "n1 n2");
    }
    let mut unasked = view.clone();
    unasked.failover = None;
    let free = racers.iter().any(|racer| standing::may_stand(&unasked, racer).is_ok());
    let mut world = World { view, racers };
    let took = run(&mut world);
    assert!(took.is_some() || !free, "a request keeps everybody from standing");
    if let Some(took) = took {
        let named = matches!(asked, Requested::Failover(to) if to == took.as_str());
        assert!(!sync || named || took.as_str() != "n3", "not in the sync key");
    }
}

#[test]
fn requests_servers_that_went_down_and_lost_keys_leave_no_vacancy_without_an_end() {
    let all = [
        Odd::Absent,
        Odd::Runs(LOW),
        Odd::Runs(HIGH),
        Odd::Primary(LOW),
        Odd::Primary(HIGH),
        Odd::Ahead,
        Odd::NoArbiter(HIGH),
        Odd::NoKey(LOW),
        Odd::NoKey(HIGH),
        Odd::Down(HIGH),
    ];
    let requests = [
        Requested::Nobody,
        Requested::Failover("n1"),
        Requested::Failover("n3"),
        Requested::Failover("n8"),
        Requested::Switchover("n1"),
        Requested::Switchover("n3"),
    ];
    for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))) {
        for (c, asked) in all.iter().flat_map(|c| requests.map(|asked| (*c, asked))) {
            for (sync, announced) in [false, true].into_iter().flat_map(|sync| (0..8).map(move |n| (sync, n))) {
                let odd = [a, b, c];
                told((odd, asked, sync, announced), move || check_odd(odd, asked, sync, announced));
            }
        }
    }
}
