//! The SQL surface: reading first, then acting. What only the arbiter calls has a file of its own.
//!
//! The declarations stand in `sql/pg_tenure--*.sql`, with their rights; none of these writes to the
//! database, so all work on standbys too.

mod for_arbiter;
mod slots;
mod wait_for_lsn;

use crate::ground::{error, guc};
use crate::shmem::{self, Page, boottime};
use cluster::admission;
use cluster::config::DynamicConfig;
use cluster::fence::Mode;
use cluster::leader::LeaseId;
use cluster::parameter::{Catalogue, Parameter};
use cluster::replay::Ask;
use cluster::request::Wish;
use cluster::time::Moment;
use pgrx::datum::{Interval, JsonB, TimestampWithTimeZone};
use pgrx::iter::TableIterator;
use pgrx::{name, pg_extern, pg_sys};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Postgres counts from 2000-01-01; Unix time at that instant, in microseconds.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// etcd gets a few seconds for one guarded write, an election among its members included.
const ASK_TIMEOUT_MS: u64 = 10_000;

/// A WAL position as SQL's pg_lsn.
struct PgLsn(u64);

impl pgrx::IntoDatum for PgLsn {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(pg_sys::Datum::from(self.0))
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::PG_LSNOID
    }
}

// SAFETY: returns the datum that `into_datum` makes.
unsafe impl pgrx::callconv::BoxRet for PgLsn {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut pgrx::callconv::FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: a pg_lsn is passed by value.
        unsafe { fcinfo.return_raw_datum(pg_sys::Datum::from(self.0)) }
    }
}

// SAFETY: names the type that `into_datum` produces.
unsafe impl pgrx::pgrx_sql_entity_graph::metadata::SqlTranslatable for PgLsn {
    const TYPE_IDENT: &'static str = "pg_tenure::PgLsn";
    const TYPE_ORIGIN: pgrx::pgrx_sql_entity_graph::metadata::TypeOrigin = pgrx::pgrx_sql_entity_graph::metadata::TypeOrigin::External;
    const ARGUMENT_SQL: Result<pgrx::pgrx_sql_entity_graph::metadata::SqlMappingRef, pgrx::pgrx_sql_entity_graph::metadata::ArgumentError> =
        Ok(pgrx::pgrx_sql_entity_graph::metadata::SqlMappingRef::literal("pg_lsn"));
    const RETURN_SQL: Result<pgrx::pgrx_sql_entity_graph::metadata::ReturnsRef, pgrx::pgrx_sql_entity_graph::metadata::ReturnsError> =
        Ok(pgrx::pgrx_sql_entity_graph::metadata::ReturnsRef::One(pgrx::pgrx_sql_entity_graph::metadata::SqlMappingRef::literal("pg_lsn")));
}

fn interval(duration: Duration) -> Interval {
    Interval::from_micros(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

fn timestamp(unix_us: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(unix_us.saturating_sub(POSTGRES_EPOCH_US)).ok()
}

fn count(counter: &std::sync::atomic::AtomicU64) -> i64 {
    i64::try_from(counter.load(Relaxed)).unwrap_or(i64::MAX)
}

// ---- Reading -----------------------------------------------------------------------------------

/// This server's lease and fence, one row.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "the columns of the row")]
fn lease() -> TableIterator<
    'static,
    (
        name!(scope, Option<String>),
        name!(name, Option<String>),
        name!(fence, String),
        name!(term, Option<i64>),
        name!(lease, Option<String>),
        name!(deadline_left, Option<Interval>),
        name!(worker_pid, Option<i32>),
        name!(arbiter_attached, bool),
        name!(etcd_age, Option<Interval>),
        name!(commits_waited, i64),
        name!(commits_refused, i64),
        name!(commits_cut, i64),
        name!(draining_for, Option<Interval>),
        name!(fencing_token, Option<i64>),
    ),
> {
    let page = shmem::page();
    let now = boottime();
    page.end_overdue_drain(now);
    let fence = page.fence();
    let judged = page.fence_moment(now);
    let left = match fence.mode {
        Mode::Open | Mode::Draining => Some(left(fence.deadline, judged)),
        // A standby cluster is led with a closed fence.
        Mode::Unmanaged | Mode::Closed => page.held_until().map(|until| left(until, now)),
    };
    let word = match fence.mode {
        Mode::Open | Mode::Draining if judged >= fence.deadline => "expired",
        mode => mode.word(),
    };
    TableIterator::once((
        guc::scope(),
        guc::name(),
        word.to_owned(),
        Some(page.term()).filter(|term| *term != 0),
        Some(page.lease()).filter(|lease| *lease != 0).map(|lease| LeaseId(lease).to_string()),
        left,
        page.presence.worker_pid(),
        page.presence.arbiter_pid().is_some(),
        page.presence.etcd_seen_at().map(|seen| interval(now.since(seen))),
        count(&page.commits_waited),
        count(&page.commits_refused),
        count(&page.commits_cut),
        fence.drains(now).then(|| interval(now.since(fence.draining_since))),
        Some(page.token()).filter(|token| *token != 0),
    ))
}

/// Time until the deadline; negative when it has passed.
fn left(deadline: Moment, now: Moment) -> Interval {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Interval::from_micros(micros(deadline.since(now)) - micros(now.since(deadline)))
}

/// What the worker publishes. Fields it leaves out are unknown, not an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Snapshot {
    members: Vec<Member>,
    config: Value,
    history: Vec<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    name: String,
    host: Option<String>,
    port: Option<i32>,
    role: Option<String>,
    state: Option<String>,
    timeline: Option<i32>,
    receive_lsn: Option<u64>,
    receive_lag: Option<i64>,
    replay_lsn: Option<u64>,
    replay_lag: Option<i64>,
    tags: Map<String, Value>,
    pending_restart: bool,
    pending_restart_reason: Option<Value>,
    scheduled_restart: Option<Value>,
    citus_group: Option<i32>,
    /// Nanoseconds of CLOCK_BOOTTIME; None where it is as old as the snapshot.
    read_at_ns: Option<u64>,
}

/// The last snapshot with its age; None, with a notice, where there was none yet.
fn snapshot(page: &Page) -> Option<(Snapshot, Duration)> {
    let Some((bytes, taken_at_ns)) = page.snapshot.read() else {
        error::nothing_known_yet();
        return None;
    };
    match serde_json::from_slice(&bytes) {
        Ok(snapshot) => Some((snapshot, boottime().since(Moment::from_nanos(taken_at_ns)))),
        Err(fault) => error::declined(format!("the snapshot in shared memory can't be read: {fault}"), None),
    }
}

/// The members as last seen in etcd; on a Citus coordinator those of all groups.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "the columns of the row")]
fn status() -> TableIterator<
    'static,
    (
        name!(member, String),
        name!(host, Option<String>),
        name!(port, Option<i32>),
        name!(role, Option<String>),
        name!(state, Option<String>),
        name!(timeline, Option<i32>),
        name!(receive_lsn, Option<PgLsn>),
        name!(receive_lag, Option<i64>),
        name!(replay_lsn, Option<PgLsn>),
        name!(replay_lag, Option<i64>),
        name!(tags, JsonB),
        name!(pending_restart, bool),
        name!(pending_restart_reason, Option<JsonB>),
        name!(scheduled_restart, Option<JsonB>),
        name!(age, Interval),
        name!(citus_group, Option<i32>),
    ),
> {
    let (snapshot, age) = snapshot(shmem::page()).unwrap_or_default();
    let now = boottime();
    TableIterator::new(snapshot.members.into_iter().map(move |member| {
        let age = member.read_at_ns.map_or(age, |at| now.since(Moment::from_nanos(at)));
        (
            member.name,
            member.host,
            member.port,
            member.role,
            member.state,
            member.timeline,
            member.receive_lsn.map(PgLsn),
            member.receive_lag,
            member.replay_lsn.map(PgLsn),
            member.replay_lag,
            JsonB(Value::Object(member.tags)),
            member.pending_restart,
            member.pending_restart_reason.map(JsonB),
            member.scheduled_restart.map(JsonB),
            interval(age),
            member.citus_group,
        )
    }))
}

/// The dynamic configuration as last seen in etcd.
#[pg_extern]
fn config() -> Option<JsonB> {
    snapshot(shmem::page()).map(|(snapshot, _)| JsonB(snapshot.config))
}

/// The promotions this cluster went through.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "the columns of the row")]
fn history() -> TableIterator<
    'static,
    (
        name!(timeline, Option<i32>),
        name!(lsn, Option<PgLsn>),
        name!(reason, Option<String>),
        name!(at, Option<TimestampWithTimeZone>),
        name!(new_leader, Option<String>),
    ),
> {
    let (snapshot, _) = snapshot(shmem::page()).unwrap_or_default();
    TableIterator::new(snapshot.history.into_iter().map(|line| {
        let text = |index: usize| line.get(index).and_then(Value::as_str).map(str::to_owned);
        let at = text(3).and_then(|at| at.parse::<jiff::Timestamp>().ok()).and_then(|at| timestamp(at.as_microsecond()));
        let timeline = line.first().and_then(Value::as_i64).and_then(|timeline| i32::try_from(timeline).ok());
        (timeline, line.get(1).and_then(Value::as_u64).map(PgLsn), text(2), at, text(4))
    }))
}

/// What was decided here, and why, oldest first.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "the columns of the row")]
fn events() -> TableIterator<
    'static,
    (
        name!(at, Option<TimestampWithTimeZone>),
        name!(kind, String),
        name!(term, Option<i64>),
        name!(event, String),
        name!(cause, Option<String>),
    ),
> {
    TableIterator::new(shmem::page().events.all().into_iter().map(|event| {
        let cause = Some(event.cause).filter(|cause| !cause.is_empty());
        (timestamp(event.at_unix_us), event.kind, Some(event.term).filter(|term| *term != 0), event.text, cause)
    }))
}

/// How long things took since the server started, as classes that add up.
#[pg_extern]
fn timings() -> TableIterator<'static, (name!(timing, String), name!(at_most_seconds, f64), name!(count, i64), name!(total_seconds, f64))> {
    let rows = shmem::page().timings.all().into_iter().flat_map(|(name, histogram)| {
        let row = move |(bound, sum): (f64, u64)| (name.to_owned(), bound, i64::try_from(sum).unwrap_or(i64::MAX), histogram.seconds);
        histogram.cumulative().map(row).collect::<Vec<_>>()
    });
    TableIterator::new(rows)
}

// ---- Acting ------------------------------------------------------------------------------------

/// The worker's answer to a request.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Answer {
    ok: Option<String>,
    error: Option<String>,
    hint: Option<String>,
}

/// Asks the lease worker to write to etcd, and turns its answer into a sentence or an ERROR.
fn act(request: &Value) -> String {
    let answer = match shmem::page().ask(&request.to_string(), ASK_TIMEOUT_MS) {
        Ok(answer) => answer,
        Err(unasked) => error::unanswered(&unasked),
    };
    match serde_json::from_str::<Answer>(&answer) {
        Ok(Answer { error: Some(message), hint, .. }) => error::declined(message, hint),
        Ok(Answer { ok: Some(sentence), .. }) => sentence,
        Ok(Answer { ok: None, error: None, .. }) | Err(_) => {
            error::declined(format!("the lease worker's answer can't be read: {answer}"), None)
        }
    }
}

/// The same for a group of a Citus cluster: its own where none is named.
fn act_on(group: Option<i32>, mut request: Value) -> String {
    if let (Some(group), Some(fields)) = (group, request.as_object_mut()) {
        fields.insert("group".to_owned(), json!(group));
    }
    act(&request)
}

fn demanded<'a>(value: Option<&'a str>, what: &str) -> &'a str {
    value
        .unwrap_or_else(|| error::invalid(format!("{what} should be the name of a member, not NULL"), "tenure.status() shows the members."))
}

fn iso8601(at: TimestampWithTimeZone) -> String {
    let unix_us = at.into_inner().saturating_add(POSTGRES_EPOCH_US);
    match jiff::Timestamp::from_microsecond(unix_us) {
        Ok(at) => at.to_string(),
        Err(_) => error::invalid("scheduled_at is out of range".to_owned(), "Give a time within the next years, or NULL for at once."),
    }
}

/// Hands leadership over in a planned way. Here and below: on a Citus coordinator also that of another group.
#[pg_extern]
fn switchover(candidate: Option<&str>, scheduled_at: Option<TimestampWithTimeZone>, citus_group: Option<i32>) -> String {
    let request = json!({"verb": "switchover", "candidate": candidate, "scheduled_at": scheduled_at.map(iso8601)});
    act_on(citus_group, request)
}

/// Gives leadership to `candidate`, also without a leader.
#[pg_extern]
fn failover(candidate: Option<&str>, citus_group: Option<i32>) -> String {
    let candidate = demanded(candidate, "candidate");
    act_on(citus_group, json!({"verb": "failover", "candidate": candidate}))
}

/// Stops automatic failover.
#[pg_extern]
fn pause(citus_group: Option<i32>) -> String {
    act_on(citus_group, json!({"verb": "pause"}))
}

/// Resumes automatic failover.
#[pg_extern]
fn resume(citus_group: Option<i32>) -> String {
    act_on(citus_group, json!({"verb": "resume"}))
}

/// Changes the dynamic configuration: a merge patch, in which null removes.
#[pg_extern]
fn set_config(patch: Option<JsonB>, citus_group: Option<i32>) -> String {
    match patch {
        Some(JsonB(Value::Object(patch))) => {
            let warnings = left_out(&patch);
            let answer = act_on(citus_group, json!({"verb": "set_config", "patch": patch}));
            std::iter::once(answer).chain(warnings).collect::<Vec<_>>().join("; ")
        }
        _ => error::invalid("the configuration should be a JSON object".to_owned(), "SELECT tenure.set_config('{\"ttl\": 10}');"),
    }
}

/// What of a change of the configuration will not count, by what this server says of its parameters.
fn left_out(patch: &Map<String, Value>) -> Vec<String> {
    const ASKED: &str =
        "SELECT pg_catalog.json_object_agg(pg_catalog.lower(name), pg_catalog.json_build_object('vartype', vartype, 'unit', unit,
        'min_val', min_val, 'max_val', max_val, 'enumvals', enumvals, 'context', context))::text FROM pg_catalog.pg_settings";
    let asked = pgrx::Spi::get_one::<String>(ASKED);
    let Some(parameters) = asked.ok().flatten().and_then(|text| serde_json::from_str(&text).ok()) else { return Vec::new() };
    let mut catalogue = Catalogue { parameters, complete: true };
    let (before, after) = (DynamicConfig::default(), DynamicConfig(patch.clone()));
    for name in admission::changed_names(&before, &after) {
        // Some are hidden from users who are no superusers: paths and the like, all of them texts.
        let hidden = CString::new(name.as_str()).is_ok_and(|name| guc::is_known(&name));
        if hidden && catalogue.get(&name).is_none() {
            catalogue.parameters.insert(name, Parameter { vartype: "string".to_owned(), ..Parameter::default() });
        }
    }
    admission::warnings(&before, &after, &catalogue)
}

/// Restarts a member's server; this one's where none is named.
#[pg_extern]
fn restart(member: Option<&str>, only_pending: bool, citus_group: Option<i32>) -> String {
    act_on(citus_group, json!({"verb": "member", "wish": "restart", "member": member, "pending": only_pending}))
}

/// Makes a member read its files again; this one where none is named.
#[pg_extern]
fn reload(member: Option<&str>, citus_group: Option<i32>) -> String {
    act_on(citus_group, json!({"verb": "member", "wish": "reload", "member": member}))
}

/// Makes a new copy of a standby's data.
#[pg_extern]
fn reinit(member: Option<&str>, citus_group: Option<i32>) -> String {
    let member = demanded(member, "member");
    act_on(citus_group, json!({"verb": "member", "wish": "reinit", "member": member}))
}

/// Lets a standby replay what was committed up to this moment, and stop there.
#[pg_extern]
fn replay_until(member: Option<&str>, until: Option<TimestampWithTimeZone>, citus_group: Option<i32>) -> String {
    let hint = "Give a time of the past, with its zone: tenure.replay_until('n3', '2026-11-22 14:03+01').";
    let Some(until) = until else { error::invalid("until should be a time, not NULL".to_owned(), hint) };
    let until_ms = until.into_inner().saturating_add(POSTGRES_EPOCH_US).div_euclid(1000);
    if until_ms > jiff::Timestamp::now().as_millisecond() {
        error::invalid("until is yet to come".to_owned(), hint);
    }
    replay(member, Ask::Until(until_ms), citus_group)
}

/// Lets a standby stop its replay where it is.
#[pg_extern]
fn replay_pause(member: Option<&str>, citus_group: Option<i32>) -> String {
    replay(member, Ask::Pause, citus_group)
}

/// Lets a standby's replay go on, by the delay of its tag.
#[pg_extern]
fn replay_resume(member: Option<&str>, citus_group: Option<i32>) -> String {
    replay(member, Ask::Resume, citus_group)
}

fn replay(member: Option<&str>, ask: Ask, citus_group: Option<i32>) -> String {
    let member = demanded(member, "member");
    act_on(citus_group, json!({"verb": "member", "wish": Wish::Replay(ask), "member": member}))
}
