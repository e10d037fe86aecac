//! How a node whose server is not the leader's comes back: follow, rewind or clone, from histories and positions.

use crate::history::Ancestry;
use crate::local::{Control, Ended};
use crate::lsn::Lsn;
use crate::member::MemberRole;
use crate::name::{MemberName, Timeline};
use crate::reason::Reason;
use crate::view::ClusterView;

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejoin {
    /// Start (or go on) as its standby.
    Follow,
    /// Wind back to before the fork first.
    Rewind(Reason),
    /// Not to be told yet.
    Wait(Reason),
}

/// The leader's timeline, once it runs as primary (or leads a standby cluster) and the history reaches up to it.
pub fn leader_timeline(view: &ClusterView, leader: &MemberName) -> Result<Timeline, Reason> {
    let serves = |role: &MemberRole| *role == MemberRole::Primary || (*role == MemberRole::StandbyLeader && view.is_standby_cluster());
    let entry = view.members.get(leader).filter(|entry| serves(&entry.member.role));
    let timeline = entry.and_then(|entry| entry.member.timeline).ok_or_else(|| Reason::LeaderHistoryUnknown(leader.clone()))?;
    // A leader on timeline 1 has no history; any other has written it after its promotion.
    if view.history().current() != timeline {
        return Err(Reason::LeaderHistoryUnknown(leader.clone()));
    }
    Ok(timeline)
}

fn rewind(view: &ClusterView, leader: &MemberName, why: Reason) -> Rejoin {
    // pg_rewind reads the new timeline from the source's pg_control, which only its first checkpoint writes.
    let pending = view.members.get(leader).is_some_and(|entry| entry.member.checkpoint_after_promote == Some(false));
    if pending { Rejoin::Wait(Reason::LeaderCheckpointPending(leader.clone())) } else { Rejoin::Rewind(why) }
}

/// For a stopped server, from its `pg_control`.
pub fn of_stopped(view: &ClusterView, leader: &MemberName, control: &Control) -> Rejoin {
    if control.ended == Ended::Standby && control.timeline == view.history().current() {
        return Rejoin::Follow;
    }
    let theirs = match leader_timeline(view, leader) {
        Ok(theirs) => theirs,
        // Harmless: the WAL here is only replayed, and a server that forked is refused by the walsender.
        Err(_) if view.is_standby_cluster() && control.ended == Ended::Standby => return Rejoin::Follow,
        Err(why) => return Rejoin::Wait(why),
    };
    if control.timeline == theirs && control.ended != Ended::CrashedPrimary {
        return Rejoin::Follow;
    }
    match control.ended {
        // The record at `checkpoint` is whole on the other side if and only if the fork lies after its start.
        Ended::CleanPrimary | Ended::Standby => match view.history().ancestry(theirs, control.timeline, Lsn(control.checkpoint.0 + 1)) {
            Ancestry::Ancestor => Rejoin::Follow,
            Ancestry::Diverged { fork } => {
                rewind(view, leader, Reason::HistoryForked { timeline: control.timeline, mine: control.checkpoint, fork })
            }
            Ancestry::Unknown => rewind(view, leader, Reason::UnknownTimeline { timeline: control.timeline, leader: leader.clone() }),
        },
        // Where its WAL ends is not in pg_control: pg_rewind finds out, and does nothing if nothing is to do.
        Ended::CrashedPrimary => {
            rewind(view, leader, Reason::CrashedAfterFork { timeline: control.timeline, leader: leader.clone(), theirs })
        }
    }
}

/// The WAL that a standby needs next is no more at its upstream: where the upstream's begins. Only an archive or a copy helps then.
pub fn wal_gone(view: &ClusterView, upstream: &MemberName, until: Option<Lsn>) -> Option<Lsn> {
    let oldest = view.members.get(upstream)?.member.tenure.as_ref()?.oldest_wal?;
    (until? < oldest).then_some(oldest)
}

/// For a running standby, from what it has received.
pub fn of_standby(view: &ClusterView, leader: &MemberName, timeline: Timeline, position: Lsn) -> Rejoin {
    let theirs = match leader_timeline(view, leader) {
        Ok(theirs) => theirs,
        Err(_) => return Rejoin::Follow, // harmless: a server that forked is refused by the walsender
    };
    match view.history().ancestry(theirs, timeline, position) {
        Ancestry::Ancestor => Rejoin::Follow,
        Ancestry::Diverged { fork } => rewind(view, leader, Reason::HistoryForked { timeline, mine: position, fork }),
        // It was promoted from, or after, a member whose history was never written: it can't stream from an
        // older timeline, ever. An older one that the history lacks is left to the walsender.
        // In a standby cluster it may have it from the archive before its leader does.
        Ancestry::Unknown if timeline > theirs && !view.is_standby_cluster() => {
            rewind(view, leader, Reason::UnknownTimeline { timeline, leader: leader.clone() })
        }
        Ancestry::Unknown => Rejoin::Follow,
    }
}
