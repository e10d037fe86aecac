//! The member table as JSON and as a tree: `tenure list`, `topology` and REST `/cluster`; the rows are `cluster::rows`.

use cluster::host::Address;
pub use cluster::rows::{Position, Role, Row, role, rows};
use cluster::view::ClusterView;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

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

/// A row as REST `/cluster` writes it.
pub fn row_json(row: &Row) -> Ordered {
    let mut fields =
        vec![("name", json!(row.name)), ("role", json!(row.role.word())), ("state", json!(row.state)), ("api_url", json!(row.api_url))];
    if let Some(Address { host, port }) = &row.address {
        fields.push(("host", json!(host)));
        fields.push(("port", json!(port)));
    }
    if let Some(timeline) = row.timeline {
        fields.push(("timeline", json!(timeline)));
    }
    if row.pending_restart {
        fields.push(("pending_restart", json!(true)));
    }
    if let Some(reason) = &row.pending_restart_reason {
        fields.push(("pending_restart_reason", json!(reason)));
    }
    if let Some(scheduled) = &row.scheduled_restart {
        fields.push(("scheduled_restart", scheduled.clone()));
    }
    if !row.tags.is_empty() {
        fields.push(("tags", json!(row.tags)));
    }
    if let Some(positions) = &row.positions {
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
        members: rows(view).iter().map(row_json).collect(),
        scope: scope.to_owned(),
        pause: view.config().paused(),
        scheduled_switchover: scheduled,
    }
}

/// Orders rows as a tree by `replicatefrom` and indents the names: the leader, then those that hang on it.
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
    use cluster::config::DynamicConfig;
    use cluster::failover::FailoverRequest;
    use cluster::leader::{Leader, LeaseId, Term};
    use cluster::lsn::Lsn;
    use cluster::member::MemberEntry;
    use cluster::name::MemberName;
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
        insta::assert_snapshot!(serde_json::to_string(&row_json(&row)).unwrap(), @r#"{"name":"n3","role":"replica","state":"creating replica","api_url":"","host":"h","port":5432,"receive_lag":"unknown","receive_lsn":"unknown","replay_lag":"unknown","replay_lsn":"unknown","lag":"unknown","lsn":"unknown"}"#);
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
