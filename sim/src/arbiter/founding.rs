//! etcd that forgot, as `arbiter/src/{memory,bootstrap}.rs` have it: what lies with the data, and founding the cluster again.

use super::{Arbiter, RETRY};
use crate::postgres::Recovery;
use crate::worker::now;
use crate::world::{MS, system};
use anyhow::{Context, Result, bail};
use cluster::config::SynchronousMode;
use cluster::leader::{Leader, LeaseId};
use cluster::local::Postgres;
use cluster::member::{MemberRole, MemberState};
use cluster::store::Making;
use cluster::sync::SyncState;
use cluster::view::{ClusterView, Versioned};
use dcs::{Dcs, Error, FirstKeys};
use std::time::Duration;
use steward::{Done, Host, Server};

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
    pub(super) async fn found_again(&self) -> Result<Done> {
        self.speak(MemberState::InitializingNewCluster, MemberRole::Uninitialized);
        let Some((claim, lease)) = self.claim().await? else { return Ok(Done::LookAgain) };
        let made = self.make(claim, lease).await;
        if made.is_err() {
            while self.give_back(claim).await.is_err_and(|why| why.is_unknown()) {
                self.world.time.sleep(RETRY).await;
            }
        }
        made
    }

    /// The claim, once etcd has said whose it is.
    async fn claim(&self) -> Result<Option<(i64, LeaseId)>> {
        let mut sent = false;
        loop {
            let lease = match self.lease_in_time().await {
                Some(lease) => lease,
                None if sent => continue,
                None => bail!("no lease could be had from etcd"),
            };
            let name = self.name.clone();
            match self.ask(move |etcd| now(etcd.claim_initialize(&name, lease))).await {
                Ok(claim) => return Ok(Some((claim, lease))),
                Err(Error::Lost(_)) => return Ok(None),
                Err(why) if why.is_unknown() => {}
                Err(why) => return Err(why.into()),
            }
            sent = true;
            self.world.time.sleep(RETRY).await;
        }
    }

    async fn lease_in_time(&self) -> Option<LeaseId> {
        let until = self.world.now() + PATIENCE;
        while self.world.now() <= until {
            if let Some(lease) = self.lease.lease() {
                return Some(lease);
            }
            self.world.time.sleep(20 * MS).await;
        }
        None
    }

    async fn give_back(&self, claim: i64) -> dcs::Result<()> {
        let view = self.ask(|etcd| now(etcd.load_view())).await?;
        if let Some(leader) = view.leader_if(&self.name).cloned() {
            self.ask(move |etcd| now(etcd.release_leader(&leader))).await?;
        }
        self.ask(move |etcd| now(etcd.unclaim_initialize(claim))).await
    }

    async fn make(&self, claim: i64, lease: LeaseId) -> Result<Done> {
        let memory = self.remembered.memory();
        let generation = memory.next_generation();
        let config = memory.config.map(|config| config.value).context("nothing is remembered")?;
        let sync = memory.sync.map(|sync| sync.value).filter(|sync| sync.leader.as_deref() == Some(self.name.as_str()));
        let synchronous = config.synchronous_mode() != SynchronousMode::Off;
        let sync = sync.or_else(|| SyncState::before_promotion(None, &self.name, synchronous));
        let first = FirstKeys {
            config: config.clone(),
            making: Making { generation, by: format!("{} at {claim}", self.name), upgraded: None },
            sync: sync.clone(),
            timeline: Some(memory.timeline),
        };
        self.remembered.attempt(generation);
        self.keep_memory();
        let name = self.name.clone();
        let term = self.ask(move |etcd| now(etcd.lead_first(&name, lease, claim, &first))).await?;
        if self.world.server(self.at).is_none() {
            let known = |sync| Versioned { value: sync, revision: 0 };
            let view =
                ClusterView { config: Some(Versioned { value: config, revision: 0 }), sync: sync.map(known), ..ClusterView::default() };
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
        self.ask(move |etcd| now(etcd.found(&leader, claim, &system()))).await?;
        Ok(Done::LookAgain)
    }
}
