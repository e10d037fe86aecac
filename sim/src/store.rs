//! The store as a process reaches it for its lease: requests that travel, to whichever member of etcd they reach.

use crate::time::Process;
use crate::worker::now;
use crate::world::World;
use cluster::leader::LeaseId;
use cluster::member::Member;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use dcs::lease::Leases;
use dcs::memory::Memory;
use dcs::{Dcs, Grant, KeepAlive, LeaderLook};
use std::rc::Rc;
use std::time::Duration;

/// The store as a process reaches it: requests that travel.
pub(crate) struct Store {
    pub world: Rc<World>,
    pub process: Process,
}

impl Leases for Store {
    async fn load_view(&self) -> dcs::Result<ClusterView> {
        self.world.ask(self.process, |etcd: &Memory| now(Dcs::load_view(etcd))).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> dcs::Result<KeepAlive> {
        self.world.ask(self.process, move |etcd: &Memory| now(Dcs::keep_alive(etcd, lease))).await
    }
    async fn look_at_leader(&self) -> dcs::Result<LeaderLook> {
        self.world.ask(self.process, |etcd: &Memory| now(Dcs::look_at_leader(etcd))).await
    }
    async fn is_in_use(&self, lease: LeaseId) -> dcs::Result<bool> {
        self.world.ask(self.process, move |etcd: &Memory| now(Dcs::is_in_use(etcd, lease))).await
    }
    async fn grant(&self, ttl: Duration) -> dcs::Result<Grant> {
        self.world.ask(self.process, move |etcd: &Memory| now(Dcs::grant(etcd, ttl))).await
    }
    async fn revoke(&self, lease: LeaseId) -> dcs::Result<()> {
        self.world.ask(self.process, move |etcd: &Memory| now(Dcs::revoke(etcd, lease))).await
    }
    async fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> dcs::Result<()> {
        let (name, member) = (name.clone(), member.clone());
        self.world.ask(self.process, move |etcd: &Memory| now(Dcs::write_member(etcd, &name, &member, lease, judged))).await
    }
}
