//! The health checks of load balancers: from what the daemon last saw to a status code, purely.

use crate::ground::present::{self, Role};
use crate::node::snapshot::Snapshot;
use cluster::local::Postgres;
use cluster::lsn::Lsn;
use serde_json::Value;
use std::time::{Duration, Instant};

/// The parameters after `?`.
#[derive(Debug, Clone, Default)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Primary,
    StandbyLeader,
    Leader,
    Replica,
    ReadOnly,
    Running,
    Sync,
    Quorum,
    Asynchronous,
    ReadOnlySync,
    ReadOnlyQuorum,
    Liveness,
    Readiness,
    Unknown,
}

impl Check {
    /// By substring, in the field's order: load balancers of years rely on it.
    fn of(path: &str) -> Check {
        let has = |word: &str| path.contains(word);
        match path {
            "/" => Check::Primary,
            "/liveness" => Check::Liveness,
            "/readiness" => Check::Readiness,
            "/sync" | "/synchronous" => Check::Sync,
            "/quorum" => Check::Quorum,
            "/async" | "/asynchronous" => Check::Asynchronous,
            "/read-only-sync" | "/read-only-synchronous" => Check::ReadOnlySync,
            "/read-only-quorum" => Check::ReadOnlyQuorum,
            _ if has("standby_leader") || has("standby-leader") => Check::StandbyLeader,
            _ if has("leader") => Check::Leader,
            _ if has("master") || has("primary") || has("read-write") => Check::Primary,
            _ if has("replica") => Check::Replica,
            _ if has("read-only") && !has("sync") && !has("quorum") => Check::ReadOnly,
            _ if has("health") => Check::Running,
            _ => Check::Unknown,
        }
    }
}

/// True for the checks that answer with a bare status line.
pub fn is_bare(path: &str) -> bool {
    matches!(Check::of(path), Check::Liveness | Check::Readiness)
}

/// True for what is no check at all, and answers 503.
#[cfg(test)]
pub fn is_unknown(path: &str) -> bool {
    matches!(Check::of(path), Check::Unknown)
}

/// etcd answered recently enough to believe what it said of others.
pub fn is_fresh(snapshot: &Snapshot, now: Instant) -> bool {
    snapshot.view_at.is_some_and(|at| now.saturating_duration_since(at) < snapshot.view.config().timing().ttl)
}

/// This node's name stands in the leader key, and its lease runs: the fence is open. An arbiter that has not
/// read etcd yet has its server's own page: open for a leader only.
fn leads(snapshot: &Snapshot, now: Instant) -> bool {
    let named = snapshot.view_at.is_none() || snapshot.view.leader_if(&snapshot.local.name).is_some();
    named && snapshot.lease_until.is_some_and(|until| until > now)
}

/// This node led when etcd last answered, which is long ago, and its lease has run out since.
pub fn lease_ran_out(snapshot: &Snapshot, now: Instant) -> bool {
    let led = snapshot.view.leader_if(&snapshot.local.name).is_some();
    led && !is_fresh(snapshot, now) && snapshot.lease_until.is_none_or(|until| until <= now)
}

/// Writes are served here.
pub fn is_primary(snapshot: &Snapshot, now: Instant) -> bool {
    leads(snapshot, now) && matches!(snapshot.local.postgres, Postgres::Primary { .. }) && !snapshot.view.is_standby_cluster()
}

/// This node leads a cluster that follows another one.
pub fn is_standby_leader(snapshot: &Snapshot, now: Instant) -> bool {
    leads(snapshot, now) && matches!(snapshot.local.postgres, Postgres::Standby { .. }) && snapshot.view.is_standby_cluster()
}

/// What its standby is called: `streaming` or `in archive recovery`.
pub fn replication_state(snapshot: &Snapshot) -> Option<&str> {
    match &snapshot.local.postgres {
        Postgres::Standby { streaming: true, .. } => Some("streaming"),
        Postgres::Standby { .. } => {
            let member = &snapshot.view.members.get(&snapshot.local.name)?.member;
            member.replication_state.as_deref().filter(|state| *state != "streaming")
        }
        _ => None,
    }
}

/// Bytes between the furthest known position of the leader and what is replayed (or received) here.
fn lag_bytes(snapshot: &Snapshot, received: bool) -> u64 {
    let Postgres::Standby { position, .. } = &snapshot.local.postgres else { return 0 };
    let facts = snapshot.facts.as_deref();
    let told = facts.and_then(|facts| facts.receiver.as_ref()).and_then(|receiver| receiver.latest_end_lsn);
    let recorded = snapshot.view.status.as_ref().map(|status| status.value.optime);
    let ahead = told.max(recorded).unwrap_or(Lsn::INVALID);
    let replayed = facts.and_then(|facts| facts.replayed_lsn).unwrap_or(*position);
    (if received { *position } else { replayed }).lag_bytes_behind(ahead)
}

/// What was committed up to `lsn` is seen here: asked for as `X/Y` or as a number. What can't be understood is seen nowhere. As of the last
/// look of the loop, so it may be seen a moment before this says so, and never after.
fn has_replayed(snapshot: &Snapshot, lsn: &str) -> bool {
    let wanted = lsn.parse::<Lsn>().ok().or_else(|| lsn.trim().parse().ok().map(Lsn));
    let reached = match &snapshot.local.postgres {
        Postgres::Standby { .. } => snapshot.facts.as_deref().and_then(|facts| facts.replayed_lsn),
        Postgres::Primary { flushed, .. } => Some(*flushed),
        _ => None,
    };
    wanted.is_some_and(|wanted| reached.is_some_and(|reached| reached >= wanted))
}

/// `16MB`, `100kB`, or plain bytes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "kB" | "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn tags_match(snapshot: &Snapshot, query: &Query) -> bool {
    let wished = query.0.iter().filter_map(|(key, value)| Some((key.strip_prefix("tag_")?, value)));
    let has = |tag: &str| match snapshot.local.tags.0.get(tag) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string().to_lowercase()),
        None => None,
    };
    wished.into_iter().all(|(tag, value)| has(tag).as_deref() == Some(value))
}

fn is_fit_replica(snapshot: &Snapshot, query: &Query) -> bool {
    let state_fits = query.get("replication_state").is_none_or(|wished| replication_state(snapshot) == Some(wished));
    let lag_fits = query.get("lag").and_then(bytes).is_none_or(|most| lag_bytes(snapshot, false) <= most);
    let lsn_fits = query.get("lsn").is_none_or(|wanted| has_replayed(snapshot, wanted));
    matches!(snapshot.local.postgres, Postgres::Standby { .. })
        && !snapshot.local.tags.noloadbalance()
        && state_fits
        && lag_fits
        && lsn_fits
}

fn is_live(snapshot: &Snapshot, now: Instant) -> bool {
    let config = snapshot.view.config();
    let ttl: Duration = config.timing().ttl;
    let allowed = if matches!(snapshot.local.postgres, Postgres::Primary { .. }) { ttl } else { ttl * 2 };
    config.paused() || now.saturating_duration_since(snapshot.turned_at) < allowed
}

fn is_ready(snapshot: &Snapshot, query: &Query, now: Instant) -> bool {
    if is_primary(snapshot, now) || is_standby_leader(snapshot, now) {
        return true;
    }
    let Postgres::Standby { streaming, .. } = &snapshot.local.postgres else { return false };
    let told =
        snapshot.facts.as_deref().and_then(|facts| facts.receiver.as_ref()).is_some_and(|receiver| receiver.latest_end_lsn.is_some());
    let config = snapshot.view.config();
    let most = query.get("lag").and_then(bytes).unwrap_or_else(|| config.maximum_lag_on_failover());
    *streaming && (told || is_fresh(snapshot, now)) && lag_bytes(snapshot, query.get("mode") == Some("write")) <= most
}

/// The status code of a check: 200 or 503.
pub fn status(snapshot: &Snapshot, path: &str, query: &Query, now: Instant) -> u16 {
    let primary = is_primary(snapshot, now);
    let standby_leader = is_standby_leader(snapshot, now);
    let replica = || is_fit_replica(snapshot, query);
    // Which members are synchronous is known from etcd only: an old answer counts for nothing.
    let is = |role: Role| is_fresh(snapshot, now) && present::role(&snapshot.view, &snapshot.local.name) == role;
    let tagged = || tags_match(snapshot, query);
    let good = match Check::of(path) {
        Check::Primary => primary,
        Check::StandbyLeader => standby_leader,
        Check::Leader => primary || standby_leader,
        Check::Replica => replica() && tagged(),
        Check::ReadOnly => (primary || standby_leader || replica()) && tagged(),
        Check::Running => matches!(snapshot.local.postgres, Postgres::Primary { .. } | Postgres::Standby { .. }),
        Check::Sync => is(Role::SyncStandby) && replica() && tagged(),
        Check::Quorum => is(Role::QuorumStandby) && replica() && tagged(),
        Check::Asynchronous => is(Role::Replica) && replica() && tagged(),
        Check::ReadOnlySync => (primary || standby_leader || is(Role::SyncStandby) && replica()) && tagged(),
        Check::ReadOnlyQuorum => (primary || standby_leader || is(Role::QuorumStandby) && replica()) && tagged(),
        Check::Liveness => is_live(snapshot, now),
        Check::Readiness => is_ready(snapshot, query, now),
        Check::Unknown => false,
    };
    if good { 200 } else { 503 }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ground::present::tests::sample;
    use cluster::local::{DataDir, LocalState};
    use cluster::member::Tags;
    use cluster::name::{MemberName, Timeline};
    use std::sync::Arc;

    pub(crate) fn primary() -> Postgres {
        Postgres::Primary { timeline: Timeline(1), flushed: Lsn(84197032) }
    }

    pub(crate) fn standby(position: u64) -> Postgres {
        Postgres::Standby { timeline: Timeline(1), position: Lsn(position), upstream: None, streaming: true }
    }

    /// The node `name` of the sample, its lease and etcd's answer fresh.
    pub(crate) fn snapshot(name: &str, postgres: Postgres) -> Snapshot {
        let now = Instant::now();
        let local = LocalState {
            aside: None,
            restore: None,
            upgrade: None,
            name: MemberName::new(name).unwrap(),
            tags: Tags::default(),
            data: DataDir::Empty,
            postgres,
            lease_valid: true,
            rewind_failed: None,
            may_clone_over: false,
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
            answered: Default::default(),
            gives_way: None,
            memory: None,
            fence_open: false,
            wal_until: None,
            remote: Default::default(),
        };
        Snapshot {
            described: Default::default(),
            symptoms: Vec::new(),
            view: Arc::new(sample()),
            view_at: Some(now),
            lease_until: Some(now + Duration::from_secs(5)),
            local: Arc::new(local),
            facts: None,
            decision: None,
            leader_changes: 2,
            turned_at: now,
        }
    }

    const PATHS: [&str; 16] = [
        "/",
        "/primary",
        "/master",
        "/read-write",
        "/leader",
        "/standby-leader",
        "/replica",
        "/read-only",
        "/health",
        "/sync",
        "/async",
        "/quorum",
        "/read-only-sync",
        "/liveness",
        "/readiness",
        "/foo",
    ];

    fn answers(snapshot: &Snapshot) -> String {
        let good = PATHS.into_iter().filter(|path| status(snapshot, path, &Query::default(), Instant::now()) == 200);
        good.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn who_answers_200_to_what() {
        let mut fenced = snapshot("n0", primary());
        fenced.lease_until = Some(Instant::now() - Duration::from_millis(1));
        let mut stale = snapshot("n1", standby(84197032));
        stale.view_at = None;
        let deposed = snapshot("n1", primary());
        // What an arbiter knows that began while etcd was away: its own server.
        let unread = |mut snapshot: Snapshot, open: bool| {
            (snapshot.view, snapshot.view_at) = (Arc::default(), None);
            snapshot.lease_until = snapshot.lease_until.filter(|_| open);
            snapshot
        };
        let promoting = snapshot("n0", standby(84197032));
        let table = [
            (
                "leader and primary",
                snapshot("n0", primary()),
                "/ /primary /master /read-write /leader /read-only /health /read-only-sync /liveness /readiness",
            ),
            ("leader, lease run out", fenced, "/health /liveness"),
            ("leader, not promoted yet", promoting, "/replica /read-only /health /liveness /readiness"),
            ("leader, stopped", snapshot("n0", Postgres::Stopped), "/liveness"),
            (
                "etcd never read, its page open",
                unread(snapshot("n0", primary()), true),
                "/ /primary /master /read-write /leader /read-only /health /read-only-sync /liveness /readiness",
            ),
            ("etcd never read, its page closed", unread(snapshot("n0", primary()), false), "/health /liveness"),
            ("etcd never read, standby", unread(snapshot("n1", standby(84197032)), false), "/replica /read-only /health /liveness"),
            ("primary, another leads", deposed, "/health /liveness"),
            (
                "synchronous standby",
                snapshot("n1", standby(84197032)),
                "/replica /read-only /health /sync /read-only-sync /liveness /readiness",
            ),
            ("synchronous standby, etcd away", stale, "/replica /read-only /health /liveness"),
            ("asynchronous standby", snapshot("n2", standby(84197032)), "/replica /read-only /health /async /liveness /readiness"),
            ("standby far behind", snapshot("n2", standby(1)), "/replica /read-only /health /async /liveness"),
        ];
        for (who, snapshot, expected) in table {
            assert_eq!(answers(&snapshot), expected, "{who}");
        }
    }

    #[test]
    fn parameters_narrow_a_standby() {
        let mut snapshot = snapshot("n2", standby(84197032 - 2_000_000));
        Arc::make_mut(&mut snapshot.local).tags = serde_json::from_str(r#"{"zone":"A","fast":true}"#).unwrap();
        for (path, query, expected) in [
            ("/replica", "lag=1MB", 503),
            ("/replica", "lag=2MB", 200),
            ("/replica", "lag=2000000", 200),
            ("/replica", "lag=1999999", 503),
            ("/replica", "replication_state=streaming", 200),
            ("/replica", "replication_state=in archive recovery", 503),
            ("/replica", "tag_zone=A&tag_fast=true", 200),
            ("/replica", "tag_zone=B", 503),
            ("/async", "tag_zone=B", 503),
            ("/readiness", "", 503),
            ("/readiness", "lag=10MB", 200),
        ] {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned()));
            assert_eq!(status(&snapshot, path, &Query(pairs.collect()), Instant::now()), expected, "{path}?{query}");
        }
        let facts = r#"{"in_recovery":true,"timeline":1,"replayed_lsn":256,"replay_paused":false,"postmaster_start_time":"","server_version":150000,
            "system_id":"","synchronous_standby_names":"","primary_conninfo":"","primary_slot_name":""}"#;
        let of =
            |snapshot: &Snapshot, lsn: &str| status(snapshot, "/replica", &Query(vec![("lsn".to_owned(), lsn.to_owned())]), Instant::now());
        assert_eq!(of(&snapshot, "0/100"), 503, "what is not known is not replayed");
        snapshot.facts = Some(Arc::new(serde_json::from_str(facts).unwrap()));
        for (lsn, expected) in [("0/FF", 200), ("0/100", 200), ("256", 200), ("0/101", 503), ("257", 503), ("soon", 503), ("", 503)] {
            assert_eq!(of(&snapshot, lsn), expected, "lsn={lsn}");
        }
        Arc::make_mut(&mut snapshot.local).tags = serde_json::from_str(r#"{"noloadbalance":true}"#).unwrap();
        assert_eq!(status(&snapshot, "/replica", &Query::default(), Instant::now()), 503);
    }

    #[test]
    fn a_loop_that_no_longer_turns_is_not_alive() {
        let mut snapshot = snapshot("n0", primary());
        let later = Instant::now() + Duration::from_secs(15);
        assert_eq!(status(&snapshot, "/liveness", &Query::default(), later), 503);
        Arc::make_mut(&mut snapshot.local).postgres = standby(1);
        assert_eq!(status(&snapshot, "/liveness", &Query::default(), later), 200);
        assert_eq!(status(&snapshot, "/liveness", &Query::default(), later + Duration::from_secs(10)), 503);
    }
}
