//! What a node keeps in order while nothing else is to do: on the primary synchronous standbys, slots,
//! history and the first checkpoint; on a standby the slots that its own standbys would need.

pub mod addresses;
mod aside;
pub mod certificates;
pub mod failsafe;
mod histories;
pub mod page;
pub mod reads;
pub mod remote;
mod rules;
mod senders;
pub mod slots;
pub mod twin;
pub mod vitals;
pub mod watchdog;

use crate::citus;
use crate::node::Node;
use crate::node::extension;
use crate::node::recovery;
use crate::postgres::conf::Recovery;
use crate::postgres::facts::{Receiver, ServerFacts};
use anyhow::{Context, Result};
use cluster::history::History;
use cluster::leader::Leader;
use cluster::member::Tags;
use cluster::store::Making;
use cluster::sync::SyncState;
use cluster::view::ClusterView;
use dcs::Dcs;
use steward::synchronous;

/// One round on the primary. True if something was changed and another look is due.
pub async fn primary(node: &Node, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<bool> {
    // Before any file is written: after a restart of the arbiter only the server knows what it is set to.
    synchronous::applied(node, view, &facts.into());
    senders::end_left_over(node, view, facts).await;
    aside::clear(node, true).await;
    put_back(node, view, leader).await?;
    history(node, view, leader, facts).await?;
    histories::keep(node, view, facts.timeline).await;
    citus::call_off(node, view).await?;
    if view.members.get(&node.config.name).is_some_and(|entry| entry.member.checkpoint_after_promote == Some(false)) {
        // An arbiter that died after the promotion left its checkpoint undone, and rewinds wait for it.
        first_checkpoint(node);
    }
    failsafe::publish(node, view, leader).await?;
    slots::keep(node, view, Some(leader), facts).await?;
    let changed = configuration(node, view, &Recovery::None).await?;
    rules::look(node).await;
    Ok(synchronous::keep_up(node, view, leader, &facts.into()).await? || changed)
}

/// One round on a primary that nobody's lease backs just now: what keeps it from leading may be the configuration itself, so a change of
/// that is written all the same.
pub async fn leaderless(node: &Node, view: &ClusterView, facts: &ServerFacts) -> Result<bool> {
    if view.config.is_none() || view.leader.is_some() {
        return Ok(false);
    }
    synchronous::applied(node, view, &facts.into());
    configuration(node, view, &Recovery::None).await
}

/// Keys that were deleted or spoiled, and that the cluster goes on by as last known.
async fn put_back(node: &Node, view: &ClusterView, leader: &Leader) -> Result<()> {
    if let Some(config) = view.config.as_ref().filter(|_| view.kept.config) {
        tracing::error!("the dynamic configuration in etcd is gone or can't be read: the last good one is put back");
        node.etcd.write_config(&config.value, config.revision).await.context("put the dynamic configuration back")?;
    }
    if let (true, Some(system_id)) = (view.kept.initialize, view.system_id()) {
        tracing::error!("the cluster's identity in etcd (initialize) is gone or another's: {system_id} is put back");
        let judged = ClusterView::revision_of(&view.initialize);
        node.etcd.write_initialize(system_id, judged, leader).await.context("put the cluster's identity back")?;
    }
    if view.store.is_none() {
        let making = Making { generation: 1, by: format!("{} at {}", leader.name, leader.term), upgraded: None };
        node.etcd.write_store(&making, leader).await.context("write which making of the keys this is")?;
    }
    Ok(())
}

/// One round on a standby. True if something was changed and another look is due.
pub async fn standby(node: &Node, view: &ClusterView, facts: &ServerFacts) -> Result<bool> {
    node.standbys.is_standby();
    let streams = facts.receiver.as_ref().is_some_and(Receiver::is_streaming);
    end_receiver_that_hangs(facts);
    aside::clear(node, streams || Tags(node.config.tags.clone()).nostream()).await;
    let leads = view.leader_if(&node.config.name).filter(|_| view.is_standby_cluster());
    if let Some(leader) = leads {
        standby_leader(node, view, leader, facts).await?;
    }
    slots::keep(node, view, leads, facts).await?;
    // Without its key nobody knows what the configuration was: what is set stays.
    if view.config.is_none() {
        return Ok(false);
    }
    let dynamic = node.dynamic(view);
    let recovery = match recovery::in_force(&node.config, &dynamic, view, facts) {
        Some(upstream) => recovery::of(&node.config, &dynamic, view, &upstream),
        // The server that it follows has no member key: neither may lead, perhaps for what the configuration says.
        None => recovery::as_it_is(&node.config, &dynamic, facts),
    };
    let again = configuration(node, view, &recovery).await?;
    node.settle_as_primary(view).await;
    rules::look(node).await;
    Ok(again)
}

/// A WAL receiver that hangs is ended, and Postgres begins another.
fn end_receiver_that_hangs(facts: &ServerFacts) {
    let limit = facts.receiver_timeout_ms;
    let (process, what) = if let Some(receiver) = facts.receiver.as_ref().filter(|receiver| receiver.hangs(limit)) {
        let upstream = receiver.host.as_deref().unwrap_or("its upstream");
        let (port, silent) = (receiver.port.unwrap_or_default(), receiver.silent_s.unwrap_or_default());
        (receiver.pid, format!("has heard nothing from {upstream}:{port} for {silent} s"))
    } else if let Some(connecting) = facts.connecting.as_ref().filter(|connecting| connecting.hangs(limit)) {
        (Some(connecting.pid), format!("has tried to connect for {} s, and its upstream says nothing", connecting.for_s))
    } else {
        return;
    };
    let Some(process) = process.and_then(rustix::process::Pid::from_raw) else { return };
    tracing::warn!(
        "the WAL receiver (process {}) {what}, which is longer than wal_receiver_timeout: it is ended, and Postgres begins another",
        process.as_raw_nonzero()
    );
    if let Err(why) = rustix::process::kill_process(process, rustix::process::Signal::TERM) {
        tracing::warn!("end the WAL receiver: {why}");
    }
}

/// What the one who leads a standby cluster keeps in etcd: the history of what it follows, and that nobody
/// is synchronous, so that nobody is trusted to be after the cluster's promotion.
async fn standby_leader(node: &Node, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<()> {
    if let Some(sync) = view.sync.as_ref().filter(|sync| !sync.value.is_empty()) {
        let nobody = SyncState { other: sync.value.other.clone(), ..SyncState::default() };
        node.etcd.write_sync(&nobody, sync.revision, leader).await.context("clear the sync key")?;
    }
    failsafe::publish(node, view, leader).await?;
    // The receiver brings the history of its upstream before the WAL; without it there is nothing to tell yet.
    if facts.timeline > view.history().current() && tokio::fs::try_exists(history_file(node, facts)).await? {
        history(node, view, leader, facts).await?;
    }
    Ok(())
}

fn history_file(node: &Node, facts: &ServerFacts) -> std::path::PathBuf {
    node.config.postgres.data_dir.join("pg_wal").join(format!("{:08X}.history", facts.timeline.0))
}

/// Puts a changed configuration into the files and reloads; true if it did. The next look is then to be taken at once: only a server
/// that has read the files knows which settings wait for a restart.
async fn configuration(node: &Node, view: &ClusterView, recovery: &Recovery) -> Result<bool> {
    let changed = node.write_configuration(view, recovery).await?;
    if changed {
        tracing::info!("the configuration changed: reloading Postgres");
        node.reload_and_see().await?;
    }
    Ok(changed)
}

/// After a promotion: `history` gets the lines of the server's own history file.
pub async fn history(node: &Node, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<()> {
    if facts.timeline == view.history().current() {
        return Ok(());
    }
    let file = history_file(node, facts);
    let text = tokio::fs::read_to_string(&file).await.with_context(|| format!("read {}", file.display()))?;
    let now = jiff::Timestamp::now().to_string();
    let merged = view.history().merged(&History::from_file(&text).up_to(facts.timeline), &now, node.config.name.as_str());
    node.etcd.write_history(&merged, ClusterView::revision_of(&view.history), leader).await.context("write the history")?;
    tracing::info!("timeline {} is in the history", facts.timeline);
    Ok(())
}

/// Begins the first checkpoint of a new primary in the background, unless it is under way.
pub fn first_checkpoint(node: &Node) {
    if let Some(begun) = node.begin_checkpoint() {
        let node = node.clone();
        tokio::spawn(async move {
            after_promotion(&node).await;
            drop(begun);
        });
    }
}

/// After a promotion: the checkpoint that rewinds wait for, and what only a primary can make.
async fn after_promotion(node: &Node) {
    if let Err(why) = extension::ensure_extension(node).await {
        tracing::warn!("{why:#}");
    }
    match node.sql.checkpoint().await {
        Ok(()) => {
            // The lease worker publishes that rewinds may begin when it is woken.
            if let Err(why) = node.sql.execute("SELECT tenure_internal.attach_arbiter()").await {
                tracing::warn!("attach to the lease worker: {why:#}");
            }
        }
        Err(why) => tracing::warn!("checkpoint after the promotion: {why:#}"),
    }
    node.wake.notify_one();
}
