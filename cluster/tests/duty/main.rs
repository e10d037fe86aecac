//! Duty: the branches as a table, and every node state whole: only the leader is ever told to be primary.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod following;
mod leading;
mod vacancy;
#[path = "../world/mod.rs"]
mod world;

use cluster::duty::{Duty, decide, keeps_lease_for_recovery};
use cluster::history::History;
use cluster::leader::Leader;
use cluster::local::{DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::{SystemId, Timeline};
use cluster::reached::{End, Reached};
use cluster::roles::{self, On, Role};
use cluster::upstream::Upstream;
use cluster::view::{ClusterView, Initialize};
use serde_json::json;
use std::time::Duration;
use world::*;

/// n1 leads as primary of timeline 1; n2 and n3 stream from it. The node that is asked is n2.
fn healthy() -> (ClusterView, LocalState) {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.status = status(LOW);
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, LOW));
    for who in ["n2", "n3"] {
        view.members.insert(name(who), member(who, MemberRole::Replica, 1, LOW));
    }
    let data = DataDir::Present(control(1, LOW, Ended::Standby));
    (view, local("n2", data, standby(1, LOW, Some("n1"))))
}

type Twist = fn(&mut ClusterView, &mut LocalState);

fn check(case: &str, twist: Twist, duty: &Duty, why: &str) {
    let (mut view, mut local) = healthy();
    twist(&mut view, &mut local);
    let decision = decide(&view, &local);
    assert_eq!(decision.what, *duty, "{case}: {}", decision.why);
    let said = decision.why.to_string();
    assert!(said.contains(why), "{case}: {said}");
}

/// The node leads, and this is what it has.
fn leads(view: &mut ClusterView, local: &mut LocalState, ended: Ended, postgres: Postgres) {
    view.leader = leader("n2");
    local.data = DataDir::Present(control(1, LOW, ended));
    local.postgres = postgres;
}

fn starting() -> Postgres {
    Postgres::Starting { since: Duration::from_secs(7) }
}

/// Nobody leads, and this is what the node has.
fn alone(view: &mut ClusterView, local: &mut LocalState, data: DataDir, postgres: Postgres) {
    view.leader = None;
    (local.data, local.postgres) = (data, postgres);
}

/// It claimed to make the cluster, which is not there yet.
fn claimed(view: &mut ClusterView, local: &LocalState) {
    view.members.retain(|name, _| *name == local.name);
    view.initialize = versioned(Initialize::Running);
    view.claimed_on = view.lease_of(&local.name);
}

fn present(ended: Ended) -> DataDir {
    DataDir::Present(control(1, LOW, ended))
}

fn every_local() -> Vec<LocalState> {
    let mut data = vec![DataDir::Empty, DataDir::Incomplete { what: "a rewind".to_owned() }];
    let mut servers = vec![Postgres::Stopped, Postgres::Silent, Postgres::Starting { since: Duration::ZERO }];
    for (timeline, lsn) in [(1, LOW), (1, HIGH), (2, HIGH)] {
        for ended in [Ended::CleanPrimary, Ended::CrashedPrimary, Ended::Standby] {
            data.push(DataDir::Present(control(timeline, lsn, ended)));
        }
        servers.push(primary(timeline, lsn));
        servers.push(standby(timeline, lsn, None));
        servers.push(standby(timeline, lsn, Some("n1")));
    }
    let mut all = Vec::new();
    for (data, postgres) in data.iter().flat_map(|data| servers.iter().map(move |server| (data, server))) {
        if !matches!(data, DataDir::Present(_)) && *postgres != Postgres::Stopped {
            continue; // a server runs on data
        }
        for bits in 0u32..64 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let mut node = local("n2", data.clone(), postgres.clone());
            node.lease_valid = bit(0);
            node.stopping = bit(1);
            node.reinit = bit(2);
            node.rewind_failed = bit(3).then(|| "no WAL".to_owned());
            node.may_clone_over = bit(4);
            node.down_for = Duration::from_secs(if bit(5) { 301 } else { 0 });
            all.push(node);
        }
    }
    all
}

fn every_view() -> Vec<ClusterView> {
    let leaders: [Option<Leader>; 4] = [None, leader("n1"), leader("n2"), leader("n3")];
    let mut all = Vec::new();
    for leader in leaders {
        for bits in 0u32..64 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let (mut view, _) = healthy();
            view.leader = leader.clone();
            view.history = versioned(History::default());
            if bit(0) {
                view.history = history(&[(1, FORK)]);
                view.members.insert(name("n1"), member("n1", MemberRole::Primary, 2, HIGH));
            }
            if bit(1) {
                view.members.get_mut(&name("n1")).unwrap().member.state = MemberState::Stopped;
            }
            if bit(2) {
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
            }
            if bit(3) {
                view.failover = request(Some("n2"), None);
            }
            if bit(4) {
                view.initialize = None;
            }
            if bit(5) {
                view.config = config(json!({"pause": true}));
            }
            all.push(view);
        }
    }
    all
}

#[test]
fn only_the_leader_is_told_to_be_primary_and_every_duty_is_a_row_of_the_table() {
    let locals = every_local();
    for view in every_view() {
        for local in &locals {
            let decision = decide(&view, local);
            let mine = view.leader_if(&local.name);
            let told = || format!("{decision:?}\nfor {local:#?}\nin {view:#?}");
            match &decision.what {
                Duty::Promote { term } => {
                    assert_eq!(Some(*term), mine.map(|leader| leader.term), "{}", told());
                    assert!(local.lease_valid, "{}", told());
                    assert!(matches!(local.postgres, Postgres::Standby { .. }), "{}", told());
                }
                Duty::StartPrimary { term } => {
                    assert_eq!(Some(*term), mine.map(|leader| leader.term), "{}", told());
                    assert_eq!(local.postgres, Postgres::Stopped, "{}", told());
                }
                Duty::Switchover { candidates } => {
                    assert!(mine.is_some() && !candidates.contains(&local.name), "{}", told());
                    assert!(matches!(local.postgres, Postgres::Primary { .. }), "{}", told());
                }
                Duty::HandOver { to } => {
                    assert!(mine.is_some() && *to != local.name, "{}", told());
                    assert_eq!(local.postgres, Postgres::Stopped, "{}", told());
                }
                Duty::Release | Duty::GiveWay { .. } => assert!(mine.is_some(), "{}", told()),
                Duty::Clone { from } | Duty::Rewind { from } => {
                    let is_ours = mine.is_some() || from.member() == Some(&local.name) || *from == Upstream::Nobody;
                    assert!(!is_ours, "{}", told());
                }
                Duty::Follow { upstream } => assert_ne!(upstream.member(), Some(&local.name), "{}", told()),
                Duty::StartStandby { upstream } => {
                    assert_ne!(upstream.member(), Some(&local.name), "{}", told());
                    assert_eq!(local.postgres, Postgres::Stopped, "{}", told());
                }
                Duty::Demote => {
                    assert!(mine.is_none() && matches!(local.postgres, Postgres::Primary { .. }), "{}", told());
                }
                Duty::Bootstrap => assert!(view.initialize.is_none(), "{}", told()),
                Duty::Restore => assert!(view.leader.is_none(), "{}", told()),
                Duty::DemoteCluster { .. } => panic!("no standby cluster here: {}", told()),
                Duty::RestoreTo { .. } => panic!("no restore has begun here: {}", told()),
                Duty::Upgrade { .. } => panic!("no upgrade has begun here: {}", told()),
                Duty::Rest | Duty::CallOff | Duty::Stop | Duty::Quit => {}
            }
            if let (Some(role), Some(on)) = (Role::seen(local), On::told(&decision.what)) {
                assert!(roles::next(role, on).is_some(), "no row for {role} on {on:?}: {}", told());
            }
        }
    }
}
