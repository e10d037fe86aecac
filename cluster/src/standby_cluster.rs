//! A standby cluster: the leader stays in recovery and follows a cluster elsewhere, the others follow
//! it. What `standby_cluster` says, and what the one who leads such a cluster owes it.

use crate::config::DynamicConfig;
use crate::duty::{self, Duty};
use crate::history::{Ancestry, History};
use crate::leader::Leader;
use crate::local::{DataDir, Ended, LocalState, Postgres};
use crate::lsn::Lsn;
use crate::name::{SystemId, Timeline};
use crate::reason::{Decision, Reason};
use crate::rejoin::Rejoin;
use crate::upstream::{self, Upstream};
use crate::view::ClusterView;
use serde_json::{Map, Value};

/// The section `standby_cluster` of the dynamic configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StandbyCluster {
    /// Where the other cluster is; several, separated by commas, of which the primary is followed.
    pub host: Option<String>,
    /// The port, or as many ports as there are hosts, separated by commas.
    pub port: Option<String>,
    /// The slot over there that the leader streams from.
    pub primary_slot_name: Option<String>,
    /// How log is fetched from an archive. Runs code: counts only where the node's own file says the same.
    pub restore_command: Option<String>,
    /// How an archive is cleaned. Runs code as well.
    pub archive_cleanup_command: Option<String>,
    /// How far the leader stays behind, as PostgreSQL reads it (`5min`).
    pub recovery_min_apply_delay: Option<String>,
    /// How the first copy is made, best first.
    pub create_replica_methods: Vec<String>,
}

impl StandbyCluster {
    fn of(section: &Map<String, Value>) -> Option<StandbyCluster> {
        let text = |key: &str| match section.get(key)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let methods = section.get("create_replica_methods").or_else(|| section.get("create_replica_method")).and_then(Value::as_array);
        let standby_cluster = StandbyCluster {
            host: text("host"),
            port: text("port"),
            primary_slot_name: text("primary_slot_name"),
            restore_command: text("restore_command"),
            archive_cleanup_command: text("archive_cleanup_command"),
            recovery_min_apply_delay: text("recovery_min_apply_delay"),
            create_replica_methods: methods.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        };
        // As the field has it: without any of the three there is nothing to follow.
        let follows = standby_cluster.streams() || standby_cluster.restore_command.is_some();
        follows.then_some(standby_cluster)
    }

    /// There is a server to stream from; else an archive only.
    pub fn streams(&self) -> bool {
        self.host.is_some() || self.port.is_some()
    }

    /// Several hosts are named: whichever of them is the primary is meant.
    pub fn has_many_hosts(&self) -> bool {
        self.host.as_deref().is_some_and(|host| host.contains(','))
    }
}

impl DynamicConfig {
    /// `standby_cluster`, where the section names something to follow.
    pub fn standby_cluster(&self) -> Option<StandbyCluster> {
        StandbyCluster::of(self.get("standby_cluster")?.as_object()?)
    }
}

/// What a node knows of the cluster that its own one follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remote {
    /// `primary_conninfo` and `primary_slot_name` in force are those that `standby_cluster` asks for.
    pub followed: bool,
    /// What the server over there said of itself lately. Asked only while this node does not stream from it.
    pub said: Option<RemoteWord>,
}

/// What a server of the other cluster says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteWord {
    /// Whose data it has.
    pub system_id: SystemId,
    /// Its timeline.
    pub timeline: Timeline,
    /// The timelines before.
    pub history: History,
    /// The timeline in its `pg_control`: behind its own until the first checkpoint after a promotion. None: it did not say.
    pub checkpointed: Option<Timeline>,
}

/// What the node that leads a standby cluster owes it.
pub(crate) fn leading(view: &ClusterView, local: &LocalState, leader: &Leader) -> Decision<Duty> {
    use Duty::*;
    let on = Decision::new;
    let late = local.down_for > view.config().primary_start_timeout();
    let give_up = || on(Release, Reason::StartTimeout(view.config().primary_start_timeout().as_secs()));
    match (&local.data, &local.postgres) {
        (DataDir::Empty | DataDir::Incomplete { .. }, _) => {
            let what = match &local.data {
                DataDir::Incomplete { what } => what.clone(),
                DataDir::Empty | DataDir::Present(_) | DataDir::Damaged { .. } => "the data directory is empty: something".to_owned(),
            };
            let why = Reason::Incomplete { what };
            if another_could_lead(view, local) { on(Release, why) } else { on(Clone { from: Upstream::Remote }, why) }
        }
        (DataDir::Damaged { why }, Postgres::Stopped) if local.may_clone_over && !another_could_lead(view, local) => {
            on(Clone { from: Upstream::Remote }, Reason::DataDamagedCloneAllowed(why.clone()))
        }
        (DataDir::Damaged { why }, _) => on(Release, Reason::DataDamaged(why.clone())),
        (DataDir::Present(_), Postgres::Primary { .. }) => on(DemoteCluster { term: leader.term }, Reason::StandbyClusterAsked),
        (DataDir::Present(_), Postgres::Starting { .. } | Postgres::Silent) if late => give_up(),
        (DataDir::Present(_), Postgres::Starting { .. }) => on(Rest, Reason::Starting),
        (DataDir::Present(_), Postgres::Silent) => on(Rest, Reason::Silent),
        // Also where an arbiter died half way: the demotion ends in a new term.
        (DataDir::Present(control), Postgres::Stopped) if control.ended != Ended::Standby => {
            on(DemoteCluster { term: leader.term }, Reason::StandbyClusterAsked)
        }
        (DataDir::Present(_), Postgres::Stopped) if late && another_could_lead(view, local) => give_up(),
        (DataDir::Present(control), Postgres::Stopped) => match rejoin(local, &control.system_id, control.timeline, control.checkpoint) {
            Rejoin::Rewind(why) => rewind(view, local, why),
            Rejoin::Follow | Rejoin::Wait(_) if local.start_failed.is_some() => {
                let what = if another_could_lead(view, local) { Release } else { Rest };
                on(what, duty::start_failed(local))
            }
            // A server that has forked, or that is another's, is refused over there: it serves reads until somebody looks.
            Rejoin::Follow | Rejoin::Wait(_) => {
                on(StartStandby { upstream: upstream::wanted(view, local, &local.name) }, Reason::LeadsStandbyCluster(leader.term))
            }
        },
        (DataDir::Present(control), Postgres::Standby { timeline, position, upstream, .. }) => {
            match rejoin(local, &control.system_id, *timeline, *position) {
                Rejoin::Rewind(why) => return rewind(view, local, why),
                Rejoin::Wait(why) => return on(Rest, why),
                Rejoin::Follow => {}
            }
            let wanted = upstream::wanted(view, local, &local.name);
            let follows = match wanted {
                Upstream::Remote => local.remote.followed,
                Upstream::Member(_) | Upstream::Nobody => upstream.is_none(),
            };
            if !follows {
                return on(Follow { upstream: wanted }, Reason::LeadsStandbyCluster(leader.term));
            }
            duty::requested(view, local, Reason::LeadsStandbyCluster(leader.term))
        }
    }
}

/// Is there another member that could lead in this one's place?
pub(crate) fn another_could_lead(view: &ClusterView, local: &LocalState) -> bool {
    view.members.iter().any(|(name, entry)| {
        let member = &entry.member;
        let arbiter = member.tenure.as_ref().is_none_or(|facts| facts.arbiter);
        *name != local.name && member.is_running() && !member.tags.nofailover() && arbiter
    })
}

fn rewind(view: &ClusterView, local: &LocalState, why: Reason) -> Decision<Duty> {
    if local.rewind_failed.is_some() && !local.may_clone_over && another_could_lead(view, local) {
        return Decision::new(Duty::Release, why);
    }
    duty::rewind_or(local, Upstream::Remote, Upstream::Remote, why)
}

/// May this node go on as a standby of the other cluster? Where that has not said anything, it may:
/// a server that forked is refused by the other side's walsender.
pub fn rejoin(local: &LocalState, mine: &SystemId, timeline: Timeline, position: Lsn) -> Rejoin {
    let Some(remote) = &local.remote.said else { return Rejoin::Follow };
    if remote.system_id != *mine {
        return Rejoin::Wait(Reason::RemoteForeign { mine: mine.clone(), remote: remote.system_id.clone() });
    }
    match remote.history.ancestry(remote.timeline, timeline, position) {
        Ancestry::Ancestor => Rejoin::Follow,
        Ancestry::Diverged { .. } if remote.checkpointed.is_some_and(|done| done < remote.timeline) => {
            Rejoin::Wait(Reason::RemoteCheckpointPending)
        }
        Ancestry::Diverged { fork } => Rejoin::Rewind(Reason::HistoryForked { timeline, mine: position, fork }),
        // The other side is the older one: winding back to it could only be a mistake.
        Ancestry::Unknown if timeline > remote.timeline => Rejoin::Wait(Reason::RemoteBehind { mine: timeline, remote: remote.timeline }),
        Ancestry::Unknown => Rejoin::Follow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(json: &str) -> Option<StandbyCluster> {
        DynamicConfig(serde_json::from_str(&format!(r#"{{"standby_cluster":{json}}}"#)).unwrap()).standby_cluster()
    }

    #[test]
    fn a_section_counts_where_it_names_something_to_follow() {
        for (json, follows) in [
            ("{}", false),
            ("null", false),
            (r#"{"primary_slot_name":"a"}"#, false),
            (r#"{"host":""}"#, false),
            (r#"{"host":"a"}"#, true),
            (r#"{"port":5433}"#, true),
            (r#"{"restore_command":"cp /a/%f %p"}"#, true),
        ] {
            assert_eq!(section(json).is_some(), follows, "{json}");
        }
        let many = section(r#"{"host":"a,b","port":"1,2","create_replica_methods":["x","basebackup"]}"#).unwrap();
        assert!(many.has_many_hosts() && many.streams());
        assert_eq!((many.port.as_deref(), many.create_replica_methods.len()), (Some("1,2"), 2));
    }
}
