//! Virtual addresses are held for as long as the page or the key for reads allows (`address/` puts them there).

use crate::address::{Kind, Right, Wish};
use crate::config::NodeConfig;
use crate::node::Node;
use crate::node::page::Page;
use crate::node::snapshot::Snapshot;
use cluster::address::{self, Lifetime};
use cluster::watchdog::ServerSeen;
use dcs::Dcs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// At the end of the arbiter, giving the right to the addresses for reads back may take so long; it ends by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// The arbiter ends, and its tasks have ended: where no server is left, neither is an address, and others need not wait for the lease.
pub async fn at_end(node: &Node) {
    let (addresses, config) = (&node.addresses, &node.config.vip);
    if node.postmaster().is_some() {
        return;
    }
    addresses.give_up(config, Kind::Primary).await;
    addresses.give_up(config, Kind::Reads).await;
    if let Some(lease) = addresses.take_right() {
        let _ = tokio::time::timeout(FAREWELL, node.etcd.revoke(lease)).await;
    }
}

/// Keeps the addresses for as long as the future is polled.
pub async fn keep(
    node: Node,
    mut configured: watch::Receiver<Arc<NodeConfig>>,
    shown: watch::Receiver<Snapshot>,
    mut pages: watch::Receiver<Page>,
    mut rights: watch::Receiver<Right>,
) {
    let mut first = true;
    loop {
        let next = node.addresses.next_announcement().await;
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            seen = pages.changed() => if seen.is_err() { return },
            changed = rights.changed() => if changed.is_err() { return },
            changed = configured.changed() => if changed.is_err() { return },
            () = due => {}
        }
        let (page, right, config) = (*pages.borrow_and_update(), *rights.borrow_and_update(), configured.borrow_and_update().vip.clone());
        let left = |until: Option<Instant>| until.and_then(|until| until.checked_duration_since(Instant::now()));
        // What an arbiter before this one left here, nobody vouches for until something is seen.
        let sure = |lifetime| if first && lifetime == Lifetime::Lapse { Lifetime::Drop } else { lifetime };
        let lifetime = sure(address::primary(page.server, left(page.open_until), page.draining));
        let primary = Wish { lifetime, at: page.asked, until: page.open_until };
        let lifetime = sure(address::reads(page.server, left(right.until), right.mine));
        let reads = Wish { lifetime, at: right.at, until: right.until };
        first = false;
        let to_lead = page.server == ServerSeen::Standby && shown.borrow().view.leader_if(&node.config.name).is_some();
        if node.addresses.round(config, primary, reads, to_lead, right.mine).await {
            // The member key is to say so.
            node.wake.notify_one();
        }
    }
}
