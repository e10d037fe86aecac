//! What is owed where the cluster follows another one: its leader stays in recovery.

use super::shared::{requested, rewind_or, start_failed};
use super::what::Duty;
use crate::history::Ancestry;
use crate::leader::Leader;
use crate::local::{DataDir, Ended, LocalState, Postgres};
use crate::lsn::Lsn;
use crate::name::{SystemId, Timeline};
use crate::reason::{Decision, Reason};
use crate::rejoin::Rejoin;
use crate::upstream::{self, Upstream};
use crate::view::ClusterView;

/// What the node that leads a standby cluster owes it.
pub(crate) fn leading(view: &ClusterView, local: &LocalState, leader: &Leader) -> Decision<Duty> {
    use Duty::*;
    let on = Decision::new;
    let late = local.down_for > view.config().primary_start_timeout();
    let give_up = || on(Release, Reason::StartTimeout(view.config().primary_start_timeout().as_secs()));
    match (&local.data, &local.postgres) {
        (DataDir::Empty | DataDir::Incomplete { .. }, _) => {
            let why = match &local.data {
                DataDir::Incomplete { what } => Reason::Incomplete { what: what.clone() },
                DataDir::Empty | DataDir::Present(_) | DataDir::Damaged { .. } => Reason::EmptyLeader,
            };
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
                on(what, start_failed(local))
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
            requested(view, local, Reason::LeadsStandbyCluster(leader.term))
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
    rewind_or(view, local, Upstream::Remote, Upstream::Remote, why)
}

/// May this node go on as a standby of the other cluster? Where that has not said anything, it may:
/// a server that forked is refused by the other side's walsender.
fn rejoin(local: &LocalState, mine: &SystemId, timeline: Timeline, position: Lsn) -> Rejoin {
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
