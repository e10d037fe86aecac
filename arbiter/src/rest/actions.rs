//! What REST changes: requests for another leader, the configuration, this node's server.

use super::health;
use super::reply::Reply;
use crate::ground::outcome::{self, Outcome, Requested};
use crate::ground::present;
use crate::node::settings;
use crate::node::snapshot::{Command, NodeHandle, Snapshot};
use cluster::config::DynamicConfig;
use cluster::failover::{self, FailoverRequest};
use cluster::local::Postgres;
use cluster::replay::Ask;
use cluster::restart::{Conditions, Scheduled, ToRestart};
use cluster::view::ClusterView;
use dcs::{Dcs, Error};
use serde_json::{Map, Value};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Longest wait for a switchover or failover; the route's own bound is a little longer.
pub const HANDOVER_BOUND: Duration = Duration::from_secs(60);
/// How long a refusal of a reinit may take: the copy itself takes as long as it takes.
const REFUSAL_WITHIN: Duration = Duration::from_secs(2);

/// A body that must be a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Reply> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Reply::text(400, "the body should be a JSON object")),
        Err(error) => Err(Reply::text(400, format!("the body is no JSON: {error}"))),
    }
}

fn optional_object(body: &[u8]) -> Result<Map<String, Value>, Reply> {
    if body.is_empty() { Ok(Map::new()) } else { object(body) }
}

/// The leader has lost etcd and asks this node not to take its key for one TTL.
pub async fn promise(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = object(body)?;
    let Some(leader) = body.get("name").and_then(Value::as_str) else {
        return Err(Reply::text(400, "the body lacks \"name\", the leader that asks"));
    };
    let view = node.snapshot.borrow().view.clone();
    // The field's agents don't say their TTL: ours is that of the same configuration.
    let asked = body.get("ttl").and_then(Value::as_u64).map(Duration::from_secs);
    match crate::upkeep::failsafe::promise(node, &view, leader, asked).await {
        Ok(promised) if asked.is_some_and(|asked| asked > promised) => {
            Ok(Reply::text(202, crate::upkeep::failsafe::accepted_for(promised)))
        }
        Ok(_) => Ok(Reply::text(200, "Accepted")),
        Err((status, why)) => Err(Reply::text(status, why)),
    }
}

async fn fresh_view(node: &NodeHandle) -> Result<ClusterView, Reply> {
    Box::pin(node.etcd.load_view()).await.map_err(|error| Reply::text(503, error.to_string()))
}

async fn look_now(node: &NodeHandle) {
    // A loop that is gone or full looks soon enough by itself.
    let _ = node.commands.try_send(Command::LookNow);
}

/// Hands a command to the daemon's loop and waits for its answer, at most this long.
pub(super) async fn command(
    node: &NodeHandle,
    make: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Command,
    bound: Duration,
) -> Option<Result<(), String>> {
    let (answer, answered) = oneshot::channel();
    if node.commands.send(make(answer)).await.is_err() {
        return Some(Err("the arbiter is ending".to_owned()));
    }
    match tokio::time::timeout(bound, answered).await {
        Ok(Ok(result)) => Some(result),
        Ok(Err(_)) => Some(Err("the arbiter gave the command up".to_owned())),
        Err(_) => None,
    }
}

/// A switchover or failover as asked for, or the answer that refuses it. `true`: by `/switchover`.
fn request(body: &Map<String, Value>, switchover: bool, paused: bool, now: jiff::Timestamp) -> Result<FailoverRequest, Reply> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let leader = text("leader");
    let candidate = text("candidate").or_else(|| text("member"));
    let scheduled = text("scheduled_at");
    let refuse = |sentence: &str| Err(Reply::text(400, sentence));
    if !switchover && candidate.is_none() {
        return refuse("Failover could be performed only to a specific candidate");
    }
    if switchover && leader.is_none() {
        return refuse("Switchover could be performed only from a specific leader");
    }
    let scheduled_at = match scheduled {
        Some(_) if !switchover => return refuse("Failover can't be scheduled"),
        Some(_) if paused => return refuse("Can't schedule switchover in the paused state"),
        Some(text) => Some(schedule(&text, now, "switchover")?),
        None => None,
    };
    if paused && candidate.is_none() {
        return refuse("Switchover is possible only to a specific candidate in a paused state");
    }
    if leader.is_some() && leader == candidate {
        return refuse("Switchover target and source are the same");
    }
    Ok(FailoverRequest { leader, member: candidate, scheduled_at, other: Map::new() })
}

/// A time to come, with its zone.
fn schedule(text: &str, now: jiff::Timestamp, action: &str) -> Result<String, Reply> {
    match text.parse::<jiff::Timestamp>() {
        Ok(at) if at <= now => Err(Reply::text(422, format!("Cannot schedule {action} in the past"))),
        Ok(_) => Ok(text.to_owned()),
        Err(_) if text.parse::<jiff::civil::DateTime>().is_ok() => {
            Err(Reply::text(400, format!("Timezone information is mandatory for the scheduled {action}")))
        }
        Err(_) => Err(Reply::text(422, "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601")),
    }
}

/// POST `/switchover` and `/failover`.
pub async fn hand_over(node: &NodeHandle, body: &[u8], switchover: bool) -> Result<Reply, Reply> {
    let body = object(body)?;
    let view = fresh_view(node).await?;
    let request = request(&body, switchover, view.config().paused(), jiff::Timestamp::now())?;
    if let Err(why) = failover::candidates(&view, &request) {
        tracing::info!("not done: {why}");
        return Err(Reply::text(412, why.field()).because(why.to_string()));
    }
    let action = if request.is_switchover() { "switchover" } else { "failover" };
    tracing::info!(
        "{action} asked for over REST: leader {:?}, candidate {:?}, at {:?}",
        request.leader,
        request.member,
        request.scheduled_at
    );

    let revision = match Box::pin(node.etcd.write_failover(&request, ClusterView::revision_of(&view.failover))).await {
        Ok(revision) => revision,
        Err(Error::Lost(_)) => return Err(Reply::text(503, "another request was written meanwhile")),
        Err(error) => return Err(Reply::text(503, format!("failed to write failover key into DCS: {error}"))),
    };
    look_now(node).await;
    let title = if request.is_switchover() { "Switchover" } else { "Failover" };
    if request.scheduled_at.is_some() {
        return Ok(Reply::text(202, format!("{title} scheduled")));
    }
    let before = view.leader.as_ref().map(|leader| leader.name.clone());
    let asked = Requested { revision, before, candidate: request.candidate().map(str::to_owned) };
    match tokio::time::timeout(HANDOVER_BOUND, outcome_of(node, &asked)).await {
        Ok(Some(Outcome::Done(leader))) => Ok(Reply::text(200, outcome::success(action, &asked, &leader))),
        Ok(_) => Err(Reply::text(503, format!("{title} failed"))),
        Err(_) => {
            let text = format!("{title} status unknown after {} seconds; operation may still be in progress", HANDOVER_BOUND.as_secs());
            Err(Reply::text(503, text))
        }
    }
}

/// Looks at every snapshot of the daemon until the request is done or dropped; None when the daemon ends.
async fn outcome_of(node: &NodeHandle, asked: &Requested) -> Option<Outcome> {
    let mut snapshots = node.snapshot.clone();
    loop {
        let outcome = outcome::judge(&snapshots.borrow_and_update().view, asked);
        if outcome != Outcome::Pending {
            return Some(outcome);
        }
        snapshots.changed().await.ok()?;
    }
}

/// DELETE `/switchover`: takes back a request that waits for its time.
pub async fn forget_switchover(node: &NodeHandle) -> Result<Reply, Reply> {
    let view = fresh_view(node).await?;
    let Some(request) = view.request() else {
        return Err(Reply::text(404, "no switchover is scheduled"));
    };
    match Box::pin(node.etcd.write_failover(&FailoverRequest::default(), request.revision)).await {
        Ok(_) => {
            look_now(node).await;
            Ok(Reply::text(200, "scheduled switchover deleted"))
        }
        Err(Error::Lost(_)) => Err(Reply::text(409, "the request changed meanwhile")),
        Err(error) => Err(Reply::text(503, error.to_string())),
    }
}

/// PATCH (merge, null removes) or PUT (replace) of `/config`.
pub async fn configure(node: &NodeHandle, body: &[u8], replaces: bool) -> Result<Reply, Reply> {
    let change = object(body)?;
    if change.is_empty() {
        return Err(Reply::text(400, "the body is an empty object"));
    }
    let view = fresh_view(node).await?;
    if view.config.is_none() && !replaces {
        return Err(Reply::text(503, "the config key does not exist"));
    }
    let after = changed(view.config(), change, replaces)?;
    match Box::pin(node.etcd.write_config(&after, ClusterView::revision_of(&view.config))).await {
        Ok(_) => {
            look_now(node).await;
            let known = node.knowledge.known();
            let before = settings::left_out(&node.config, view.config(), &known);
            let left_out = settings::left_out(&node.config, &after, &known).into_iter().filter(|(key, why)| before.get(key) != Some(why));
            let warnings = left_out.map(|(key, why)| format!("{key} is left out: {why}")).collect();
            Ok(Reply { warnings, ..Reply::json(200, &after.0) })
        }
        Err(Error::Lost(_)) => Err(Reply::text(409, "the configuration changed meanwhile")),
        Err(error) => Err(Reply::text(if replaces { 502 } else { 503 }, error.to_string())),
    }
}

fn changed(before: &DynamicConfig, change: Map<String, Value>, replaces: bool) -> Result<DynamicConfig, Reply> {
    let empty = DynamicConfig::default();
    let after = if replaces { empty.patched(&change) } else { before.patched(&change) };
    after.map_err(|fault| Reply::text(400, fault.to_string()))
}

/// POST `/reload`.
pub async fn reload(node: &NodeHandle) -> Result<Reply, Reply> {
    match command(node, Command::Reload, REFUSAL_WITHIN).await {
        Some(Err(why)) => Err(Reply::text(503, why)),
        Some(Ok(())) | None => Ok(Reply::text(202, "reload scheduled")),
    }
}

/// POST `/restart`.
pub async fn restart(node: &NodeHandle, body: &[u8], bound: Duration) -> Result<Reply, Reply> {
    let wish = optional_object(body)?;
    let snapshot = node.snapshot.borrow().clone();
    let conditions = conditions(&wish)?;
    let (role, now) = (restart_role(&snapshot, Instant::now()), jiff::Timestamp::now());
    let server = server(&snapshot, role);
    if let Some(at) = wish.get("schedule").and_then(Value::as_str) {
        if snapshot.view.config().paused() {
            return Err(Reply::text(500, "Can't schedule restart in the paused state"));
        }
        let postmaster_start_time = server.started.to_owned();
        let plan = Scheduled { schedule: schedule(at, now, "restart")?, conditions, postmaster_start_time };
        return match command(node, |answer| Command::Schedule(Box::new(plan), answer), REFUSAL_WITHIN).await {
            Some(Ok(())) => Ok(Reply::text(202, "Restart scheduled")),
            Some(Err(why)) => Err(Reply::text(409, why)),
            None => Err(Reply::text(503, "the arbiter did not answer")),
        };
    }
    if !conditions.are_met(&server) {
        return Err(Reply::text(503, "restart conditions are not satisfied"));
    }
    match command(node, Command::Restart, bound).await {
        Some(Ok(())) => Ok(Reply::text(200, "restarted successfully")),
        Some(Err(why)) => Err(Reply::text(503, why)),
        None => {
            Err(Reply::text(503, "postgres is still starting").because("the restart goes on; the request's timeout bounds the answer only"))
        }
    }
}

/// How long the caller is ready to wait, where the body says.
pub fn timeout(body: &[u8]) -> Option<Duration> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let seconds = value.get("timeout")?;
    seconds
        .as_u64()
        .or_else(|| seconds.as_str()?.trim().trim_end_matches('s').parse().ok())
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
}

/// The conditions of a restart out of its request.
fn conditions(wish: &Map<String, Value>) -> Result<Conditions, Reply> {
    let mut conditions = Conditions::default();
    for (key, value) in wish {
        let text = value.as_str().map(str::to_owned);
        match key.as_str() {
            "schedule" if text.is_some() => {}
            "schedule" => return Err(Reply::text(400, "the schedule should be a time as text")),
            // A value of another type is no role and no version either.
            "role" => conditions.role = Some(text.unwrap_or_default()),
            "postgres_version" => conditions.postgres_version = Some(text.unwrap_or_default()),
            // Only its presence counts, as with Patroni.
            "restart_pending" => conditions.restart_pending = true,
            "timeout" if timeout(Value::Object(wish.clone()).to_string().as_bytes()).is_some() => {}
            "timeout" => return Err(Reply::text(400, "Timeout should be a positive number of seconds")),
            other => return Err(Reply::text(400, format!("Unknown filter for the scheduled restart: {other}"))),
        }
    }
    conditions.check().map_err(|odd| Reply::text(400, odd.to_string()))?;
    Ok(conditions)
}

/// What this node is, in the words that a restart's conditions use.
fn restart_role(snapshot: &Snapshot, now: Instant) -> &'static str {
    match snapshot.local.postgres {
        _ if health::is_primary(snapshot, now) => "primary",
        _ if health::is_standby_leader(snapshot, now) => "standby_leader",
        Postgres::Standby { .. } => "replica",
        _ => "",
    }
}

/// What the conditions of a restart are held against.
pub fn server<'a>(snapshot: &'a Snapshot, role: &'a str) -> ToRestart<'a> {
    let facts = snapshot.facts.as_deref();
    ToRestart {
        role,
        version: facts.map(|facts| facts.server_version),
        pending: !snapshot.described.pending_restart.is_empty(),
        started: facts.map_or("", |facts| facts.postmaster_start_time.as_str()),
    }
}

/// DELETE `/restart`.
pub async fn forget_restart(node: &NodeHandle) -> Result<Reply, Reply> {
    if node.snapshot.borrow().view_at.is_none() {
        // Whether one is planned is not known yet: that is no 404.
        return Err(Reply::text(503, "etcd was not reached yet since this arbiter began"));
    }
    match command(node, Command::ForgetRestart, REFUSAL_WITHIN).await {
        Some(Ok(())) => Ok(Reply::text(200, "scheduled restart deleted")),
        Some(Err(why)) => Err(Reply::text(404, why)),
        None => Err(Reply::text(503, "the arbiter did not answer")),
    }
}

/// POST `/reinitialize`.
pub async fn reinitialize(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = optional_object(body)?;
    let flag = |name: &str| body.get(name).and_then(Value::as_bool).unwrap_or(false);
    let (force, from_leader, overwrite) = (flag("force"), flag("from_leader"), flag("overwrite"));
    let refusal = {
        let snapshot = node.snapshot.borrow();
        match &snapshot.view.leader {
            None => Some("Cluster has no leader, can not reinitialize"),
            Some(leader) if leader.name == snapshot.local.name => Some("I am the leader, can not reinitialize"),
            Some(_) if present::rows(&snapshot.view).is_empty() => Some("no member is known, can not reinitialize"),
            Some(_) => None,
        }
    };
    if let Some(refusal) = refusal {
        return Err(Reply::text(503, refusal));
    }
    match command(node, |answer| Command::Reinitialize { force, from_leader, overwrite, answer }, REFUSAL_WITHIN).await {
        Some(Err(why)) => Err(Reply::text(503, why)),
        Some(Ok(())) | None => Ok(Reply::text(200, "reinitialize started")),
    }
}

/// POST `/replay`: `{"until": TIME}`, `{"pause": true}` or `{"resume": true}`.
pub async fn replay(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = optional_object(body)?;
    let flag = |name: &str| body.get(name).and_then(Value::as_bool).unwrap_or(false);
    let ask = match (body.get("until").and_then(Value::as_str), flag("pause"), flag("resume")) {
        (Some(text), false, false) => match text.parse::<jiff::Timestamp>() {
            Ok(until) => Ask::Until(until.as_millisecond()),
            Err(_) => {
                return Err(Reply::text(400, format!("until is \"{text}\", expected a time with its zone, as 2026-11-22T14:03:00+01:00")));
            }
        },
        (None, true, false) => Ask::Pause,
        (None, false, true) => Ask::Resume,
        _ => return Err(Reply::text(400, "one of until, pause and resume must be given")),
    };
    let (answer, answered) = tokio::sync::oneshot::channel();
    let gone = || Reply::text(503, "this arbiter ends");
    node.commands.send(Command::Replay(ask, answer)).await.map_err(|_| gone())?;
    match answered.await.map_err(|_| gone())? {
        Ok(said) => Ok(Reply::text(200, said)),
        Err(why) => Err(Reply::text(503, why)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::health::tests::{primary, snapshot, standby};
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn requests_are_refused_with_the_fields_codes() {
        let now = "2026-06-01T12:00:00Z".parse().unwrap();
        for (body, switchover, paused, status, part) in [
            (json!({"leader": "a"}), false, false, 400, "Failover could be performed only to a specific candidate"),
            (json!({"candidate": "b"}), true, false, 400, "Switchover could be performed only from a specific leader"),
            (json!({"candidate": "b", "scheduled_at": "2030-01-01T00:00Z"}), false, false, 400, "Failover can't be scheduled"),
            (json!({"leader": "a", "scheduled_at": "2030-01-01T00:00Z"}), true, true, 400, "Can't schedule switchover in the paused state"),
            (json!({"leader": "a", "scheduled_at": "2030-01-01T00:00"}), true, false, 400, "Timezone information is mandatory"),
            (json!({"leader": "a", "scheduled_at": "2020-01-01T00:00Z"}), true, false, 422, "in the past"),
            (json!({"leader": "a", "scheduled_at": "soon"}), true, false, 422, "Unable to parse"),
            (json!({"leader": "a"}), true, true, 400, "only to a specific candidate in a paused state"),
            (json!({"leader": "a", "candidate": "a"}), true, false, 400, "target and source are the same"),
        ] {
            let reply = request(&map(body.clone()), switchover, paused, now).unwrap_err();
            assert_eq!(reply.status, status, "{body}");
            assert!(reply.body.contains(part), "{body}: {}", reply.body);
        }
        let good =
            request(&map(json!({"leader": "a", "member": "b", "scheduled_at": "2030-01-01T00:00+02:00"})), true, false, now).unwrap();
        assert_eq!((good.candidate(), good.scheduled_at.as_deref()), (Some("b"), Some("2030-01-01T00:00+02:00")));
        assert!(request(&map(json!({"candidate": "b", "leader": "a"})), false, false, now).unwrap().is_switchover());
    }

    #[test]
    fn a_restart_looks_at_its_conditions() {
        let (leader, replica) = (snapshot("n0", primary()), snapshot("n1", standby(84197032)));
        let check = |body: Value, snapshot: &Snapshot| {
            let role = restart_role(snapshot, Instant::now());
            match conditions(&map(body)) {
                Err(reply) => reply.status,
                Ok(conditions) if conditions.are_met(&server(snapshot, role)) => 200,
                Ok(_) => 503,
            }
        };
        for (body, on_leader, on_replica) in [
            (json!({}), 200, 200),
            (json!({"role": "primary"}), 200, 503),
            (json!({"role": "replica"}), 503, 200),
            (json!({"role": "king"}), 400, 400),
            (json!({"restart_pending": true}), 503, 503),
            (json!({"timeout": 10}), 200, 200),
            (json!({"timeout": 0}), 400, 400),
            (json!({"postgres_version": "15.3"}), 200, 200),
            (json!({"postgres_version": "new"}), 400, 400),
            (json!({"schedule": "2030-01-01T00:00Z"}), 200, 200),
            (json!({"schedule": 3}), 400, 400),
            (json!({"nonsense": 1}), 400, 400),
        ] {
            assert_eq!((check(body.clone(), &leader), check(body.clone(), &replica)), (on_leader, on_replica), "{body}");
        }
    }

    #[test]
    fn a_change_that_would_be_ignored_is_refused() {
        let before = DynamicConfig(map(json!({"ttl": 30})));
        assert_eq!(changed(&before, map(json!({"ttl": 1})), false).unwrap_err().status, 400);
        assert_eq!(changed(&before, map(json!({"ttl": null, "pause": true})), false).unwrap().0, map(json!({"pause": true})));
        assert_eq!(changed(&before, map(json!({"loop_wait": 2})), true).unwrap().0, map(json!({"loop_wait": 2})));
    }
}
