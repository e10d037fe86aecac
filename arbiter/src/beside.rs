//! What goes on beside the loop, at its own pace, for as long as the arbiter runs: the page is read,
//! the watchdog is fed for it, and virtual addresses are held for it.

use crate::config::NodeConfig;
use crate::hands::Hands;
use crate::page::{self, Page};
use crate::snapshot::Snapshot;
use crate::{address, watchdog};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The tasks; they end with it.
pub struct Beside {
    _tasks: JoinSet<()>,
}

/// Begins them.
pub fn begin(hands: &Hands, configured: &watch::Sender<Arc<NodeConfig>>, shown: &watch::Receiver<Snapshot>) -> Beside {
    let (seen, pages) = watch::channel(Page::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(page::keep_reading(hands.clone(), configured.subscribe(), shown.clone(), seen));
    let (right, rights) = watch::channel(address::Right::default());
    tasks.spawn(address::keep_reads(hands.clone(), configured.subscribe(), shown.clone(), pages.clone(), right));
    tasks.spawn(address::keep(hands.clone(), configured.subscribe(), shown.clone(), pages.clone(), rights));
    tasks.spawn(watchdog::keep(hands.clone(), configured.subscribe(), shown.clone(), pages));
    Beside { _tasks: tasks }
}
