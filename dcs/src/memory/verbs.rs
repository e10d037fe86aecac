//! The verbs over the map: the same guards as `etcd/verbs.rs` writes.

use super::{CLUSTER, Guard, InMemory, LEAST_TTL, Lease, Write, put};
use crate::codec::{self, Raw, to_bytes};
use crate::error::Error;
use crate::remember::Remembered;
use crate::verbs::{Dcs, FirstKeys, Grant, HandOver, KeepAlive, LeaderLook, Result};
use cluster::config::DynamicConfig;
use cluster::failover::FailoverRequest;
use cluster::failsafe::Members;
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease::Standing;
use cluster::member::Member;
use cluster::mixed;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::standing::Guarded;
use cluster::standing::Judged;
use cluster::store::Making;
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, Status};
use std::time::Duration;

impl Dcs for InMemory {
    async fn load_view(&self) -> Result<ClusterView> {
        let asked = self.memory();
        let view = self.call(|state| {
            let raws =
                state.keys.iter().map(|(key, stored)| Raw { key, value: &stored.value, revision: stored.modified, lease: stored.lease });
            Ok(ClusterView { etcd: CLUSTER, ..codec::view(&self.keys, state.revision, raws) })
        })?;
        match &self.remembered {
            Some(remembered) => remembered.believe(&asked, view),
            None => Ok(view),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        self.call(|state| {
            let ttl = Duration::from_secs(ttl.as_secs()).max(LEAST_TTL);
            state.next_lease += 1;
            let (id, until) = (state.next_lease, state.now + ttl);
            state.leases.insert(id, Lease { ttl, until });
            Ok(Grant { lease: LeaseId(id), ttl })
        })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<KeepAlive> {
        let state = self.state();
        if state.asks_deposed {
            let (raft_term, revision, leases) = state.deposed.as_ref().ok_or(Error::Unreachable("no leader".to_owned()))?;
            // It knows no lease as gone that it let go by its own count: its word for that needs a majority.
            let known = leases.get(&lease.0).ok_or(Error::LeaseGone)?;
            let at = Standing { cluster: CLUSTER, raft_term: *raft_term, revision: *revision };
            return Ok(KeepAlive { grant: Grant { lease, ttl: known.ttl }, at });
        }
        drop(state);
        self.call(|state| {
            let now = state.now;
            // A lease whose time is up but that no scan has found is not renewed, as in etcd.
            let found = state.leases.get_mut(&lease.0).filter(|found| found.until > now).ok_or(Error::LeaseGone)?;
            found.until = now + found.ttl;
            let ttl = found.ttl;
            Ok(KeepAlive { grant: Grant { lease, ttl }, at: state.standing() })
        })
    }

    async fn look_at_leader(&self) -> Result<LeaderLook> {
        let asked = self.memory();
        let key = self.keys.leader();
        let look = self.call(|state| {
            let leader = state.keys.get(&key).and_then(|stored| {
                let name = MemberName::new(std::str::from_utf8(&stored.value).ok()?).ok()?;
                Some(Leader { name, lease: LeaseId(stored.lease), term: Term(stored.modified) })
            });
            Ok(LeaderLook { leader, at: state.standing(), doubt: None })
        });
        Ok(Remembered::judge_look(&asked, look?))
    }

    async fn is_in_use(&self, lease: LeaseId) -> Result<bool> {
        self.call(|state| Ok(state.keys.values().any(|stored| stored.lease == lease.0)))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.call(|state| {
            if !state.leases.contains_key(&lease.0) {
                return Err(Error::LeaseGone);
            }
            state.drop_lease(lease.0);
            Ok(())
        })
    }

    async fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> Result<()> {
        let key = self.keys.member(name);
        let guard = judged.map(|revision| Guard::Modified(key.clone(), revision)).into_iter().collect();
        self.guarded("the member key", guard, || vec![Write::Put(key.clone(), to_bytes(member), lease)]).map(drop)
    }

    async fn take_leader(&self, name: &MemberName, lease: LeaseId, judged: &Judged) -> Result<Term> {
        let asked = self.memory();
        let mut when = vec![
            Guard::Modified(self.keys.leader(), if judged.deposes { judged.after.0 } else { 0 }),
            Guard::Modified(self.keys.last_term(), judged.after.0),
            Guard::Modified(self.keys.sync(), judged.sync),
            Guard::Modified(self.keys.config(), judged.config),
            Guard::Modified(self.keys.failover(), judged.failover),
        ];
        when.extend(judged.announcements.iter().map(|(name, revision)| Guard::Modified(self.keys.announcement(name), *revision)));
        let then = || {
            let mut then = vec![self.put_leader(name, lease), self.last_term(name, if judged.deposes { "deposed" } else { "taken" })];
            if let Some(sync) = &judged.sync_becomes {
                then.push(put(self.keys.sync(), to_bytes(sync)));
            }
            if judged.failover != 0 {
                then.push(put(self.keys.failover(), b"{}".to_vec()));
            }
            then
        };
        Remembered::judge_term(&asked, self.guarded("what the race was judged by", when, then).map(Term)?)
    }

    async fn hand_over(&self, hand_over: &HandOver) -> Result<Term> {
        let HandOver { from, to, to_lease, sync, failover, status } = hand_over;
        let mut when = vec![self.is_leader(from)];
        when.extend(sync.iter().map(|(_, judged)| Guard::Modified(self.keys.sync(), *judged)));
        when.extend(failover.iter().map(|judged| Guard::Modified(self.keys.failover(), *judged)));
        let then = || {
            let mut then = vec![self.put_leader(to, *to_lease), self.last_term(to, "handed over")];
            then.extend(sync.iter().map(|(state, _)| put(self.keys.sync(), to_bytes(state))));
            then.extend(failover.iter().map(|_| put(self.keys.failover(), b"{}".to_vec())));
            then.extend(status.iter().map(|status| put(self.keys.status(), to_bytes(status))));
            then
        };
        self.guarded("the leader key", when, then).map(Term)
    }

    async fn release_leader(&self, leader: &Leader) -> Result<()> {
        self.guarded("the leader key", vec![self.is_leader(leader)], || vec![Write::Delete(self.keys.leader())]).map(drop)
    }

    async fn note_term(&self, leader: &Leader, judged: i64) -> Result<()> {
        let when = vec![self.is_leader(leader), Guard::Modified(self.keys.last_term(), judged)];
        self.guarded("the leader key", when, || vec![self.last_term(&leader.name, mixed::BY_PATRONI)]).map(drop)
    }

    async fn move_leader(&self, leader: &Leader, member: &Member, lease: LeaseId) -> Result<Term> {
        let asked = self.memory();
        let then = || {
            vec![
                self.put_leader(&leader.name, lease),
                self.last_term(&leader.name, "moved to another lease"),
                Write::Put(self.keys.member(&leader.name), to_bytes(member), lease),
            ]
        };
        Remembered::judge_term(&asked, self.guarded("the leader key", vec![self.is_leader(leader)], then).map(Term)?)
    }

    async fn announce(&self, name: &MemberName, word: &Announcement, lease: LeaseId) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.last_term(), word.after.0)];
        self.guarded("the vacancy", when, || vec![Write::Put(self.keys.announcement(name), to_bytes(word), lease)]).map(drop)
    }

    async fn say(&self, name: &MemberName, said: &Guarded, lease: LeaseId) -> Result<()> {
        let key = self.keys.announcement(name);
        let when = vec![Guard::Modified(self.keys.leader(), said.leader.0), Guard::Modified(key.clone(), said.mine)];
        self.guarded("the leader or this node's own word", when, || vec![Write::Put(key.clone(), to_bytes(&said.word), lease)]).map(drop)
    }

    async fn claim_initialize(&self, _name: &MemberName, lease: LeaseId) -> Result<i64> {
        let key = self.keys.initialize();
        self.call(|state| {
            let own = state.keys.get(&key).filter(|found| found.value.is_empty() && found.lease == lease.0);
            if let Some(claim) = own.map(|found| found.modified) {
                return Ok(claim);
            }
            let claim = vec![Write::Put(key.clone(), Vec::new(), lease)];
            state.commit(&[Guard::Absent(key.clone())], claim)?.ok_or(Error::Lost("the initialize key"))
        })
    }

    async fn unclaim_initialize(&self, claim: i64) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.initialize(), claim)];
        self.guarded("the initialize key", when, || vec![Write::Delete(self.keys.initialize())]).map(drop)
    }

    async fn lead_first(&self, name: &MemberName, lease: LeaseId, claim: i64, first: &FirstKeys) -> Result<Term> {
        let when = vec![Guard::Modified(self.keys.initialize(), claim), Guard::Absent(self.keys.leader())];
        let then = || {
            let mut then = vec![
                put(self.keys.config(), to_bytes(&first.config)),
                put(self.keys.store(), to_bytes(&first.making)),
                self.put_leader(name, lease),
                self.last_term(name, "bootstrapped"),
            ];
            then.extend(first.sync.iter().map(|sync| put(self.keys.sync(), to_bytes(sync))));
            then.extend(first.timeline.iter().map(|timeline| put(self.keys.claimed_timeline(), to_bytes(timeline))));
            then
        };
        self.guarded("the initialize key", when, then).map(Term)
    }

    async fn found(&self, leader: &Leader, claim: i64, system_id: &SystemId) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.initialize(), claim), self.is_leader(leader)];
        self.guarded("the initialize key", when, || vec![put(self.keys.initialize(), system_id.0.as_str().into())]).map(drop)
    }

    async fn write_initialize(&self, system_id: &SystemId, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.initialize(), judged), self.is_leader(leader)];
        self.guarded("the initialize key", when, || vec![put(self.keys.initialize(), system_id.0.as_str().into())]).map(drop)
    }

    async fn write_store(&self, making: &Making, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Absent(self.keys.store()), self.is_leader(leader)];
        self.guarded("the store key", when, || vec![put(self.keys.store(), to_bytes(making))]).map(drop)
    }

    async fn write_config(&self, config: &DynamicConfig, judged: i64) -> Result<i64> {
        let when = vec![Guard::Modified(self.keys.config(), judged)];
        self.guarded("the configuration", when, || vec![put(self.keys.config(), to_bytes(&config.0))])
    }

    async fn write_sync(&self, sync: &SyncState, judged: i64, leader: &Leader) -> Result<i64> {
        let when = vec![Guard::Modified(self.keys.sync(), judged), self.is_leader(leader)];
        self.guarded("the sync key", when, || vec![put(self.keys.sync(), to_bytes(sync))])
    }

    async fn write_history(&self, history: &History, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.history(), judged), self.is_leader(leader)];
        self.guarded("the history", when, || vec![put(self.keys.history(), to_bytes(&history.to_json()))]).map(drop)
    }

    async fn claim_timeline(&self, timeline: Timeline, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.claimed_timeline(), judged), self.is_leader(leader)];
        self.guarded("the claimed timeline", when, || vec![put(self.keys.claimed_timeline(), to_bytes(&timeline))]).map(drop)
    }

    async fn write_failsafe(&self, members: &Members, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.failsafe(), judged), self.is_leader(leader)];
        self.guarded("the failsafe key", when, || vec![put(self.keys.failsafe(), to_bytes(members))]).map(drop)
    }

    async fn write_status(&self, status: &Status, leader: &Leader) -> Result<()> {
        let when = vec![self.is_leader(leader)];
        self.guarded("the leader key", when, || vec![put(self.keys.status(), to_bytes(status))]).map(drop)
    }

    async fn write_failover(&self, request: &FailoverRequest, judged: i64) -> Result<i64> {
        let when = vec![Guard::Modified(self.keys.failover(), judged)];
        self.guarded("the failover key", when, || vec![put(self.keys.failover(), to_bytes(request))])
    }
}
