//! The member table: rows made from a view, shared by `tenure list`, `topology` and REST `/cluster`.

use cluster::config::{DynamicConfig, SynchronousMode};
use cluster::lsn::Lsn;
use cluster::member::MemberEntry;
use cluster::name::{MemberName, Timeline};
use cluster::view::ClusterView;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

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
    pub address: Option<(String, u16)>,
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

/// An object whose fields stay in the order in which they were put, as people read it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ordered(pub Vec<(&'static str, Value)>);

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// `/cluster` as REST gives it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ClusterJson {
    /// By name.
    pub members: Vec<Ordered>,
    /// The cluster's name.
    pub scope: String,
    /// Maintenance mode.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pause: bool,
    /// A switchover that waits for its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_switchover: Option<Ordered>,
}

/// The cluster follows another cluster.
pub fn is_standby_cluster(config: &DynamicConfig) -> bool {
    config.get("standby_cluster").and_then(Value::as_object).is_some_and(|section| !section.is_empty())
}

/// The part that a member plays in this view.
pub fn role(view: &ClusterView, name: &MemberName) -> Role {
    let config = view.config();
    if view.leader_if(name).is_some() {
        return if is_standby_cluster(config) { Role::StandbyLeader } else { Role::Leader };
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
        address: member.host_port(),
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

impl Row {
    /// As REST `/cluster` writes it.
    pub fn json(&self) -> Ordered {
        let mut fields = vec![
            ("name", json!(self.name)),
            ("role", json!(self.role.word())),
            ("state", json!(self.state)),
            ("api_url", json!(self.api_url)),
        ];
        if let Some((host, port)) = &self.address {
            fields.push(("host", json!(host)));
            fields.push(("port", json!(port)));
        }
        if let Some(timeline) = self.timeline {
            fields.push(("timeline", json!(timeline)));
        }
        if self.pending_restart {
            fields.push(("pending_restart", json!(true)));
        }
        if let Some(reason) = &self.pending_restart_reason {
            fields.push(("pending_restart_reason", json!(reason)));
        }
        if let Some(scheduled) = &self.scheduled_restart {
            fields.push(("scheduled_restart", scheduled.clone()));
        }
        if !self.tags.is_empty() {
            fields.push(("tags", json!(self.tags)));
        }
        if let Some(positions) = &self.positions {
            let named = [
                ("receive_lag", "receive_lsn", positions.receive),
                ("replay_lag", "replay_lsn", positions.replay),
                ("lag", "lsn", positions.furthest),
            ];
            for (lag, lsn, position) in named {
                fields.push((lag, position.map_or(json!("unknown"), |position| json!(position.lag_bytes))));
                fields.push((lsn, position.map_or(json!("unknown"), |position| json!(position.lsn.to_string()))));
            }
        }
        Ordered(fields)
    }
}

/// The whole of `/cluster`.
pub fn cluster_json(view: &ClusterView, scope: &str) -> ClusterJson {
    let scheduled = view.request().and_then(|request| {
        let at = request.value.scheduled_at.as_ref()?;
        let mut fields = vec![("at", json!(at))];
        if request.value.is_switchover() {
            fields.push(("from", json!(request.value.leader)));
        }
        if let Some(candidate) = request.value.candidate() {
            fields.push(("to", json!(candidate)));
        }
        Some(Ordered(fields))
    });
    ClusterJson {
        members: rows(view).iter().map(Row::json).collect(),
        scope: scope.to_owned(),
        pause: view.config().paused(),
        scheduled_switchover: scheduled,
    }
}

/// Orders rows as a tree by `replicatefrom` and indents the names: the leader, then whoever hangs on it.
pub fn as_tree(rows: Vec<Row>) -> Vec<Row> {
    let leader = rows.iter().find(|row| row.role.leads()).map(|row| row.name.clone());
    let standbys: Vec<String> = rows.iter().filter(|row| !row.role.leads()).map(|row| row.name.clone()).collect();
    let upstream = |row: &Row| {
        let wished = row.tags.get("replicatefrom").and_then(Value::as_str);
        match wished.filter(|name| *name != row.name && standbys.iter().any(|standby| standby == name)) {
            Some(name) => Some(name.to_owned()),
            None => leader.clone(),
        }
    };
    let hanging: Vec<(Option<String>, Row)> = rows.iter().filter(|row| !row.role.leads()).map(|row| (upstream(row), row.clone())).collect();
    let mut ordered = Vec::new();
    let mut pending: Vec<(usize, Row)> = Vec::new();
    match rows.iter().find(|row| row.role.leads()) {
        Some(leader) => pending.push((0, leader.clone())),
        None => pending.extend(hanging.iter().rev().filter(|(upstream, _)| upstream.is_none()).map(|(_, row)| (1, row.clone()))),
    }
    while let Some((level, row)) = pending.pop() {
        // Depth first: children go on top of the stack, last one first.
        let children = hanging.iter().rev().filter(|(upstream, _)| upstream.as_deref() == Some(row.name.as_str()));
        pending.extend(children.map(|(_, child)| (level + 1, child.clone())));
        ordered.push((level, row));
    }
    // Members whose `replicatefrom` runs in a circle hang on nobody: they are shown, not lost.
    for (_, row) in &hanging {
        if !ordered.iter().any(|(_, known)| known.name == row.name) {
            ordered.push((1, row.clone()));
        }
    }
    let indented = |(level, mut row): (usize, Row)| {
        if level > 0 {
            row.name = format!("{}+ {}", "  ".repeat(level - 1), row.name);
        }
        row
    };
    ordered.into_iter().map(indented).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use cluster::failover::FailoverRequest;
    use cluster::leader::{Leader, LeaseId, Term};
    use cluster::sync::SyncState;
    use cluster::view::{Initialize, Status, Versioned};

    pub(crate) fn member(view: &mut ClusterView, name: &str, json: &str) {
        let entry = MemberEntry { member: serde_json::from_str(json).unwrap(), lease: LeaseId(7), revision: 3 };
        view.members.insert(MemberName::new(name).unwrap(), entry);
    }

    /// Three members on one host: n0 leads, n1 is synchronous, n2 hangs on n1.
    pub(crate) fn sample() -> ClusterView {
        let mut view = ClusterView { revision: 9, ..ClusterView::default() };
        member(
            &mut view,
            "n0",
            r#"{"conn_url":"postgres://127.0.0.1:15430/postgres","api_url":"http://127.0.0.1:18000/patroni","state":"running","role":"primary","version":"4.1.5","xlog_location":84197032,"timeline":1}"#,
        );
        member(
            &mut view,
            "n1",
            r#"{"conn_url":"postgres://127.0.0.1:15431/postgres","api_url":"http://127.0.0.1:18001/patroni","state":"running","role":"replica","version":"4.1.5","xlog_location":84197032,"replay_lsn":84197032,"receive_lsn":84197032,"replication_state":"streaming","timeline":1}"#,
        );
        member(
            &mut view,
            "n2",
            r#"{"conn_url":"postgres://127.0.0.1:15432/postgres","api_url":"http://127.0.0.1:18002/patroni","state":"running","role":"replica","version":"4.1.5","tags":{"replicatefrom":"n1"},"xlog_location":80000000,"replay_lsn":79000000,"receive_lsn":80000000,"replication_state":"streaming","timeline":1}"#,
        );
        view.initialize =
            Some(Versioned { value: Initialize::Done(cluster::name::SystemId("7710284044615527583".to_owned())), revision: 1 });
        view.leader = Some(Leader { name: MemberName::new("n0").unwrap(), lease: LeaseId(7), term: Term(5) });
        view.status = Some(Versioned { value: Status { optime: Lsn(84197032), ..Status::default() }, revision: 8 });
        let config = serde_json::from_str(r#"{"synchronous_mode":true}"#).unwrap();
        view.config = Some(Versioned { value: DynamicConfig(config), revision: 2 });
        let n1 = [MemberName::new("n1").unwrap()].into();
        view.sync = Some(Versioned { value: SyncState::of(&MemberName::new("n0").unwrap(), &n1), revision: 6 });
        view
    }

    #[test]
    fn cluster_json_is_what_the_field_reads() {
        let mut view = sample();
        view.members.remove(&MemberName::new("n2").unwrap());
        insta::assert_snapshot!(serde_json::to_string(&cluster_json(&view, "demo")).unwrap(), @r#"{"members":[{"name":"n0","role":"leader","state":"running","api_url":"http://127.0.0.1:18000/patroni","host":"127.0.0.1","port":15430,"timeline":1},{"name":"n1","role":"sync_standby","state":"streaming","api_url":"http://127.0.0.1:18001/patroni","host":"127.0.0.1","port":15431,"timeline":1,"receive_lag":0,"receive_lsn":"0/504BEA8","replay_lag":0,"replay_lsn":"0/504BEA8","lag":0,"lsn":"0/504BEA8"}],"scope":"demo"}"#);
    }

    #[test]
    fn pause_and_a_planned_switchover_are_told() {
        let mut view = sample();
        view.members.clear();
        view.config = Some(Versioned { value: DynamicConfig(serde_json::from_str(r#"{"pause":true}"#).unwrap()), revision: 2 });
        let request = FailoverRequest {
            leader: Some("n0".into()),
            member: Some("n1".into()),
            scheduled_at: Some("2027-01-01T00:00:00+00:00".into()),
            ..Default::default()
        };
        view.failover = Some(Versioned { value: request, revision: 4 });
        insta::assert_snapshot!(serde_json::to_string(&cluster_json(&view, "demo")).unwrap(), @r#"{"members":[],"scope":"demo","pause":true,"scheduled_switchover":{"at":"2027-01-01T00:00:00+00:00","from":"n0","to":"n1"}}"#);
    }

    #[test]
    fn a_member_without_positions_is_unknown_not_level() {
        let mut view = sample();
        member(&mut view, "n3", r#"{"conn_url":"postgres://h/postgres","api_url":"","state":"creating replica","role":"replica"}"#);
        let row = rows(&view).pop().unwrap();
        insta::assert_snapshot!(serde_json::to_string(&row.json()).unwrap(), @r#"{"name":"n3","role":"replica","state":"creating replica","api_url":"","host":"h","port":5432,"receive_lag":"unknown","receive_lsn":"unknown","replay_lag":"unknown","replay_lsn":"unknown","lag":"unknown","lsn":"unknown"}"#);
    }

    #[test]
    fn the_tree_loses_nobody() {
        let names = |view: &ClusterView| as_tree(rows(view)).into_iter().map(|row| row.name).collect::<Vec<_>>();
        let mut view = sample();
        assert_eq!(names(&view), ["n0", "+ n1", "  + n2"]);
        for name in ["n1", "n2"] {
            let other = if name == "n1" { "n2" } else { "n1" };
            let entry = view.members.get_mut(&MemberName::new(name).unwrap()).unwrap();
            entry.member.tags.0.insert("replicatefrom".into(), json!(other));
        }
        assert_eq!(names(&view), ["n0", "+ n1", "+ n2"]);
        view.leader = None;
        assert_eq!(names(&view).len(), 3);
    }
}
