//! What one node says of itself: the value of `members/<name>` and its tags.

use crate::given::{seconds_of, switch, yes_or_no};
use crate::host::Address;
use crate::leader::LeaseId;
use crate::lsn::Lsn;
use crate::memory::Memory;
use crate::name::{Instance, Timeline};
use crate::speech::{self, Apart, Speech};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// The state words that the field knows; any other text is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[expect(missing_docs, reason = "each variant is the state's own word, listed in WORDS")]
pub enum MemberState {
    InitializingNewCluster,
    InitdbFailed,
    CreatingReplica,
    Running,
    Starting,
    StartFailed,
    Restarting,
    RestartFailed,
    Stopping,
    Stopped,
    StopFailed,
    Crashed,
    /// A word of another program or a newer version.
    Other(String),
}

impl MemberState {
    const WORDS: [(MemberState, &'static str); 12] = [
        (MemberState::InitializingNewCluster, "initializing new cluster"),
        (MemberState::InitdbFailed, "initdb failed"),
        (MemberState::CreatingReplica, "creating replica"),
        (MemberState::Running, "running"),
        (MemberState::Starting, "starting"),
        (MemberState::StartFailed, "start failed"),
        (MemberState::Restarting, "restarting"),
        (MemberState::RestartFailed, "restart failed"),
        (MemberState::Stopping, "stopping"),
        (MemberState::Stopped, "stopped"),
        (MemberState::StopFailed, "stop failed"),
        (MemberState::Crashed, "crashed"),
    ];
}

impl From<String> for MemberState {
    fn from(text: String) -> Self {
        Self::WORDS.into_iter().find_map(|(state, word)| (word == text).then_some(state)).unwrap_or(MemberState::Other(text))
    }
}

impl From<MemberState> for String {
    fn from(state: MemberState) -> String {
        state.to_string()
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let MemberState::Other(text) = self {
            return f.write_str(text);
        }
        let word = Self::WORDS.iter().find_map(|(state, word)| (state == self).then_some(*word));
        f.write_str(word.unwrap_or("unknown"))
    }
}

/// What a member's Postgres does, as a sentence: the field's words for states are no sentences' ends.
pub fn postgres_is(state: &MemberState) -> String {
    let what = match state {
        MemberState::InitializingNewCluster => "is being made (initdb)",
        MemberState::InitdbFailed => "could not be made (initdb failed)",
        MemberState::CreatingReplica => "is being copied",
        MemberState::StartFailed => "failed to start",
        MemberState::RestartFailed => "failed to restart",
        MemberState::StopFailed => "failed to stop",
        MemberState::Crashed => "has crashed",
        MemberState::Running | MemberState::Starting | MemberState::Restarting | MemberState::Stopping | MemberState::Stopped => {
            return format!("its Postgres is {state}");
        }
        MemberState::Other(words) => return format!("its Postgres is in the state \"{words}\""),
    };
    format!("its Postgres {what}")
}

/// The role words of the member key: what Postgres is doing, not who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MemberRole {
    /// Out of recovery.
    Primary,
    /// In recovery, following a member of this cluster.
    Replica,
    /// In recovery, following another cluster.
    StandbyLeader,
    /// No data directory yet.
    Uninitialized,
    /// Was primary, is on its way to standby.
    Demoted,
    /// A word of another program or a newer version.
    Other(String),
}

impl From<String> for MemberRole {
    fn from(text: String) -> Self {
        match text.as_str() {
            "primary" | "master" | "promoted" => MemberRole::Primary,
            "replica" => MemberRole::Replica,
            "standby_leader" => MemberRole::StandbyLeader,
            "uninitialized" => MemberRole::Uninitialized,
            "demoted" => MemberRole::Demoted,
            _ => MemberRole::Other(text),
        }
    }
}

impl From<MemberRole> for String {
    fn from(role: MemberRole) -> String {
        role.to_string()
    }
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberRole::Primary => "primary",
            MemberRole::Replica => "replica",
            MemberRole::StandbyLeader => "standby_leader",
            MemberRole::Uninitialized => "uninitialized",
            MemberRole::Demoted => "demoted",
            MemberRole::Other(text) => text,
        })
    }
}

/// A member's tags as configured; built-in ones are read through the methods, any other is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tags(pub Map<String, Value>);

/// What `recovery_min_apply_delay` takes, in seconds.
const DELAY_MAX: u64 = i32::MAX as u64 / 1000;

/// Tags of the field that are off where nothing is said: one that is off is not published.
const OFF_UNLESS_SET: [&str; 5] = ["clonefrom", "nofailover", "noloadbalance", "nosync", "nostream"];

impl Tags {
    /// As the node's file has them, without those of the field's switches that are off; one beside its priority stays: it has the last word there.
    pub fn of_file(given: Map<String, Value>) -> Tags {
        let priority = |switch: &str| match switch {
            "nofailover" => given.contains_key("failover_priority"),
            "nosync" => given.contains_key("sync_priority"),
            _ => false,
        };
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty() || yes_or_no(text) == Some(false),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) => false,
        };
        let unset: Vec<String> = OFF_UNLESS_SET
            .into_iter()
            .filter(|switch| given.get(*switch).is_some_and(off) && !priority(switch))
            .map(str::to_owned)
            .collect();
        let mut kept = given;
        kept.retain(|tag, _| !unset.contains(tag));
        let tags = Tags(kept);
        if tags.delay().is_none() {
            return tags;
        }
        // It shows and has what was: not for reads of now, nor for a commit to wait for, nor to lead. Said in the field's own words, so that
        // everybody who reads tags knows.
        let implied = ["nofailover", "nosync", "noloadbalance"].map(|tag| (tag.to_owned(), Value::Bool(true)));
        let mut kept = tags.0;
        kept.extend(implied);
        kept.remove("failover_priority");
        kept.remove("sync_priority");
        Tags(kept)
    }

    /// Switches that say something else than the priority beside them, in the field's words: the switch counts.
    pub fn conflicts(&self) -> Vec<String> {
        let pairs = [("nofailover", "failover_priority"), ("nosync", "sync_priority")];
        let conflict = |(switch, priority): (&str, &str)| {
            let number = self.integer(priority)?;
            let set = self.0.get(switch).map(|_| self.is_on(switch))?;
            let word = if set { "True" } else { "False" };
            (set == (number > 0)).then(|| {
                format!("Conflicting configuration between {switch}: {word} and {priority}: {number}. Defaulting to {switch}: {word}")
            })
        };
        pairs.into_iter().filter_map(conflict).collect()
    }

    fn is_on(&self, tag: &str) -> bool {
        // To the field a tag is on with any number but 0.
        let on = |value: &Value| switch(value).unwrap_or_else(|| value.as_i64().is_some_and(|number| number != 0));
        self.0.get(tag).is_some_and(on)
    }

    fn integer(&self, tag: &str) -> Option<i64> {
        match self.0.get(tag) {
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// Never to be leader: `nofailover`, or a `failover_priority` of 0 or less where the former is absent.
    pub fn nofailover(&self) -> bool {
        match self.0.get("nofailover") {
            Some(_) => self.is_on("nofailover"),
            None => self.integer("failover_priority").is_some_and(|priority| priority <= 0),
        }
    }

    /// Preference among equally advanced candidates, higher first; 1 unless set, 0 with `nofailover`.
    pub fn failover_priority(&self) -> i64 {
        if self.nofailover() { 0 } else { self.integer("failover_priority").unwrap_or(1) }
    }

    /// Never to be a synchronous standby: `nosync`, a `sync_priority` of 0 or less where that is absent, or `nostream`.
    pub fn nosync(&self) -> bool {
        let said = match self.0.get("nosync") {
            Some(_) => self.is_on("nosync"),
            None => self.integer("sync_priority").is_some_and(|priority| priority <= 0),
        };
        said || self.nostream()
    }

    /// Preference among candidates for synchronous standby, higher first; 1 unless set.
    pub fn sync_priority(&self) -> i64 {
        if self.nosync() { 0 } else { self.integer("sync_priority").unwrap_or(1) }
    }

    /// Out of the balancing of reads: `/replica` answers 503.
    pub fn noloadbalance(&self) -> bool {
        self.is_on("noloadbalance")
    }

    /// Streams from nobody: follows by the archive alone. It may lead like any other; it has no slot to be kept for it.
    pub fn nostream(&self) -> bool {
        self.is_on("nostream")
    }

    /// In which room, building or zone it stands: two members with the same word fail together.
    pub fn failure_domain(&self) -> Option<String> {
        match self.0.get("failure_domain")? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// It stands elsewhere than the other, as far as both say.
    pub fn is_elsewhere_than(&self, other: &Tags) -> bool {
        matches!((self.failure_domain(), other.failure_domain()), (Some(mine), Some(theirs)) if mine != theirs)
    }

    /// It replays so many seconds behind on purpose.
    pub fn delay(&self) -> Option<u64> {
        let seconds = match self.0.get("delay")? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => seconds_of(text.trim()),
            _ => None,
        };
        seconds.filter(|seconds| (1..=DELAY_MAX).contains(seconds))
    }

    /// What is wrong with a tag that would be something else than the file means.
    pub fn wrong(&self) -> Option<String> {
        let off =
            |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value.as_u64() == Some(0) || value.as_str() == Some("");
        let given = self.0.get("delay").filter(|value| !off(value))?;
        self.delay().is_none().then(|| format!("delay: found {given}, expected a time from 1 s to 24 d, as in 30min, 1h or 3600"))
    }

    /// A preferred source for clones.
    pub fn clonefrom(&self) -> bool {
        self.is_on("clonefrom")
    }

    /// The member to stream from instead of the leader.
    pub fn replicatefrom(&self) -> Option<&str> {
        self.0.get("replicatefrom").and_then(Value::as_str).filter(|name| !name.is_empty())
    }
}

/// The value of `members/<name>`. Fields that this version does not know are kept in `other`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `postgres://host:port/database`, without credentials.
    pub conn_url: String,
    /// Address of this node's REST status, `http://host:port/patroni`.
    pub api_url: String,
    /// What Postgres is doing here.
    pub state: MemberState,
    /// Primary or standby.
    pub role: MemberRole,
    /// Version the field's tools look at: dotted integers, see `SURFACE_VERSION` in `dcs`.
    #[serde(default)]
    pub version: String,
    /// False on a new primary until its first checkpoint: a rewind must wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_after_promote: Option<bool>,
    /// Configured tags; absent where there are none.
    #[serde(default, skip_serializing_if = "tags_absent")]
    pub tags: Tags,
    /// A setting waits for a restart.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pending_restart: bool,
    /// The primary's position, or the further of received and replayed on a standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    /// Standby: replayed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// Standby: received and flushed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// Standby: `streaming` or `in archive recovery`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<String>,
    /// The timeline of the newest WAL here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// Facts of ours, absent in other programs' keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenure: Option<TenureFacts>,
    /// Everything else that stood in the key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What pg_tenure adds to its member key, under the key `tenure`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenureFacts {
    /// The release of its library (while none runs: of its arbiter).
    #[serde(default)]
    pub version: String,
    /// Which form of keys and calls its library (while none runs: its arbiter) speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speech: Option<Speech>,
    /// Which instance goes by the member's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The release of its arbiter, where another part writes the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arbiter_version: Option<String>,
    /// The release of the extension's SQL objects that its server shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension_version: Option<String>,
    /// An arbiter is attached to this server, so it can be promoted.
    #[serde(default)]
    pub arbiter: bool,
    /// Percent of a clone or another long step that is done, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_percent: Option<u8>,
    /// Why its Postgres does not run or can't go on, and nothing is done about it, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Virtual addresses, where its file names any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<crate::address::facts::AddressFacts>,
    /// Where the oldest segment of its log begins: what comes before can't be streamed from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wal: Option<Lsn>,
    /// Settings of the configuration that do not count there, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// What is wrong with its rules of who may come in (pg_hba.conf, pg_ident.conf), in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// Why this member does not believe what etcd says, while that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// What it knows by itself of the cluster's keys, while it does not believe what etcd says of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Box<Memory>>,
    /// How it is, where it looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vitals: Option<crate::health::vitals::Vitals>,
    /// It is sick: what is wrong, and, where it leads, what is done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sick: Option<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn tags_absent(tags: &Tags) -> bool {
    tags.0.is_empty()
}

fn of_postgres(url: &str) -> Option<Address> {
    Address::of_url(url).filter(|_| url.starts_with("postgres"))
}

impl Member {
    /// Why this build and the member's don't understand each other, if so; of another program's member None.
    pub fn apart(&self) -> Option<Apart> {
        speech::OURS.apart_from(self.tenure.as_ref()?.speech.unwrap_or_default())
    }

    /// Where its Postgres is reached, by `conn_url`; None where that is no such URL.
    pub fn address(&self) -> Option<Address> {
        of_postgres(&self.conn_url)
    }

    /// Where the connection pooler beside its Postgres is reached, by `proxy_url`.
    pub fn proxy(&self) -> Option<Address> {
        of_postgres(self.other.get("proxy_url")?.as_str()?)
    }

    /// Which instance wrote this; None for another program's key, or an older version's.
    pub fn instance(&self) -> Option<&Instance> {
        self.tenure.as_ref()?.instance.as_ref()
    }

    /// Postgres runs and takes connections.
    pub fn is_running(&self) -> bool {
        self.state == MemberState::Running
    }

    /// The furthest position this member is known to have.
    pub fn position(&self) -> Option<Lsn> {
        [self.receive_lsn, self.replay_lsn, self.xlog_location].into_iter().flatten().max()
    }
}

/// A member key as read: its value, its lease, its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEntry {
    /// What the node said.
    pub member: Member,
    /// The lease that keeps the key.
    pub lease: LeaseId,
    /// Revision of the last write.
    pub revision: i64,
}

impl MemberEntry {
    /// A node keeps this key alive. One without a lease was written by somebody else: nothing is kept or waited for on its behalf.
    pub fn is_kept(&self) -> bool {
        self.lease != LeaseId::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{"conn_url":"postgres://127.0.0.1:15431/postgres","api_url":"http://127.0.0.1:18001/patroni","state":"running","role":"replica","version":"4.1.4","xlog_location":84197032,"replay_lsn":84197032,"receive_lsn":84197032,"replication_state":"streaming","timeline":1,"proxy_url":"postgres://p:1/x"}"#;

    #[test]
    fn a_member_key_survives_a_round_trip_with_fields_we_do_not_know() {
        let member: Member = serde_json::from_str(SAMPLE).unwrap();
        assert_eq!(member.state, MemberState::Running);
        assert_eq!(member.position(), Some(Lsn(84197032)));
        assert_eq!(member.other["proxy_url"], "postgres://p:1/x");
        assert_eq!(member.proxy(), Some(Address::new("p", 1)));
        let before: Value = serde_json::from_str(SAMPLE).unwrap();
        assert_eq!(serde_json::to_value(&member).unwrap(), before);
    }

    #[test]
    fn unknown_state_words_are_kept() {
        let state = MemberState::from("running custom bootstrap script".to_owned());
        assert_eq!(state.to_string(), "running custom bootstrap script");
    }

    #[test]
    fn addresses() {
        let mut member: Member = serde_json::from_str(SAMPLE).unwrap();
        for (url, expected) in [
            ("postgres://h:1/postgres", Some(("h", 1))),
            ("postgresql://u@h/postgres", Some(("h", 5432))),
            ("postgres://[::1]:7/x", Some(("::1", 7))),
            ("h:1", None),
            ("postgres:///x", None),
            ("http://h:1/", None),
        ] {
            member.conn_url = url.to_owned();
            assert_eq!(member.address(), expected.map(|(host, port)| Address::new(host, port)), "{url}");
        }
    }

    #[test]
    fn tags_are_published_as_the_file_has_them_without_what_is_off() {
        for (given, published) in [
            (r#"{"clonefrom":false,"nofailover":false,"noloadbalance":0,"nosync":"","nostream":null}"#, "{}"),
            (r#"{"nofailover":false,"failover_priority":"0","nosync":"no","sync_priority":2}"#, ""),
            (r#"{"new_tag":"new_value","zone":1,"ssd":false,"list":[],"replicatefrom":"n1"}"#, ""),
            (r#"{"clonefrom":true,"nosync":1,"noloadbalance":"yes"}"#, ""),
            (r#"{"nosync":false,"failover_priority":1}"#, r#"{"failover_priority":1}"#),
        ] {
            let tags = Tags::of_file(serde_json::from_str(given).unwrap());
            let published: Value = serde_json::from_str(if published.is_empty() { given } else { published }).unwrap();
            assert_eq!(serde_json::to_value(tags).unwrap(), published, "{given}");
        }
    }

    #[test]
    fn a_delay_implies_what_follows_from_it() {
        let of = |json: &str| Tags::of_file(serde_json::from_str(json).unwrap());
        for (given, delay, wrong) in [
            (r#"{"delay":"1h"}"#, Some(3600), false),
            (r#"{"delay":"90"}"#, Some(90), false),
            (r#"{"delay":90,"nofailover":false,"failover_priority":3,"noloadbalance":false}"#, Some(90), false),
            (r#"{"delay":false}"#, None, false),
            (r#"{"delay":0}"#, None, false),
            (r#"{"delay":"an hour"}"#, None, true),
            (r#"{"delay":true}"#, None, true),
            (r#"{"delay":"25d"}"#, None, true),
            ("{}", None, false),
        ] {
            let tags = of(given);
            assert_eq!((tags.delay(), tags.wrong().is_some()), (delay, wrong), "{given}");
            let implied = (tags.nofailover(), tags.nosync(), tags.noloadbalance(), tags.failover_priority());
            let expected = if delay.is_some() { (true, true, true, 0) } else { (false, false, false, 1) };
            assert_eq!(implied, expected, "{given}");
        }
    }

    #[test]
    fn a_domain_is_another_one_where_both_say_so() {
        let of = |json: &str| serde_json::from_str::<Tags>(json).unwrap();
        for (one, other, elsewhere) in [
            (r#"{"failure_domain":"A"}"#, r#"{"failure_domain":"B"}"#, true),
            (r#"{"failure_domain":"A"}"#, r#"{"failure_domain":"A "}"#, false),
            (r#"{"failure_domain":1}"#, r#"{"failure_domain":"2"}"#, true),
            (r#"{"failure_domain":1}"#, r#"{"failure_domain":"1"}"#, false),
            (r#"{"failure_domain":"A"}"#, "{}", false),
            ("{}", "{}", false),
        ] {
            assert_eq!(of(one).is_elsewhere_than(&of(other)), elsewhere, "{one} {other}");
        }
    }

    #[test]
    fn a_switch_that_contradicts_its_priority_is_told() {
        for (given, conflicts) in [
            (r#"{"nofailover":true,"failover_priority":1}"#, 1),
            (r#"{"nofailover":false,"failover_priority":"0"}"#, 1),
            (r#"{"nosync":true,"sync_priority":2}"#, 1),
            (r#"{"nofailover":true,"failover_priority":0,"nosync":false,"sync_priority":1}"#, 0),
            (r#"{"failover_priority":0,"nosync":true}"#, 0),
        ] {
            assert_eq!(serde_json::from_str::<Tags>(given).unwrap().conflicts().len(), conflicts, "{given}");
        }
    }

    #[test]
    fn tags_read_as_the_field_reads_them() {
        let tags = |json: &str| serde_json::from_str::<Tags>(json).unwrap();
        assert!(tags(r#"{"nofailover":true}"#).nofailover());
        assert!(tags(r#"{"failover_priority":0}"#).nofailover());
        assert!(!tags(r#"{"nofailover":false,"failover_priority":0}"#).nofailover());
        assert_eq!(tags(r#"{"failover_priority":"5"}"#).failover_priority(), 5);
        assert_eq!(tags("{}").failover_priority(), 1);
        assert!(tags(r#"{"sync_priority":0}"#).nosync());
        assert!(!tags(r#"{"nosync":false,"sync_priority":0}"#).nosync());
        assert!(tags(r#"{"nostream":true}"#).nosync());
        assert!(!tags(r#"{"nostream":true}"#).nofailover());
        assert_eq!(tags(r#"{"replicatefrom":""}"#).replicatefrom(), None);
    }
}
