//! A worker's side of a planned change: before its primary stops, the coordinator is asked to keep writers waiting.

use super::patronis;
use super::session::cooldown;
use crate::node::Node;
use anyhow::{Context, bail};
use cluster::citus::takeover::patronis_coordinator;
use cluster::citus::{self, COORDINATOR, Prefer};
use cluster::leader::Leader;
use cluster::view::ClusterView;
use dcs::{Dcs, Etcd, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Beside the time that transactions get to end: for etcd's messages there and back.
const ON_THE_WAY: Duration = Duration::from_secs(3);

/// What came of it.
enum Answer {
    Held,
    /// Statements are in the way, and come first.
    Refused(String),
    /// There is nobody to ask.
    Nobody,
    /// Nobody said anything for so long.
    Silence(Duration),
    /// Patroni runs the coordinator yet, and was told.
    Told,
    /// It runs it, and this was in the way.
    NotTold(String),
}

/// Asks the coordinator to hold this group's writers and waits until it says so. Where nobody answers, the change goes on without. An error
/// says that the change is not to be made: statements are in its way and come first (`citus.prefer`). Not where it `must` be made: a server that
/// ends in any case takes its statements with it.
pub async fn ask(node: &Node, view: &ClusterView, must: bool) -> anyhow::Result<()> {
    let Some(leader) = view.leader_if(&node.config.name) else { return Ok(()) };
    let Some(own) = node.config.citus.as_ref().filter(|citus| citus.group != COORDINATOR) else { return Ok(()) };
    let scope = node.etcd.seen_as(node.config.scope_keys());
    let asking = async {
        let groups = scope.load_groups().await?;
        let prefer = if must { Prefer::Change } else { citus::prefer(&groups, own.group, own.prefer) };
        if groups.get(&COORDINATOR).is_none_or(|coordinator| coordinator.leader.is_none()) {
            return Ok((prefer, Answer::Nobody));
        }
        let patience = cooldown(node, view) + ON_THE_WAY;
        if let Some(api_url) = patronis_coordinator(&groups) {
            return Ok((prefer, of_patronis(node, view, leader, api_url, prefer, patience).await));
        }
        // Before they close their gates, after it, and at the coordinator's own.
        let waits = citus::grace(&groups, own.grace_s) * 3;
        held(&node.etcd, leader, prefer, patience, waits).await.map(|answer| (prefer, answer))
    };
    let unheld = match asking.await {
        Ok((_, Answer::Held)) => {
            tracing::info!("the coordinator holds writers of this group");
            return Ok(());
        }
        Ok((_, Answer::Told)) => {
            tracing::info!("the coordinator, which Patroni runs, was told to hold writers of this group");
            return Ok(());
        }
        Ok((_, Answer::Refused(why))) => bail!(
            "the coordinator called it off, statements come first (citus.prefer): {why}; hint: try again when they have ended, or set citus.prefer to change"
        ),
        Ok((prefer, Answer::Nobody)) => (prefer, "no coordinator leads".to_owned()),
        Ok((prefer, Answer::Silence(patience))) => (
            prefer,
            format!(
                "the coordinator did not say within {} s that it holds writers; hint: look at the arbiter of the coordinator's primary",
                patience.as_secs()
            ),
        ),
        Ok((prefer, Answer::NotTold(why))) => (prefer, format!("the coordinator, which Patroni runs, does not hold writers: {why}")),
        Err(why) => (own.prefer.filter(|_| !must).unwrap_or_default(), format!("the coordinator was not asked to hold writers: {why}")),
    };
    let (prefer, why) = unheld;
    if prefer == Prefer::Statements {
        return Err(anyhow::anyhow!(why)).context("clients of this group would see errors, and statements come first (citus.prefer)");
    }
    tracing::warn!("clients of this group may see errors: {why}");
    Ok(())
}

/// The same with a coordinator that Patroni runs yet. What was asked is noted as with one of ours, and [`call_off`] tells that it is over.
async fn of_patronis(node: &Node, view: &ClusterView, leader: &Leader, api_url: &str, prefer: Prefer, patience: Duration) -> Answer {
    if prefer == Prefer::Statements {
        return Answer::NotTold("Patroni ends statements that are in the way".to_owned());
    }
    let asked = async {
        node.etcd.ask_hold(leader, false).await?;
        patronis::stops(node, view, api_url, patience).await
    };
    asked.await.map_or_else(|why| Answer::NotTold(format!("{why:#}")), |()| Answer::Told)
}

/// Waits until there is an answer: for `patience`, and for so much longer where the coordinator lets statements wait already.
async fn held(own: &Arc<Etcd>, leader: &Leader, prefer: Prefer, patience: Duration, waits: Duration) -> Result<Answer> {
    let request = own.ask_hold(leader, prefer == Prefer::Statements).await?;
    let asked = Instant::now();
    let wake = Arc::new(Notify::new());
    let answered = async {
        loop {
            let view = own.load_view().await?;
            match citus::answer(&view, request) {
                Some(word) => return Ok(word.refused.clone().map_or(Answer::Held, Answer::Refused)),
                None => {
                    let patience = if view.gate.is_some() { patience + waits } else { patience };
                    let rest = patience.saturating_sub(asked.elapsed());
                    if rest.is_zero() {
                        return Ok(Answer::Silence(patience));
                    }
                    let _ = tokio::time::timeout(rest, wake.notified()).await;
                }
            }
        }
    };
    tokio::select! {
        answered = answered => answered,
        () = dcs::watch::keep_watching(own.clone(), wake.clone()) => Ok(Answer::Nobody),
    }
}

/// This node leads and serves, and no change is under way: what it asked for before is over.
pub async fn call_off(node: &Node, view: &ClusterView) -> Result<()> {
    match &view.hold {
        Some(hold) if node.config.citus.is_some() => {
            patronis::serves(node).await;
            node.etcd.end_hold(hold.revision).await
        }
        _ => Ok(()),
    }
}
