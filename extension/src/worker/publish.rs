//! What SQL reads of the cluster: the snapshot in shared memory; and the part of the member key that the arbiter configures.

use super::state::Here;
use crate::ground::guc;
use crate::shmem::page;
use cluster::member::Member;
use cluster::rows;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::SURFACE_VERSION;
use serde_json::{Value, json};

/// The part of the member key that the arbiter configures (`tenure.member`): addresses and tags. With it why it can't be understood,
/// where it can't.
pub fn configured() -> (Member, Option<String>) {
    let nothing = || json!({"conn_url": "", "api_url": "", "state": "running", "role": "replica"});
    let mut value: Value = guc::member().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(nothing);
    if let Some(fields) = value.as_object_mut() {
        fields.entry("state").or_insert_with(|| json!("running"));
        fields.entry("role").or_insert_with(|| json!("replica"));
        fields.entry("version").or_insert_with(|| json!(SURFACE_VERSION));
    }
    match serde_json::from_value(value) {
        Ok(member) => (member, None),
        Err(why) => {
            // `nothing` has every field that a member needs.
            let member = serde_json::from_value(nothing()).unwrap_or_else(|why| unreachable!("a constant that parses: {why}"));
            (member, Some(format!("tenure.member can't be understood: {why}")))
        }
    }
}

/// The cluster as SQL shows it, put into shared memory. On a Citus coordinator with the other groups, unless that is too much.
pub fn snapshot(here: &Here, view: &ClusterView) {
    let own = members(view, guc::group(), None);
    let all: Vec<Value> = match &*here.others.borrow() {
        Some((groups, read_at)) => {
            let others = groups.iter().flat_map(|(group, view)| members(view, Some(*group), Some(*read_at)));
            own.iter().cloned().chain(others).collect()
        }
        None => own.clone(),
    };
    let fits = page().snapshot.publish(&document(here, view, &all)) || {
        here.tell_fault("snapshot", "the groups are too large for the snapshot in shared memory: tenure.status() shows this one alone");
        page().snapshot.publish(&document(here, view, &own))
    };
    if !fits {
        here.tell_fault("snapshot", "the cluster is too large for the snapshot in shared memory");
    }
}

fn document(here: &Here, view: &ClusterView, members: &[Value]) -> Vec<u8> {
    let document = json!({
        "taken_at_unix_ms": jiff::Timestamp::now().as_millisecond(),
        "revision": view.revision,
        "scope": here.scope,
        "paused": view.config().paused(),
        "members": members,
        "config": view.config().0,
        "history": view.history().to_json(),
        "failover": view.request().map(|request| &request.value),
        "sync": view.sync.as_ref().map(|sync| &sync.value),
    });
    serde_json::to_vec(&document).unwrap_or_default()
}

/// The members of a group; `read_at` where that was not just now.
fn members(view: &ClusterView, group: Option<u32>, read_at: Option<Moment>) -> Vec<Value> {
    let known = view.leader_position().is_some();
    let member = |row: &rows::Row| {
        let positions = row.positions.unwrap_or_default();
        let lsn = |position: Option<rows::Position>| position.map(|position| position.lsn);
        let lag = |position: Option<rows::Position>| position.filter(|_| known).map(|position| position.lag_bytes);
        let address = row.address.as_ref();
        json!({
            "name": row.name,
            "host": address.map(|address| &address.host),
            "port": address.map(|address| address.port),
            "role": row.role.title(),
            "state": row.state,
            "timeline": row.timeline,
            "receive_lsn": lsn(positions.receive),
            "receive_lag": lag(positions.receive),
            "replay_lsn": lsn(positions.replay),
            "replay_lag": lag(positions.replay),
            "tags": row.tags,
            "pending_restart": row.pending_restart,
            "pending_restart_reason": row.pending_restart_reason,
            "scheduled_restart": row.scheduled_restart,
            "citus_group": group,
            "read_at_ns": read_at.map(Moment::as_nanos),
        })
    };
    rows::rows(view).iter().map(member).collect()
}
