//! Duty -> procedure: one match, no wildcard arm, and nothing else; the only door from a decision to the server's files and process.

pub mod copy;
pub mod demote_cluster;
pub mod done;
pub mod follow;
pub mod found;
pub mod found_by_method;
pub mod give_way;
pub mod leave;
pub mod promote;
pub mod rest;
pub mod restart;
pub mod rewind;
pub mod source;
pub mod stand_down;
pub mod start;
pub mod stop;
pub mod switchover;
pub mod upgrade;
pub mod upgrade_undone;

use crate::duties::done::{Done, Judged};
use crate::node::Node;
use anyhow::{Context, Result, bail};
use cluster::duty::Duty;

/// Does what the node owes the cluster.
pub async fn apply(node: Node, duty: Duty, judged: Judged) -> Result<Done> {
    let view = &*judged.view;
    match duty {
        Duty::Rest => rest::rest(&node, &judged).await,
        Duty::Bootstrap if let Some(why) = node.watchdog.bars(&node.config.watchdog, view.config().timing().ttl) => {
            bail!("the cluster is not founded here: {why}")
        }
        Duty::Bootstrap => found::bootstrap(&node, &judged.local.data).await.context("found the cluster").map(|()| Done::LookAgain),
        Duty::Clone { from } => {
            let only_basebackup = judged.local.cloning.from_leader;
            copy::clone(&node, view, &from, only_basebackup).await.with_context(|| format!("clone from {from}"))
        }
        Duty::Restore => copy::restore(&node, view).await.context("make the data from a backup"),
        Duty::StartPrimary { term } => start::primary(&node, view, term).await.context("start Postgres as primary"),
        Duty::StartStandby { upstream } => {
            start::start(&node, view, &follow::settings(&node, view, &upstream)).await.context("start Postgres as standby")
        }
        Duty::Promote { term } => promote::promote(&node, term).await.context("promote"),
        Duty::Demote => stop::demote(&node).await.context("demote"),
        Duty::DemoteCluster { term } => demote_cluster::demote_cluster(&node, view, term).await.context("become a standby cluster"),
        Duty::Follow { upstream } => follow::follow(&node, view, &upstream).await,
        Duty::Rewind { from } => rewind::rewind(&node, view, &from).await.with_context(|| format!("rejoin {from} by pg_rewind")),
        Duty::Switchover { candidates } => switchover::serve(&node, &judged, &candidates).await,
        Duty::HandOver { to } => switchover::hand_over_after_crash(&node, view, &to).await,
        Duty::GiveWay { to } => give_way::give_way(&node, &judged, &to).await.context("give way to a member that is better off"),
        Duty::CallOff => switchover::call_off(&node, &judged).await.context("take a request back that can't be served"),
        Duty::Release => stop::release(&node, view).await.context("give the leader key up"),
        Duty::Upgrade { owed } => upgrade::resume(&node, view, owed).await.context("bring a major upgrade to its end"),
        Duty::Stop => stop::stop(&node, view).await.context("stop"),
        Duty::Quit => Ok(Done::Stopped),
    }
}
