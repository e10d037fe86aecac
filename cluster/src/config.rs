//! The dynamic configuration (`config`) and the rules between its timings.

use crate::{given, lease};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// The document in the `config` key, as people wrote it; rules read it through the methods, so that
/// keys this version does not know survive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DynamicConfig(pub Map<String, Value>);

/// The three timings and what was changed to make them fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The lease's time to live.
    pub ttl: Duration,
    /// How often a node looks even where nothing woke it, and how often positions are published.
    pub loop_wait: Duration,
    /// How long a request to etcd or Postgres may take altogether.
    pub retry_timeout: Duration,
}

/// `synchronous_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynchronousMode {
    /// No synchronous standby is managed.
    #[default]
    Off,
    /// Named standbys, all of which must confirm.
    On,
    /// Any of the voters, as many as needed.
    Quorum,
}

/// `hold_back_logical`: whom a change waits for before it leaves for a logical consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldBack {
    /// Not set: for the synchronous standbys, where commits wait for any.
    #[default]
    WhereCommitsWait,
    /// On: where there are no synchronous standbys, for every member that may take over and streams.
    Always,
    /// Off: for nobody.
    Never,
}

/// A value in the dynamic configuration that can't be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Wrong type.
    #[error("{key} is {found}, expected {expected}")]
    Type {
        /// Dotted key.
        key: String,
        /// What stands there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// Out of range.
    #[error("{key} is {found}: {rule}")]
    Range {
        /// Dotted key.
        key: String,
        /// What stands there.
        found: String,
        /// The rule it breaks.
        rule: String,
    },
    /// Nobody knows it.
    #[error("{key} is not a known setting{}", .nearest.map(|near| format!("; did you mean {near}?")).unwrap_or_default())]
    Unknown {
        /// Dotted key.
        key: String,
        /// The known key that it looks like.
        nearest: Option<&'static str>,
    },
}

impl ConfigError {
    /// The dotted key that it is about.
    pub fn key(&self) -> &str {
        match self {
            ConfigError::Type { key, .. } | ConfigError::Range { key, .. } | ConfigError::Unknown { key, .. } => key,
        }
    }
}

/// Default `ttl` of pg_tenure, in seconds (DESIGN, numbers: "TTL from 3 s up, default 10").
pub const TTL_DEFAULT_S: u64 = 10;
/// Default `loop_wait`, in seconds.
pub const LOOP_WAIT_DEFAULT_S: u64 = 5;
/// Default `retry_timeout`, in seconds.
pub const RETRY_TIMEOUT_DEFAULT_S: u64 = 3;
/// Default `maximum_lag_on_failover`: 1 MiB, as the field has it.
pub const MAXIMUM_LAG_DEFAULT_BYTES: u64 = 1_048_576;
/// Default `primary_start_timeout`, in seconds, as the field has it.
pub const PRIMARY_START_TIMEOUT_DEFAULT_S: u64 = 300;

/// Default `member_slots_ttl`, in seconds, as the field has it.
pub const MEMBER_SLOTS_TTL_DEFAULT_S: u64 = 1800;

/// Puts `patch` over `config`: sections are merged, null removes (JSON merge patch, as REST does it).
pub fn merge(config: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                config.remove(key);
            }
            Value::Object(patch) => {
                let below = config.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !below.is_object() {
                    *below = Value::Object(Map::new());
                }
                if let Value::Object(below) = below {
                    merge(below, patch);
                }
            }
            other => {
                config.insert(key.clone(), other.clone());
            }
        }
    }
}

impl DynamicConfig {
    /// The document with a merge patch over it, or the first fault that the patch would bring; faults that stood there before don't
    /// stop another change.
    pub fn patched(&self, patch: &Map<String, Value>) -> Result<DynamicConfig, ConfigError> {
        let mut after = self.clone();
        merge(&mut after.0, patch);
        match after.newly_at_fault(self) {
            Some(fault) => Err(fault),
            None => Ok(after),
        }
    }

    /// The first fault that did not stand in the document before.
    pub fn newly_at_fault(&self, before: &DynamicConfig) -> Option<ConfigError> {
        let known = before.faults();
        self.faults().into_iter().find(|fault| !known.contains(fault))
    }

    /// The value at a top-level key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn seconds(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(given::seconds)
    }

    fn is_on(&self, key: &str) -> bool {
        self.0.get(key).and_then(given::switch) == Some(true)
    }

    fn whole(&self, key: &str) -> Option<i64> {
        self.0.get(key).and_then(given::whole)
    }

    /// ttl, loop_wait and retry_timeout, fitted to each other as the field does it: ttl at least
    /// [`lease::TTL_MINIMUM`], at most [`lease::TTL_MAXIMUM`], and `loop_wait + 2 * retry_timeout <= ttl` by lowering the latter two.
    pub fn timing(&self) -> Timing {
        let ttl = Duration::from_secs(self.seconds("ttl").unwrap_or(TTL_DEFAULT_S)).clamp(lease::TTL_MINIMUM, lease::TTL_MAXIMUM);
        let mut loop_wait = Duration::from_secs(self.seconds("loop_wait").unwrap_or(LOOP_WAIT_DEFAULT_S)).max(Duration::from_secs(1));
        let mut retry_timeout =
            Duration::from_secs(self.seconds("retry_timeout").unwrap_or(RETRY_TIMEOUT_DEFAULT_S)).max(Duration::from_secs(1));
        if loop_wait + 2 * retry_timeout > ttl {
            loop_wait = loop_wait.min(Duration::from_secs(1).max(ttl.saturating_sub(2 * retry_timeout)));
            if loop_wait + 2 * retry_timeout > ttl {
                loop_wait = Duration::from_secs(1);
                retry_timeout = (ttl - loop_wait) / 2;
            }
        }
        Timing { ttl, loop_wait, retry_timeout }
    }

    /// `synchronous_mode`: off, on or quorum. A standby cluster acknowledges nothing: off, whatever it says.
    pub fn synchronous_mode(&self) -> SynchronousMode {
        if self.standby_cluster().is_some() {
            return SynchronousMode::Off;
        }
        match self.0.get("synchronous_mode") {
            Some(Value::String(text)) if text.eq_ignore_ascii_case("quorum") => SynchronousMode::Quorum,
            _ if self.is_on("synchronous_mode") => SynchronousMode::On,
            _ => SynchronousMode::Off,
        }
    }

    /// `synchronous_mode_strict`: rather no writes than writes on one node.
    pub fn synchronous_mode_strict(&self) -> bool {
        self.is_on("synchronous_mode_strict")
    }

    /// `synchronous_node_count`: how many standbys confirm a commit, where there are so many; 1 unless set. In
    /// strict mode never less than 1.
    pub fn synchronous_node_count(&self) -> usize {
        let least = i64::from(self.synchronous_mode_strict());
        usize::try_from(self.whole("synchronous_node_count").unwrap_or(1).max(least)).unwrap_or(0)
    }

    /// `synchronous_domains`, a setting of ours: 1 where each commit is to be confirmed in another failure domain.
    pub fn synchronous_domains(&self) -> usize {
        usize::from(self.whole("synchronous_domains").unwrap_or(0) > 0)
    }

    /// `maximum_lag_on_syncnode`, in bytes: a synchronous standby that lags more is replaced. None where it is
    /// off, which 0 and -1 say too.
    pub fn maximum_lag_on_syncnode(&self) -> Option<u64> {
        self.whole("maximum_lag_on_syncnode").and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
    }

    /// `maximum_lag_on_failover`, in bytes.
    pub fn maximum_lag_on_failover(&self) -> u64 {
        self.whole("maximum_lag_on_failover").and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(MAXIMUM_LAG_DEFAULT_BYTES)
    }

    /// `check_timeline`: a candidate on an older timeline than the known one may never stand.
    pub fn check_timeline(&self) -> bool {
        self.is_on("check_timeline")
    }

    /// `pause`: maintenance mode.
    pub fn paused(&self) -> bool {
        self.is_on("pause")
    }

    /// `member_slots_ttl`: how long the slot of a member that is gone is kept; 30 minutes unless set, as the field has it.
    pub fn member_slots_ttl(&self) -> Duration {
        self.span("member_slots_ttl").unwrap_or(Duration::from_secs(MEMBER_SLOTS_TTL_DEFAULT_S))
    }

    /// `missed_member_ttl`, a setting of ours: how long a member that is gone is missed by `check` and `list`; as long as its slot is kept
    /// unless set, 0 for not at all.
    pub fn missed_member_ttl(&self) -> Duration {
        self.span("missed_member_ttl").unwrap_or_else(|| self.member_slots_ttl())
    }

    /// `backup_within`, a setting of ours: `tenure check` warns when no backup was told of for so long; None for not at all.
    pub fn backup_within(&self) -> Option<Duration> {
        self.span("backup_within")
    }

    fn span(&self, key: &str) -> Option<Duration> {
        self.seconds(key).map(Duration::from_secs)
    }

    /// `hold_back_logical`, a setting of ours: whom logical consumers wait for.
    pub fn hold_back(&self) -> HoldBack {
        match self.0.get("hold_back_logical") {
            None | Some(Value::Null) => HoldBack::WhereCommitsWait,
            Some(_) if self.is_on("hold_back_logical") => HoldBack::Always,
            Some(_) => HoldBack::Never,
        }
    }

    /// `sick_primary`, a setting of ours: what is done about a leader that lives and is of little use.
    pub fn sick_primary(&self) -> crate::health::vitals::Mode {
        use crate::health::vitals::Mode;
        match self.0.get("sick_primary") {
            None | Some(Value::Null) => Mode::default(),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("act") => Mode::Act,
            Some(Value::String(text)) if text.eq_ignore_ascii_case("observe") => Mode::Observe,
            Some(_) => Mode::Off,
        }
    }

    /// One of its times.
    pub(crate) fn sick_primary_span(&self, key: &str, default_s: u64) -> Duration {
        self.span(key).unwrap_or(Duration::from_secs(default_s))
    }

    /// One of its numbers.
    pub(crate) fn sick_primary_whole(&self, key: &str, default: u64) -> u64 {
        self.whole(key).and_then(|value| u64::try_from(value).ok()).unwrap_or(default)
    }

    /// `deposition`, a setting of ours: in the synchronous modes the voters need not wait for the lease of a leader that is lost. On unless said
    /// otherwise; a value that can't be read is no leave for it.
    pub fn deposition(&self) -> bool {
        matches!(self.0.get("deposition"), None | Some(Value::Null)) || self.is_on("deposition")
    }

    /// `failsafe_mode`.
    pub fn failsafe_mode(&self) -> bool {
        self.is_on("failsafe_mode")
    }

    /// `primary_start_timeout` (`master_start_timeout` of old): how long a crashed primary may take
    /// to come back before it gives the leadership away.
    pub fn primary_start_timeout(&self) -> Duration {
        let seconds = self.seconds("primary_start_timeout").or_else(|| self.seconds("master_start_timeout"));
        Duration::from_secs(seconds.unwrap_or(PRIMARY_START_TIMEOUT_DEFAULT_S))
    }

    /// `primary_stop_timeout` (`master_stop_timeout` of old): how long a fast stop of the primary may take before it becomes an
    /// immediate one. As in the field it counts only in a synchronous mode, where whatever was acknowledged is elsewhere; None where
    /// nothing (or 0) is said.
    pub fn primary_stop_timeout(&self) -> Option<Duration> {
        let seconds = self.seconds("primary_stop_timeout").or_else(|| self.seconds("master_stop_timeout"));
        let seconds = seconds.filter(|seconds| *seconds > 0 && self.synchronous_mode() != SynchronousMode::Off);
        seconds.map(Duration::from_secs)
    }

    /// The `postgresql` section.
    pub fn postgresql(&self) -> Option<&Map<String, Value>> {
        self.0.get("postgresql").and_then(Value::as_object)
    }

    /// `postgresql.use_pg_rewind`; on unless switched off: our rejoin falls back to a clone only where
    /// the node's configuration allows that.
    pub fn use_pg_rewind(&self) -> bool {
        self.postgresql().and_then(|section| section.get("use_pg_rewind")).and_then(Value::as_bool).unwrap_or(true)
    }

    /// `postgresql.use_slots`; on unless switched off.
    pub fn use_slots(&self) -> bool {
        self.postgresql().and_then(|section| section.get("use_slots")).and_then(Value::as_bool).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DynamicConfig {
        DynamicConfig(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn timings_are_fitted_to_each_other() {
        for (json, ttl, loop_wait, retry) in [
            ("{}", 10, 4, 3),
            (r#"{"ttl":30,"loop_wait":10,"retry_timeout":10}"#, 30, 10, 10),
            (r#"{"ttl":3}"#, 3, 1, 1),
            (r#"{"ttl":1}"#, 3, 1, 1),
            (r#"{"ttl":20,"loop_wait":10,"retry_timeout":10}"#, 20, 1, 9),
            (r#"{"loop_wait":18446744073709551615}"#, 10, 4, 3),
            (r#"{"ttl":1e300,"loop_wait":1e300,"retry_timeout":1e300}"#, 86_400, 1, 43_199),
            (r#"{"ttl":90000}"#, 86_400, 5, 3),
        ] {
            let timing = config(json).timing();
            assert_eq!(timing.ttl.as_secs(), ttl, "{json}");
            assert_eq!(timing.loop_wait.as_secs(), loop_wait, "{json}");
            assert_eq!(timing.retry_timeout.as_secs(), retry, "{json}");
            assert!(timing.loop_wait + 2 * timing.retry_timeout <= timing.ttl, "{json}");
        }
    }

    #[test]
    fn the_life_of_a_slot_reads_with_and_without_a_unit() {
        for (json, seconds) in [
            ("{}", 1800),
            (r#"{"member_slots_ttl":0}"#, 0),
            (r#"{"member_slots_ttl":90}"#, 90),
            (r#"{"member_slots_ttl":"30min"}"#, 1800),
            (r#"{"member_slots_ttl":"2 h"}"#, 7200),
            (r#"{"member_slots_ttl":"soon"}"#, 1800),
            (r#"{"member_slots_ttl":"18446744073709551615 d"}"#, given::SECONDS_MAX),
        ] {
            assert_eq!(config(json).member_slots_ttl().as_secs(), seconds, "{json}");
            assert_eq!(config(json).missed_member_ttl().as_secs(), seconds, "{json}");
        }
    }

    #[test]
    fn a_lost_leader_is_deposed_unless_that_is_switched_off() {
        for (json, on) in [
            ("{}", true),
            (r#"{"deposition":null}"#, true),
            (r#"{"deposition":"on"}"#, true),
            (r#"{"deposition":true}"#, true),
            (r#"{"deposition":"off"}"#, false),
            (r#"{"deposition":false}"#, false),
            (r#"{"deposition":"perhaps"}"#, false),
            (r#"{"deposition":[]}"#, false),
        ] {
            assert_eq!(config(json).deposition(), on, "{json}");
        }
    }

    #[test]
    fn words_for_the_synchronous_mode() {
        for (json, mode) in [
            ("{}", SynchronousMode::Off),
            (r#"{"synchronous_mode":false}"#, SynchronousMode::Off),
            (r#"{"synchronous_mode":true}"#, SynchronousMode::On),
            (r#"{"synchronous_mode":"on"}"#, SynchronousMode::On),
            (r#"{"synchronous_mode":1}"#, SynchronousMode::On),
            (r#"{"synchronous_mode":"off"}"#, SynchronousMode::Off),
            (r#"{"synchronous_mode":"Quorum"}"#, SynchronousMode::Quorum),
            (r#"{"synchronous_mode":"quorum"}"#, SynchronousMode::Quorum),
            (r#"{"synchronous_mode":true,"standby_cluster":{"host":"a"}}"#, SynchronousMode::Off),
        ] {
            assert_eq!(config(json).synchronous_mode(), mode, "{json}");
        }
    }

    #[test]
    fn a_limit_that_is_given_as_a_text_is_a_limit() {
        for (json, bytes) in
            [("{}", MAXIMUM_LAG_DEFAULT_BYTES), (r#"{"maximum_lag_on_failover":0}"#, 0), (r#"{"maximum_lag_on_failover":"0"}"#, 0)]
        {
            assert!(config(json).faults().is_empty(), "{json}");
            assert_eq!(config(json).maximum_lag_on_failover(), bytes, "{json}");
        }
    }

    #[test]
    fn how_many_standbys_confirm_and_how_far_they_may_lag() {
        for (json, count, lag) in [
            ("{}", 1, None),
            (r#"{"synchronous_node_count":2,"maximum_lag_on_syncnode":4096}"#, 2, Some(4096)),
            (r#"{"synchronous_node_count":"3","maximum_lag_on_syncnode":"-1"}"#, 3, None),
            (r#"{"synchronous_node_count":0,"maximum_lag_on_syncnode":0}"#, 0, None),
            (r#"{"synchronous_node_count":0,"synchronous_mode_strict":true}"#, 1, None),
        ] {
            let config = config(json);
            assert_eq!((config.synchronous_node_count(), config.maximum_lag_on_syncnode()), (count, lag), "{json}");
        }
    }
}
