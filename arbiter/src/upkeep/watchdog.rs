//! The watchdog device is fed for what the page shows, and closed when no server is left.

use crate::config::NodeConfig;
use crate::node::Node;
use crate::node::page::Page;
use crate::node::snapshot::Snapshot;
use crate::postgres::postmaster::is_anybody_left;
use cluster::watchdog::{self, Act, Mode};
use std::sync::Arc;
use tokio::sync::watch;

/// The arbiter ends: where no process of a server is left, or in maintenance mode, the device must not fire for that. Otherwise it goes on
/// counting, until the next arbiter feeds it or the host is reset.
pub async fn at_end(node: &Node, paused: bool) {
    let left = is_anybody_left(&node.config.postgres.data_dir).await.unwrap_or(true);
    if !left || paused {
        node.watchdog.disarm().await;
    } else if node.watchdog.is_armed() {
        node.watchdog.feed_at_end().await;
        tracing::error!("the arbiter ends beside a server that runs: the watchdog resets this host unless an arbiter starts in time");
    }
}

/// Does for each look at the page what is due, for as long as the future is polled.
pub async fn keep(
    node: Node,
    configured: watch::Receiver<Arc<NodeConfig>>,
    shown: watch::Receiver<Snapshot>,
    mut pages: watch::Receiver<Page>,
) {
    let mut starving = false;
    while pages.changed().await.is_ok() {
        let page = *pages.borrow_and_update();
        let config = configured.borrow().watchdog.clone();
        let (ttl, paused) = {
            let snapshot = shown.borrow();
            (snapshot.view.config().timing().ttl, snapshot.view.config().paused())
        };
        let watchdog = &node.watchdog;
        if config.mode == Mode::Off {
            watchdog.disarm().await;
            continue;
        }
        let act = watchdog::act(page.server, watchdog.is_promoting(), paused);
        let done = match act {
            Act::Arm => {
                // Where it can't be opened, that was said.
                let _ = watchdog.open(&config, ttl).await;
                watchdog.feed(&config, ttl).await
            }
            Act::Feed => watchdog.feed(&config, ttl).await,
            Act::Starve => Ok(()),
            Act::Disarm => {
                watchdog.disarm().await;
                Ok(())
            }
        };
        if let Err(why) = done {
            watchdog.tell(format!("the watchdog is not fed, and resets this host: {why:#}"));
        }
        let starves = act == Act::Starve && watchdog.is_armed();
        if starves && !starving {
            tracing::error!("the watchdog is not fed: nobody knows what the server's page says ({:?}); it resets this host", page.server);
        }
        starving = starves;
    }
}
