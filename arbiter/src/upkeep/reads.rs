//! The right to hold the addresses for reads: a key of etcd on a lease of its own, so that at most one member has it at a time.

use crate::address::{Kind, Right};
use crate::config::NodeConfig;
use crate::ground::clock::boottime;
use crate::node::Node;
use crate::node::page::Page;
use crate::node::snapshot::Snapshot;
use cluster::address::{self, Why};
use cluster::lease;
use cluster::name::MemberName;
use cluster::watchdog::ServerSeen;
use dcs::lease::HeldLease;
use dcs::{Dcs, Error};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// So long the choice must have been the same before the addresses move away from a member that serves, or to the primary: after a
/// promotion no standby streams for a moment, and a move costs every client its connection.
const STEADY: Duration = Duration::from_secs(2);

/// No more often than this the key is asked for.
const AT_LEAST: Duration = Duration::from_millis(250);

/// Keeps, takes and gives up the right, for as long as the future is polled.
pub async fn keep(
    node: Node,
    mut configured: watch::Receiver<Arc<NodeConfig>>,
    mut shown: watch::Receiver<Snapshot>,
    pages: watch::Receiver<Page>,
    rights: watch::Sender<Right>,
) {
    let mut held: Option<HeldLease> = None;
    let mut told: Option<(MemberName, Why)> = None;
    let mut last: (Option<MemberName>, Instant) = (None, Instant::now());
    loop {
        let config = configured.borrow_and_update().vip.clone();
        let (view, fresh) = {
            let snapshot = shown.borrow_and_update();
            (snapshot.view.clone(), snapshot.view_at.is_some())
        };
        let ttl = view.config().timing().ttl;
        if !config.replica.is_empty() && fresh {
            let chosen = address::reader(&view);
            let whom = chosen.as_ref().map(|(name, _)| name);
            if last.0.as_ref() != whom {
                last = (whom.cloned(), Instant::now());
            }
            let steady = last.1.elapsed() >= STEADY;
            let server = pages.borrow().server;
            let serves = matches!(server, ServerSeen::Standby | ServerSeen::Open);
            let other = steady && whom.is_some_and(|name| *name != node.config.name);
            let me = chosen.as_ref().is_some_and(|(name, why)| *name == node.config.name && (steady || *why != Why::NobodyElse));
            if me || other {
                tell(&node, &mut told, chosen.as_ref(), held.is_some());
            }
            held = match held {
                Some(held) if other || matches!(server, ServerSeen::Starting | ServerSeen::Gone | ServerSeen::Left) => {
                    give_up(&node, &config, held, &rights).await;
                    None
                }
                Some(held) => renewed(&node, held).await,
                None if me && serves => taken(&node, ttl).await,
                None => None,
            };
            node.addresses.note_right(held.map(|held| held.grant.lease));
            let until = held.map(|held| Instant::now() + held.deadline.since(boottime()));
            rights.send_replace(Right { mine: held.is_some(), at: Instant::now(), until });
        } else if let Some(before) = held.take() {
            give_up(&node, &config, before, &rights).await;
        }
        let pause = lease::renew_every(ttl).clamp(AT_LEAST, Duration::from_secs(1));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = shown.changed() => {
                if changed.is_err() { return }
                tokio::time::sleep(AT_LEAST).await;
            }
            changed = configured.changed() => if changed.is_err() { return },
        }
    }
}

/// First the addresses, then the right to them.
async fn give_up(node: &Node, config: &crate::config::VipConfig, held: HeldLease, rights: &watch::Sender<Right>) {
    rights.send_replace(Right::default());
    node.addresses.give_up(config, Kind::Reads).await;
    if let Err(why) = node.etcd.revoke(held.grant.lease).await {
        tracing::debug!("the right to the addresses for reads was not given back, it ends by itself: {why}");
    }
}

async fn renewed(node: &Node, held: HeldLease) -> Option<HeldLease> {
    match dcs::lease::renew(&*node.etcd, boottime, held.grant.lease).await {
        Ok(renewed) if renewed.doubt.is_none() => Some(renewed.held),
        Err(Error::LeaseGone) => None,
        // Unknown: it counts as long as it did.
        Ok(_) | Err(_) => (boottime() < held.deadline).then_some(held),
    }
}

async fn taken(node: &Node, ttl: Duration) -> Option<HeldLease> {
    if node.etcd.reader().await.ok()?.is_some() {
        return None;
    }
    let sent = boottime();
    let grant = node.etcd.grant(ttl).await.ok()?;
    if let Err(why) = node.etcd.take_reader(&node.config.name, grant.lease).await {
        tracing::debug!("the addresses for reads are not taken: {why}");
        // Perhaps it was written and the answer was lost: then it goes with its lease.
        let _ = node.etcd.revoke(grant.lease).await;
        return None;
    }
    let deadline = lease::deadline(sent, grant.ttl);
    Some(HeldLease { grant, deadline })
}

fn tell(node: &Node, told: &mut Option<(MemberName, Why)>, chosen: Option<&(MemberName, Why)>, held: bool) {
    let Some((name, why)) = chosen else { return };
    // That it holds them already is no news.
    let same = told.as_ref().is_some_and(|(before, reason)| before == name && (reason == why || *why == Why::Holds));
    if same || (*name != node.config.name && !held) {
        return;
    }
    match why {
        Why::NobodyElse => tracing::warn!("the addresses for reads belong to {name}: {why}"),
        Why::Holds | Why::Fittest => tracing::info!("the addresses for reads belong to {name}: {why}"),
    }
    *told = Some((name.clone(), *why));
}
