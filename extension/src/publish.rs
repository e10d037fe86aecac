//! What the worker says of its node: the member key, `status`, and the snapshot that SQL reads.

use crate::observe::Server;
use crate::shmem::{boottime, page};
use crate::worker::Worker;
use crate::{guc, observe};
use cluster::config::DynamicConfig;
use cluster::described::Described;
use cluster::leader::LeaseId;
use cluster::member::{Member, MemberRole, MemberState, TenureFacts};
use cluster::roster::Roster;
use cluster::rows;
use cluster::slots::Publication;
use cluster::time::Moment;
use cluster::view::{ClusterView, Status};
use dcs::{Dcs, SURFACE_VERSION};
use serde_json::{Value, json};
use std::time::Duration;

/// The part of the member key that the arbiter configures (`tenure.member`): addresses and tags.
pub fn wanted(worker: &Worker) -> Member {
    let nothing = || json!({"conn_url": "", "api_url": "", "state": "running", "role": "replica"});
    let mut value: Value = guc::member().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(nothing);
    if let Some(fields) = value.as_object_mut() {
        fields.entry("state").or_insert_with(|| json!("running"));
        fields.entry("role").or_insert_with(|| json!("replica"));
        fields.entry("version").or_insert_with(|| json!(SURFACE_VERSION));
    }
    match serde_json::from_value(value) {
        Ok(member) => member,
        Err(why) => {
            worker.tell("settings", &format!("tenure.member can't be understood: {why}"));
            // `nothing` has every field that a member needs.
            serde_json::from_value(nothing()).unwrap_or_else(|why| unreachable!("a constant that parses: {why}"))
        }
    }
}

/// The whole member key as of now.
pub fn compose(worker: &Worker, server: Server) -> Member {
    let mut member = wanted(worker);
    member.state = MemberState::Running;
    member.timeline = Some(server.timeline());
    member.xlog_location = Some(server.position());
    match server {
        Server::Primary { timeline, .. } => {
            member.role = MemberRole::Primary;
            let pending = timeline.0 > 1 && observe::checkpointed_timeline().is_some_and(|done| done < timeline);
            member.checkpoint_after_promote = pending.then_some(false);
        }
        Server::Standby { received, replayed, streaming, .. } => {
            member.role = if leads_standby_cluster(worker) { MemberRole::StandbyLeader } else { MemberRole::Replica };
            member.receive_lsn = received.is_valid().then_some(received);
            member.replay_lsn = Some(replayed);
            member.replication_state = Some(if streaming { "streaming" } else { "in archive recovery" }.to_owned());
        }
    }
    member.tenure = Some(TenureFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: worker.instance.clone(),
        arbiter: page().arbiter_attends(boottime(), patience_with_arbiter(worker)),
        ..TenureFacts::default()
    });
    if let (Some(facts), Some(remembered)) = (&mut member.tenure, worker.etcd.remembered()) {
        (facts.doubt, facts.memory) = remembered.word();
    }
    described().put_into(&mut member);
    member
}

/// An arbiter looks after its server at least every `loop_wait`. One that has not for two TTLs more is frozen, though its session may live; on a
/// machine that is busy a look may take seconds, and nobody is to lose its arbiter for that.
pub fn patience_with_arbiter(worker: &Worker) -> Duration {
    let timing = worker.view.borrow().as_ref().map_or_else(|| DynamicConfig::default().timing(), |(view, _)| view.config().timing());
    (timing.ttl * 2 + timing.loop_wait).max(Duration::from_secs(10))
}

/// What the arbiter wants to have said. It outlives the arbiter, as what it tells of does; whether that one would still act in
/// maintenance mode, nobody knows without it.
fn described() -> Described {
    let said: Described = page().described().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Described { paused: said.paused && page().arbiter_pid().is_some(), ..said }
}

fn leads_standby_cluster(worker: &Worker) -> bool {
    worker.view.borrow().as_ref().is_some_and(|(view, _)| view.leader_if(&worker.name).is_some() && view.is_standby_cluster())
}

/// Positions move all the time; anything else in the key is news.
fn without_positions(member: &Member) -> Member {
    Member { xlog_location: None, replay_lsn: None, receive_lsn: None, ..member.clone() }
}

/// Writes the member key: at once when it says something new, positions at most once per loop_wait.
pub async fn member(worker: &Worker, view: &ClusterView, server: Server, now: Moment) {
    let Some(held) = worker.held.get() else { return };
    let member = compose(worker, server);
    let entry = view.members.get(&worker.name);
    let loop_wait = view.config().timing().loop_wait;
    let due = match (&*worker.published.borrow(), entry) {
        // The arbiter wrote it, or it was deleted, or the lease is another: ours is to be put back.
        (_, None) => true,
        (_, Some(entry)) if entry.lease != held.grant.lease => entry.lease == LeaseId::NONE || entry.member.conn_url == member.conn_url,
        (_, Some(entry)) if without_positions(&entry.member) != without_positions(&member) => true,
        (None, _) => true,
        (Some((published, _, at)), _) => *published != member && now.since(*at) >= loop_wait,
    };
    if !due {
        return;
    }
    match worker.etcd.write_member(&worker.name, &member, held.grant.lease, None).await {
        Ok(()) => *worker.published.borrow_mut() = Some((member, held.grant.lease, now)),
        Err(dcs::Error::LeaseGone) => worker.want_lease(),
        Err(why) => worker.tell("member", &format!("member key not written: {why}")),
    }
}

/// The leader says how far it is (what `maximum_lag_on_failover` is measured against), and its slots: their positions as the
/// arbiter has handed them over, and those that are kept for members which are away.
pub async fn status(worker: &Worker, view: &ClusterView, server: Server, now: Moment) {
    let flushed = match server {
        Server::Primary { flushed, .. } => flushed,
        Server::Standby { .. } if view.is_standby_cluster() => server.position(),
        Server::Standby { .. } => return,
    };
    let Some(leader) = view.leader_if(&worker.name) else { return };
    let before = view.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
    let due = worker.status_written.get().is_none_or(|at| now.since(at) >= view.config().timing().loop_wait);
    if !due {
        return;
    }
    let mut wanted = Status { optime: flushed, ..before.clone() };
    let members = cluster::slots::of_members(view);
    wanted.retain_slots = worker.retention.borrow_mut().kept(members, &before.retain_slots, view.config().member_slots_ttl(), now);
    // A permanent slot is kept for its own sake.
    let permanent = cluster::slots::permanent(view.config());
    wanted.retain_slots.retain(|slot| !permanent.contains_key(slot));
    let said: Option<Publication> = page().read_slots().and_then(|json| serde_json::from_slice(&json).ok());
    // What was handed over in another term was handed over to another publication.
    if let Some(said) = said.filter(|said| said.facts.term == leader.term.0) {
        wanted.slots = said.slots;
        if let Ok(facts) = serde_json::to_value(&said.facts) {
            wanted.other.insert("tenure".to_owned(), facts);
        }
    }
    let (clock, roster) = (jiff::Timestamp::now(), Roster::of(Some(&before)));
    let age = |since: &str| Some(Duration::try_from(clock.duration_since(since.parse().ok()?)).unwrap_or_default());
    let today = clock.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    roster.kept(view, view.config().missed_member_ttl(), &today, age).put_into(&mut wanted);
    if wanted == before {
        return;
    }
    if worker.etcd.write_status(&wanted, leader).await.is_ok() {
        worker.status_written.set(Some(now));
    }
}

/// The cluster as SQL shows it, put into shared memory. On a Citus coordinator with the other groups, unless that is too much.
pub fn snapshot(worker: &Worker, view: &ClusterView) {
    let own = members(view, guc::group(), None);
    let all: Vec<Value> = match &*worker.others.borrow() {
        Some((groups, read_at)) => {
            let others = groups.iter().flat_map(|(group, view)| members(view, Some(*group), Some(*read_at)));
            own.iter().cloned().chain(others).collect()
        }
        None => own.clone(),
    };
    let fits = page().publish_snapshot(&document(worker, view, &all)) || {
        worker.tell("snapshot", "the groups are too large for the snapshot in shared memory: tenure.status() shows this one alone");
        page().publish_snapshot(&document(worker, view, &own))
    };
    if !fits {
        worker.tell("snapshot", "the cluster is too large for the snapshot in shared memory");
    }
}

fn document(worker: &Worker, view: &ClusterView, members: &[Value]) -> Vec<u8> {
    let document = json!({
        "taken_at_unix_ms": jiff::Timestamp::now().as_millisecond(),
        "revision": view.revision,
        "scope": worker.scope,
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
        let (host, port) = row.address.clone().unzip();
        json!({
            "name": row.name,
            "host": host,
            "port": port,
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
