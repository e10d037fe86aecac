//! `/metrics`: Prometheus' text, with the field's names and a few of ours.

use super::{cluster, health};
use crate::ground::present::{self, Role};
use crate::node::snapshot::Snapshot;
use crate::postgres::facts::{FenceCounts, ServerFacts};
use cluster_rules::health::Symptom;
use cluster_rules::histogram::Histogram;
use cluster_rules::local::Postgres;
use cluster_rules::name::{MemberName, Scope};
use std::collections::BTreeMap;
use std::time::Instant;

// The module beside us has the crate's name.
use ::cluster as cluster_rules;

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// The whole page.
pub fn page(snapshot: &Snapshot, facts: Option<&ServerFacts>, scope: &Scope, now: Instant) -> String {
    let name = &snapshot.local.name;
    let labels = format!("{{scope=\"{scope}\",name=\"{name}\"}}");
    let mut page = String::new();
    let mut add = |metric: &str, kind: &str, help: &str, value: f64| {
        page.push_str(&format!("# HELP {metric} {help}\n# TYPE {metric} {kind}\n{metric}{labels} {value}\n"));
    };
    let flag = |set: bool| if set { 1.0 } else { 0.0 };
    let role = present::role(&snapshot.view, name);
    let config = snapshot.view.config();
    let (is_primary, is_standby) =
        (matches!(snapshot.local.postgres, Postgres::Primary { .. }), matches!(snapshot.local.postgres, Postgres::Standby { .. }));
    let standby_leader = health::is_standby_leader(snapshot, now);
    let (location, timeline) = match &snapshot.local.postgres {
        Postgres::Primary { timeline, flushed } => (facts.and_then(|facts| facts.flush_lsn).unwrap_or(*flushed).0, timeline.0),
        Postgres::Standby { timeline, position, .. } => (position.0, timeline.0),
        _ => (0, 0),
    };
    let standby_lsn = |lsn: Option<cluster_rules::lsn::Lsn>| if is_standby { lsn.map_or(location, |lsn| lsn.0) as f64 } else { 0.0 };
    let started = facts.and_then(|facts| epoch(&facts.postmaster_start_time)).unwrap_or(0.0);
    let pending = !snapshot.described.pending_restart.is_empty();
    let replication = health::replication_state(snapshot);

    add("patroni_postgres_running", GAUGE, "Value is 1 if Postgres is running, 0 otherwise.", flag(is_primary || is_standby));
    add("patroni_postmaster_start_time", GAUGE, "Epoch seconds since Postgres started.", started);
    add("patroni_primary", GAUGE, "Value is 1 if this node is the leader, 0 otherwise.", flag(is_primary));
    add(
        "patroni_xlog_location",
        COUNTER,
        "Current location of the Postgres transaction log, 0 if this node is not the leader.",
        if is_primary { location as f64 } else { 0.0 },
    );
    add("patroni_standby_leader", GAUGE, "Value is 1 if this node is the standby_leader, 0 otherwise.", flag(standby_leader));
    add("patroni_replica", GAUGE, "Value is 1 if this node is a replica, 0 otherwise.", flag(is_standby && !standby_leader));
    add("patroni_sync_standby", GAUGE, "Value is 1 if this node is a sync standby, 0 otherwise.", flag(role == Role::SyncStandby));
    add("patroni_quorum_standby", GAUGE, "Value is 1 if this node is a quorum standby, 0 otherwise.", flag(role == Role::QuorumStandby));
    let received = standby_lsn(facts.and_then(|facts| facts.received_lsn));
    add(
        "patroni_xlog_received_location",
        COUNTER,
        "Current location of the received Postgres transaction log, 0 if this node is not a replica.",
        received,
    );
    let replayed = standby_lsn(facts.and_then(|facts| facts.replayed_lsn));
    add(
        "patroni_xlog_replayed_location",
        COUNTER,
        "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.",
        replayed,
    );
    let replayed_at = facts.and_then(|facts| facts.replayed_at_s).unwrap_or(0.0);
    add("patroni_xlog_replayed_timestamp", GAUGE, "Current timestamp of the replayed Postgres transaction log, 0 if null.", replayed_at);
    add(
        "patroni_xlog_paused",
        GAUGE,
        "Value is 1 if the Postgres xlog is paused, 0 otherwise.",
        flag(facts.is_some_and(|facts| facts.replay_paused)),
    );
    add("patroni_postgres_streaming", GAUGE, "Value is 1 if Postgres is streaming, 0 otherwise.", flag(replication == Some("streaming")));
    let from_archive = flag(replication == Some("in archive recovery"));
    add("patroni_postgres_in_archive_recovery", GAUGE, "Value is 1 if Postgres is replicating from archive, 0 otherwise.", from_archive);
    let version = facts.map_or(0.0, |facts| f64::from(facts.server_version));
    add("patroni_postgres_server_version", GAUGE, "Version of Postgres (if running), 0 otherwise.", version);
    add("patroni_cluster_unlocked", GAUGE, "Value is 1 if the cluster is unlocked, 0 if locked.", flag(snapshot.view.leader.is_none()));
    let failsafe = flag(cluster::failsafe_is_active(snapshot, now));
    add("patroni_failsafe_mode_is_active", GAUGE, "Value is 1 if failsafe mode is active, 0 if inactive.", failsafe);
    add("patroni_failsafe_mode_enabled", GAUGE, "Value is 1 if failsafe mode is enabled, 0 if disabled.", flag(config.failsafe_mode()));
    let in_failsafe = snapshot.view.failsafe.as_ref().is_some_and(|map| map.value.contains_key(name.as_str()));
    add("patroni_failsafe_member", GAUGE, "Value is 1 if this node is in the failsafe key, 0 otherwise.", flag(in_failsafe));
    add("patroni_postgres_timeline", GAUGE, "Postgres timeline of this node (if running), 0 otherwise.", f64::from(timeline));
    add(
        "patroni_dcs_last_seen",
        GAUGE,
        "Epoch timestamp when DCS was last contacted successfully.",
        cluster::dcs_last_seen(snapshot, now) as f64,
    );
    add("patroni_pending_restart", GAUGE, "Value is 1 if the node needs a restart, 0 otherwise.", flag(pending));
    add("patroni_is_paused", GAUGE, "Value is 1 if auto failover is disabled, 0 otherwise.", flag(config.paused()));
    add("patroni_postgres_state", GAUGE, "Numeric representation of Postgres state.", f64::from(state_number(cluster::state(snapshot))));
    add("patroni_failover_priority", GAUGE, "Preference of this node among candidates.", snapshot.local.tags.failover_priority() as f64);
    let term = snapshot.view.leader.as_ref().map_or(0.0, |leader| leader.term.0 as f64);
    add("tenure_term", GAUGE, "Term of the present leader, 0 if there is none.", term);
    let changes = snapshot.leader_changes as f64;
    add("tenure_leader_changes_total", COUNTER, "How often another member came to lead, since the arbiter started.", changes);
    let left = snapshot.lease_until.map_or(0.0, |until| until.saturating_duration_since(now).as_secs_f64());
    add("tenure_lease_seconds_left", GAUGE, "Seconds for which this node's lease still runs, 0 once it has run out.", left);
    let ttl = config.timing().ttl.as_secs_f64();
    add("tenure_ttl_seconds", GAUGE, "Seconds for which a lease runs from each renewal, by the dynamic configuration.", ttl);
    add("tenure_writable", GAUGE, "Value is 1 if this node serves writes, 0 otherwise.", flag(health::is_primary(snapshot, now)));

    let backup = snapshot.view.backup.as_ref().and_then(|backup| epoch(&backup.value.at)).unwrap_or(0.0);
    add("tenure_backup_timestamp_seconds", GAUGE, "Epoch seconds of the last backup that was told of, 0 if there is none.", backup);
    let within = config.backup_within().map_or(0.0, |within| within.as_secs_f64());
    add("tenure_backup_within_seconds", GAUGE, "Seconds within which a backup is expected (backup_within), 0 if none is.", within);

    let foreign = flag(snapshot.local.strange.is_some());
    add("tenure_foreign_server", GAUGE, "Value is 1 if a server runs on this node's data that nothing fences, 0 otherwise.", foreign);

    page.push_str(&symptoms(snapshot, scope, name));
    page.push_str(&slots(facts, location, scope, name));

    // Zero-padded, as the field has it: 4.1.5 is 040105.
    let padded: String = dcs::SURFACE_VERSION.split('.').map(|part| format!("{part:0>2}")).collect();
    format!(
        "# HELP patroni_version Patroni semver without periods.\n# TYPE patroni_version gauge\npatroni_version{labels} {padded}\n{page}"
    )
}

/// What of the node's own health has lasted, a line for each thing that may be wrong.
fn symptoms(snapshot: &Snapshot, scope: &Scope, name: &MemberName) -> String {
    let metric = "tenure_sick";
    let shown = |word: &str| snapshot.symptoms.iter().any(|symptom| symptom.word() == word);
    let lines: String = Symptom::WORDS
        .iter()
        .map(|word| format!("{metric}{{scope=\"{scope}\",name=\"{name}\",symptom=\"{word}\"}} {}\n", u8::from(shown(word))))
        .collect();
    format!(
        "# HELP {metric} Value is 1 while this node shows a symptom that has lasted (sick_primary), 0 otherwise.\n# TYPE {metric} gauge\n{lines}"
    )
}

/// When each certificate of this node ends, a line for each; none where nothing speaks TLS.
pub fn certificates(ends: &BTreeMap<String, i64>, scope: &Scope, name: &MemberName) -> String {
    let metric = "tenure_certificate_expiry_timestamp_seconds";
    let line = |(what, at): (&String, &i64)| {
        let what = what.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{metric}{{scope=\"{scope}\",name=\"{name}\",certificate=\"{what}\"}} {at}\n")
    };
    let lines: String = ends.iter().map(line).collect();
    if lines.is_empty() {
        return lines;
    }
    format!(
        "# HELP {metric} Epoch seconds at which a certificate that this node shows, or is shown by etcd, ends.\n# TYPE {metric} gauge\n{lines}"
    )
}

/// What each slot of this server holds back, a line for each.
fn slots(facts: Option<&ServerFacts>, location: u64, scope: &Scope, name: &MemberName) -> String {
    let metric = "tenure_slot_held_back_bytes";
    let seen = facts.map(|facts| facts.slots.as_slice()).unwrap_or_default();
    let lines = seen.iter().filter_map(|slot| {
        let bytes = slot.restart_lsn?.lag_bytes_behind(cluster_rules::lsn::Lsn(location));
        let (slot, kind, active) = (&slot.slot_name, &slot.slot_type, slot.active);
        Some(format!("{metric}{{scope=\"{scope}\",name=\"{name}\",slot=\"{slot}\",type=\"{kind}\",active=\"{active}\"}} {bytes}\n"))
    });
    let lines: String = lines.collect();
    if lines.is_empty() {
        return lines;
    }
    format!("# HELP {metric} WAL that a replication slot of this server holds back.\n# TYPE {metric} gauge\n{lines}")
}

/// What was counted: by the extension since Postgres started, where it answers, and by this arbiter since it started.
pub fn counts(fence: Option<&FenceCounts>, own: &[(&str, Histogram)], scope: &Scope, name: &MemberName) -> String {
    let labels = format!("scope=\"{scope}\",name=\"{name}\"");
    let mut page = String::new();
    if let Some(fence) = fence {
        for (metric, help, value) in [
            ("tenure_commits_waited_total", "Commits that waited at the fence for a renewal of the lease.", fence.waited),
            ("tenure_commits_refused_total", "Commits that were refused outside the lease.", fence.refused),
            ("tenure_commits_cut_total", "Commits that became durable and were not acknowledged.", fence.cut),
        ] {
            page.push_str(&format!("# HELP {metric} {help}\n# TYPE {metric} counter\n{metric}{{{labels}}} {value}\n"));
        }
    }
    let told = fence.iter().flat_map(|fence| &fence.timings);
    let told = told.filter_map(|(name, timing)| Some((name.as_str(), Histogram::of_cumulative(&timing.counts, timing.seconds)?)));
    for (name, histogram) in told.chain(own.iter().copied()) {
        let metric = format!("tenure_{name}_seconds");
        page.push_str(&format!("# HELP {metric} {}\n# TYPE {metric} histogram\n", what_is_timed(name)));
        let mut all = 0;
        for (bound, sum) in histogram.cumulative() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            page.push_str(&format!("{metric}_bucket{{{labels},le=\"{bound}\"}} {sum}\n"));
            all = sum;
        }
        page.push_str(&format!("{metric}_sum{{{labels}}} {}\n{metric}_count{{{labels}}} {all}\n", histogram.seconds));
    }
    page
}

fn what_is_timed(name: &str) -> &'static str {
    match name {
        "lease_renewal" => "Renewals of the lease, from sending until etcd's answer.",
        "commit_wait" => "Commits that were held at the fence.",
        "race" => "From seeing that nobody leads until this node took the leader key.",
        "switchover_handover" => "On the old leader, from the drain until the leader key was handed over.",
        "promotion" => "On the new leader, from the decision to promote until Postgres left recovery.",
        _ => "A duration.",
    }
}

/// PostgreSQL's timestamp text as seconds since 1970.
fn epoch(text: &str) -> Option<f64> {
    Some(text.parse::<jiff::Timestamp>().ok()?.as_microsecond() as f64 / 1e6)
}

/// The field's numbers of the states.
fn state_number(state: &str) -> i8 {
    match state {
        "initializing new cluster" => 0,
        "creating replica" => 4,
        "running" => 5,
        "starting" => 6,
        "stopped" => 12,
        "crashed" => 14,
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::health::tests::{primary, snapshot};
    use super::*;

    #[test]
    fn durations_are_told_as_histograms() {
        let mut promotion = Histogram::default();
        promotion.observe(std::time::Duration::from_millis(30));
        let fence = FenceCounts {
            cut: 3,
            timings: [(
                "race".to_owned(),
                crate::postgres::facts::FenceTiming { counts: vec![0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], seconds: 0.004 },
            )]
            .into(),
            ..FenceCounts::default()
        };
        let (scope, name) = (Scope::new("demo").unwrap(), MemberName::new("n0").unwrap());
        let page = counts(Some(&fence), &[("promotion", promotion)], &scope, &name);
        for line in [
            "# TYPE tenure_promotion_seconds histogram",
            r#"tenure_promotion_seconds_bucket{scope="demo",name="n0",le="0.025"} 0"#,
            r#"tenure_promotion_seconds_bucket{scope="demo",name="n0",le="+Inf"} 1"#,
            r#"tenure_promotion_seconds_sum{scope="demo",name="n0"} 0.03"#,
            r#"tenure_race_seconds_bucket{scope="demo",name="n0",le="0.005"} 1"#,
            r#"tenure_race_seconds_count{scope="demo",name="n0"} 1"#,
            r#"tenure_commits_cut_total{scope="demo",name="n0"} 3"#,
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
    }

    #[test]
    fn the_end_of_each_certificate_is_told() {
        let (scope, name) = (Scope::new("demo").unwrap(), MemberName::new("n0").unwrap());
        let ends = [("REST".to_owned(), 1_893_456_000), (r#"/a "b"\c"#.to_owned(), -1)].into();
        let page = certificates(&ends, &scope, &name);
        let metric = "tenure_certificate_expiry_timestamp_seconds";
        for line in [
            format!(r#"{metric}{{scope="demo",name="n0",certificate="REST"}} 1893456000"#),
            format!(r#"{metric}{{scope="demo",name="n0",certificate="/a \"b\"\\c"}} -1"#),
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
        assert_eq!(certificates(&BTreeMap::new(), &scope, &name), "");
    }

    #[test]
    fn the_names_that_dashboards_ask_for() {
        let page = page(&snapshot("n0", primary()), None, &Scope::new("demo").unwrap(), Instant::now());
        for line in [
            r#"patroni_version{scope="demo",name="n0"} 040105"#,
            r#"patroni_primary{scope="demo",name="n0"} 1"#,
            r#"patroni_xlog_location{scope="demo",name="n0"} 84197032"#,
            r#"patroni_postgres_timeline{scope="demo",name="n0"} 1"#,
            r#"patroni_postgres_state{scope="demo",name="n0"} 5"#,
            r#"tenure_term{scope="demo",name="n0"} 5"#,
            r#"tenure_backup_timestamp_seconds{scope="demo",name="n0"} 0"#,
            r#"tenure_backup_within_seconds{scope="demo",name="n0"} 0"#,
            r#"tenure_leader_changes_total{scope="demo",name="n0"} 2"#,
            "# TYPE patroni_xlog_received_location counter",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
        assert_eq!(epoch("2026-11-20 15:59:58.002314+00"), epoch("2026-11-20T15:59:58.002314Z"));
        assert!(epoch("2026-11-20 15:59:58.002314+00:00").is_some());
    }
}
