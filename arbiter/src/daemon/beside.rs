//! What goes on beside the loop, at its own pace, for as long as the arbiter runs: the page is read, the node is looked at,
//! the watchdog is fed for it, and virtual addresses are held for it.

use crate::address;
use crate::config::NodeConfig;
use crate::daemon::snapshot::Snapshot;
use crate::node::Node;
use crate::node::page::{self, Page};
use crate::node::vitals;
use crate::node::watchdog;
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
    let (right, rights) = watch::channel(address::Right::default());
    tasks.spawn(address::keep_reads(node.clone(), configured.subscribe(), shown.clone(), pages.clone(), right));
    tasks.spawn(address::keep(node.clone(), configured.subscribe(), shown.clone(), pages.clone(), rights));
    tasks.spawn(vitals::keep(node.clone(), shown.clone()));
    tasks.spawn(watchdog::keep(node.clone(), configured.subscribe(), shown.clone(), pages));
    Beside { _tasks: tasks }
}
