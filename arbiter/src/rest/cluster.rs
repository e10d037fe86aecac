//! What REST tells: this node's status, the cluster, its history and configuration.

use super::health;
use crate::ground::present::{self, Role};
use crate::node::snapshot::Snapshot;
use crate::postgres::facts::ServerFacts;
use cluster::duty::Duty;
use cluster::local::{DataDir, Postgres};
use cluster::lsn::Lsn;
use cluster::name::Scope;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// What Postgres does here, in the words of the member key.
pub fn state(snapshot: &Snapshot) -> &'static str {
    let duty = snapshot.decision.as_ref().map(|decision| &decision.what);
    match (&snapshot.local.postgres, duty) {
        (Postgres::Primary { .. } | Postgres::Standby { .. }, _) => "running",
        (Postgres::Starting { .. }, _) => "starting",
        (Postgres::Silent, _) => "unknown",
        (Postgres::Stopped, Some(Duty::Clone { .. })) => "creating replica",
        (Postgres::Stopped, Some(Duty::Bootstrap)) => "initializing new cluster",
        (Postgres::Stopped, _) if !snapshot.local.down_for.is_zero() => "crashed",
        (Postgres::Stopped, _) => "stopped",
    }
}

/// What this node is, in the words of the member key.
pub fn role(snapshot: &Snapshot) -> &'static str {
    let leads = snapshot.view.leader_if(&snapshot.local.name).is_some();
    match (&snapshot.local.postgres, &snapshot.local.data) {
        (Postgres::Primary { .. }, _) => "primary",
        (Postgres::Standby { .. }, _) if leads && snapshot.view.is_standby_cluster() => "standby_leader",
        (Postgres::Standby { .. }, _) => "replica",
        (_, DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Damaged { .. }) => "uninitialized",
        (_, DataDir::Present(_)) if leads => "primary",
        _ => "replica",
    }
}

/// `2026-11-20 16:01:08.402355+00:00`, as the field prints times.
fn time_text(seconds: f64) -> Option<String> {
    let timestamp = jiff::Timestamp::from_microsecond((seconds * 1e6).round() as i64).ok()?;
    Some(timestamp.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string())
}

fn xlog(snapshot: &Snapshot, facts: Option<&ServerFacts>) -> Option<Value> {
    match &snapshot.local.postgres {
        Postgres::Primary { flushed, .. } => {
            let location = facts.filter(|facts| !facts.in_recovery).and_then(|facts| facts.flush_lsn).unwrap_or(*flushed);
            Some(json!({ "location": location }))
        }
        Postgres::Standby { position, .. } => {
            let facts = facts.filter(|facts| facts.in_recovery);
            let or_position = |lsn: Option<Lsn>| lsn.unwrap_or(*position);
            Some(json!({
                "received_location": or_position(facts.and_then(|facts| facts.received_lsn)),
                "replayed_location": or_position(facts.and_then(|facts| facts.replayed_lsn)),
                "replayed_timestamp": facts.and_then(|facts| facts.replayed_at_s).and_then(time_text),
                "paused": facts.is_some_and(|facts| facts.replay_paused),
            }))
        }
        _ => None,
    }
}

fn timeline(snapshot: &Snapshot) -> Option<u32> {
    match &snapshot.local.postgres {
        Postgres::Primary { timeline, .. } | Postgres::Standby { timeline, .. } => Some(timeline.0),
        _ => None,
    }
}

/// Seconds since 1970 at which etcd last answered; 0 before the first answer.
pub fn dcs_last_seen(snapshot: &Snapshot, now: Instant) -> i64 {
    snapshot
        .view_at
        .map_or(0, |at| jiff::Timestamp::now().as_second() - i64::try_from(now.saturating_duration_since(at).as_secs()).unwrap_or(0))
}

/// Writes go on although etcd is away: the lease is kept by the other members' word.
pub fn failsafe_is_active(snapshot: &Snapshot, now: Instant) -> bool {
    snapshot.view.config().failsafe_mode() && !health::is_fresh(snapshot, now) && snapshot.lease_until.is_some_and(|until| until > now)
}

/// The JSON of `/patroni` and of every health check.
pub fn status(snapshot: &Snapshot, facts: Option<&ServerFacts>, scope: &Scope, now: Instant) -> Map<String, Value> {
    let view = &snapshot.view;
    let name = &snapshot.local.name;
    let mut status = Map::new();
    let mut put = |key: &str, value: Value| status.insert(key.to_owned(), value);
    put("state", json!(state(snapshot)));
    put("role", json!(role(snapshot)));
    if let Some(facts) = facts {
        put("postmaster_start_time", json!(facts.postmaster_start_time));
        put("server_version", json!(facts.server_version));
    }
    if let Some(xlog) = xlog(snapshot, facts) {
        put("xlog", xlog);
    }
    match present::role(view, name) {
        Role::SyncStandby => drop(put("sync_standby", json!(true))),
        Role::QuorumStandby => drop(put("quorum_standby", json!(true))),
        Role::Leader | Role::StandbyLeader | Role::Replica => {}
    }
    if let Some(timeline) = timeline(snapshot) {
        put("timeline", json!(timeline));
    }
    if let Some(state) = health::replication_state(snapshot) {
        put("replication_state", json!(state));
    }
    if let Some(facts) = facts.filter(|facts| !facts.replication.is_empty()) {
        let sender = |sender: &crate::postgres::facts::Sender| {
            json!({
                "usename": sender.usename, "application_name": sender.application_name, "client_addr": sender.client_addr.as_deref().and_then(|address| address.split('/').next()),
                "state": sender.state, "sync_state": sender.sync_state, "sync_priority": sender.sync_priority,
            })
        };
        put("replication", facts.replication.iter().map(sender).collect());
    }
    if view.config().paused() {
        put("pause", json!(true));
    }
    if view.leader.is_none() {
        put("cluster_unlocked", json!(true));
    }
    if failsafe_is_active(snapshot, now) {
        put("failsafe_mode_is_active", json!(true));
    }
    put("dcs_last_seen", json!(dcs_last_seen(snapshot, now)));
    if !snapshot.local.tags.0.is_empty() {
        put("tags", json!(snapshot.local.tags));
    }
    if let Some(id) = facts.map(|facts| facts.system_id.clone()).or_else(|| view.system_id().map(ToString::to_string)) {
        put("database_system_identifier", json!(id));
    }
    let described = &snapshot.described;
    if described.reason.as_deref().is_some_and(cluster::watchdog::is_reason) {
        put("watchdog_failed", json!(true));
    }
    if !described.pending_restart.is_empty() {
        put("pending_restart", json!(true));
        put("pending_restart_reason", json!(described.pending_restart));
    }
    if let Some(scheduled) = &described.scheduled_restart {
        let mut shown = json!(scheduled);
        if let Some(fields) = shown.as_object_mut() {
            fields.remove("postmaster_start_time");
        }
        put("scheduled_restart", shown);
    }
    put("patroni", json!({"version": dcs::SURFACE_VERSION, "scope": scope.as_str(), "name": name.as_str()}));
    put("tenure", tenure(snapshot, now));
    status
}

/// What is ours: the term, how long the lease still runs, and what was decided last.
fn tenure(snapshot: &Snapshot, now: Instant) -> Value {
    let mut tenure = Map::new();
    tenure.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    tenure.insert("speech".to_owned(), json!(cluster::speech::OURS.to_string()));
    // What etcd said before it went away is no longer so where this node's own lease has run out: it holds the key no more, as far as
    // it can know.
    let ran_out = health::lease_ran_out(snapshot, now);
    if let Some(leader) = snapshot.view.leader.as_ref().filter(|_| !ran_out) {
        tenure.insert("leader".to_owned(), json!(leader.name.as_str()));
        tenure.insert("term".to_owned(), json!(leader.term));
    }
    if let Some(sick) = &snapshot.described.sick {
        tenure.insert("sick".to_owned(), json!(sick));
        let words: Vec<&str> = snapshot.symptoms.iter().map(cluster::health::Symptom::word).collect();
        tenure.insert("symptoms".to_owned(), json!(words));
    }
    let left = snapshot.lease_until.map(|until| u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX));
    tenure.insert("lease_ms_left".to_owned(), json!(left));
    if ran_out {
        let age = snapshot.view_at.map_or(0, |at| now.saturating_duration_since(at).as_secs());
        let why = format!("this node's lease has run out, and etcd last answered {age} s ago: commits wait at the fence and then fail");
        tenure.insert("why".to_owned(), json!(why));
    } else if let Some(decision) = &snapshot.decision {
        tenure.insert("why".to_owned(), json!(decision.why.to_string()));
    }
    Value::Object(tenure)
}

#[cfg(test)]
mod tests {
    use super::super::health::tests::{primary, snapshot, standby};
    use super::*;
    use std::sync::Arc;

    fn facts(json: &str) -> ServerFacts {
        let mut value = json!({"in_recovery": false, "timeline": 1, "replay_paused": false, "postmaster_start_time": "2026-11-20 15:59:58.002314+00:00",
            "server_version": 150020, "system_id": "7710284044615527583", "synchronous_standby_names": "", "primary_conninfo": "", "primary_slot_name": ""});
        let more: Map<String, Value> = serde_json::from_str(json).unwrap();
        value.as_object_mut().unwrap().extend(more);
        serde_json::from_value(value).unwrap()
    }

    fn text(snapshot: &Snapshot, facts: Option<&ServerFacts>) -> String {
        let mut status = status(snapshot, facts, &Scope::new("demo").unwrap(), Instant::now());
        for moving in ["dcs_last_seen", "tenure"] {
            assert!(status.remove(moving).is_some());
        }
        Value::Object(status).to_string()
    }

    #[test]
    fn the_status_of_a_primary_is_what_the_field_reads() {
        let facts = facts(
            r#"{"flush_lsn":84197033,"replication":[{"application_name":"n1","usename":"r","client_addr":"127.0.0.1/32","state":"streaming","sync_state":"sync","sync_priority":1}]}"#,
        );
        insta::assert_snapshot!(text(&snapshot("n0", primary()), Some(&facts)), @r#"{"database_system_identifier":"7710284044615527583","patroni":{"name":"n0","scope":"demo","version":"4.1.5"},"postmaster_start_time":"2026-11-20 15:59:58.002314+00:00","replication":[{"application_name":"n1","client_addr":"127.0.0.1","state":"streaming","sync_priority":1,"sync_state":"sync","usename":"r"}],"role":"primary","server_version":150020,"state":"running","timeline":1,"xlog":{"location":84197033}}"#);
    }

    #[test]
    fn a_node_whose_lease_ran_out_does_not_say_that_it_holds_the_key() {
        let now = Instant::now();
        let mut leads = snapshot("n0", primary());
        assert_eq!(tenure(&leads, now)["leader"], "n0");
        let later = leads.lease_until.unwrap() + std::time::Duration::from_secs(60);
        let told = tenure(&leads, later);
        assert!(told.get("leader").is_none() && told.get("term").is_none(), "{told}");
        assert!(told["why"].as_str().unwrap().contains("lease has run out"), "{told}");
        // Etcd answers: the member that it names leads, also while this node has not opened its page yet.
        leads.view_at = Some(later);
        assert_eq!(tenure(&leads, later)["leader"], "n0");
    }

    #[test]
    fn the_status_of_a_standby_with_and_without_its_server() {
        let facts = facts(r#"{"in_recovery":true,"received_lsn":84197032,"replayed_lsn":84197000,"replayed_at_s":1795190468.402355}"#);
        insta::assert_snapshot!(text(&snapshot("n1", standby(84197032)), Some(&facts)), @r#"{"database_system_identifier":"7710284044615527583","patroni":{"name":"n1","scope":"demo","version":"4.1.5"},"postmaster_start_time":"2026-11-20 15:59:58.002314+00:00","replication_state":"streaming","role":"replica","server_version":150020,"state":"running","sync_standby":true,"timeline":1,"xlog":{"paused":false,"received_location":84197032,"replayed_location":84197000,"replayed_timestamp":"2026-11-20 16:01:08.402355+00:00"}}"#);
        let mut down = snapshot("n1", Postgres::Stopped);
        Arc::make_mut(&mut down.view).leader = None;
        insta::assert_snapshot!(text(&down, None), @r#"{"cluster_unlocked":true,"database_system_identifier":"7710284044615527583","patroni":{"name":"n1","scope":"demo","version":"4.1.5"},"role":"uninitialized","state":"stopped","sync_standby":true}"#);
    }
}
