//! The verbs over etcd: what each reads, and by which guarded write it changes the cluster.

use super::{Etcd, on, standing, unchanged};
use crate::codec::to_bytes;
use crate::error::Error;
use crate::key::Known;
use crate::remember::Remembered;
use crate::verbs::{Dcs, FirstKeys, Grant, HandOver, KeepAlive, LeaderLook, Result};
use cluster::config::DynamicConfig;
use cluster::failover::FailoverRequest;
use cluster::failsafe::Members;
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::member::Member;
use cluster::mixed;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::standing::Guarded;
use cluster::standing::Judged;
use cluster::store::Making;
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, Status};
use etcd_client::{Client, Compare, CompareOp, GetResponse, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use std::time::Duration;

impl Dcs for Etcd {
    async fn load_view(&self) -> Result<ClusterView> {
        let Some(remembered) = &self.remembered else { return self.look().await };
        let asked = remembered.memory();
        remembered.believe(&asked, self.look().await?)
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let answer = self.call(|mut client| async move { client.lease_grant(seconds, None).await }).await?;
        let granted = u64::try_from(answer.ttl()).unwrap_or(0);
        Ok(Grant { lease: LeaseId(answer.id()), ttl: Duration::from_secs(granted) })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<KeepAlive> {
        let ask = |mut client: Client| async move {
            // The library keeps the first answer's header to itself, so it is asked once more on the same stream. The stream
            // ends with this call: no late answer can be taken for that to a later question.
            let (mut keeper, mut answers) = client.lease_keep_alive(lease.0).await?;
            keeper.keep_alive().await?;
            answers.message().await?.ok_or_else(|| etcd_client::Error::LeaseKeepAliveError("the stream has ended".to_owned()))
        };
        let answer = self.call(ask).await?;
        match u64::try_from(answer.ttl()) {
            Ok(ttl) if ttl > 0 => Ok(KeepAlive { grant: Grant { lease, ttl: Duration::from_secs(ttl) }, at: standing(answer.header())? }),
            _ => Err(Error::LeaseGone),
        }
    }

    async fn look_at_leader(&self) -> Result<LeaderLook> {
        let asked = self.memory();
        let key = self.keys.leader();
        let key = key.as_str();
        let answer = self.call(|mut client: Client| async move { client.get(key, None).await }).await?;
        let leader = answer.kvs().first().and_then(|kv| {
            let name = MemberName::new(kv.value_str().ok()?).ok()?;
            Some(Leader { name, lease: LeaseId(kv.lease()), term: Term(kv.mod_revision()) })
        });
        Ok(Remembered::judge_look(&asked, LeaderLook { leader, at: standing(answer.header())?, doubt: None }))
    }

    async fn is_in_use(&self, lease: LeaseId) -> Result<bool> {
        match self.read_all(|_, _, raws| raws.filter(|raw| raw.lease == lease.0).count() > 0).await {
            Err(Error::TooMuch(_)) => {
                let found = self.read_one_by_one(&self.lists(), self.keys.singles(), |key| self.keys.know(key) != Known::Other).await?;
                Ok(found.answers.iter().flat_map(GetResponse::kvs).any(|pair| pair.lease() == lease.0))
            }
            read => read,
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.call(|mut client| async move { client.lease_revoke(lease.0).await.map(drop) }).await
    }

    async fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> Result<()> {
        let key = self.keys.member(name);
        let guard = judged.map(|revision| unchanged(key.clone(), revision)).into_iter().collect();
        self.guarded("the member key", guard, vec![TxnOp::put(key, to_bytes(member), on(lease))]).await.map(drop)
    }

    async fn take_leader(&self, name: &MemberName, lease: LeaseId, judged: &Judged) -> Result<Term> {
        let asked = self.memory();
        let mut when = vec![
            // Of a leader that is deposed the term is the revision of its key.
            unchanged(self.keys.leader(), if judged.deposes { judged.after.0 } else { 0 }),
            unchanged(self.keys.last_term(), judged.after.0),
            unchanged(self.keys.sync(), judged.sync),
            unchanged(self.keys.config(), judged.config),
            unchanged(self.keys.failover(), judged.failover),
        ];
        when.extend(judged.announcements.iter().map(|(name, revision)| unchanged(self.keys.announcement(name), *revision)));
        let mut then = vec![self.put_leader(name, lease), self.last_term(name, if judged.deposes { "deposed" } else { "taken" })];
        if let Some(sync) = &judged.sync_becomes {
            then.push(TxnOp::put(self.keys.sync(), to_bytes(sync), None));
        }
        if judged.failover != 0 {
            then.push(TxnOp::put(self.keys.failover(), "{}", None));
        }
        Remembered::judge_term(&asked, self.guarded("what the race was judged by", when, then).await.map(Term)?)
    }

    async fn hand_over(&self, hand_over: &HandOver) -> Result<Term> {
        let HandOver { from, to, to_lease, sync, failover, status } = hand_over;
        let mut when = vec![self.is_leader(from)];
        let mut then = vec![self.put_leader(to, *to_lease), self.last_term(to, "handed over")];
        if let Some((state, judged)) = sync {
            when.push(unchanged(self.keys.sync(), *judged));
            then.push(TxnOp::put(self.keys.sync(), to_bytes(state), None));
        }
        if let Some(judged) = failover {
            when.push(unchanged(self.keys.failover(), *judged));
            then.push(TxnOp::put(self.keys.failover(), "{}", None));
        }
        if let Some(status) = status {
            then.push(TxnOp::put(self.keys.status(), to_bytes(status), None));
        }
        self.guarded("the leader key", when, then).await.map(Term)
    }

    async fn release_leader(&self, leader: &Leader) -> Result<()> {
        self.guarded("the leader key", vec![self.is_leader(leader)], vec![TxnOp::delete(self.keys.leader(), None)]).await.map(drop)
    }

    async fn note_term(&self, leader: &Leader, judged: i64) -> Result<()> {
        let when = vec![self.is_leader(leader), unchanged(self.keys.last_term(), judged)];
        self.guarded("the leader key", when, vec![self.last_term(&leader.name, mixed::BY_PATRONI)]).await.map(drop)
    }

    async fn move_leader(&self, leader: &Leader, member: &Member, lease: LeaseId) -> Result<Term> {
        let asked = self.memory();
        let then = vec![
            self.put_leader(&leader.name, lease),
            self.last_term(&leader.name, "moved to another lease"),
            TxnOp::put(self.keys.member(&leader.name), to_bytes(member), on(lease)),
        ];
        Remembered::judge_term(&asked, self.guarded("the leader key", vec![self.is_leader(leader)], then).await.map(Term)?)
    }

    async fn announce(&self, name: &MemberName, word: &Announcement, lease: LeaseId) -> Result<()> {
        let when = vec![unchanged(self.keys.last_term(), word.after.0)];
        self.guarded("the vacancy", when, vec![TxnOp::put(self.keys.announcement(name), to_bytes(word), on(lease))]).await.map(drop)
    }

    async fn say(&self, name: &MemberName, said: &Guarded, lease: LeaseId) -> Result<()> {
        let key = self.keys.announcement(name);
        let when = vec![unchanged(self.keys.leader(), said.leader.0), unchanged(key.clone(), said.mine)];
        self.guarded("the leader or this node's own word", when, vec![TxnOp::put(key, to_bytes(&said.word), on(lease))]).await.map(drop)
    }

    async fn claim_initialize(&self, _name: &MemberName, lease: LeaseId) -> Result<i64> {
        let key = self.keys.initialize();
        let answer: TxnResponse = self
            .call(|mut client| {
                let absent = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
                let claim = TxnOp::put(key.clone(), "", on(lease));
                let txn = Txn::new().when(vec![absent]).and_then(vec![claim]).or_else(vec![TxnOp::get(key.clone(), None)]);
                async move { client.txn(txn).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        }
        let own = |found: &KeyValue| (found.value().is_empty() && found.lease() == lease.0).then(|| found.mod_revision());
        let found = answer.op_responses().into_iter().find_map(|found| match found {
            TxnOpResponse::Get(found) => found.kvs().first().and_then(own),
            _ => None,
        });
        found.ok_or(Error::Lost("the initialize key"))
    }

    async fn unclaim_initialize(&self, claim: i64) -> Result<()> {
        let when = vec![unchanged(self.keys.initialize(), claim)];
        self.guarded("the initialize key", when, vec![TxnOp::delete(self.keys.initialize(), None)]).await.map(drop)
    }

    async fn lead_first(&self, name: &MemberName, lease: LeaseId, claim: i64, first: &FirstKeys) -> Result<Term> {
        let when = vec![unchanged(self.keys.initialize(), claim), Compare::create_revision(self.keys.leader(), CompareOp::Equal, 0)];
        let mut then = vec![
            TxnOp::put(self.keys.config(), to_bytes(&first.config), None),
            TxnOp::put(self.keys.store(), to_bytes(&first.making), None),
            self.put_leader(name, lease),
            self.last_term(name, "bootstrapped"),
        ];
        then.extend(first.sync.iter().map(|sync| TxnOp::put(self.keys.sync(), to_bytes(sync), None)));
        then.extend(first.timeline.iter().map(|timeline| TxnOp::put(self.keys.claimed_timeline(), to_bytes(timeline), None)));
        self.guarded("the initialize key", when, then).await.map(Term)
    }

    async fn found(&self, leader: &Leader, claim: i64, system_id: &SystemId) -> Result<()> {
        let when = vec![unchanged(self.keys.initialize(), claim), self.is_leader(leader)];
        self.guarded("the initialize key", when, vec![TxnOp::put(self.keys.initialize(), system_id.0.as_str(), None)]).await.map(drop)
    }

    async fn write_initialize(&self, system_id: &SystemId, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![unchanged(self.keys.initialize(), judged), self.is_leader(leader)];
        self.guarded("the initialize key", when, vec![TxnOp::put(self.keys.initialize(), system_id.0.as_str(), None)]).await.map(drop)
    }

    async fn write_store(&self, making: &Making, leader: &Leader) -> Result<()> {
        let when = vec![unchanged(self.keys.store(), 0), self.is_leader(leader)];
        self.guarded("the store key", when, vec![TxnOp::put(self.keys.store(), to_bytes(making), None)]).await.map(drop)
    }

    async fn write_config(&self, config: &DynamicConfig, judged: i64) -> Result<i64> {
        let put = TxnOp::put(self.keys.config(), to_bytes(&config.0), None);
        self.guarded("the configuration", vec![unchanged(self.keys.config(), judged)], vec![put]).await
    }

    async fn write_sync(&self, sync: &SyncState, judged: i64, leader: &Leader) -> Result<i64> {
        let when = vec![unchanged(self.keys.sync(), judged), self.is_leader(leader)];
        self.guarded("the sync key", when, vec![TxnOp::put(self.keys.sync(), to_bytes(sync), None)]).await
    }

    async fn write_history(&self, history: &History, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![unchanged(self.keys.history(), judged), self.is_leader(leader)];
        self.guarded("the history", when, vec![TxnOp::put(self.keys.history(), to_bytes(&history.to_json()), None)]).await.map(drop)
    }

    async fn claim_timeline(&self, timeline: Timeline, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![unchanged(self.keys.claimed_timeline(), judged), self.is_leader(leader)];
        let put = TxnOp::put(self.keys.claimed_timeline(), to_bytes(&timeline), None);
        self.guarded("the claimed timeline", when, vec![put]).await.map(drop)
    }

    async fn write_failsafe(&self, members: &Members, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![unchanged(self.keys.failsafe(), judged), self.is_leader(leader)];
        self.guarded("the failsafe key", when, vec![TxnOp::put(self.keys.failsafe(), to_bytes(members), None)]).await.map(drop)
    }

    async fn write_status(&self, status: &Status, leader: &Leader) -> Result<()> {
        let put = TxnOp::put(self.keys.status(), to_bytes(status), None);
        self.guarded("the leader key", vec![self.is_leader(leader)], vec![put]).await.map(drop)
    }

    async fn write_failover(&self, request: &FailoverRequest, judged: i64) -> Result<i64> {
        let when = vec![unchanged(self.keys.failover(), judged)];
        self.guarded("the failover key", when, vec![TxnOp::put(self.keys.failover(), to_bytes(request), None)]).await
    }
}
