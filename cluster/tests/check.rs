//! Check: each fault is found, with its severity, and a healthy cluster has none.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::check::{Severity, faults};
use cluster::member::{MemberRole, MemberState};
use cluster::view::ClusterView;
use serde_json::json;
use world::*;

fn healthy() -> ClusterView {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.status = status(LOW);
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, LOW));
    for who in ["n2", "n3"] {
        view.members.insert(name(who), member(who, MemberRole::Replica, 1, LOW));
    }
    view
}

type Twist = fn(&mut ClusterView);

/// The faults are these, the worst first, by a part of their line.
fn check(case: &str, twist: Twist, expected: &[&str]) {
    let mut view = healthy();
    twist(&mut view);
    let found = faults(&view);
    let told = found.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told.len(), expected.len(), "{case}: {told:#?}");
    for (line, part) in told.iter().zip(expected) {
        assert!(line.contains(part), "{case}: \"{line}\" does not say \"{part}\"");
    }
    assert!(found.iter().all(|fault| !fault.hint.is_empty()), "{case}: a fault without a hint");
    assert!(found.is_sorted_by_key(|fault| fault.severity), "{case}");
}

#[test]
fn every_fault_is_found_and_nothing_else() {
    let cases: &[(&str, Twist, &[&str])] = &[
        ("healthy", |_| {}, &[]),
        ("no leader", |view| view.leader = None, &["critical: cluster: nobody leads"]),
        (
            "no leader, and the reasons are known",
            |view| {
                view.leader = None;
                let mut said = word(1, LOW);
                (said.value.stands, said.value.why) = (false, Some("tagged nofailover".to_owned()));
                view.announcements.insert(name("n2"), said);
            },
            &["nobody leads (n2: tagged nofailover)"],
        ),
        (
            "no data",
            |view| (view.leader, view.initialize) = (None, None),
            &["critical: cluster: etcd has no keys of a cluster, and there is data of one at n1, n2, n3"],
        ),
        (
            "the founding failed",
            |view| {
                (view.leader, view.initialize) = (None, None);
                view.members.retain(|member, _| *member == name("n2"));
                let member = &mut view.members.get_mut(&name("n2")).unwrap().member;
                (member.state, member.timeline) = (MemberState::from("initdb failed".to_owned()), None);
                member.tenure.get_or_insert_default().reason = Some("Postgres ended while it started: no such library".to_owned());
            },
            &[
                "critical: cluster: the cluster has no data yet: n2 could not found it: Postgres ended while it started",
                "n2: its Postgres could not be made (initdb failed)",
            ],
        ),
        ("the leader has no key", |view| drop(view.members.remove(&name("n1"))), &["critical: n1: it leads, but has no member key"]),
        (
            "the leader is down",
            |view| view.members.get_mut(&name("n1")).unwrap().member.state = MemberState::Crashed,
            &["critical: n1: it leads, but its Postgres has crashed"],
        ),
        (
            "the leader is a standby",
            |view| view.members.get_mut(&name("n1")).unwrap().member.role = MemberRole::Replica,
            &["critical: n1: it leads, but its Postgres is a replica"],
        ),
        (
            "two primaries",
            |view| drop(view.members.insert(name("n2"), member("n2", MemberRole::Primary, 1, LOW))),
            &["critical: cluster: n1 and n2 say that they are primary", "critical: n2: its Postgres is a primary, but n1 leads"],
        ),
        (
            "another timeline",
            |view| drop(view.members.insert(name("n2"), member("n2", MemberRole::Replica, 2, LOW))),
            &["warning: n2: it is on timeline 2, n1 is on 1"],
        ),
        (
            "not streaming",
            |view| {
                let state = Some("in archive recovery".to_owned());
                view.members.get_mut(&name("n2")).unwrap().member.replication_state = state;
                view.members.get_mut(&name("n3")).unwrap().member.replication_state = None;
            },
            &[
                "warning: cluster: no member could take over: no good candidates have been found (n2: it does not stream",
                "warning: n2: it does not stream: it is in archive recovery",
                "warning: n3: it does not stream",
            ],
        ),
        (
            "far behind",
            |view| view.status = status(HIGH),
            &["warning: n2: it is 10485760 bytes behind n1", "warning: n3: it is 10485760 bytes behind n1"],
        ),
        (
            "a member is down",
            |view| view.members.get_mut(&name("n2")).unwrap().member.state = MemberState::StartFailed,
            &["warning: n2: its Postgres failed to start"],
        ),
        (
            "sync mode without a standby",
            |view| (view.config, view.sync) = (sync_mode(), sync_key("n1", "")),
            &["warning: cluster: no member could take over", "warning: cluster: synchronous_mode is on"],
        ),
        (
            "sync mode, the key of an old leader",
            |view| (view.config, view.sync) = (sync_mode(), sync_key("n9", "n2")),
            &["commits are on one node only"],
        ),
        (
            "strict sync mode without a standby",
            |view| {
                view.config = config(json!({"synchronous_mode": true, "synchronous_mode_strict": true}));
                view.sync = sync_key("n1", "");
            },
            &["critical: cluster: synchronous_mode is on, but there is no synchronous standby: commits wait", "no member"],
        ),
        ("sync mode with one", |view| (view.config, view.sync) = (sync_mode(), sync_key("n1", "n2")), &[]),
        (
            "nobody else",
            |view| view.members.retain(|who, _| who.as_str() == "n1"),
            &["warning: cluster: no member could take over: cluster does not have members except leader"],
        ),
        (
            "a member is lost",
            |view| {
                view.members.retain(|who, _| who.as_str() != "n3");
                view.status = status(HIGH);
                let status = &mut view.status.as_mut().unwrap().value;
                status.optime = cluster::lsn::Lsn(0);
                status
                    .other
                    .insert("tenure".to_owned(), json!({"members": {"n1": null, "n2": null, "n3": "2026-11-21T18:00:00Z", "n4": null}}));
            },
            &[
                "warning: n3: it is lost: it was a member until 2026-11-21T18:00:00Z",
                "warning: n4: it is lost: it was a member a moment ago",
            ],
        ),
        ("maintenance mode", |view| view.config = config(json!({"pause": true})), &["notice: cluster: maintenance mode is on"]),
        (
            "a key that can't be read",
            |view| view.unreadable.push("/service/demo/sync: expected value".to_owned()),
            &["warning: cluster: a key can't be read and is left out: /service/demo/sync"],
        ),
        (
            "a copy is being made",
            |view| {
                let member = &mut view.members.get_mut(&name("n2")).unwrap().member;
                member.state = MemberState::CreatingReplica;
                member.tenure.as_mut().unwrap().progress_percent = Some(40);
            },
            &["warning: n2: its Postgres is being copied (40 %); no slot is known to keep WAL for it"],
        ),
        (
            "a copy is being made, with a slot",
            |view| {
                view.members.get_mut(&name("n2")).unwrap().member.state = MemberState::CreatingReplica;
                let status = &mut view.status.as_mut().unwrap().value;
                status.slots.insert("n2".to_owned(), cluster::lsn::Lsn(5 << 20));
                status.other.insert("tenure".to_owned(), json!({"term": NOW.0, "reserved": ["n2"]}));
            },
            &["warning: n2: its Postgres is being copied; the slot n2 keeps 5242880 bytes of WAL for it"],
        ),
        (
            "no arbiter",
            |view| view.members.get_mut(&name("n2")).unwrap().member.tenure.as_mut().unwrap().arbiter = false,
            &["warning: n2: no arbiter runs beside it"],
        ),
        (
            "another program's member",
            |view| view.members.get_mut(&name("n2")).unwrap().member.tenure = None,
            &["notice: n2: Patroni 4.1.4 runs it, and pg_tenure others"],
        ),
        (
            "pending restart",
            |view| view.members.get_mut(&name("n1")).unwrap().member.pending_restart = true,
            &["notice: n1: a setting waits for a restart"],
        ),
    ];
    for (case, twist, expected) in cases {
        check(case, *twist, expected);
    }
}

#[test]
fn a_fault_reads_as_json_by_its_words() {
    let mut view = healthy();
    view.leader = None;
    let fault = serde_json::to_value(&faults(&view)[0]).unwrap();
    assert_eq!((&fault["severity"], &fault["subject"]), (&json!("critical"), &json!("cluster")));
    assert!(Severity::Critical < Severity::Warning && Severity::Warning < Severity::Notice);
}
