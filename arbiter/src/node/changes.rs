//! Planned changes for which poolers are paused (`poolers/`), as the procedures and the task that lets them go on both see them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Changes under way that have paused something, and the bell for the task that lets it go on.
#[derive(Debug, Default)]
pub struct Changes {
    /// How many.
    pub count: AtomicUsize,
    /// One has ended.
    pub bell: Notify,
}

/// While this lives, the change that paused the poolers is under way. However it ends, what was paused is looked after then.
pub struct UnderWay(Arc<Changes>);

impl UnderWay {
    /// One begins.
    pub fn begin(changes: &Arc<Changes>) -> UnderWay {
        changes.count.fetch_add(1, Ordering::AcqRel);
        UnderWay(changes.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.bell.notify_one();
    }
}
