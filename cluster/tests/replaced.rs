//! The data that a copy takes the place of: set aside, gone before, or never.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::local::{DataDir, Ended};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::SystemId;
use cluster::replaced::{Facts, Old, Room, old, put_back};
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use serde_json::json;
use world::*;

/// n1 leads on timeline 2, n3 streams all of it, and n2 is to be copied.
fn led() -> ClusterView {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.history = history(&[(1, FORK)]);
    view.status = status(HIGH);
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 2, HIGH));
    view.members.insert(name("n2"), member("n2", MemberRole::Replica, 2, HIGH));
    let mut third = member("n3", MemberRole::Replica, 2, HIGH);
    third.member.replication_state = Some("streaming".to_owned());
    view.members.insert(name("n3"), third);
    view
}

fn present(timeline: u32, checkpoint: Lsn, ended: Ended) -> DataDir {
    DataDir::Present(control(timeline, checkpoint, ended))
}

struct Case {
    view: ClusterView,
    data: DataDir,
    from: Upstream,
    room: Room,
    reuses: bool,
    overwrite: bool,
    forked_may_go: bool,
}

impl Case {
    fn says(&self) -> String {
        let facts = Facts {
            view: &self.view,
            name: &name("n2"),
            data: &self.data,
            from: &self.from,
            room: &self.room,
            reuses: self.reuses,
            overwrite: self.overwrite,
            forked_may_go: self.forked_may_go,
        };
        match old(&facts) {
            Ok(Old::Nothing) => "nothing".to_owned(),
            Ok(Old::Aside) => "aside".to_owned(),
            Ok(Old::Replace(why)) => format!("replace: {why}"),
            Err(why) => format!("stay: {why}"),
        }
    }
}

#[test]
fn old_data_are_set_aside_or_go_only_where_another_member_has_every_acknowledged_row() {
    let standby = || present(2, LOW, Ended::Standby);
    type Twist = fn(&mut Case);
    let cases: &[(&str, Twist, &str)] = &[
        ("there is room", |_| {}, "aside"),
        ("no data", |case| case.data = DataDir::Empty, "nothing"),
        ("half a copy", |case| case.data = DataDir::Incomplete { what: "clone".to_owned() }, "nothing"),
        ("no room, and another standby has all", |case| case.room = full(), "replace: n3 has every"),
        (
            "no room, and the other standby is far behind",
            |case| {
                case.room = full();
                behind(case);
            },
            "stay: this is the only copy",
        ),
        (
            "no room, and the other does not stream",
            |case| {
                case.room = full();
                silent(case);
            },
            "stay: this is the only copy",
        ),
        (
            "no room, and the other is on another timeline",
            |case| {
                case.room = full();
                astray(case);
            },
            "stay: this is the only copy",
        ),
        (
            "no room, nobody else, and an operator says so",
            |case| {
                (case.room, case.overwrite) = (full(), true);
                gone(case);
            },
            "replace: an operator",
        ),
        (
            "no room, nobody else",
            |case| {
                case.room = full();
                gone(case);
            },
            "stay: this is the only copy of the data beside n1's",
        ),
        ("room, but nobody leads", |case| case.view.leader = None, "stay: no other member"),
        (
            "room, but the leader is down",
            |case| case.view.members.get_mut(&name("n1")).unwrap().member.state = MemberState::Crashed,
            "stay: no other member",
        ),
        ("an operator says so, but nobody leads", |case| (case.view.leader, case.overwrite) = (None, true), "stay: no other member"),
        ("damaged, with room", |case| case.data = DataDir::Damaged { why: "x".to_owned() }, "aside"),
        ("damaged, without", |case| (case.data, case.room) = (DataDir::Damaged { why: "x".to_owned() }, full()), "replace: no server"),
        (
            "forked, no room, asynchronous",
            |case| (case.data, case.room) = (present(1, HIGH, Ended::CleanPrimary), full()),
            "stay: the data here left the cluster's history",
        ),
        (
            "a crashed primary's, whose end nobody knows",
            |case| (case.data, case.room) = (present(1, LOW, Ended::CrashedPrimary), full()),
            "stay: the data here left",
        ),
        (
            "forked, no room, and the configuration allows it",
            |case| (case.data, case.room, case.forked_may_go) = (present(1, HIGH, Ended::CleanPrimary), full(), true),
            "replace: n3",
        ),
        (
            "forked, no room, synchronous: the leader has what was acknowledged",
            |case| {
                (case.data, case.room) = (present(1, HIGH, Ended::CleanPrimary), full());
                (case.view.config, case.view.sync) = (sync_mode(), sync_key("n1", "n3"));
            },
            "replace: n3",
        ),
        (
            "synchronous, and the other standby is not trusted",
            |case| {
                case.room = full();
                (case.view.config, case.view.sync) = (sync_mode(), sync_key("n1", "n2"));
            },
            "stay: this is the only copy",
        ),
        ("a method that uses what is there", |case| case.reuses = true, "replace: n3"),
        (
            "a method that uses the only other copy",
            |case| {
                case.reuses = true;
                gone(case);
            },
            "aside",
        ),
        ("of a database system that was left", |case| (case.data, case.room) = (foreign(), full()), "replace: they are of a database"),
        (
            "of a standby cluster",
            |case| (case.from, case.room, case.view.leader) = (Upstream::Remote, full(), None),
            "replace: the cluster that",
        ),
    ];
    for (what, twist, expected) in cases {
        let mut case = Case {
            view: led(),
            data: standby(),
            from: Upstream::Member(name("n1")),
            room: Room::Enough,
            reuses: false,
            overwrite: false,
            forked_may_go: false,
        };
        case.view.config = config(json!({"maximum_lag_on_failover": 1 << 20}));
        twist(&mut case);
        let said = case.says();
        assert!(said.starts_with(expected), "{what}: {said}");
    }
}

fn full() -> Room {
    Room::None("100 bytes are needed beside them, 3 are free".to_owned())
}

fn behind(case: &mut Case) {
    let third = &mut case.view.members.get_mut(&name("n3")).unwrap().member;
    (third.xlog_location, third.receive_lsn, third.replay_lsn) = (Some(LOW), Some(LOW), Some(LOW));
}

fn silent(case: &mut Case) {
    case.view.members.get_mut(&name("n3")).unwrap().member.replication_state = None;
}

fn astray(case: &mut Case) {
    case.view.members.get_mut(&name("n3")).unwrap().member.timeline = Some(cluster::name::Timeline(1));
}

fn gone(case: &mut Case) {
    case.view.members.remove(&name("n3"));
}

fn foreign() -> DataDir {
    let mut control = control(2, LOW, Ended::Standby);
    control.system_id = SystemId("6".to_owned());
    DataDir::Present(control)
}

#[test]
fn what_was_set_aside_comes_back_only_where_nobody_leads_and_nothing_else_is_here() {
    let aside = control(2, LOW, Ended::Standby);
    let half = DataDir::Incomplete { what: "clone from n1".to_owned() };
    let mut vacant = led();
    vacant.leader = None;
    for (what, view, data, expected) in [
        ("half a copy", &vacant, &half, true),
        ("an empty directory", &vacant, &DataDir::Empty, true),
        ("data", &vacant, &present(2, LOW, Ended::Standby), false),
        ("somebody leads", &led(), &half, false),
    ] {
        assert_eq!(put_back(view, data, Some(&aside)).is_some(), expected, "{what}");
        assert!(put_back(view, data, None).is_none());
    }
    let mut other = aside.clone();
    other.system_id = SystemId("6".to_owned());
    assert!(put_back(&vacant, &half, Some(&other)).is_none(), "of another database system");
}
