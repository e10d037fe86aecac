//! What goes on beside the loop, at its own pace, for as long as the arbiter runs: the page is read, the node is looked at,
//! its certificates too, the watchdog is fed for it, virtual addresses are held for it, and the twin of a major upgrade is cared for.

use crate::address::Right;
use crate::config::NodeConfig;
use crate::node::Node;
use crate::node::page::Page;
use crate::node::snapshot::Snapshot;
use crate::upkeep::{addresses, certificates, page, reads, twin, vitals, watchdog};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The tasks; they end with it.
pub struct Beside {
    _tasks: JoinSet<()>,
}

/// Begins them.
pub fn begin(node: &Node, configured: &watch::Sender<Arc<NodeConfig>>, shown: &watch::Receiver<Snapshot>) -> Beside {
    let (seen, pages) = watch::channel(Page::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(page::keep_reading(node.clone(), configured.subscribe(), shown.clone(), seen));
    let (right, rights) = watch::channel(Right::default());
    tasks.spawn(reads::keep(node.clone(), configured.subscribe(), shown.clone(), pages.clone(), right));
    tasks.spawn(addresses::keep(node.clone(), configured.subscribe(), shown.clone(), pages.clone(), rights));
    tasks.spawn(twin::keep(node.clone(), shown.clone()));
    tasks.spawn(certificates::keep(node.clone(), configured.subscribe(), shown.clone()));
    tasks.spawn(vitals::keep(node.clone(), shown.clone()));
    tasks.spawn(watchdog::keep(node.clone(), configured.subscribe(), shown.clone(), pages));
    Beside { _tasks: tasks }
}
