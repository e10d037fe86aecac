//! Citus: every group's primary keeps the distributed databases ready, the coordinator's primary keeps their metadata equal to what etcd
//! says of all groups, and writers of a worker group wait while its primary is changed on purpose.
//!
//! A task of its own beside the daemon's loop: what it waits for (locks, other groups' servers) must not keep a node from its duties.
//! It acts only while its node leads as primary, and each commit it makes passes that server's fence.

mod ask;
pub mod daemon;
mod database;
mod gate;
mod hold;
mod holds;
mod keeper;
mod name;
mod own_gate;
mod patronis;
mod ready;
mod request;
mod session;
mod step;

pub use ask::{ask, call_off};
pub use ready::make_ready;

use crate::config::NodeConfig;
use crate::node::Node;
use crate::node::snapshot::Snapshot;
use anyhow::{Context, Result};
use cluster::citus::{self, COORDINATOR, Groups};
use cluster::leader::Leader;
use cluster::local::Postgres;
use cluster::quorum::Setting;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use database::Database;
use dcs::Dcs;
use keeper::Keeper;
use session::RETRY;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The rows are read again after this time though nothing changed in etcd: somebody may have changed them by hand.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Ends sessions that began as a standby's, and so with `always`; Citus' maintenance daemon too, which fails otherwise and is away for 5 s then.
const END_READERS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE (backend_type = 'client backend' OR backend_type LIKE 'Citus Maintenance Daemon%') AND pid <> pg_backend_pid() AND backend_start < $1::text::timestamptz AND application_name NOT LIKE 'tenure arbiter%'";

/// A session is not seen before it is authenticated, which takes milliseconds, and `authentication_timeout` at most (60 s unless set). One that
/// was on its way when the others were ended may take the new primary for a good one, and can never write: so often, and then so often,
/// it is looked for.
const LATE_READERS: [(u32, Duration); 2] = [(40, Duration::from_millis(25)), (60, Duration::from_secs(1))];

/// Keeps Citus for as long as the future is polled; ends at once where the node's file has no section `citus`. `configured` is the
/// node's file as last read.
pub async fn keep(node: Node, mut shown: watch::Receiver<Snapshot>, mut configured: watch::Receiver<Arc<NodeConfig>>) {
    let Some(config) = node.config.citus.clone() else { return };
    let mut keeper = Keeper::new(node.clone(), config.databases.clone());
    let wake = Arc::new(Notify::new());
    let (change, mut changes) = watch::channel(());
    keeper.changes = changes.clone();
    let (scope, pooled) = (keeper.scope.clone(), keeper.pooled.clone());
    let watched = if config.group == COORDINATOR { scope.clone() } else { node.etcd.clone() };
    let watching = dcs::watch::keep_watching(watched, wake.clone());
    let watching_others = async {
        // A worker's rows are the coordinator's business; the poolers that it goes through are its own.
        pooled.notified().await;
        dcs::watch::keep_watching(scope, wake.clone()).await;
    };
    let telling = async {
        loop {
            wake.notified().await;
            change.send_replace(());
        }
    };
    let working = async {
        loop {
            changes.mark_unchanged();
            let leads = leads(&node, &shown.borrow_and_update());
            let pause = match &leads {
                Some(leader) => keeper.round(leader).await,
                None => {
                    keeper.let_go();
                    Duration::MAX
                }
            };
            let looked = Instant::now();
            let changed = async {
                while shown.changed().await.is_ok() {
                    if self::leads(&node, &shown.borrow_and_update()) != leads {
                        return;
                    }
                }
                std::future::pending().await
            };
            tokio::select! {
                () = changed => {}
                Ok(()) = configured.changed() => keeper.configure(configured.borrow_and_update().clone()),
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep(pause.saturating_sub(looked.elapsed())) => {}
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = watching_others => {}
        () = telling => {}
        () = working => {}
    }
}

/// Settings that a coordinator's sessions must begin with from its first moment as primary on.
pub async fn before_promotion(node: &Node, view: &ClusterView, synchronous: &Setting) -> Result<()> {
    if node.config.citus.as_ref().is_some_and(|citus| citus.group == COORDINATOR) {
        tell_workers(node, view, |_| true).await?;
        let recovery = crate::node::recovery::of(&node.config, &node.dynamic(view), view, &Upstream::Nobody);
        if node.write_configuration_with(view, &recovery, synchronous).await? {
            node.sql.reload_and_see().await?;
        }
        if node.config.citus.as_ref().is_some_and(|citus| citus.end_sessions_at_promotion) {
            let since = node.sql.text("SELECT pg_conf_load_time()::text").await.context("ask when the settings were read")?;
            node.sql.run(END_READERS, &[&since]).await.context("end sessions that could not write")?;
            tokio::spawn(end_late_readers(node.clone(), since));
        }
    }
    Ok(())
}

/// Ends sessions that were on their way when those of a standby were ended.
async fn end_late_readers(node: Node, since: String) {
    for (times, pause) in LATE_READERS {
        for _ in 0..times {
            tokio::time::sleep(pause).await;
            match node.sql.run(END_READERS, &[&since]).await {
                Ok(0) => {}
                Ok(count) => tracing::info!("Citus: {count} sessions ended that began as a standby's and could not write"),
                Err(why) => tracing::debug!("Citus: end sessions that could not write: {why:#}"),
            }
        }
    }
}

/// The workers learn who coordinates, before anything is sent to them: sessions of the one before are refused from then on. Groups
/// that `wanted` leaves out are not told.
async fn tell_workers(node: &Node, own: &ClusterView, wanted: impl Fn(&ClusterView) -> bool) -> Result<()> {
    let Some(leader) = own.leader_if(&node.config.name) else { return Ok(()) };
    let scope = node.etcd.seen_as(node.config.scope_keys());
    let groups = scope.load_groups().await.context("read the groups")?;
    let told: Vec<u32> = groups.iter().filter(|(group, view)| **group != COORDINATOR && wanted(view)).map(|(group, _)| *group).collect();
    if told.is_empty() {
        return Ok(());
    }
    scope.tell_coordinator(&told, leader, own.store_generation()).await.context("tell the workers who coordinates")
}

/// This node's leadership, while its server serves as primary of a cluster that exists.
fn leads(node: &Node, shown: &Snapshot) -> Option<Leader> {
    let serves = matches!(shown.local.postgres, Postgres::Primary { .. }) && shown.view.system_id().is_some();
    shown.view.leader_if(&node.config.name).filter(|_| serves).cloned()
}

impl Keeper {
    /// The node's file was read again: the credentials in it may be others.
    fn configure(&mut self, config: Arc<NodeConfig>) {
        self.node.config = config;
        self.ready = None;
    }

    /// This node leads no more: sessions end, and with them what they hold.
    fn let_go(&mut self) {
        self.databases.iter_mut().for_each(Database::close);
        self.holds = Default::default();
        (self.gated, self.step) = Default::default();
        let (mut gate, node) = (std::mem::take(&mut self.gate), self.node.clone());
        tokio::spawn(async move { gate.open(&node).await });
        self.ready = None;
        self.settled.clear();
    }

    /// One round as the leader; gives the time until the next one, if nothing happens before.
    async fn round(&mut self, leader: &Leader) -> Duration {
        self.changes.mark_unchanged();
        match Box::pin(self.look(leader)).await {
            Ok(pause) => {
                self.told.clear();
                pause
            }
            Err(why) => {
                let why = format!("{why:#}");
                if self.told != why {
                    tracing::warn!("Citus: {why}");
                    self.told = why;
                }
                RETRY
            }
        }
    }

    async fn look(&mut self, leader: &Leader) -> Result<Duration> {
        if self.ready != Some(leader.term) {
            if self.node.config.citus.as_ref().is_some_and(|citus| citus.group != COORDINATOR) && self.heard != Some(leader.term) {
                // Writers may wait for it.
                self.heard = Some(leader.term);
                patronis::serves(&self.node).await;
            }
            ready::make_ready(&self.node).await?;
            self.ready = Some(leader.term);
            if self.node.config.citus.as_ref().is_some_and(|citus| citus.group != COORDINATOR) {
                self.follow().await;
            }
        }
        if self.node.config.citus.as_ref().is_none_or(|citus| citus.group != COORDINATOR) {
            self.settle(leader);
            let view = self.node.etcd.load_view().await?;
            if view.leader.as_ref() == Some(leader) {
                self.keep_gate(&view, leader).await?;
            }
            return self.keep_poolers().await.map(|()| LOOK_AGAIN);
        }
        let groups = self.scope.load_groups().await?;
        if groups.get(&COORDINATOR).and_then(|own| own.leader.as_ref()) != Some(leader) {
            // The daemon sees that too, and says so soon.
            return Ok(RETRY);
        }
        if groups.iter().any(|(group, view)| *group != COORDINATOR && view.coordinator.is_none())
            && let Some(own) = groups.get(&COORDINATOR)
        {
            tell_workers(&self.node, own, |view| view.coordinator.is_none()).await?;
        }
        let poolers = citus::poolers(&groups);
        self.databases.iter_mut().for_each(|database| database.poolers = poolers.clone());
        let mut until = self.hold(&groups, leader).await?.unwrap_or(LOOK_AGAIN);
        if self.holds.is_empty() {
            self.find_forgotten(&groups);
            self.open_gates(leader).await?;
            self.keep_rows(&groups).await?;
            self.settle_all(&groups);
            until = until.min(self.look_after_step().await);
        }
        Ok(until.min(LOOK_AGAIN))
    }

    /// On a worker's primary, whose sessions go to other nodes, too.
    async fn keep_poolers(&mut self) -> Result<()> {
        if Instant::now() < self.poolers_due {
            return Ok(());
        }
        let poolers = citus::poolers(&self.scope.load_groups().await?);
        if poolers.is_empty() {
            self.poolers_due = Instant::now() + LOOK_AGAIN;
        } else if self.node.config.citus.as_ref().is_some_and(|citus| citus.group != COORDINATOR) {
            self.pooled.notify_one();
        }
        for database in &mut self.databases {
            database.settle_poolers(&poolers).await?;
        }
        Ok(())
    }

    /// Makes every database's rows what etcd says. Not while writers are held: the rows are locked then.
    async fn keep_rows(&mut self, groups: &Groups) -> Result<()> {
        let wanted = citus::all_wanted(groups);
        for database in &mut self.databases {
            database.settle(&wanted).await?;
        }
        Ok(())
    }

    /// After a promotion here: transactions that were prepared for others and whose end is recorded here are brought to it.
    fn settle(&mut self, leader: &Leader) {
        let group = self.node.config.citus.as_ref().map_or(COORDINATOR, |citus| citus.group);
        if self.settled.insert(group, leader.term) != Some(leader.term) {
            ready::recover_prepared(self.node.clone(), false);
        }
    }

    /// After a promotion anywhere: the same, here and on every worker.
    fn settle_all(&mut self, groups: &Groups) {
        let mut due = false;
        for (group, view) in groups {
            if let (Some(leader), Some(_)) = (&view.leader, citus::wanted(view)) {
                due |= self.settled.insert(*group, leader.term) != Some(leader.term);
            }
        }
        if due {
            ready::recover_prepared(self.node.clone(), true);
        }
    }
}
