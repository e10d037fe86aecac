//! The server's page, read again and again by a session of its own: for what must know it between two turns of the loop.
//!
//! The loop's session may wait for a checkpoint or a reload; what feeds a watchdog or holds an address must not.

use crate::config::NodeConfig;
use crate::node::Node;
use crate::node::page::Page;
use crate::node::snapshot::Snapshot;
use crate::postgres::postmaster::{PidFile, is_anybody_left};
use crate::postgres::query::{is_refusal, is_starting};
use cluster::watchdog::ServerSeen;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Looks are no further apart than this.
const AT_MOST: Duration = Duration::from_millis(500);

/// A look that takes longer has seen nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// While nobody needs the page: how soon somebody may (a device that appears).
const UNUSED: Duration = Duration::from_secs(5);

/// Reads for as long as the future is polled; each look is sent, also one that shows nothing new.
pub async fn keep_reading(
    mut node: Node,
    mut configured: watch::Receiver<Arc<NodeConfig>>,
    shown: watch::Receiver<Snapshot>,
    pages: watch::Sender<Page>,
) {
    loop {
        node.config = configured.borrow_and_update().clone();
        let wanted = node.watchdog.is_wanted(&node.config.watchdog) || !node.config.vip.is_empty();
        let pause = if wanted {
            pages.send_replace(look(&node).await);
            // A renewal moves the deadline every quarter of the TTL: four looks for each.
            (shown.borrow().view.config().timing().ttl / 16).clamp(Duration::from_millis(100), AT_MOST)
        } else {
            UNUSED
        };
        let gone = async {
            match node.postmaster().filter(|_| wanted) {
                Some(postmaster) => postmaster.exited().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.page.changed.notified() => {}
            _ = configured.changed() => {}
            () = gone => {}
        }
    }
}

async fn look(node: &Node) -> Page {
    let data_dir = &node.config.postgres.data_dir;
    if node.postmaster().is_none() {
        // Where nobody knows whether a process is left, one may be.
        let left = node.watchdog.is_armed() && is_anybody_left(data_dir).await.unwrap_or(true);
        return Page { server: if left { ServerSeen::Left } else { ServerSeen::Gone }, ..Page::default() };
    }
    // The clock is read before the question: the page's time runs on while the answer travels.
    let asked = Instant::now();
    let server = match tokio::time::timeout(PATIENCE, node.page.sql.fence()).await {
        Ok(Ok(seen)) if seen.in_recovery => ServerSeen::Standby,
        Ok(Ok(seen)) => {
            let open_until = seen.left.map(|left| asked + left).filter(|until| Instant::now() < *until);
            let server = if open_until.is_some() { ServerSeen::Open } else { ServerSeen::Closed };
            return Page { server, open_until, draining: seen.draining_for.is_some(), asked };
        }
        Ok(Err(why)) if is_starting(&why) => ServerSeen::Starting,
        Ok(Err(why)) if is_refusal(&why) => ServerSeen::Closed,
        Ok(Err(why)) => {
            tracing::debug!("the page is not seen: {why:#}");
            let status = PidFile::read(data_dir).await.ok().flatten().and_then(|file| file.status);
            if status.as_deref() == Some("ready") { ServerSeen::Silent } else { ServerSeen::Starting }
        }
        Err(_) => ServerSeen::Silent,
    };
    Page { server, asked, ..Page::default() }
}
