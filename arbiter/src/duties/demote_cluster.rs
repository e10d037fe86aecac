//! A primary cluster becomes a standby cluster: a clean stop, the last segment archived, a new term, and the
//! server started again as a standby of the other cluster.

use crate::duties::done::Done;
use crate::duties::follow;
use crate::duties::start::start;
use crate::node::Node;
use crate::postgres::controldata::{self, ClusterState, ControlData};
use crate::postgres::postmaster::StopMode;
use crate::postgres::{archive, segments};
use anyhow::{Context, Result, bail};
use cluster::leader::{Leader, Term};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::time::Duration;
use steward::switchover;

/// The fast stop waits for the standbys and for the archive, so that the other side can go on without a
/// gap; past this it is given up, and what they lack is taken back by a rewind.
const STOP_PATIENCE: Duration = Duration::from_secs(300);

/// How the server archives, asked while it still runs.
struct Archiving {
    command: String,
    segment_bytes: u64,
}

/// Stops and starts again as a standby of the other cluster, in a new term.
pub async fn demote_cluster(node: &Node, view: &ClusterView, term: Term) -> Result<Done> {
    let view = stop_and_begin_term(node, view, term).await?;
    start(node, &view, &follow::settings(node, &view, &follow::unless_nostream(node, Upstream::Remote))).await
}

/// Stops the server and begins a new term in which this node leads a standby cluster. Gives the view of
/// that term. May be run again by an arbiter that finds the first half done.
async fn stop_and_begin_term(node: &Node, view: &ClusterView, term: Term) -> Result<ClusterView> {
    let leader = view.leader_if(&node.config.name).filter(|leader| leader.term == term).context("this node leads no more")?;
    let archiving = if node.postmaster().is_some() { archiving(node).await } else { None };
    node.speak(MemberState::Stopping, MemberRole::Demoted);
    let clean = node.stop_within(StopMode::Fast, STOP_PATIENCE).await?;
    node.clear_orphans().await?;
    let control = controldata::read(&node.programs, &node.config.postgres.data_dir).await?;
    if clean && control.state == ClusterState::ShutDown {
        tracing::info!("stopped cleanly at {} of timeline {}", control.checkpoint, control.timeline);
        if let Some(archiving) = archiving
            && let Err(why) = archive_last_segment(node, &archiving, &control).await
        {
            tracing::warn!(
                "the last segment was not archived: {why:#}; a cluster that follows by the archive alone lacks the end of this one's log"
            );
        }
    } else {
        tracing::warn!(
            "Postgres did not shut down cleanly: the other cluster may lack the end of the WAL, and this node may have to be rewound"
        );
    }
    node.speak(MemberState::Stopped, MemberRole::Demoted);
    begin_term(node, leader, control.checkpoint).await
}

/// The key goes from this node to itself: a promotion later on is then the first of its term. Nobody is
/// trusted to be synchronous any more, in the same write.
async fn begin_term(node: &Node, leader: &Leader, last: Lsn) -> Result<ClusterView> {
    switchover::hand_over(node, leader, &node.config.name, Some(last)).await?;
    let view = node.etcd.load_view().await?;
    match view.leader_if(&node.config.name) {
        Some(now) => tracing::info!("term {} ended with this cluster's own writes, term {} follows another cluster", leader.term, now.term),
        None => bail!("this node leads no more"),
    }
    Ok(view)
}

async fn archiving(node: &Node) -> Option<Archiving> {
    match node.sql.archiving().await {
        Ok(Some((command, segment_bytes))) if !command.is_empty() => Some(Archiving { command, segment_bytes }),
        Ok(Some(_)) => {
            tracing::info!("an archive library is in use: the last segment is not archived by hand");
            None
        }
        Ok(None) => None,
        Err(why) => {
            tracing::warn!("ask how the server archives: {why:#}");
            None
        }
    }
}

/// The segment with the shutdown checkpoint: the server leaves it to its next start, which will be
/// a standby's. A server that follows by the archive alone needs it to get to the very end.
async fn archive_last_segment(node: &Node, archiving: &Archiving, control: &ControlData) -> Result<()> {
    let file = segments::name(control.timeline, control.checkpoint, archiving.segment_bytes);
    archive::put(&archiving.command, &node.config.postgres.data_dir, &file).await?;
    tracing::info!("archived {file}, which has the shutdown checkpoint");
    Ok(())
}
