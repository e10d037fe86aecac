//! One row for each member: what `tenure list`, REST `/cluster` and SQL's `tenure.status()` show, derived once.

use crate::config::SynchronousMode;
use crate::host::Address;
use crate::lsn::Lsn;
use crate::member::MemberEntry;
use crate::name::{MemberName, Timeline};
use crate::view::ClusterView;
use serde_json::{Map, Value};

/// A member's part in the cluster, in the field's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds the leader key.
    Leader,
    /// Holds the leader key of a cluster that follows another one.
    StandbyLeader,
    /// In the sync key.
    SyncStandby,
    /// In the sync key, in quorum mode.
    QuorumStandby,
    /// Any other member.
    Replica,
}

impl Role {
    /// As REST writes it.
    pub fn word(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::StandbyLeader => "standby_leader",
            Role::SyncStandby => "sync_standby",
            Role::QuorumStandby => "quorum_standby",
            Role::Replica => "replica",
        }
    }

    /// As the table shows it.
    pub fn title(self) -> &'static str {
        match self {
            Role::Leader => "Leader",
            Role::StandbyLeader => "Standby Leader",
            Role::SyncStandby => "Sync Standby",
            Role::QuorumStandby => "Quorum Standby",
            Role::Replica => "Replica",
        }
    }

    /// Holds the leader key.
    pub fn leads(self) -> bool {
        matches!(self, Role::Leader | Role::StandbyLeader)
    }
}

/// A position and how far it is behind the leader's last known one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Where.
    pub lsn: Lsn,
    /// Bytes behind.
    pub lag_bytes: u64,
}

/// What a member that does not lead has; None is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    /// Received and flushed.
    pub receive: Option<Position>,
    /// Replayed.
    pub replay: Option<Position>,
    /// The further of the two.
    pub furthest: Option<Position>,
}

/// One member as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// What its Postgres does; a standby's replication state where it has one.
    pub state: String,
    /// Where its REST answers.
    pub api_url: String,
    /// Where its Postgres answers.
    pub address: Option<Address>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// A setting waits for a restart.
    pub pending_restart: bool,
    /// Which settings: name to old and new value.
    pub pending_restart_reason: Option<Map<String, Value>>,
    /// A restart that is planned.
    pub scheduled_restart: Option<Value>,
    /// Its tags.
    pub tags: Map<String, Value>,
    /// Positions; absent for the leader, which is behind nobody.
    pub positions: Option<Positions>,
}

impl Row {
    /// A member that was here and has no key now.
    pub fn lost(name: String) -> Row {
        Row {
            name,
            role: Role::Replica,
            state: "lost".to_owned(),
            api_url: String::new(),
            address: None,
            timeline: None,
            pending_restart: false,
            pending_restart_reason: None,
            scheduled_restart: None,
            tags: Map::new(),
            positions: None,
        }
    }
}

/// The part that a member plays in this view.
pub fn role(view: &ClusterView, name: &MemberName) -> Role {
    let config = view.config();
    if view.leader_if(name).is_some() {
        return if view.is_standby_cluster() { Role::StandbyLeader } else { Role::Leader };
    }
    let in_sync = view.sync.as_ref().is_some_and(|sync| sync.value.has_standby(name));
    match config.synchronous_mode() {
        SynchronousMode::On if in_sync => Role::SyncStandby,
        SynchronousMode::Quorum if in_sync => Role::QuorumStandby,
        _ => Role::Replica,
    }
}

/// One row for each member, by name.
pub fn rows(view: &ClusterView) -> Vec<Row> {
    view.members.iter().map(|(name, entry)| row(view, name, entry)).collect()
}

fn row(view: &ClusterView, name: &MemberName, entry: &MemberEntry) -> Row {
    let member = &entry.member;
    let role = role(view, name);
    let streaming = member.replication_state.clone().filter(|state| role != Role::Leader && !state.is_empty());
    let ahead = view.leader_position().unwrap_or_default();
    let position = |lsn: Option<Lsn>| {
        let lsn = lsn.filter(|lsn| lsn.is_valid())?;
        Some(Position { lsn, lag_bytes: lsn.lag_bytes_behind(ahead) })
    };
    Row {
        name: name.to_string(),
        role,
        state: streaming.unwrap_or_else(|| member.state.to_string()),
        api_url: member.api_url.clone(),
        address: member.address(),
        timeline: member.timeline,
        pending_restart: member.pending_restart,
        pending_restart_reason: member.other.get("pending_restart_reason").and_then(Value::as_object).cloned(),
        scheduled_restart: member.other.get("scheduled_restart").cloned(),
        tags: member.tags.0.clone(),
        positions: (!role.leads()).then(|| Positions {
            receive: position(member.receive_lsn),
            replay: position(member.replay_lsn),
            furthest: position(member.position()),
        }),
    }
}
