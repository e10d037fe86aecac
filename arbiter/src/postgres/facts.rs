//! What a running server says of itself: the one look, and the words of its answer.

use cluster::lsn::Lsn;
use cluster::mark::Identity;
use cluster::name::Timeline;
use cluster::slots::SlotSeen;
use cluster::speech;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// All that one look at the server tells.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ServerFacts {
    /// A standby (or a primary that still recovers).
    pub in_recovery: bool,
    /// On a primary the timeline it writes; on a standby the one it receives, or that of its last restart point.
    pub timeline: Timeline,
    /// A primary's current write position.
    pub current_lsn: Option<Lsn>,
    /// A primary's position that is on disk.
    pub flush_lsn: Option<Lsn>,
    /// What a standby has received and flushed.
    pub received_lsn: Option<Lsn>,
    /// What a standby has replayed.
    pub replayed_lsn: Option<Lsn>,
    /// Where a standby's recovery would begin: its last restart point.
    #[serde(default)]
    pub redo_lsn: Option<Lsn>,
    /// When the last replayed commit was made, as seconds since 1970.
    pub replayed_at_s: Option<f64>,
    /// Replay is paused (by a function, or by a setting lower than the primary's).
    pub replay_paused: bool,
    /// The walreceiver, where one runs.
    pub receiver: Option<Receiver>,
    /// One that has not connected yet: PostgreSQL shows nothing of it but its process.
    #[serde(default)]
    pub connecting: Option<Connecting>,
    /// The servers that stream from this one.
    #[serde(default)]
    pub replication: Vec<Sender>,
    /// Its replication slots.
    #[serde(default)]
    pub slots: Vec<SlotSeen>,
    /// `max_slot_wal_keep_size` in MB, -1 for no limit.
    #[serde(default)]
    pub max_slot_wal_keep_mb: Option<i64>,
    /// `wal_receiver_status_interval`, in seconds; 0 for never.
    #[serde(default)]
    pub status_interval_s: Option<i64>,
    /// `wal_receiver_timeout`, in milliseconds; 0 for none.
    #[serde(default)]
    pub receiver_timeout_ms: Option<i64>,
    /// When the postmaster started, as PostgreSQL prints it.
    pub postmaster_start_time: String,
    /// As in `server_version_num`.
    pub server_version: u32,
    /// The database system.
    pub system_id: String,
    /// Settings of the configuration files that wait for a restart.
    #[serde(default)]
    pub pending_restart: Vec<PendingSetting>,
    /// The values in force of the settings that we give on the command line: a file can't tell that they wait.
    #[serde(default)]
    pub on_command_line: BTreeMap<String, String>,
    /// The settings of the extension that say whose server this is; None where the library is not loaded.
    #[serde(default)]
    pub tenure: Option<BTreeMap<String, String>>,
    /// The release of the extension's SQL objects in this database; None where they are not there.
    #[serde(default)]
    pub extension: Option<String>,
    /// `synchronous_standby_names` in force.
    pub synchronous_standby_names: String,
    /// What a commit waits for where a session says nothing else.
    #[serde(default)]
    pub synchronous_commit: String,
    /// `primary_conninfo` and `primary_slot_name` in force.
    pub primary_conninfo: String,
    /// See `primary_conninfo`.
    pub primary_slot_name: String,
    /// Where the oldest segment in `pg_wal` begins.
    #[serde(default)]
    pub oldest_wal_lsn: Option<Lsn>,
    /// `wal_segment_size` in bytes.
    #[serde(default)]
    pub wal_segment_bytes: Option<u64>,
    /// A `restore_command` is in force: log may come from an archive.
    #[serde(default)]
    pub restores: bool,
}

impl ServerFacts {
    /// Who the server is by its own settings; None where the library is not loaded.
    pub fn identity(&self) -> Option<Identity> {
        let settings = self.tenure.as_ref()?;
        let text = |name: &str| settings.get(name).cloned().unwrap_or_default();
        Some(Identity {
            scope: text("tenure.scope"),
            namespace: text("tenure.namespace"),
            name: text("tenure.name"),
            group: text("tenure.group").parse().ok(),
        })
    }

    /// The release of the library that the server has loaded; None where none is, or one that does not say it.
    pub fn library(&self) -> Option<&str> {
        self.tenure.as_ref()?.get("tenure.library_version").map(String::as_str)
    }

    /// Why this arbiter and that library don't understand each other; None where they do. A library that says nothing of it speaks the first form.
    pub fn library_is_apart(&self) -> Option<String> {
        let told = self.tenure.as_ref()?.get("tenure.library_speech").map_or("1/1", String::as_str);
        match told.parse::<speech::Speech>() {
            Ok(theirs) => speech::OURS.apart_from(theirs).map(|why| why.to_string()),
            Err(unreadable) => Some(unreadable.to_string()),
        }
    }

    /// The furthest position this server holds: written on a primary; received or replayed on a standby, whichever is later.
    pub fn position(&self) -> Lsn {
        let standby = self.received_lsn.max(self.replayed_lsn);
        if self.in_recovery { standby } else { self.current_lsn }.unwrap_or_default()
    }
}

/// What the page in shared memory says of the fence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FenceSeen {
    /// For how long this node leads yet and takes what begins now: as primary with an open fence, or a standby cluster with a closed one.
    pub left: Option<Duration>,
    /// For how long new transactions have waited at their commit because a planned change began.
    pub draining_for: Option<Duration>,
    /// It is no primary.
    pub in_recovery: bool,
}

/// What the extension has counted.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct FenceCounts {
    /// Commits that waited for a renewal of the lease.
    pub waited: u64,
    /// Commits that were refused.
    pub refused: u64,
    /// Commits that became durable and were not acknowledged.
    pub cut: u64,
    /// Durations by name.
    pub timings: BTreeMap<String, FenceTiming>,
}

/// One of [`FenceCounts::timings`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct FenceTiming {
    /// How many took at most as long as each of `cluster::histogram::BOUNDS_S`, then all.
    pub counts: Vec<u64>,
    /// Their sum in seconds.
    pub seconds: f64,
}

/// The walreceiver of a standby.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Receiver {
    /// `streaming`, `starting`, `waiting`, ...
    pub status: String,
    /// The upstream it is connected to.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// The timeline it receives.
    pub timeline: Option<Timeline>,
    /// The end of the upstream's log, as last told.
    pub latest_end_lsn: Option<Lsn>,
    /// Its process.
    #[serde(default)]
    pub pid: Option<i32>,
    /// For how long it has heard nothing, in seconds.
    #[serde(default)]
    pub silent_s: Option<i64>,
}

impl Receiver {
    /// True while it streams.
    pub fn is_streaming(&self) -> bool {
        self.status == "streaming"
    }

    /// It has heard nothing for longer than `wal_receiver_timeout` lets one wait that streams: it hangs in what comes before, where PostgreSQL
    /// has no limit, and calls itself streaming all the while. Where that setting is 0 nobody wants a limit.
    pub fn hangs(&self, timeout_ms: Option<i64>) -> bool {
        self.is_streaming() && self.silent_s.is_some_and(|silent| is_too_long(silent, timeout_ms))
    }
}

/// A WAL receiver that connects: what listens there has taken the connection and says nothing, or nothing listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Connecting {
    /// Its process.
    pub pid: i32,
    /// For how long it has been there, in seconds.
    pub for_s: i64,
}

impl Connecting {
    /// It hangs, as in [`Receiver::hangs`]: PostgreSQL heeds no `connect_timeout` here.
    pub fn hangs(&self, timeout_ms: Option<i64>) -> bool {
        is_too_long(self.for_s, timeout_ms)
    }
}

fn is_too_long(silent_s: i64, timeout_ms: Option<i64>) -> bool {
    timeout_ms.filter(|limit| *limit > 0).is_some_and(|limit| silent_s > limit / 1000 + SLACK_S)
}

/// A receiver looks at its time-out when it wakes up; a starved machine lets it wait.
const SLACK_S: i64 = 15;

/// One line of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sender {
    /// Its process.
    #[serde(default)]
    pub pid: i32,
    /// The member's name, for members.
    pub application_name: String,
    /// Whom it logged in as.
    #[serde(default)]
    pub usename: Option<String>,
    /// Its address, where it has one.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup`, ...
    pub state: Option<String>,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: Option<String>,
    /// Its place in the list that its walsender goes by; 0 where that does not name it.
    #[serde(default)]
    pub sync_priority: Option<i32>,
    /// When the standby last spoke, by its own clock.
    #[serde(default)]
    pub reply_time: Option<String>,
    /// What it has been sent.
    pub sent_lsn: Option<Lsn>,
    /// What it has written.
    pub write_lsn: Option<Lsn>,
    /// What it has flushed.
    pub flush_lsn: Option<Lsn>,
    /// What it has replayed.
    pub replay_lsn: Option<Lsn>,
}

/// A setting in a file that the server does not take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Untaken {
    /// The file.
    pub file: String,
    /// Its name; empty where the line is none.
    pub name: String,
    /// What stands there.
    pub value: String,
    /// The server's words.
    pub error: String,
}

/// A setting whose new value waits for a restart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PendingSetting {
    /// Its name.
    pub name: String,
    /// The value in force.
    pub value: String,
    /// What the files say; None where they say nothing more, which means the default.
    #[serde(default)]
    pub wanted: Option<String>,
}

/// A standby whose walreceiver has ended tells its timeline by the newest segment file that holds its position: a
/// server without a receiver otherwise knows only that of its last restart point, and an arbiter that was started
/// again just then would take what was received since for a fork.
///
/// One statement, one row, one JSON text: a tick costs one round trip. Positions are plain numbers there, as in [`Lsn`].
pub(super) const FACTS: &str = "
WITH settings AS MATERIALIZED (
  SELECT name, setting, boot_val, pending_restart, source FROM pg_settings
  WHERE pending_restart OR source = 'command line' OR name IN ('max_slot_wal_keep_size', 'wal_receiver_timeout', 'wal_receiver_status_interval', 'tenure.scope', 'tenure.namespace', 'tenure.name', 'tenure.group',
    'tenure.library_version', 'tenure.library_speech'))
SELECT json_build_object(
  'in_recovery', r.yes,
  'timeline', CASE WHEN r.yes THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver WHERE received_tli > 0),
                (pg_control_recovery()).min_recovery_end_timeline, (pg_control_checkpoint()).timeline_id,
                CASE WHEN NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE received_tli > 0) THEN
                  (SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_waldir(),
                     LATERAL (SELECT div(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/1', s.bytes)::bigint AS number,
                                     4294967296 / s.bytes AS per_id
                              FROM (SELECT pg_size_bytes(current_setting('wal_segment_size')) AS bytes) s) segment
                   WHERE length(name) = 24
                     AND substr(name, 9) = upper(lpad(to_hex(number / per_id), 8, '0') || lpad(to_hex(number % per_id), 8, '0')))
                END)
              ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  'current_lsn', CASE WHEN NOT r.yes THEN pg_current_wal_lsn() - '0/0' END,
  'flush_lsn', CASE WHEN NOT r.yes THEN pg_current_wal_flush_lsn() - '0/0' END,
  'received_lsn', CASE WHEN r.yes THEN pg_last_wal_receive_lsn() - '0/0' END,
  'replayed_lsn', CASE WHEN r.yes THEN pg_last_wal_replay_lsn() - '0/0' END,
  'redo_lsn', CASE WHEN r.yes THEN (SELECT redo_lsn - '0/0' FROM pg_control_checkpoint()) END,
  'replayed_at_s', CASE WHEN r.yes THEN extract(epoch FROM pg_last_xact_replay_timestamp()) END,
  'replay_paused', CASE WHEN r.yes THEN pg_is_wal_replay_paused() ELSE false END,
  'receiver', (SELECT json_build_object('status', status, 'host', sender_host, 'port', sender_port, 'timeline', received_tli,
                 'latest_end_lsn', latest_end_lsn - '0/0', 'pid', pid,
                 'silent_s', floor(extract(epoch FROM clock_timestamp() - last_msg_receipt_time))::bigint) FROM pg_stat_wal_receiver WHERE pid IS NOT NULL),
  'connecting', CASE WHEN r.yes AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL) THEN
                  (SELECT json_build_object('pid', pid, 'for_s', floor(extract(epoch FROM clock_timestamp() - backend_start))::bigint)
                   FROM pg_stat_activity WHERE backend_type = 'walreceiver' LIMIT 1) END,
  'replication', coalesce((SELECT json_agg(json_build_object('pid', pid, 'reply_time', reply_time::text, 'application_name', application_name, 'usename', usename, 'client_addr', client_addr::text,
                 'state', state, 'sync_state', sync_state, 'sync_priority', sync_priority, 'sent_lsn', sent_lsn - '0/0', 'write_lsn', write_lsn - '0/0',
                 'flush_lsn', flush_lsn - '0/0', 'replay_lsn', replay_lsn - '0/0') ORDER BY application_name, pid) FROM pg_stat_replication), '[]'),
  'slots', coalesce((SELECT json_agg(to_json(s) ORDER BY slot_name) FROM pg_replication_slots s), '[]'),
  'max_slot_wal_keep_mb', (SELECT setting::bigint FROM settings WHERE name = 'max_slot_wal_keep_size'),
  'receiver_timeout_ms', (SELECT setting::bigint FROM settings WHERE name = 'wal_receiver_timeout'),
  'status_interval_s', (SELECT setting::bigint FROM settings WHERE name = 'wal_receiver_status_interval'),
  'postmaster_start_time', pg_postmaster_start_time()::text,
  'server_version', current_setting('server_version_num')::int,
  'system_id', (pg_control_system()).system_identifier::text,
  'pending_restart', coalesce((SELECT json_agg(json_build_object('name', name, 'value', current_setting(name), 'wanted', coalesce(
                 (SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1), boot_val)) ORDER BY name)
                 FROM settings s WHERE pending_restart), '[]'),
  'on_command_line', (SELECT coalesce(json_object_agg(name, coalesce(setting, '')), '{}') FROM settings WHERE source = 'command line'),
  'tenure', (SELECT json_object_agg(name, coalesce(setting, '')) FROM settings WHERE name IN ('tenure.scope', 'tenure.namespace', 'tenure.name', 'tenure.group',
                 'tenure.library_version', 'tenure.library_speech')),
  'extension', (SELECT extversion FROM pg_extension WHERE extname = 'pg_tenure'),
  'synchronous_standby_names', current_setting('synchronous_standby_names'),
  'synchronous_commit', current_setting('synchronous_commit'),
  'primary_conninfo', current_setting('primary_conninfo'),
  'primary_slot_name', current_setting('primary_slot_name'),
  'oldest_wal_lsn', (SELECT min(('x' || substr(name, 9, 8))::bit(32)::bigint * 4294967296
                       + ('x' || substr(name, 17, 8))::bit(32)::bigint * pg_size_bytes(current_setting('wal_segment_size')))
                     FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'),
  'wal_segment_bytes', pg_size_bytes(current_setting('wal_segment_size')),
  'restores', current_setting('restore_command') <> ''
)::text
FROM (SELECT pg_is_in_recovery() AS yes) r";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_standby_is_understood() {
        let text = r#"{"in_recovery":true,"timeline":3,"current_lsn":null,"flush_lsn":null,"received_lsn":100,"replayed_lsn":120,"replayed_at_s":1.5,"replay_paused":false,
            "receiver":{"status":"streaming","host":"h","port":5432,"timeline":3,"latest_end_lsn":100},"replication":[],"postmaster_start_time":"2026-01-01 00:00:00+00",
            "server_version":150020,"system_id":"7","pending_restart":[{"name":"max_connections","value":"100"}],"synchronous_standby_names":"","primary_conninfo":"","primary_slot_name":""}"#;
        let facts: ServerFacts = serde_json::from_str(text).unwrap();
        assert_eq!(facts.position(), Lsn(120));
        assert!(facts.receiver.unwrap().is_streaming());
    }

    #[test]
    fn a_receiver_hangs_that_calls_itself_streaming_and_hears_nothing() {
        let receiver = |status: &str, silent_s| Receiver {
            status: status.to_owned(),
            host: None,
            port: None,
            timeline: None,
            latest_end_lsn: None,
            pid: Some(1),
            silent_s,
        };
        for (status, silent, timeout_ms, hangs) in [
            ("streaming", Some(75), Some(60_000), false),
            ("streaming", Some(76), Some(60_000), true),
            ("streaming", None, Some(60_000), false),
            // Nobody wants a limit, or none is known.
            ("streaming", Some(7200), Some(0), false),
            ("streaming", Some(7200), None, false),
            // It waits for the startup process to say from where on.
            ("waiting", Some(7200), Some(60_000), false),
            // Its clock was set back.
            ("streaming", Some(-5), Some(60_000), false),
        ] {
            assert_eq!(receiver(status, silent).hangs(timeout_ms), hangs, "{status} {silent:?} {timeout_ms:?}");
        }
        for (for_s, timeout_ms, hangs) in [(75, Some(60_000), false), (76, Some(60_000), true), (7200, Some(0), false), (7200, None, false)]
        {
            assert_eq!(Connecting { pid: 1, for_s }.hangs(timeout_ms), hangs, "connects for {for_s} s, {timeout_ms:?}");
        }
    }
}
