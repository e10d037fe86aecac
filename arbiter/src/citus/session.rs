//! What all rooms of Citus share: the name of our sessions, when something is tried again, and that etcd has changed.

use crate::node::Node;
use cluster::view::ClusterView;
use std::time::Duration;
use tokio::sync::watch;

/// What our sessions are called.
pub(super) const SESSION: &str = "tenure arbiter, citus";

/// Pause after something failed: another node's server is away, or the nodes are not in step yet.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Tells that something changed in etcd, not what.
pub(super) type Changes = watch::Receiver<()>;

/// How long transactions that use a group may go on once its writers are held: `citus.lock_cooldown`, or `retry_timeout`.
pub(super) fn cooldown(node: &Node, own: &ClusterView) -> Duration {
    let given = node.config.citus.as_ref().and_then(|citus| citus.lock_cooldown_s).map(Duration::from_secs);
    given.unwrap_or_else(|| own.config().timing().retry_timeout)
}
