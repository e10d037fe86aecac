//! A standby cluster: the leader stays in recovery and follows a cluster elsewhere, the others follow
//! it. What `standby_cluster` says, and what the one who leads such a cluster owes it.

use crate::config::DynamicConfig;
use crate::history::History;
use crate::name::{SystemId, Timeline};
use serde_json::{Map, Value};

/// The section `standby_cluster` of the dynamic configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StandbyCluster {
    /// Where the other cluster is; several, separated by commas, of which the primary is followed.
    pub host: Option<String>,
    /// The port, or as many ports as there are hosts, separated by commas.
    pub port: Option<String>,
    /// The slot over there that the leader streams from.
    pub primary_slot_name: Option<String>,
    /// How log is fetched from an archive. Runs code: counts only where the node's own file says the same.
    pub restore_command: Option<String>,
    /// How an archive is cleaned. Runs code as well.
    pub archive_cleanup_command: Option<String>,
    /// How far the leader stays behind, as PostgreSQL reads it (`5min`).
    pub recovery_min_apply_delay: Option<String>,
    /// How the first copy is made, best first.
    pub create_replica_methods: Vec<String>,
}

impl StandbyCluster {
    fn of(section: &Map<String, Value>) -> Option<StandbyCluster> {
        let text = |key: &str| match section.get(key)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let methods = section.get("create_replica_methods").or_else(|| section.get("create_replica_method")).and_then(Value::as_array);
        let standby_cluster = StandbyCluster {
            host: text("host"),
            port: text("port"),
            primary_slot_name: text("primary_slot_name"),
            restore_command: text("restore_command"),
            archive_cleanup_command: text("archive_cleanup_command"),
            recovery_min_apply_delay: text("recovery_min_apply_delay"),
            create_replica_methods: methods.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        };
        // As the field has it: without any of the three there is nothing to follow.
        let follows = standby_cluster.streams() || standby_cluster.restore_command.is_some();
        follows.then_some(standby_cluster)
    }

    /// There is a server to stream from; else an archive only.
    pub fn streams(&self) -> bool {
        self.host.is_some() || self.port.is_some()
    }

    /// Several hosts are named: whichever of them is the primary is meant.
    pub fn has_many_hosts(&self) -> bool {
        self.host.as_deref().is_some_and(|host| host.contains(','))
    }
}

impl DynamicConfig {
    /// `standby_cluster`, where the section names something to follow.
    pub fn standby_cluster(&self) -> Option<StandbyCluster> {
        StandbyCluster::of(self.get("standby_cluster")?.as_object()?)
    }
}

/// What a node knows of the cluster that its own one follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remote {
    /// `primary_conninfo` and `primary_slot_name` in force are those that `standby_cluster` asks for.
    pub followed: bool,
    /// What the server over there said of itself lately. Asked only while this node does not stream from it.
    pub said: Option<RemoteWord>,
}

/// What a server of the other cluster says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteWord {
    /// Whose data it has.
    pub system_id: SystemId,
    /// Its timeline.
    pub timeline: Timeline,
    /// The timelines before.
    pub history: History,
    /// The timeline in its `pg_control`: older than its own until the first checkpoint after a promotion. None: it did not say.
    pub checkpointed: Option<Timeline>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(json: &str) -> Option<StandbyCluster> {
        DynamicConfig(serde_json::from_str(&format!(r#"{{"standby_cluster":{json}}}"#)).unwrap()).standby_cluster()
    }

    #[test]
    fn a_section_counts_where_it_names_something_to_follow() {
        for (json, follows) in [
            ("{}", false),
            ("null", false),
            (r#"{"primary_slot_name":"a"}"#, false),
            (r#"{"host":""}"#, false),
            (r#"{"host":"a"}"#, true),
            (r#"{"port":5433}"#, true),
            (r#"{"restore_command":"cp /a/%f %p"}"#, true),
        ] {
            assert_eq!(section(json).is_some(), follows, "{json}");
        }
        let many = section(r#"{"host":"a,b","port":"1,2","create_replica_methods":["x","basebackup"]}"#).unwrap();
        assert!(many.has_many_hosts() && many.streams());
        assert_eq!((many.port.as_deref(), many.create_replica_methods.len()), (Some("1,2"), 2));
    }
}
