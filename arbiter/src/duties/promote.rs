//! This node holds the leader key: its standby becomes the primary.

use crate::duties::done::Done;
use crate::duties::stand_down::stand_down;
use crate::node::Node;
use crate::node::hook;
use crate::node::timings::Timed;
use crate::postgres;
use crate::upkeep;
use crate::upkeep::slots;
use anyhow::{Context, Result, bail};
use cluster::history::History;
use cluster::leader::Term;
use cluster::member::MemberRole;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::time::{Duration, Instant};

/// A promotion that takes longer than this is reported as failed; the loop then looks again.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(60);

/// Promotes in this term, unless it is over.
pub async fn promote(node: &Node, term: Term) -> Result<Done> {
    let began = Instant::now();
    if let Err(why) = hook::pre_promote(&node.config).await {
        tracing::error!("this node is not promoted and stands down: {why:#}");
        return stand_down(node, term).await;
    }
    // Read after the hook: it may have taken long.
    let view = node.etcd.load_view().await?;
    // The key in our name, in the term that was judged, on a lease that etcd confirms now.
    if view.leader_if(&node.config.name).is_none_or(|leader| leader.term != term) {
        bail!("term {term} is over");
    }
    if view.is_standby_cluster() {
        bail!("the cluster is to follow another one (standby_cluster)");
    }
    if !node.lease.confirm(&view).await {
        bail!("the lease was not confirmed by etcd");
    }
    let _armed = match node.watchdog.arm(&node.config.watchdog, view.config().timing().ttl).await {
        Ok(armed) => armed,
        Err(why) => {
            tracing::error!("this node is not promoted and stands down: {why:#}");
            return stand_down(node, term).await;
        }
    };
    let postmaster = node.postmaster().context("Postgres does not run")?;
    claim_timeline(node, &view).await.context("claim a timeline")?;
    let view = upkeep::synchronous::trust_nobody_else(node, view).await.context("write a sync key of this node's own")?;
    let begins_with = upkeep::synchronous::before_promotion(node, &view).await.context("name the synchronous standbys to begin with")?;
    slots::before_promotion(node, &view).await;
    crate::citus::before_promotion(node, &view, &begins_with).await.context("set Citus to reading from primaries")?;
    tracing::info!("promoting, term {term}");
    postgres::promote::promote(&postmaster, &node.config.postgres.data_dir).await?;
    let promoted = async {
        loop {
            match node.sql.facts().await {
                Ok(facts) if !facts.in_recovery => return Ok(facts),
                Err(why) if node.postmaster().is_none() => return Err(why),
                // Nothing tells another process that recovery has ended; no client waits for this look.
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let facts = tokio::time::timeout(PROMOTION_PATIENCE, promoted).await.context("Postgres does not leave recovery")??;
    tracing::info!("promoted: timeline {}, term {term}", facts.timeline);
    node.page.changed.notify_one();
    node.timings.observe(Timed::Promotion, began.elapsed());
    node.begin_synchronous(begins_with);
    node.callbacks.serves(&node.config, &MemberRole::Primary);
    // Wakes the lease worker: the new role is to be in the member key.
    if let Err(why) = node.sql.execute("SELECT tenure_internal.attach_arbiter()").await {
        tracing::warn!("attach to the lease worker: {why:#}");
    }
    upkeep::first_checkpoint(node);
    Ok(Done::LookAgain)
}

/// Claims the number of the timeline that the promotion will begin, and makes Postgres use it. By itself
/// Postgres takes the first number for which it has no history file, so two servers that are promoted
/// one after the other, neither knowing of the other's, would begin timelines of one number whose
/// histories parted: nothing would tell them apart afterwards.
async fn claim_timeline(node: &Node, view: &ClusterView) -> Result<()> {
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    let mine = node.sql.facts().await?.timeline;
    let claimed = view.timeline_to_claim(mine);
    node.etcd.claim_timeline(claimed, ClusterView::revision_of(&view.claimed_timeline), leader).await?;
    let wal = node.config.postgres.data_dir.join("pg_wal");
    for number in mine.next().0..claimed.0 {
        let path = wal.join(format!("{number:08X}.history"));
        if postgres::read_if_there(&path).await?.is_none() {
            tracing::warn!("timeline {number} was used or claimed elsewhere: this promotion passes over it");
            postgres::write_atomically(&path, &History::placeholder(mine), 0o600).await?;
        }
    }
    Ok(())
}
