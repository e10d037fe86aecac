//! The store as a process reaches it: requests that travel, to whichever member of etcd they reach.

use crate::time::{Part, Process};
use crate::world::{World, now};
use cluster::config::DynamicConfig;
use cluster::failover::FailoverRequest;
use cluster::failsafe::Members;
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::member::Member;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::standing::Guarded;
use cluster::standing::Judged;
use cluster::store::Making;
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, Status};
use dcs::memory::InMemory;
use dcs::remember::Remembered;
use dcs::{Dcs, FirstKeys, Grant, HandOver, KeepAlive, LeaderLook, LocalDcs, Result};
use std::rc::Rc;
use std::time::Duration;

/// The store as a process reaches it.
pub(crate) struct Store {
    pub world: Rc<World>,
    pub process: Process,
    /// By what views are judged.
    pub remembered: Rc<Remembered>,
}

impl Store {
    /// What etcd says, where it is believed.
    pub async fn view(&self) -> Result<ClusterView> {
        self.load_view().await
    }
}

/// Each verb as a message: what it says is copied, and read where it arrives.
macro_rules! travel {
    ($store:ident.$verb:ident($($given:ident),*; $($expression:expr),*)) => {{
        $(let $given = $given.clone();)*
        $store.world.ask($store.process, move |etcd: &InMemory| now(Dcs::$verb(etcd, $($expression),*))).await
    }};
}

impl LocalDcs for Store {
    async fn load_view(&self) -> Result<ClusterView> {
        let asked = self.remembered.memory();
        let view = travel!(self.load_view(;))?;
        let answer = self.remembered.believe(&asked, view);
        if let Ok(view) = &answer {
            self.world.believes(self.process.0, view);
        }
        answer
    }
    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        travel!(self.grant(; ttl))
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<KeepAlive> {
        travel!(self.keep_alive(; lease))
    }
    async fn look_at_leader(&self) -> Result<LeaderLook> {
        let asked = self.remembered.memory();
        Ok(Remembered::judge_look(&asked, travel!(self.look_at_leader(;))?))
    }
    async fn is_in_use(&self, lease: LeaseId) -> Result<bool> {
        travel!(self.is_in_use(; lease))
    }
    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        travel!(self.revoke(; lease))
    }
    async fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> Result<()> {
        travel!(self.write_member(name, member; &name, &member, lease, judged))
    }
    async fn take_leader(&self, name: &MemberName, lease: LeaseId, judged: &Judged) -> Result<Term> {
        self.world.takes(self.process.0);
        let asked = self.remembered.memory();
        Remembered::judge_term(&asked, travel!(self.take_leader(name, judged; &name, lease, &judged))?)
    }
    async fn hand_over(&self, hand_over: &HandOver) -> Result<Term> {
        travel!(self.hand_over(hand_over; &hand_over))
    }
    async fn release_leader(&self, leader: &Leader) -> Result<()> {
        travel!(self.release_leader(leader; &leader))
    }
    async fn note_term(&self, leader: &Leader, judged: i64) -> Result<()> {
        travel!(self.note_term(leader; &leader, judged))
    }
    async fn move_leader(&self, leader: &Leader, member: &Member, lease: LeaseId) -> Result<Term> {
        let asked = self.remembered.memory();
        Remembered::judge_term(&asked, travel!(self.move_leader(leader, member; &leader, &member, lease))?)
    }
    async fn announce(&self, name: &MemberName, word: &Announcement, lease: LeaseId) -> Result<()> {
        if let Some(server) = self.world.server(self.process.0).filter(|_| self.process.1 == Part::Worker) {
            self.world.announces(&server, word);
        }
        travel!(self.announce(name, word; &name, &word, lease))
    }
    async fn say(&self, name: &MemberName, word: &Guarded, lease: LeaseId) -> Result<()> {
        if let Some(server) = self.world.server(self.process.0).filter(|_| self.process.1 == Part::Worker) {
            self.world.announces(&server, &word.word);
        }
        travel!(self.say(name, word; &name, &word, lease))
    }
    async fn claim_initialize(&self, name: &MemberName, lease: LeaseId) -> Result<i64> {
        travel!(self.claim_initialize(name; &name, lease))
    }
    async fn unclaim_initialize(&self, claim: i64) -> Result<()> {
        travel!(self.unclaim_initialize(; claim))
    }
    async fn lead_first(&self, name: &MemberName, lease: LeaseId, claim: i64, first: &FirstKeys) -> Result<Term> {
        travel!(self.lead_first(name, first; &name, lease, claim, &first))
    }
    async fn found(&self, leader: &Leader, claim: i64, system_id: &SystemId) -> Result<()> {
        travel!(self.found(leader, system_id; &leader, claim, &system_id))
    }
    async fn write_initialize(&self, system_id: &SystemId, judged: i64, leader: &Leader) -> Result<()> {
        travel!(self.write_initialize(system_id, leader; &system_id, judged, &leader))
    }
    async fn write_store(&self, making: &Making, leader: &Leader) -> Result<()> {
        travel!(self.write_store(making, leader; &making, &leader))
    }
    async fn write_config(&self, config: &DynamicConfig, judged: i64) -> Result<i64> {
        travel!(self.write_config(config; &config, judged))
    }
    async fn write_sync(&self, sync: &SyncState, judged: i64, leader: &Leader) -> Result<i64> {
        travel!(self.write_sync(sync, leader; &sync, judged, &leader))
    }
    async fn write_history(&self, history: &History, judged: i64, leader: &Leader) -> Result<()> {
        travel!(self.write_history(history, leader; &history, judged, &leader))
    }
    async fn claim_timeline(&self, timeline: Timeline, judged: i64, leader: &Leader) -> Result<()> {
        travel!(self.claim_timeline(leader; timeline, judged, &leader))
    }
    async fn write_failsafe(&self, members: &Members, judged: i64, leader: &Leader) -> Result<()> {
        travel!(self.write_failsafe(members, leader; &members, judged, &leader))
    }
    async fn write_status(&self, status: &Status, leader: &Leader) -> Result<()> {
        travel!(self.write_status(status, leader; &status, &leader))
    }
    async fn write_failover(&self, request: &FailoverRequest, judged: i64) -> Result<i64> {
        travel!(self.write_failover(request; &request, judged))
    }
}
