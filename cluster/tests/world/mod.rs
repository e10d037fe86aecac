//! What the tables and small worlds are made of: short words for long facts.
#![allow(dead_code, reason = "each test file is a program of its own and uses its part")]

use cluster::config::DynamicConfig;
use cluster::failover::FailoverRequest;
use cluster::history::{History, Line};
use cluster::host::Address;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::local::{Control, DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{Member, MemberEntry, MemberRole, MemberState, Tags, TenureFacts};
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::standby_cluster::Remote;
use cluster::standing::Candidate;
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, Initialize, LastTerm, Status, Versioned};
use serde_json::json;
use std::time::Duration;

/// Before the fork.
pub const LOW: Lsn = Lsn(10 << 20);
/// Where timeline 1 ended, in the worlds that have a timeline 2.
pub const FORK: Lsn = Lsn(15 << 20);
/// Past the fork, and further ahead of LOW than `maximum_lag_on_failover` allows.
pub const HIGH: Lsn = Lsn(20 << 20);
/// The last term in every vacancy.
pub const AFTER: Term = Term(7);
/// The term in every view with a leader.
pub const NOW: Term = Term(8);

pub fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

pub fn versioned<T>(value: T) -> Option<Versioned<T>> {
    Some(Versioned { value, revision: 5 })
}

pub fn tags(json: &str) -> Tags {
    serde_json::from_str(json).unwrap()
}

pub fn system() -> SystemId {
    SystemId("7000000000000000001".to_owned())
}

pub fn address(who: &str) -> Address {
    Address::new(who, 5432)
}

/// A running member with an arbiter.
pub fn member(who: &str, role: MemberRole, timeline: u32, lsn: Lsn) -> MemberEntry {
    let standby = role == MemberRole::Replica;
    MemberEntry {
        member: Member {
            conn_url: format!("postgres://{who}:5432/postgres"),
            api_url: format!("http://{who}:8008/patroni"),
            state: MemberState::Running,
            role,
            version: "4.1.4".to_owned(),
            checkpoint_after_promote: None,
            tags: Tags::default(),
            pending_restart: false,
            xlog_location: Some(lsn),
            replay_lsn: standby.then_some(lsn),
            receive_lsn: standby.then_some(lsn),
            replication_state: standby.then(|| "streaming".to_owned()),
            timeline: Some(Timeline(timeline)),
            tenure: Some(TenureFacts { arbiter: true, ..TenureFacts::default() }),
            other: serde_json::Map::new(),
        },
        lease: LeaseId(1),
        revision: 3,
    }
}

/// A cluster that exists, without members, leader and history.
pub fn vacancy() -> ClusterView {
    ClusterView {
        revision: 9,
        initialize: versioned(Initialize::Done(system())),
        config: versioned(DynamicConfig::default()),
        last_term: Some(Versioned { value: LastTerm { holder: name("n9"), how: "taken".to_owned() }, revision: AFTER.0 }),
        ..ClusterView::default()
    }
}

pub fn config(json: serde_json::Value) -> Option<Versioned<DynamicConfig>> {
    versioned(DynamicConfig(json.as_object().unwrap().clone()))
}

pub fn sync_mode() -> Option<Versioned<DynamicConfig>> {
    config(json!({"synchronous_mode": true}))
}

pub fn status(optime: Lsn) -> Option<Versioned<Status>> {
    versioned(Status { optime, ..Status::default() })
}

pub fn sync_key(leader: &str, standbys: &str) -> Option<Versioned<SyncState>> {
    versioned(SyncState::of(&name(leader), &standbys.split_whitespace().map(name).collect()))
}

pub fn leader(who: &str) -> Option<Leader> {
    Some(Leader { name: name(who), lease: LeaseId(1), term: NOW })
}

pub fn request(leader: Option<&str>, member: Option<&str>) -> Option<Versioned<FailoverRequest>> {
    versioned(FailoverRequest { leader: leader.map(str::to_owned), member: member.map(str::to_owned), ..FailoverRequest::default() })
}

/// A history of these lines: timeline and where it ended.
pub fn history(lines: &[(u32, Lsn)]) -> Option<Versioned<History>> {
    let line = |&(timeline, switch): &(u32, Lsn)| Line {
        timeline: Timeline(timeline),
        switch,
        reason: "no recovery target specified".to_owned(),
        timestamp: None,
        new_leader: None,
    };
    versioned(History(lines.iter().map(line).collect()))
}

/// A standby that may stand and knows of the vacancy for a minute.
pub fn candidate(who: &str, timeline: u32, lsn: Lsn) -> Candidate {
    Candidate {
        name: name(who),
        tags: Tags::default(),
        primary: false,
        timeline: Timeline(timeline),
        lsn,
        end_known: true,
        streaming: false,
        arbiter: true,
        vacant_for: Duration::from_secs(60),
        stood_down: false,
        promised: false,
        deposition: Default::default(),
    }
}

/// What a candidate says when it stands.
pub fn word(timeline: u32, lsn: Lsn) -> Versioned<Announcement> {
    Versioned {
        value: Announcement {
            after: AFTER,
            stands: true,
            why: None,
            primary: false,
            receives: false,
            deposes: false,
            hears: None,
            timeline: Timeline(timeline),
            lsn,
            priority: 1,
        },
        revision: 6,
    }
}

pub fn control(timeline: u32, checkpoint: Lsn, ended: Ended) -> Control {
    Control { system_id: system(), timeline: Timeline(timeline), checkpoint, ended }
}

pub fn standby(timeline: u32, position: Lsn, upstream: Option<&str>) -> Postgres {
    Postgres::Standby { timeline: Timeline(timeline), position, upstream: upstream.map(address), streaming: upstream.is_some() }
}

pub fn primary(timeline: u32, flushed: Lsn) -> Postgres {
    Postgres::Primary { timeline: Timeline(timeline), flushed }
}

/// A node with this data and this server, and nothing out of the ordinary.
pub fn local(who: &str, data: DataDir, postgres: Postgres) -> LocalState {
    LocalState {
        aside: None,
        restore: None,
        upgrade: None,
        name: name(who),
        tags: Tags::default(),
        data,
        postgres,
        lease_valid: true,
        rewind_failed: None,
        may_clone_over: true,
        down_for: Duration::ZERO,
        stopping: false,
        reinit: false,
        cloning: Default::default(),
        start_failed: None,
        crashed: false,
        request_due: false,
        start_owed: false,
        strange: None,
        request_waits: Duration::ZERO,
        frozen_for: Duration::ZERO,
        answered: ["n1", "n2", "n3"].map(name).into(),
        gives_way: None,
        memory: None,
        fence_open: false,
        remote: Remote::default(),
        wal_until: None,
    }
}
