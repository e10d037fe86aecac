//! A major upgrade in the cluster's rules: who believes the write by which it is done, who is copied again, and what a half-done one owes.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::duty::{Duty, decide};
use cluster::local::{DataDir, Ended, LocalState, Postgres};
use cluster::member::MemberRole;
use cluster::name::SystemId;
use cluster::store::{self, Doubt, Making, Memory, Upgraded};
use cluster::upgrade::step::{HalfUpgraded, Journal, Owed, Step};
use cluster::upstream::Upstream;
use cluster::view::{ClusterView, Initialize, Versioned};
use world::*;

fn new() -> SystemId {
    SystemId("7000000000000000017".to_owned())
}

/// n1 leads; the keys say that 15 became 17 by the making of this generation.
fn upgraded(generation: u32) -> ClusterView {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, HIGH));
    view.members.insert(name("n2"), member("n2", MemberRole::Replica, 2, HIGH));
    view.initialize = versioned(Initialize::Done(new()));
    let upgraded = Some(Upgraded { old: system(), from: 15, to: 17 });
    view.store = Some(Versioned { value: Making { generation, by: "n1 at 8".to_owned(), upgraded }, revision: 9 });
    (view.revision, view.etcd) = (100, 7);
    view
}

fn before() -> Memory {
    let mut view = upgraded(1);
    view.initialize = versioned(Initialize::Done(system()));
    view.store = Some(Versioned { value: Making { generation: 1, by: "n1".to_owned(), upgraded: None }, revision: 2 });
    let mut memory = Memory::default();
    assert!(store::learn(&mut memory, &view));
    memory
}

#[test]
fn a_member_believes_that_its_cluster_went_to_a_new_version_and_no_other_change_of_system() {
    let memory = before();
    let mut view = upgraded(2);
    assert_eq!(store::judge(&memory, &view), Ok(()));
    store::complete(&memory, &mut view);
    assert_eq!(view.system_id(), Some(&new()), "the old identity is not put back");
    let mut learned = memory.clone();
    assert!(store::learn(&mut learned, &view));
    assert_eq!((learned.system_id, learned.making.generation), (Some(new()), 2));

    let mut of_another = upgraded(2);
    if let Some(store) = &mut of_another.store {
        store.value.upgraded = Some(Upgraded { old: SystemId("1".to_owned()), from: 15, to: 17 });
    }
    assert!(matches!(store::judge(&memory, &of_another), Err(Doubt::AnotherSystem { .. })));
    assert!(store::judge(&memory, &upgraded(1)).is_err(), "without a new making it is somebody else's");
}

fn with_old_data(postgres: Postgres) -> LocalState {
    local("n2", DataDir::Present(control(2, HIGH, Ended::Standby)), postgres)
}

#[test]
fn old_data_is_replaced_by_a_copy_once_the_new_primary_serves() {
    let copy = Duty::Clone { from: Upstream::Member(name("n1")) };
    for postgres in [Postgres::Stopped, standby(2, HIGH, Some("n1"))] {
        assert_eq!(decide(&upgraded(2), &with_old_data(postgres)).what, copy);
    }
    let mut starting = upgraded(2);
    starting.members.insert(name("n1"), member("n1", MemberRole::Replica, 1, HIGH));
    assert_eq!(
        decide(&starting, &with_old_data(Postgres::Stopped)).what,
        Duty::Rest,
        "the old data stays until there is something to copy"
    );
    let mut lost = upgraded(2);
    lost.leader = None;
    assert_eq!(decide(&lost, &with_old_data(Postgres::Stopped)).what, Duty::Rest, "nor does it lead or go");
    let mut foreign = upgraded(2);
    foreign.store = None;
    assert_eq!(decide(&foreign, &with_old_data(Postgres::Stopped)).what, Duty::Quit);
}

#[test]
fn a_half_done_upgrade_comes_before_anything_that_the_data_says() {
    let half = |step, failed| {
        let journal = Journal { from: 15, to: 17, step, old: system(), new: Some(new()), twin: None };
        let mut local = local("n1", DataDir::Damaged { why: "pg_control is missing".to_owned() }, Postgres::Stopped);
        local.upgrade = Some(Box::new(HalfUpgraded { journal, failed }));
        local
    };
    let mut old = upgraded(1);
    old.initialize = versioned(Initialize::Done(system()));
    let mut of_another = old.clone();
    of_another.leader = leader("n2");
    for (view, step, failed, expected) in [
        (&old, Step::Transfer, true, Duty::Upgrade { owed: Owed::Undo }),
        (&old, Step::Statistics, false, Duty::Upgrade { owed: Owed::GoOn(Step::Statistics) }),
        (&old, Step::Statistics, true, Duty::Release),
        (&of_another, Step::Statistics, true, Duty::Upgrade { owed: Owed::Discard }),
        (&upgraded(2), Step::Announce, false, Duty::Upgrade { owed: Owed::GoOn(Step::Exchange) }),
    ] {
        assert_eq!(decide(view, &half(step, failed)).what, expected, "{step:?}");
    }
    let mut stopping = half(Step::Announce, false);
    stopping.stopping = true;
    assert_eq!(decide(&old, &stopping).what, Duty::Stop, "who is asked to stop goes on at the next start");
}
