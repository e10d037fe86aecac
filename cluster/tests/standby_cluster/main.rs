//! Standby clusters: what the leader owes, as a table; and small clusters of them whole.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod pair;
#[path = "../world/mod.rs"]
mod world;

use cluster::duty::{self, Duty};
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::local::{DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::race;
use cluster::standby_cluster::{Remote, RemoteWord};
use cluster::standing::{self, RaceStep};
use cluster::upstream::Upstream;
use cluster::view::{Announcement, ClusterView, LastTerm, Versioned};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use world::*;

fn follows() -> Option<Versioned<cluster::config::DynamicConfig>> {
    config(json!({"standby_cluster": {"host": "a", "port": 5432}}))
}

/// n2 leads a standby cluster, in which n3 streams from it.
fn view() -> ClusterView {
    let mut view = vacancy();
    view.config = follows();
    view.leader = leader("n2");
    view.members.insert(name("n2"), member("n2", MemberRole::StandbyLeader, 1, LOW));
    view.members.insert(name("n3"), member("n3", MemberRole::Replica, 1, LOW));
    view
}

fn present(ended: Ended) -> DataDir {
    DataDir::Present(control(1, LOW, ended))
}

fn n2(postgres: Postgres) -> LocalState {
    let mut local = local("n2", present(Ended::Standby), postgres);
    local.remote.followed = true;
    local
}

fn remote(timeline: u32, lines: &[(u32, Lsn)]) -> Option<RemoteWord> {
    let history = history(lines).unwrap().value;
    Some(RemoteWord { system_id: system(), timeline: Timeline(timeline), history, checkpointed: Some(Timeline(timeline)) })
}

type Change = fn(&mut ClusterView, &mut LocalState);

#[test]
fn what_the_leader_of_a_standby_cluster_owes() {
    let rows: &[(&str, Change, Duty, &str)] = &[
        ("it follows", |_, _| {}, Duty::Rest, "leads a standby cluster"),
        ("a lease that etcd has not confirmed is no matter: nothing is promoted", |_, l| l.lease_valid = false, Duty::Rest, "leads"),
        (
            "in maintenance mode",
            |v, _| v.config = config(json!({"pause": true, "standby_cluster": {"host": "a"}})),
            Duty::Rest,
            "maintenance",
        ),
        (
            "in maintenance mode, and it follows a member still: pointing it elsewhere stops nothing",
            |v, l| {
                v.config = config(json!({"pause": true, "standby_cluster": {"host": "a"}}));
                l.remote.followed = false;
            },
            Duty::Follow { upstream: Upstream::Remote },
            "leads",
        ),
        (
            "in maintenance mode, and it is a primary still",
            |v, l| {
                v.config = config(json!({"pause": true, "standby_cluster": {"host": "a"}}));
                l.postgres = primary(1, LOW);
            },
            Duty::Rest,
            "maintenance",
        ),
        ("it follows a member still", |_, l| l.remote.followed = false, Duty::Follow { upstream: Upstream::Remote }, "leads"),
        ("tagged nostream, it streams", |_, l| l.tags = tags(r#"{"nostream":true}"#), Duty::Follow { upstream: Upstream::Nobody }, "leads"),
        ("it is a primary still", |_, l| l.postgres = primary(1, LOW), Duty::DemoteCluster { term: NOW }, "standby_cluster is set"),
        (
            "the demotion broke off half way",
            |_, l| (l.data, l.postgres) = (present(Ended::CleanPrimary), Postgres::Stopped),
            Duty::DemoteCluster { term: NOW },
            "standby_cluster is set",
        ),
        ("stopped", |_, l| l.postgres = Postgres::Stopped, Duty::StartStandby { upstream: Upstream::Remote }, "leads"),
        (
            "the other side went on from before what this node has",
            |_, l| l.remote.said = remote(2, &[(1, Lsn(LOW.0 - 1))]),
            Duty::Rewind { from: Upstream::Remote },
            "the history forked",
        ),
        (
            "the same, before the other side's first checkpoint",
            |_, l| {
                l.remote.said = remote(2, &[(1, Lsn(LOW.0 - 1))]);
                l.remote.said.as_mut().unwrap().checkpointed = Some(Timeline(1));
            },
            Duty::Rest,
            "first checkpoint",
        ),
        (
            "the rewind failed, and a clone is allowed",
            |_, l| {
                l.remote.said = remote(2, &[(1, Lsn(LOW.0 - 1))]);
                l.rewind_failed = Some("no".to_owned());
            },
            Duty::Clone { from: Upstream::Remote },
            "allows the data to be replaced",
        ),
        (
            "the rewind failed, no clone is allowed, and another could lead",
            |_, l| {
                l.remote.said = remote(2, &[(1, Lsn(LOW.0 - 1))]);
                (l.rewind_failed, l.may_clone_over) = (Some("no".to_owned()), false);
            },
            Duty::Release,
            "the history forked",
        ),
        (
            "pg_control is damaged, and another could lead",
            |_, l| (l.data, l.postgres) = (DataDir::Damaged { why: "checksum".to_owned() }, Postgres::Stopped),
            Duty::Release,
            "checksum",
        ),
        (
            "pg_control is damaged, it is alone, and a clone is allowed",
            |v, l| {
                v.members.remove(&name("n3"));
                (l.data, l.postgres) = (DataDir::Damaged { why: "checksum".to_owned() }, Postgres::Stopped);
            },
            Duty::Clone { from: Upstream::Remote },
            "allows the data to be replaced",
        ),
        (
            "it does not start, and another could lead",
            |_, l| (l.postgres, l.start_failed) = (Postgres::Stopped, Some("FATAL: no space".to_owned())),
            Duty::Release,
            "no space",
        ),
        (
            "it does not start, and it is alone",
            |v, l| {
                v.members.remove(&name("n3"));
                (l.postgres, l.start_failed) = (Postgres::Stopped, Some("FATAL: no space".to_owned()));
            },
            Duty::Rest,
            "no space",
        ),
        ("the other side went on from all that this node has", |_, l| l.remote.said = remote(2, &[(1, LOW)]), Duty::Rest, "leads"),
        (
            "the other side is the older one: nothing is wound back",
            |_, l| (l.postgres, l.remote.said) = (standby(3, LOW, None), remote(1, &[])),
            Duty::Rest,
            "it is the older one",
        ),
        (
            "the other side is another database system",
            |_, l| {
                l.remote.said = remote(1, &[]);
                l.remote.said.as_mut().unwrap().system_id = SystemId("7".to_owned());
            },
            Duty::Rest,
            "can't be followed",
        ),
        (
            "no data, and another could lead",
            |_, l| (l.data, l.postgres) = (DataDir::Empty, Postgres::Stopped),
            Duty::Release,
            "data directory is empty",
        ),
        (
            "no data, and it is alone",
            |v, l| {
                v.members.remove(&name("n3"));
                (l.data, l.postgres) = (DataDir::Empty, Postgres::Stopped);
            },
            Duty::Clone { from: Upstream::Remote },
            "data directory is empty",
        ),
        (
            "a switchover is asked for",
            |v, l| (v.failover, l.request_due) = (request(Some("n2"), Some("n3")), true),
            Duty::Switchover { candidates: vec![name("n3")] },
            "switchover to n3",
        ),
        ("asked to stop", |_, l| l.stopping = true, Duty::Switchover { candidates: vec![name("n3")] }, "n3 takes over"),
        ("the cluster is promoted", |v, _| v.config = config(json!({})), Duty::Promote { term: NOW }, "holds the leader key"),
        ("the key config is lost", |v, _| v.config = None, Duty::Rest, "leads a standby cluster"),
        (
            "the section names nothing to follow",
            |v, _| v.config = config(json!({"standby_cluster": {}})),
            Duty::Promote { term: NOW },
            "holds the leader key",
        ),
    ];
    for (what, change, duty, words) in rows {
        let (mut view, mut local) = (view(), n2(standby(1, LOW, Some("a"))));
        change(&mut view, &mut local);
        let decision = duty::decide(&view, &local);
        assert_eq!(decision.what, *duty, "{what}");
        assert!(decision.why.to_string().contains(words), "{what}: {}", decision.why);
    }
}

#[test]
fn what_the_others_in_a_standby_cluster_owe() {
    let rows: &[(&str, Change, Duty)] = &[
        ("it streams from the leader", |_, _| {}, Duty::Rest),
        ("stopped", |_, l| l.postgres = Postgres::Stopped, Duty::StartStandby { upstream: name("n2").into() }),
        (
            "no data: a copy of the leader's",
            |_, l| (l.data, l.postgres) = (DataDir::Empty, Postgres::Stopped),
            Duty::Clone { from: name("n2").into() },
        ),
        (
            "it has what the other side gave up: a standby is no source for a rewind",
            |v, l| {
                v.history = history(&[(1, Lsn(LOW.0 - 1))]);
                v.members.insert(name("n2"), member("n2", MemberRole::StandbyLeader, 2, LOW));
                l.postgres = standby(1, LOW, Some("n2"));
            },
            Duty::Rewind { from: Upstream::Remote },
        ),
        ("the archive took it further than the leader", |_, l| l.postgres = standby(2, LOW, Some("n2")), Duty::Rest),
        (
            "stopped, the leader's history is not written: its log is only replayed",
            |v, l| {
                v.members.insert(name("n2"), member("n2", MemberRole::StandbyLeader, 2, LOW));
                (l.data, l.postgres) = (DataDir::Present(control(2, LOW, Ended::Standby)), Postgres::Stopped);
            },
            Duty::StartStandby { upstream: name("n2").into() },
        ),
        ("it is a primary", |_, l| l.postgres = primary(1, LOW), Duty::Demote),
        ("nobody leads and it is a primary", |v, l| (v.leader, l.postgres) = (None, primary(1, LOW)), Duty::Demote),
        (
            "nobody leads, nobody has data",
            |v, l| {
                v.leader = None;
                v.members.remove(&name("n2"));
                (l.data, l.postgres) = (DataDir::Empty, Postgres::Stopped);
            },
            Duty::Clone { from: Upstream::Remote },
        ),
    ];
    for (what, change, duty) in rows {
        let (mut view, mut local) = (view(), local("n3", present(Ended::Standby), standby(1, LOW, Some("n2"))));
        change(&mut view, &mut local);
        assert_eq!(duty::decide(&view, &local).what, *duty, "{what}");
    }
}

#[test]
fn a_word_of_a_standby_cluster_counts_no_more_once_the_cluster_follows_nobody() {
    let mut view = view();
    view.leader = None;
    let me = standing::Candidate { vacant_for: Duration::from_secs(60), streaming: false, ..candidate("n2", 1, LOW) };
    for who in ["n2", "n3"] {
        let mut said = word(1, LOW);
        said.value.receives = true;
        view.announcements.insert(name(who), said);
    }
    assert!(matches!(race::decide(&view, &me).what, RaceStep::Take(judged) if judged.position.is_none()));
    // Promoted meanwhile: it stops receiving, says what it has then, and goes by that.
    view.config = config(json!({}));
    assert!(matches!(race::decide(&view, &me).what, RaceStep::Announce(word) if !word.receives));
}
