//! Walsenders whose standby has gone on without them: a network that loses everything between two servers tells neither.
//!
//! The receiver gives up after some seconds; the walsender's end waits for TCP to try again, up to as long after the cut heals as the cut
//! lasted, or for `wal_sender_timeout`. Until then it keeps the slot, so that the next receiver is refused, and its place among those whom
//! commits wait for. So one that has heard nothing for longer than any receiver is silent is ended once its standby says, by way of etcd,
//! that it streams from nobody.

use crate::node::Node;
use crate::node::heard::LeftOver;
use crate::postgres::facts::ServerFacts;
use cluster::view::ClusterView;
use std::time::{Duration, Instant};

/// Had it heard something since, it would stay.
const END: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE pid = $1 AND reply_time::text IS NOT DISTINCT FROM $2::text";

/// Ends those that are left over.
pub async fn end_left_over(node: &Node, view: &ClusterView, facts: &ServerFacts) {
    let every = Duration::from_secs(facts.status_interval_s.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0));
    for LeftOver { pid, standby, word, silent, is_news } in node.heard.look(Instant::now(), view, &facts.replication, every) {
        if is_news {
            tracing::warn!(
                "the walsender of {standby} (process {pid}) has heard nothing for {} s, and {standby} says that it streams from nobody: it is ended, as it keeps the slot and commits may wait for it",
                silent.as_secs()
            );
        }
        if let Err(why) = node.sql.run(END, &[&pid, &word]).await {
            tracing::warn!("end the walsender of {standby}: {why:#}");
        }
    }
}
