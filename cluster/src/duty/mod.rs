//! Duty: what this node's processes owe the cluster now. The arbiter asks; its `apply` does it.

mod shared;
mod standby_cluster;
mod what;

pub use shared::REQUEST_PATIENCE;
pub use what::Duty;

use crate::failover;
use crate::health::Way;
use crate::leader::Leader;
use crate::local::{DataDir, Ended, GivesWay, LocalState, Postgres};
use crate::lsn::Lsn;
use crate::member::MemberRole;
use crate::memory::Upgraded;
use crate::name::MemberName;
use crate::reached::{self, End};
use crate::reason::{Decision, Reason};
use crate::rejoin::{self, Rejoin};
use crate::replaced;
use crate::restore;
use crate::source;
use crate::store;
use crate::upgrade::step::{self, HalfUpgraded, Identity, Leads, Owed};
use crate::upstream::{self, Upstream};
use crate::view::{ClusterView, Initialize};
use shared::{requested, rewind_or, start_failed};

/// Says what this node owes the cluster now. Same facts, same answer.
pub fn decide(view: &ClusterView, local: &LocalState) -> Decision<Duty> {
    use Duty::*;
    let on = Decision::new;
    // Before anything that the data says of itself: in the middle of an upgrade it may be neither the old nor the new.
    if let Some(half) = local.upgrade.as_ref().filter(|_| !local.stopping) {
        return half_upgraded(view, local, half);
    }
    if let Some(half) = local.restore.as_ref().filter(|_| !local.stopping) {
        return half_restored(view, local, half);
    }
    if let (DataDir::Present(control), Some(expected)) = (&local.data, view.system_id())
        && control.system_id != *expected
    {
        if let Some(upgraded) = view.upgraded_from(&control.system_id).filter(|_| !local.stopping) {
            return remade(view, local, upgraded);
        }
        return on(Quit, Reason::ForeignSystem { found: control.system_id.clone(), expected: expected.clone() });
    }
    if local.stopping {
        return stopping(view, local);
    }
    // Before anything that it says of itself: nobody keeps it from acknowledging what the next leader has never seen.
    if let Some(why) = &local.strange {
        return match view.config().paused() {
            true => on(Rest, Reason::StrangeServerPaused(why.clone())),
            false => on(Demote, Reason::StrangeServer(why.clone())),
        };
    }
    if view.config().paused() {
        return paused(view, local);
    }
    awake(view, local)
}

/// A major upgrade was interrupted here: what its step asks for now.
fn half_upgraded(view: &ClusterView, local: &LocalState, half: &HalfUpgraded) -> Decision<Duty> {
    let leads = match &view.leader {
        Some(leader) if leader.name == local.name => Leads::Me,
        Some(_) => Leads::Another,
        None => Leads::Nobody,
    };
    let identity = match view.system_id() {
        Some(now) if *now == half.journal.old => Identity::Old,
        Some(now) if Some(now) == half.journal.new.as_ref() => Identity::New,
        Some(_) | None => Identity::Other,
    };
    let duty = match step::owed(half.journal.step, leads, identity, half.failed, half.journal.twin.is_some()) {
        // Its old data is spoiled and the new can't be brought to its place: another member has the old data whole.
        Owed::Wait if leads == Leads::Me && identity == Identity::Old => Duty::Release,
        Owed::Wait => Duty::Rest,
        owed => Duty::Upgrade { owed },
    };
    Decision::new(duty, Reason::HalfUpgraded(half.journal.step))
}

/// A restore to a point in the past was interrupted here.
fn half_restored(view: &ClusterView, local: &LocalState, half: &restore::Journal) -> Decision<Duty> {
    let leads = match &view.leader {
        Some(leader) if leader.name == local.name => restore::Leads::Me,
        Some(_) => restore::Leads::Another,
        None => restore::Leads::Nobody,
    };
    let owed = restore::owed(half, leads, view.history().current());
    Decision::new(Duty::RestoreTo { owed }, Reason::HalfRestored { to: half.to.clone(), step: half.step })
}

/// The cluster has gone to a new major version without this node's data: it is replaced, once there is something to copy.
fn remade(view: &ClusterView, local: &LocalState, upgraded: &Upgraded) -> Decision<Duty> {
    let why = Reason::NewMajor { from: upgraded.from, to: upgraded.to };
    let leader = view.leader.as_ref().filter(|leader| leader.name != local.name && !view.config().paused());
    let serves = |leader: &&Leader| {
        view.members.get(&leader.name).is_some_and(|entry| entry.member.is_running() && entry.member.role == MemberRole::Primary)
    };
    match leader.filter(serves) {
        Some(leader) => Decision::new(Duty::Clone { from: Upstream::Member(leader.name.clone()) }, why),
        None => Decision::new(Duty::Rest, why),
    }
}

/// Maintenance mode: no server is started, stopped or promoted by ourselves. What an operator asks for by name is done, and ended.
fn paused(view: &ClusterView, local: &LocalState) -> Decision<Duty> {
    use Duty::*;
    let rest = || Decision::new(Rest, Reason::Paused);
    match (&view.leader, &local.postgres) {
        // Handed over or taken before the pause: without its promotion there would be no primary until it ends.
        (Some(leader), Postgres::Standby { .. }) if leader.name == local.name && local.lease_valid && !view.is_standby_cluster() => {
            Decision::new(Promote { term: leader.term }, Reason::IHoldTheLease(leader.term))
        }
        (Some(leader), Postgres::Primary { .. }) if leader.name == local.name && view.request().is_some() && !view.is_standby_cluster() => {
            requested(view, local, Reason::IHoldTheLease(leader.term))
        }
        // Pointing a standby at another primary stops nothing; nor does a switchover between standbys.
        (Some(leader), Postgres::Standby { .. }) if leader.name != local.name || view.is_standby_cluster() => match awake(view, local) {
            Decision { what: what @ (Follow { .. } | Switchover { .. }), why } => Decision::new(what, why),
            _ => rest(),
        },
        // etcd was emptied: nothing is started or stopped by making its keys again.
        (None, Postgres::Primary { .. }) if view.initialize.is_none() => awake(view, local),
        (_, Postgres::Stopped) if local.start_owed => awake(view, local),
        _ => rest(),
    }
}

fn awake(view: &ClusterView, local: &LocalState) -> Decision<Duty> {
    match &view.leader {
        Some(leader) if leader.name == local.name && view.is_standby_cluster() => standby_cluster::leading(view, local, leader),
        Some(leader) if leader.name == local.name => leading(view, local, leader),
        Some(leader) => following(view, local, leader),
        None => vacant(view, local),
    }
}

/// SIGTERM: leadership is handed over first where a standby can take it, then Postgres stops.
fn stopping(view: &ClusterView, local: &LocalState) -> Decision<Duty> {
    let leads = match local.postgres {
        Postgres::Primary { .. } => !view.is_standby_cluster(),
        Postgres::Standby { .. } => view.is_standby_cluster(),
        Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => false,
    };
    if view.leader_if(&local.name).is_some() && leads && !view.config().paused() {
        let request = failover::FailoverRequest { leader: Some(local.name.to_string()), ..Default::default() };
        if let Ok(candidates) = failover::candidates(view, &request)
            && let Some(first) = candidates.first().cloned()
        {
            return Decision::new(Duty::Switchover { candidates }, Reason::StoppingHandOver(first));
        }
    }
    Decision::new(Duty::Stop, Reason::Stopping)
}

fn vacant(view: &ClusterView, local: &LocalState) -> Decision<Duty> {
    use Duty::*;
    let on = Decision::new;
    match (&local.data, &local.postgres) {
        (DataDir::Empty | DataDir::Incomplete { .. }, _) => match view.initialize.as_ref().map(|key| &key.value) {
            None => found(view, local),
            // An arbiter of this node was killed while it founded, and this one keeps the lease that the claim hangs on.
            Some(Initialize::Running) if view.is_claimed_by(&local.name) => found(view, local),
            Some(Initialize::Running) => on(Rest, Reason::AnotherInitializes),
            Some(Initialize::Done(_)) if replaced::put_back(view, &local.data, local.aside.as_ref()).is_some() => {
                on(Restore, Reason::OldDataPutBack)
            }
            Some(Initialize::Done(_)) if local.cloning.without_leader => on(Restore, Reason::RestoreWithoutLeader),
            Some(Initialize::Done(_)) if view.is_standby_cluster() && !standby_cluster::another_could_lead(view, local) => {
                on(Clone { from: Upstream::Remote }, Reason::EmptyStandbyCluster)
            }
            Some(Initialize::Done(_)) => on(Rest, Reason::NobodyToCloneFrom),
        },
        (DataDir::Damaged { why }, Postgres::Stopped) => on(Rest, Reason::DataDamaged(why.clone())),
        (DataDir::Present(control), Postgres::Stopped) => {
            match view.initialize.as_ref().map(|key| &key.value) {
                Some(Initialize::Running) if view.is_claimed_by(&local.name) => found(view, local),
                Some(Initialize::Running) => on(Rest, Reason::AnotherInitializes),
                // Data from before the cluster: only a former primary may found it.
                None if control.ended == Ended::Standby && local.memory.is_some() => on(Rest, Reason::KeysLost),
                None if control.ended == Ended::Standby => on(Quit, Reason::StandbyDataWithoutCluster(control.system_id.clone())),
                None => found(view, local),
                Some(Initialize::Done(_)) if local.start_failed.is_some() => on(Rest, start_failed(local)),
                Some(Initialize::Done(_)) => on(StartStandby { upstream: Upstream::Nobody }, Reason::NoLeaderStart),
            }
        }
        (_, Postgres::Starting { .. }) => on(Rest, Reason::Starting),
        (_, Postgres::Silent) => on(Rest, Reason::Silent),
        (DataDir::Present(_), Postgres::Primary { .. }) if view.initialize.is_none() || view.is_claimed_by(&local.name) => {
            found(view, local)
        }
        (_, Postgres::Primary { .. }) if view.is_standby_cluster() => on(Demote, Reason::StandbyClusterAsked),
        // As primary of an old timeline it may never lead; as a standby it may, if nothing it has forked.
        (_, Postgres::Primary { timeline, .. }) if *timeline < view.history().current() => {
            on(Demote, Reason::OlderTimeline { mine: *timeline, cluster: view.history().current() })
        }
        (_, Postgres::Primary { .. } | Postgres::Standby { .. }) => on(Rest, Reason::NoLeader),
    }
}

/// There is no cluster as far as etcd knows. Data of one, here or elsewhere, says otherwise.
fn found(view: &ClusterView, local: &LocalState) -> Decision<Duty> {
    let data = matches!(local.data, DataDir::Present(_));
    match store::may_found(view, &local.name, local.memory.as_deref(), data, local.fence_open) {
        Ok(()) => Decision::new(Duty::Bootstrap, Reason::NotInitialized),
        Err(why) => Decision::new(Duty::Rest, Reason::NotFounded(why)),
    }
}

fn leading(view: &ClusterView, local: &LocalState, leader: &Leader) -> Decision<Duty> {
    use Duty::*;
    let on = Decision::new;
    let mine = || Reason::IHoldTheLease(leader.term);
    match (&local.data, &local.postgres) {
        (DataDir::Empty, _) => on(Release, Reason::EmptyLeader),
        (DataDir::Incomplete { what }, _) => on(Release, Reason::Incomplete { what: what.clone() }),
        (DataDir::Damaged { why }, _) => on(Release, Reason::DataDamaged(why.clone())),
        // Killed between its data and the cluster's identity: founded once more, with the data that are there.
        (DataDir::Present(_), _) if view.is_claimed_by(&local.name) => on(Release, Reason::NotInitialized),
        (DataDir::Present(_), Postgres::Primary { .. } | Postgres::Silent) if local.frozen_for > view.config().timing().ttl => {
            match another_that_could(view, local) {
                Some(other) => on(Release, Reason::FrozenOthersLead { seconds: local.frozen_for.as_secs(), other }),
                None => on(Rest, Reason::Silent),
            }
        }
        (DataDir::Present(_), Postgres::Primary { .. }) => match &local.gives_way {
            Some(GivesWay { what, way }) => gives_way(what, way),
            None => requested(view, local, mine()),
        },
        (DataDir::Present(_), Postgres::Standby { .. }) if local.lease_valid => on(Promote { term: leader.term }, mine()),
        (DataDir::Present(_), Postgres::Standby { .. }) => on(Rest, Reason::LeaseUnconfirmed),
        // Its recovery may take long, or end as its server did.
        (DataDir::Present(_), Postgres::Starting { .. }) if let Some(decision) = handed_over_after_crash(view, local) => decision,
        (DataDir::Present(_), Postgres::Starting { .. }) if local.down_for > view.config().primary_start_timeout() => start_timeout(view),
        (DataDir::Present(_), Postgres::Starting { .. }) => on(Rest, Reason::Starting),
        (DataDir::Present(_), Postgres::Silent) if let Some(GivesWay { what, way: way @ Way::ByForce(_) }) = &local.gives_way => {
            gives_way(what, way)
        }
        (DataDir::Present(_), Postgres::Silent) if local.down_for > view.config().primary_start_timeout() => start_timeout(view),
        (DataDir::Present(_), Postgres::Silent) => on(Rest, Reason::Silent),
        (DataDir::Present(control), Postgres::Stopped) => {
            if control.ended == Ended::Standby || control.timeline < view.history().current() {
                return on(StartStandby { upstream: Upstream::Nobody }, mine());
            }
            // In maintenance mode the one who asked for the start of this server means this server.
            let paused = view.config().paused();
            match lossless_successor(view, local).filter(|_| !paused) {
                Some(Successor::Known(standby)) => {
                    return on(HandOver { to: standby.clone() }, Reason::CrashedSyncStandbyReady(standby));
                }
                Some(Successor::AmongVoters(voters)) => return on(Release, Reason::CrashedQuorumReady(voters)),
                None => {}
            }
            if local.down_for > view.config().primary_start_timeout() && !paused {
                return start_timeout(view);
            }
            // It does not take long to start, it does not start (a full disk): its patience is for recovery.
            if let (Some(words), Some(other)) = (local.start_failed.as_ref().filter(|_| !paused), another_that_could(view, local)) {
                return on(Release, Reason::StartFailedOthersLead { words: words.clone(), other });
            }
            let why = if control.ended == Ended::CrashedPrimary { Reason::CrashedRestart } else { mine() };
            on(StartPrimary { term: leader.term }, why)
        }
    }
}

/// A sick leader goes by the way that its server still can.
fn gives_way(what: &str, way: &Way) -> Decision<Duty> {
    let (duty, to) = match way {
        Way::Planned(candidates) => (Duty::Switchover { candidates: candidates.clone() }, candidates.first()),
        Way::ByForce(to) => (Duty::GiveWay { to: to.clone() }, Some(to)),
    };
    match to {
        Some(to) => Decision::new(duty, Reason::SickOtherBetter { what: what.to_owned(), to: to.clone() }),
        None => Decision::new(Duty::Rest, Reason::Silent),
    }
}

fn start_timeout(view: &ClusterView) -> Decision<Duty> {
    Decision::new(Duty::Release, Reason::StartTimeout(view.config().primary_start_timeout().as_secs()))
}

/// All processes but the postmaster are gone, and a member that has every acknowledged commit goes on at once: nobody waits for this server's recovery.
fn handed_over_after_crash(view: &ClusterView, local: &LocalState) -> Option<Decision<Duty>> {
    match lossless_successor(view, local).filter(|_| local.crashed)? {
        Successor::Known(standby) => Some(Decision::new(Duty::HandOver { to: standby.clone() }, Reason::CrashedSyncStandbyReady(standby))),
        Successor::AmongVoters(voters) => Some(Decision::new(Duty::Release, Reason::CrashedQuorumReady(voters))),
    }
}

/// The leader's postmaster lives and its server starts: after a crash of one of its processes Postgres recovers by itself, and
/// meanwhile no lease worker runs. Does the arbiter keep the leadership for it? Not where a synchronous standby has every acknowledged
/// commit: that one takes over, as nothing is lost by it and a recovery may take long.
pub fn keeps_lease_for_recovery(view: &ClusterView, local: &LocalState) -> bool {
    matches!((&local.data, &local.postgres), (DataDir::Present(_), Postgres::Starting { .. }))
        && view.leader_if(&local.name).is_some()
        && local.down_for <= view.config().primary_start_timeout()
        && lossless_successor(view, local).is_none()
}

/// Who can go on without losing an acknowledged commit.
enum Successor {
    /// This synchronous standby: it has them all, runs, and can be promoted.
    Known(MemberName),
    /// One of these: which of them is only known once they have compared their positions, which the race does.
    AmongVoters(String),
}

/// Only of those that answered just now: the member key of a host that died a moment ago still says that all is well, and a key
/// that is given to a dead node keeps everybody from leading.
fn lossless_successor(view: &ClusterView, local: &LocalState) -> Option<Successor> {
    let sync = &view.sync.as_ref().filter(|sync| sync.value.leader.as_deref() == Some(local.name.as_str()))?.value;
    let answers = |name: &MemberName| sync.has_standby(name) && local.answered.contains(name) && has_what_it_had(view, name);
    let mut fit = view.members.keys().filter(|name| answers(name) && failover::unfit(view, name, false).is_none());
    if sync.quorum == 0 {
        return fit.next().cloned().map(Successor::Known);
    }
    fit.next()?;
    // Also those that may not lead can say what they have.
    let voters: Vec<&str> =
        view.members.iter().filter(|(name, entry)| answers(name) && entry.member.is_running()).map(|(name, _)| name.as_str()).collect();
    (voters.len() > sync.quorum as usize).then(|| Successor::AmongVoters(voters.join(", ")))
}

/// What the member key says is no less than what the member of that name is known to have had: a copy of its disk goes by the same name.
fn has_what_it_had(view: &ClusterView, name: &MemberName) -> bool {
    let end = view.members.get(name).and_then(|entry| Some(End { timeline: entry.member.timeline?, lsn: entry.member.position()? }));
    end.is_some_and(|end| reached::lost_by(view, name, end).is_none())
}

/// Another member that answered just now, and that the race would let lead.
fn another_that_could(view: &ClusterView, local: &LocalState) -> Option<MemberName> {
    let sync = view.sync.as_ref().map(|sync| &sync.value).filter(|sync| !sync.is_empty());
    let could = |name: &&MemberName| {
        let trusted = sync.is_none_or(|sync| sync.has_standby(name));
        **name != local.name && trusted && local.answered.contains(*name) && failover::unfit(view, name, false).is_none()
    };
    view.members.keys().find(could).cloned()
}

fn following(view: &ClusterView, local: &LocalState, leader: &Leader) -> Decision<Duty> {
    use Duty::*;
    let on = Decision::new;
    let theirs = || Reason::AnotherHoldsTheLease(leader.name.clone(), leader.term);
    let from = || Upstream::Member(leader.name.clone());
    // What a standby cluster has lost or has too much of is over there; a standby is no source for a rewind.
    let rewinds_from = || if view.is_standby_cluster() { Upstream::Remote } else { from() };
    let source = || Upstream::Member(source::of_clone(view, local, &leader.name));
    if local.reinit && view.members.contains_key(&leader.name) {
        return on(Clone { from: source() }, Reason::ReinitAsked);
    }
    if view.system_id().is_none() {
        return on(Rest, Reason::AnotherInitializes);
    }
    match (&local.data, &local.postgres) {
        (DataDir::Empty, _) => match view.members.get(&leader.name) {
            Some(entry) if entry.member.is_running() => on(Clone { from: source() }, Reason::Empty(leader.name.clone())),
            _ => on(Rest, Reason::LeaderHistoryUnknown(leader.name.clone())),
        },
        (DataDir::Incomplete { what }, _) => on(Clone { from: source() }, Reason::Incomplete { what: what.clone() }),
        (DataDir::Damaged { why }, Postgres::Stopped) if local.may_clone_over => {
            on(Clone { from: source() }, Reason::DataDamagedCloneAllowed(why.clone()))
        }
        (DataDir::Damaged { why }, Postgres::Stopped) => on(Rest, Reason::DataDamaged(why.clone())),
        (_, Postgres::Starting { .. }) => on(Rest, Reason::Starting),
        (_, Postgres::Silent) => on(Rest, Reason::Silent),
        (_, Postgres::Primary { .. }) => on(Demote, theirs()),
        (DataDir::Present(control), Postgres::Stopped) => match rejoin::of_stopped(view, &leader.name, control) {
            Rejoin::Follow if local.start_failed.is_some() => on(Rest, start_failed(local)),
            Rejoin::Follow => on(StartStandby { upstream: upstream::wanted(view, local, &leader.name) }, theirs()),
            Rejoin::Rewind(why) => rewind_or(view, local, rewinds_from(), source(), why),
            Rejoin::Wait(why) => on(Rest, why),
        },
        (_, Postgres::Standby { timeline, position, upstream: now, .. }) => {
            match rejoin::of_standby(view, &leader.name, *timeline, *position) {
                Rejoin::Rewind(why) => rewind_or(view, local, rewinds_from(), source(), why),
                Rejoin::Wait(why) => on(Rest, why),
                Rejoin::Follow => match upstream::wanted(view, local, &leader.name) {
                    Upstream::Member(wanted) => {
                        let address = view.members.get(&wanted).and_then(|entry| entry.member.address());
                        if address.is_none() || *now == address {
                            match rejoin::wal_gone(view, &wanted, local.wal_until) {
                                Some(oldest) => wal_gone(view, local, wanted, source(), oldest),
                                None => on(Rest, Reason::Follows(wanted)),
                            }
                        } else {
                            on(Follow { upstream: Upstream::Member(wanted) }, theirs())
                        }
                    }
                    Upstream::Remote | Upstream::Nobody if now.is_none() => on(Rest, Reason::FollowsArchive),
                    Upstream::Remote | Upstream::Nobody => on(Follow { upstream: Upstream::Nobody }, theirs()),
                },
            }
        }
    }
}

/// A standby that can't go on: its data is replaced where the configuration allows that. Not while the sync key trusts it: it may
/// be the only one with a commit that the leader acknowledged.
fn wal_gone(view: &ClusterView, local: &LocalState, from: MemberName, source: Upstream, oldest: Lsn) -> Decision<Duty> {
    let until = local.wal_until.unwrap_or_default();
    let trusted = view.sync.as_ref().is_some_and(|sync| sync.value.has_standby(&local.name));
    if local.may_clone_over && !trusted {
        return Decision::new(Duty::Clone { from: source }, Reason::WalGoneCloneAllowed { from, until, oldest });
    }
    Decision::new(Duty::Rest, Reason::WalGoneNeedsHand { from, until, oldest })
}
