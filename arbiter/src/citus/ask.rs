//! A worker's side of a planned change: before its primary stops, the coordinator is asked to keep writers waiting.

use crate::hands::Hands;
use cluster::citus::{self, COORDINATOR};
use cluster::leader::Leader;
use cluster::view::ClusterView;
use dcs::{Dcs, Etcd, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Beside the time that transactions get to end: for etcd's messages there and back.
const ON_THE_WAY: Duration = Duration::from_secs(3);

/// Asks the coordinator to hold this group's writers and waits until it says so. Where nobody answers, the change goes on without.
pub async fn ask(hands: &Hands, view: &ClusterView) {
    let Some(leader) = view.leader_if(&hands.config.name) else { return };
    if hands.config.citus.as_ref().is_none_or(|citus| citus.group == COORDINATOR) {
        return;
    }
    let scope = hands.etcd.seen_as(hands.config.scope_keys());
    let patience = super::cooldown(hands, view) + ON_THE_WAY;
    match tokio::time::timeout(patience, held(&scope, &hands.etcd, leader)).await {
        Ok(Ok(true)) => tracing::info!("the coordinator holds writers of this group"),
        Ok(Ok(false)) => tracing::warn!("no coordinator leads: clients of this group may see errors"),
        Ok(Err(why)) => tracing::warn!("the coordinator was not asked to hold writers, clients may see errors: {why}"),
        Err(_) => tracing::warn!(
            "the coordinator did not say within {} s that it holds writers: clients may see errors; hint: look at the arbiter of the coordinator's primary",
            patience.as_secs()
        ),
    }
}

/// False if there is nobody to ask.
async fn held(scope: &Etcd, own: &Arc<Etcd>, leader: &Leader) -> Result<bool> {
    let groups = scope.load_groups().await?;
    if groups.get(&COORDINATOR).is_none_or(|coordinator| coordinator.leader.is_none()) {
        return Ok(false);
    }
    let request = own.ask_hold(leader).await?;
    let wake = Arc::new(Notify::new());
    let answered = async {
        loop {
            if citus::is_held(&own.load_view().await?, request) {
                return Ok(true);
            }
            wake.notified().await;
        }
    };
    tokio::select! {
        answered = answered => answered,
        () = dcs::watch::keep_watching(own.clone(), wake.clone()) => Ok(false),
    }
}

/// This node leads and serves, and no change is under way: what it asked for before is over.
pub async fn call_off(hands: &Hands, view: &ClusterView) -> Result<()> {
    match &view.hold {
        Some(hold) if hands.config.citus.is_some() => hands.etcd.end_hold(hold.revision).await,
        _ => Ok(()),
    }
}
