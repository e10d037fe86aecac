//! The server is started, as primary or as standby.

use crate::duties::done::Done;
use crate::duties::past;
use crate::node::Node;
use crate::postgres::conf::Recovery;
use crate::postgres::postmaster::{Readiness, last_words};
use crate::postgres::{controldata, timelines};
use anyhow::Result;
use cluster::member::{MemberRole, MemberState};
use cluster::view::ClusterView;

/// The process is started, not waited for: the loop sees when it serves, and keeps the lease until then.
pub async fn start(node: &Node, view: &ClusterView, recovery: &Recovery) -> Result<Done> {
    let role = if *recovery == Recovery::None { MemberRole::Primary } else { node.standby_role(view) };
    node.speak(MemberState::Starting, role);
    node.clear_orphans().await?;
    if *recovery != Recovery::None {
        timelines::remove_placeholders(&node.config.postgres.data_dir).await?;
        let damaged = timelines::set_damaged_aside(&node.config.postgres.data_dir).await?;
        for name in &damaged {
            tracing::warn!("pg_wal/{name} is no history file and was renamed to {name}.damaged: it is fetched again where it is needed");
        }
        if !damaged.is_empty() {
            write_own_history(node, view).await?;
        }
        past::prepare(node, view).await;
    }
    let postmaster = node.start(view, recovery).await?;
    let (wake, config, noting) = (node.wake.clone(), node.config.clone(), node.clone());
    tokio::spawn(async move {
        // Ready or ended, the loop looks.
        match postmaster.ready().await {
            Ok(Readiness::Ended) => {
                let words = last_words(&config.postgres.server_log).await;
                tracing::error!("Postgres ended while it started: {words}");
                noting.note_start(Some(words));
            }
            Ok(Readiness::Ready | Readiness::Standby) => noting.note_start(None),
            Err(why) => tracing::warn!("watch the start of Postgres: {why:#}"),
        }
        wake.notify_one();
    });
    Ok(Done::Settled)
}

/// The history of the timeline that this server is on is needed from the first record on: fetched later by the walreceiver, it does not count
/// before the next start (`unexpected timeline ID` until then). etcd has it.
async fn write_own_history(node: &Node, view: &ClusterView) -> Result<()> {
    let control = controldata::read(&node.programs, &node.config.postgres.data_dir).await?;
    let timeline = control.timeline.max(control.min_recovery_timeline);
    let path = node.config.postgres.data_dir.join("pg_wal").join(format!("{:08X}.history", timeline.0));
    if crate::postgres::read_if_there(&path).await?.is_none()
        && let Some(text) = view.history().file_of(timeline)
    {
        crate::postgres::write_atomically(&path, &text, 0o600).await?;
        tracing::info!("the history of timeline {timeline}, which this server is on, was written from etcd");
    }
    Ok(())
}
