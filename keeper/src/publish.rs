//! What the worker says of its node in etcd: the member key and `status`.

use crate::{Host, OwnServer, Worker};
use cluster::config::DynamicConfig;
use cluster::leader::LeaseId;
use cluster::member::{Member, MemberRole, MemberState, TenureFacts};
use cluster::mixed;
use cluster::reached::{End, Reached};
use cluster::roster::Roster;
use cluster::slots::SlotFacts;
use cluster::time::Moment;
use cluster::view::{ClusterView, Status};
use dcs::{Error, LocalDcs};
use std::ops::Deref;
use std::time::Duration;

/// Positions move all the time; anything else in the key is news.
fn without_positions(member: &Member) -> Member {
    Member { xlog_location: None, replay_lsn: None, receive_lsn: None, ..member.clone() }
}

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// The part of the member key that the arbiter configures.
    pub(crate) fn configured(&self) -> Member {
        let (member, fault) = self.host.configured();
        if let Some(fault) = fault {
            self.tell("settings", &fault);
        }
        member
    }

    /// The whole member key as of now.
    pub(crate) fn compose(&self, server: OwnServer) -> Member {
        let mut member = self.configured();
        member.state = MemberState::Running;
        member.timeline = Some(server.timeline());
        member.xlog_location = Some(server.position());
        match server {
            OwnServer::Primary { timeline, .. } => {
                member.role = MemberRole::Primary;
                let pending = timeline.0 > 1 && self.host.checkpointed_timeline().is_some_and(|done| done < timeline);
                member.checkpoint_after_promote = pending.then_some(false);
            }
            OwnServer::Standby { received, replayed, streaming, .. } => {
                member.role = if self.leads_standby_cluster() { MemberRole::StandbyLeader } else { MemberRole::Replica };
                member.receive_lsn = received.is_valid().then_some(received);
                member.replay_lsn = Some(replayed);
                member.replication_state = Some(if streaming { "streaming" } else { "in archive recovery" }.to_owned());
            }
        }
        member.tenure = Some(TenureFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            speech: Some(cluster::speech::OURS),
            instance: self.instance.clone(),
            arbiter: self.host.arbiter_attends(self.clock(), self.patience_with_arbiter()),
            ..TenureFacts::default()
        });
        if let (Some(facts), Some(remembered)) = (&mut member.tenure, self.host.remembered()) {
            (facts.doubt, facts.memory) = remembered.word();
        }
        self.host.describe(&mut member);
        if self.last_view(|view| mixed::is_no_voter(view, &self.name)) == Some(true) {
            member.tags.0.insert("nosync".to_owned(), true.into());
        }
        member
    }

    /// An arbiter looks after its server at least every `loop_wait`. One that has not for two TTLs more is frozen, though its session may live; on a
    /// machine that is busy a look may take seconds, and nobody is to lose its arbiter for that.
    pub(crate) fn patience_with_arbiter(&self) -> Duration {
        let timing = self.last_view(|view| view.config().timing()).unwrap_or_else(|| DynamicConfig::default().timing());
        (timing.ttl * 2 + timing.loop_wait).max(Duration::from_secs(10))
    }

    fn leads_standby_cluster(&self) -> bool {
        self.last_view(|view| view.leader_if(&self.name).is_some() && view.is_standby_cluster()) == Some(true)
    }

    /// Writes the member key: at once when it says something new, positions at most once per loop_wait.
    pub(crate) async fn publish_member(&self, view: &ClusterView, server: OwnServer, now: Moment) {
        let Some(held) = self.held.get() else { return };
        let member = self.compose(server);
        let entry = view.members.get(&self.name);
        let loop_wait = view.config().timing().loop_wait;
        let due = match (&*self.published.borrow(), entry) {
            // The arbiter wrote it, or it was deleted, or the lease is another: ours is to be put back.
            (_, None) => true,
            (_, Some(entry)) if entry.lease != held.grant.lease => entry.lease == LeaseId::NONE || entry.member.conn_url == member.conn_url,
            (_, Some(entry)) if without_positions(&entry.member) != without_positions(&member) => true,
            (None, _) => true,
            (Some((published, _, at)), _) => *published != member && now.since(*at) >= loop_wait,
        };
        if !due {
            return;
        }
        match self.store.write_member(&self.name, &member, held.grant.lease, None).await {
            Ok(()) => *self.published.borrow_mut() = Some((member, held.grant.lease, now)),
            Err(Error::LeaseGone) => self.host.want_lease(),
            Err(why) => self.tell("member", &format!("member key not written: {why}")),
        }
    }

    /// The leader says how far it is (what `maximum_lag_on_failover` is measured against), and its slots: their positions as the
    /// arbiter has handed them over, and those that are kept for members which are away.
    pub(crate) async fn publish_status(&self, view: &ClusterView, server: OwnServer, now: Moment) {
        let (flushed, confirmed) = match server {
            OwnServer::Primary { flushed, confirmed, .. } => (flushed, confirmed),
            OwnServer::Standby { .. } if view.is_standby_cluster() => (server.position(), None),
            OwnServer::Standby { .. } => return,
        };
        let Some(leader) = view.leader_if(&self.name) else { return };
        let before = view.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
        // One that has just gone was trusted until now: what was confirmed with its help is written down before another comes under its name.
        let roster = Roster::of(Some(&before));
        let gone = roster.0.iter().any(|(name, since)| since.is_none() && !view.members.keys().any(|member| member.as_str() == name));
        // A copy waits until it is said that WAL is kept for it.
        let said = self.host.slots().filter(|said| said.facts.term == leader.term.0);
        let reserved = said.as_ref().is_some_and(|said| said.facts.reserved != SlotFacts::of(Some(&before)).reserved);
        let due = gone || reserved || self.status_written.get().is_none_or(|at| now.since(at) >= view.config().timing().loop_wait);
        if !due {
            return;
        }
        let mut wanted = Status { optime: flushed, ..before.clone() };
        let members = cluster::slots::of_members(view);
        wanted.retain_slots = self.retention.borrow_mut().kept(members, &before.retain_slots, view.config().member_slots_ttl(), now);
        // A permanent slot is kept for its own sake.
        let permanent = cluster::slots::permanent(view.config());
        wanted.retain_slots.retain(|slot| !permanent.contains_key(slot));
        // What was handed over in another term was handed over to another publication.
        if let Some(said) = said {
            wanted.slots = said.slots;
            if let Ok(facts) = serde_json::to_value(&said.facts) {
                wanted.other.insert("tenure".to_owned(), facts);
            }
        }
        let clock = self.host.wall_clock();
        let age = |since: &str| Some(Duration::try_from(clock.duration_since(since.parse().ok()?)).unwrap_or_default());
        let today = clock.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        roster.kept(view, view.config().missed_member_ttl(), &today, age).put_into(&mut wanted);
        let mine = End { timeline: server.timeline(), lsn: flushed };
        Reached::of(Some(&before)).kept(view, &self.name, mine, confirmed).put_into(&mut wanted);
        if wanted == before {
            return;
        }
        if self.store.write_status(&wanted, leader).await.is_ok() {
            self.status_written.set(Some(now));
        }
    }
}
