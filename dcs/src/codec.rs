//! Keys and values of etcd <-> cluster types. A value that can't be read is set aside with its reason.

use crate::key::{Keys, Known};
use cluster::citus::Groups;
use cluster::config::DynamicConfig;
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::member::{Member, MemberEntry, MemberRole, MemberState};
use cluster::name::{MemberName, SystemId};
use cluster::request::MemberRequest;
use cluster::view::{ClusterView, Initialize, Status, Versioned};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One key as etcd has it.
#[derive(Debug, Clone)]
pub struct Raw<'a> {
    /// The key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a [u8],
    /// Revision of the last write.
    pub revision: i64,
    /// The lease it hangs on, 0 for none.
    pub lease: i64,
}

/// Builds the view of one revision from its keys.
pub fn view<'a>(keys: &Keys, revision: i64, raws: impl Iterator<Item = Raw<'a>>) -> ClusterView {
    let mut view = ClusterView { revision, ..ClusterView::default() };
    for raw in raws {
        if let Err(why) = add(&mut view, keys, &raw) {
            view.unreadable.push(format!("{}: {why}", raw.key));
        }
    }
    view
}

/// Builds the views of all groups below a scope, of one revision.
pub fn groups<'a>(scope: &Keys, revision: i64, raws: impl Iterator<Item = Raw<'a>>) -> Groups {
    let mut sorted: BTreeMap<u32, Vec<Raw<'a>>> = BTreeMap::new();
    for raw in raws {
        if let Some(group) = scope.group_of(raw.key) {
            sorted.entry(group).or_default().push(raw);
        }
    }
    sorted.into_iter().map(|(group, raws)| (group, view(&scope.group(group), revision, raws.into_iter()))).collect()
}

fn json<T: DeserializeOwned>(raw: &Raw<'_>) -> Result<Versioned<T>, String> {
    let value = serde_json::from_slice(raw.value).map_err(|error| error.to_string())?;
    Ok(Versioned { value, revision: raw.revision })
}

fn text<'a>(raw: &Raw<'a>) -> Result<&'a str, String> {
    std::str::from_utf8(raw.value).map_err(|error| error.to_string())
}

fn add(view: &mut ClusterView, keys: &Keys, raw: &Raw<'_>) -> Result<(), String> {
    let name = |name: &str| MemberName::new(name).map_err(|error| error.to_string());
    match keys.know(raw.key) {
        Known::Initialize => {
            let value = match text(raw)?.trim() {
                "" => {
                    view.claimed_on = Some(LeaseId(raw.lease));
                    Initialize::Running
                }
                id => Initialize::Done(SystemId(id.to_owned())),
            };
            view.initialize = Some(Versioned { value, revision: raw.revision });
        }
        Known::Config => {
            view.spoiled_config = raw.revision;
            let document: Versioned<Map<String, Value>> = json(raw)?;
            view.spoiled_config = 0;
            view.config = Some(Versioned { value: DynamicConfig(document.value), revision: raw.revision });
        }
        Known::Leader => {
            view.leader = Some(Leader { name: name(text(raw)?)?, lease: LeaseId(raw.lease), term: Term(raw.revision) });
        }
        Known::Member(member) => {
            let entry = MemberEntry { member: read_member(raw)?, lease: LeaseId(raw.lease), revision: raw.revision };
            view.members.insert(name(member)?, entry);
        }
        Known::Sync => view.sync = Some(json(raw)?),
        Known::History => {
            let value: Versioned<Value> = json(raw)?;
            let history = History::from_json(&value.value).ok_or("expected a list of [timeline, lsn, reason, ...]")?;
            view.history = Some(Versioned { value: history, revision: raw.revision });
        }
        Known::Failover => view.failover = Some(read_failover(raw)?),
        Known::Status => view.status = Some(read_status(raw)?),
        Known::Failsafe => view.failsafe = Some(json(raw)?),
        Known::LastTerm => view.last_term = Some(json(raw)?),
        Known::Store => view.store = Some(json(raw)?),
        Known::ClaimedTimeline => view.claimed_timeline = Some(json(raw)?),
        Known::Announcement(member) => {
            view.announcements.insert(name(member)?, json(raw)?);
        }
        Known::Request(member) => {
            // One that can't be read is refused by whom it is for, with a sentence.
            let unread = |_| Versioned { value: MemberRequest::unreadable(), revision: raw.revision };
            view.requests.insert(name(member)?, json(raw).unwrap_or_else(unread));
        }
        Known::Hold => view.hold = Some(json(raw)?),
        Known::Held => view.held = Some(json(raw)?),
        Known::Gate => view.gate = Some(json(raw)?),
        Known::Gated => view.gated = Some(json(raw)?),
        Known::Poolers => view.poolers = Some(json(raw)?),
        Known::Backup => view.backup = Some(json(raw)?),
        Known::Coordinator => view.coordinator = Some(json(raw)?),
        Known::Other => {}
    }
    Ok(())
}

/// The member's JSON, or the legacy form `postgres://...?application_name=<api_url>`.
fn read_member(raw: &Raw<'_>) -> Result<Member, String> {
    let text = text(raw)?;
    if let Some((conn_url, api_url)) = text.strip_prefix("postgres").and_then(|_| text.split_once("?application_name=")) {
        return Ok(Member {
            conn_url: conn_url.to_owned(),
            api_url: api_url.to_owned(),
            state: MemberState::Running,
            role: MemberRole::Replica,
            version: String::new(),
            checkpoint_after_promote: None,
            tags: Default::default(),
            pending_restart: false,
            xlog_location: None,
            replay_lsn: None,
            receive_lsn: None,
            replication_state: None,
            timeline: None,
            tenure: None,
            other: Map::new(),
        });
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// `{"leader":…,"member":…}`, or the legacy form `leader:candidate`.
fn read_failover(raw: &Raw<'_>) -> Result<Versioned<cluster::failover::FailoverRequest>, String> {
    let text = text(raw)?.trim();
    if let Some((leader, member)) = text.split_once(':').filter(|_| !text.starts_with('{')) {
        let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        let value = cluster::failover::FailoverRequest { leader: part(leader), member: part(member), ..Default::default() };
        return Ok(Versioned { value, revision: raw.revision });
    }
    json(raw)
}

/// The status object, or the legacy bare position.
fn read_status(raw: &Raw<'_>) -> Result<Versioned<Status>, String> {
    match text(raw)?.trim().parse::<u64>() {
        Ok(optime) => Ok(Versioned { value: Status { optime: cluster::lsn::Lsn(optime), ..Status::default() }, revision: raw.revision }),
        Err(_) => json(raw),
    }
}

/// A value as compact JSON.
pub fn to_bytes<T: serde::Serialize>(value: &T) -> Vec<u8> {
    // Our types serialize without fail: string keys, no non-finite numbers.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::lsn::Lsn;
    use cluster::name::Scope;

    fn read(pairs: &[(&str, &str)]) -> ClusterView {
        let keys = Keys::new("service", &Scope::new("demo").unwrap());
        let paths: Vec<String> = pairs.iter().map(|(key, _)| format!("/service/demo/{key}")).collect();
        let raws = paths.iter().zip(pairs).enumerate().map(|(i, (key, (_, value)))| Raw {
            key,
            value: value.as_bytes(),
            revision: i as i64 + 1,
            lease: 77,
        });
        view(&keys, 99, raws)
    }

    #[test]
    fn keys_as_the_field_writes_them() {
        let view = read(&[
            ("initialize", "7710284044615527583"),
            ("leader", "n0"),
            (
                "members/n1",
                r#"{"conn_url":"postgres://127.0.0.1:15431/postgres","api_url":"http://127.0.0.1:18001/patroni","state":"running","role":"replica","version":"4.1.4","xlog_location":84197032,"timeline":1}"#,
            ),
            ("config", r#"{"ttl":30,"synchronous_mode":true}"#),
            ("status", r#"{"optime":84197032,"slots":{"n1":84197032},"retain_slots":["n0"]}"#),
            ("history", r#"[[1,52151216,"no recovery target specified","2026-11-20T16:13:01.449058+00:00","c3"]]"#),
            ("sync", r#"{"leader":"n0","quorum":0,"sync_standby":"n1"}"#),
            ("failover", "{}"),
            ("optime/leader", "12"),
        ]);
        assert_eq!(view.unreadable, Vec::<String>::new());
        assert_eq!(
            view.leader.as_ref().map(|leader| (leader.name.as_str(), leader.term, leader.lease)),
            Some(("n0", Term(2), LeaseId(77)))
        );
        assert_eq!(view.history().current().0, 2);
        assert!(view.request().is_none());
        assert_eq!(view.status.unwrap().value.optime, Lsn(84197032));
    }

    #[test]
    fn legacy_forms_are_read() {
        let view = read(&[
            ("members/a", "postgres://h:1/x?application_name=http://h:8008/patroni"),
            ("failover", "a:b"),
            ("status", "42"),
            ("initialize", ""),
        ]);
        assert_eq!(view.members.values().next().unwrap().member.api_url, "http://h:8008/patroni");
        assert_eq!(view.request().unwrap().value.candidate(), Some("b"));
        assert_eq!(view.status.unwrap().value.optime, Lsn(42));
        assert_eq!(view.initialize.unwrap().value, Initialize::Running);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_with_its_reason() {
        let view = read(&[("config", "[1"), ("members/n1", "{}"), ("members/a,b", "{}"), ("history", "{}"), ("leader", "n0")]);
        assert_eq!(view.unreadable.len(), 4);
        assert!(view.leader.is_some());
    }
}
