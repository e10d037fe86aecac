//! Founding, and etcd that forgot, as `arbiter/src/{node/memory,duties/found}.rs` have it: what lies with the data, and founding the cluster again.

use super::Arbiter;
use crate::server::Recovery;
use crate::wal::{Data, Disk};
use crate::worker::configuration;
use crate::world::{MS, now, system};
use anyhow::{Result, bail};
use cluster::config::SynchronousMode;
use cluster::leader::{Leader, LeaseId};
use cluster::local::Postgres;
use cluster::member::{MemberRole, MemberState};
use cluster::store::{self, Making};
use cluster::sync::SyncState;
use cluster::view::{ClusterView, Versioned};
use dcs::{Dcs, FirstKeys};
use std::time::Duration;
use steward::{Done, Host, Server, founding};

/// How long a lease may take to come, and the server to serve.
const PATIENCE: Duration = Duration::from_secs(5);

impl Arbiter {
    /// What is remembered is written down before anything follows from it.
    pub(super) fn keep_memory(&self) {
        let keys = self.world.etcd.keys().prefix();
        if let Some(text) = self.remembered.news(keys) {
            *self.world.nodes[self.at].kept.borrow_mut() = Some(text);
        }
    }

    /// An emptied etcd as it is judged: with the configuration that was last known.
    pub(super) fn emptied(&self, view: &ClusterView) -> ClusterView {
        let known = self.remembered.memory().config;
        ClusterView { config: known.map(|config| Versioned { revision: 0, ..config }), ..view.clone() }
    }

    pub(super) fn fence_is_open(&self) -> bool {
        let Some(server) = self.world.serving(self.at) else { return false };
        cluster::fence::may_acknowledge(server.page.fence(), self.clock())
    }

    /// The claim, the first leader, the server; only then does the cluster exist for the others.
    pub(super) async fn found_it(&self) -> Result<Done> {
        self.speak(MemberState::InitializingNewCluster, MemberRole::Uninitialized);
        let Some((claim, lease)) = founding::claim(self, || self.lease_in_time()).await? else { return Ok(Done::LookAgain) };
        let fresh = self.is_fresh();
        let made = self.make(claim, lease, fresh).await;
        if made.is_err() && fresh {
            self.speak(MemberState::from("initdb failed".to_owned()), MemberRole::Uninitialized);
            self.world.server_dies(self.at);
            *self.world.nodes[self.at].data.borrow_mut() = Data::Empty;
        }
        if made.is_err() {
            let _ = founding::give_back(self, claim).await;
        }
        made
    }

    /// There is no data, or what a founding left that did not come to its end.
    fn is_fresh(&self) -> bool {
        self.world.nodes[self.at].data.borrow().disk().is_none_or(|disk| disk.founding)
    }

    async fn lease_in_time(&self) -> Result<LeaseId> {
        let until = self.world.now() + PATIENCE;
        while self.world.now() <= until {
            if let Some(lease) = self.lease.lease() {
                return Ok(lease);
            }
            self.world.time.sleep(20 * MS).await;
        }
        bail!("no lease could be had from etcd")
    }

    /// As `initdb`: a database system of its own.
    async fn init(&self) {
        self.world.server_dies(self.at);
        *self.world.nodes[self.at].data.borrow_mut() = Data::Empty;
        self.world.time.sleep(self.world.apart.mostly(50 * MS, 3000 * MS)).await;
        *self.world.nodes[self.at].data.borrow_mut() = Data::Present(Disk { founding: true, ..self.world.first_disk() });
    }

    async fn make(&self, claim: i64, lease: LeaseId, fresh: bool) -> Result<Done> {
        let memory = self.remembered.memory();
        let before = memory.system_id.is_some() && !fresh;
        let generation = if before { memory.next_generation() } else { 1 };
        let config = match memory.config {
            Some(config) if before => config.value,
            None if before => bail!("nothing is remembered"),
            _ => configuration(&self.world),
        };
        if fresh {
            self.init().await;
            // Making the data took a moment, in which members that have data of the cluster had time to say so.
            let view = self.store().view().await?;
            store::may_found(&view, &self.name, None, false, false)?;
        }
        let sync = memory.sync.as_ref().map(|sync| sync.value.clone()).filter(|sync| sync.leader.as_deref() == Some(self.name.as_str()));
        let synchronous = config.synchronous_mode() != SynchronousMode::Off;
        let sync = sync.or_else(|| SyncState::before_promotion(None, &self.name, synchronous));
        let first = FirstKeys {
            config: config.clone(),
            making: Making { generation, by: format!("{} at {claim}", self.name), upgraded: None },
            sync: sync.clone(),
            timeline: before.then_some(memory.timeline),
        };
        if before {
            self.remembered.attempt(generation);
            self.keep_memory();
        }
        let name = self.name.clone();
        let term = self.ask(move |etcd| now(etcd.lead_first(&name, lease, claim, &first))).await?;
        if self.world.server(self.at).is_none() {
            let known = |sync| Versioned { value: sync, revision: 0 };
            // The key of a first founding trusts nobody, and nobody can confirm anything yet.
            let kept = sync.filter(|_| before && memory.sync.is_some()).map(known);
            let view = ClusterView { config: Some(Versioned { value: config, revision: 0 }), sync: kept, ..ClusterView::default() };
            self.start(&view, Recovery::None).await?;
        }
        let until = self.world.now() + PATIENCE * 12;
        while !matches!(self.world.sql(self.at).await.map(|server| super::of_server(&self.world, &server)), Some(Postgres::Primary { .. }))
        {
            if self.world.now() > until {
                bail!("the server does not serve");
            }
            self.world.time.sleep(20 * MS).await;
        }
        self.fall_silent();
        if let Some(server) = self.world.serving(self.at) {
            server.attached.set(true);
        }
        let leader = Leader { name: self.name.clone(), lease, term };
        if let Some(disk) = self.world.nodes[self.at].data.borrow_mut().disk_mut() {
            disk.founding = false;
        }
        founding::finish(self, &leader, claim, &system()).await?;
        Ok(Done::LookAgain)
    }
}
